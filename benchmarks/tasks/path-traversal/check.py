import os
import sys
import tempfile
from pathlib import Path
sys.path.insert(0, ".")
from static import serve_file

with tempfile.TemporaryDirectory() as base:
    folder = Path(base, "www")
    (folder / "sub").mkdir(parents=True)
    Path(base, "secret").write_text("secret")
    Path(base, "www-other").mkdir()
    Path(base, "www-other", "x").write_text("secret")
    (folder / "sub" / "a").write_text("a")
    os.symlink("sub/a", folder / "inside")
    os.symlink(base, folder / "out")
    os.symlink(folder, Path(base, "linked"))
    for root in (folder, str(folder), Path(base, "linked")):
        for path in ("sub/a", "inside", "sub/../sub/a"):
            assert serve_file(root, path) == b"a", path
        for path, error in (("../secret", PermissionError), (f"{base}/secret", PermissionError), ("out/secret", PermissionError), ("../www-other/x", PermissionError), ("none", FileNotFoundError)):
            try:
                serve_file(root, path)
            except error:
                continue
            raise AssertionError(path)

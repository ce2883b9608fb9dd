import json
import subprocess
import sys
import tempfile
from pathlib import Path

program = str(Path("wc.py").resolve())
def run(*arguments):
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, cwd=folder)
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "a").write_text("one two\nthree\n")
    Path(folder, "b").write_text("x")
    assert run("a", "b").stdout == "2 3 14 a\n0 1 1 b\n"
    one = json.loads(run("--json", "a").stdout)
    assert one == {"a": {"lines": 2, "words": 3, "bytes": 14}}, one
    both = json.loads(run("--json", "a", "b").stdout)
    assert both["total"] == {"lines": 2, "words": 4, "bytes": 15} and both["b"]["bytes"] == 1, both
    for flags in ([], ["--json"]):
        ended = run(*flags, "missing", "a")
        assert ended.returncode == 1 and "missing" in ended.stderr and "Traceback" not in ended.stderr, ended
        assert "14" in ended.stdout
    assert run("a").returncode == 0

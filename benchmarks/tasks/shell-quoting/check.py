import subprocess
import tempfile
from pathlib import Path

script = str(Path("backup.sh").resolve())
def run(*arguments):
    return subprocess.run(["bash", script, *arguments], capture_output=True, text=True, cwd=folder)
with tempfile.TemporaryDirectory() as folder:
    source = Path(folder, "so urce")
    (source / "in ner").mkdir(parents=True)
    for name in ("a b.txt", "-n.txt", "in ner/c*.txt", "new\nline.txt"):
        (source / name).write_text(name)
    (source / "other.md").write_text("x")
    Path(folder, "local.txt").write_text("x")
    ended = run("so urce", "tar get")
    assert ended.returncode == 0 and ended.stdout.strip() == "4", ended
    assert sorted(path.name for path in Path(folder, "tar get").iterdir()) == ["-n.txt", "a b.txt", "c*.txt", "new\nline.txt"]
    Path(folder, "file").write_text("")
    assert run("so urce", "file/below").returncode not in (0,), "it went on without a target"
    for arguments in ([], ["a"], ["a", "b", "c"]):
        ended = run(*arguments)
        assert ended.returncode == 2 and "sage" in ended.stderr + ended.stdout, ended

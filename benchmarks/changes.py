"""GET /changes in a workspace of 100,000 files, against a plain `git status` of the same files by the user's own repository."""

import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import Line, figure, percentile, ratio
from benchmarks.apps import App, ours
from benchmarks.proc import settle

WHOLE = 2.0
"""Times `git status`."""

FOLDERS, FILES = 1_000, 100
ROUNDS = 9
RECORD_SECONDS = 300.0
"""How long the first recording may take, which reads every file."""

GIT = ["git", "-c", "user.name=Bench", "-c", "user.email=bench@example.com", "-c", "gc.auto=0"]


def measure() -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workspace, data = Path(folder, "workspace"), Path(folder, "data")
        _fill(workspace)
        with ours(WORKSPACE_DIR=str(workspace), DATA_DIR=str(data)) as app:
            recorded = _wait_for(data / "shadow" / "refs" / "checkpoints" / "base")
            pairs = {name: _compare(app, workspace, edits) for name, edits in (("nothing changed", 0), ("100 files changed", 100))}
    lines = [figure("changes: first recording of 100,000 files", recorded, "s")]
    for name, times in pairs.items():
        ours_, git = (percentile([pair[side] * 1000 for pair in times], 0.5) for side in (0, 1))
        lines.append(ratio(f"changes: {name}, 100,000 files", ours_, git, "ms", at_most=WHOLE))
    return lines


def _fill(workspace: Path) -> None:
    for number in range(FOLDERS):
        folder = _folder(workspace, number)
        folder.mkdir(parents=True)
        for file in range(FILES):
            (folder / f"f{file}.txt").write_text(f"{number} {file}\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*GIT, *command], cwd=workspace, check=True)


def _folder(workspace: Path, number: int) -> Path:
    return workspace / f"d{number // 50}" / f"e{number}"


def _wait_for(path: Path) -> float:
    begin = time.perf_counter()
    while not path.exists():
        if time.perf_counter() - begin > RECORD_SECONDS:
            raise TimeoutError(f"The workspace was not recorded within {RECORD_SECONDS} s.")
        time.sleep(0.05)
    return time.perf_counter() - begin


def _compare(app: App, workspace: Path, edits: int) -> list[tuple[float, float]]:
    """Times both, one after the other, in seconds; the first round is left out, in which both note what was edited."""
    for number in range(edits):
        (_folder(workspace, number * 7) / "f0.txt").write_text("edited\n")
    pairs = []
    for _ in range(ROUNDS + 1):
        settle()
        begin = time.perf_counter()
        status = subprocess.run([*GIT, "status", "--porcelain"], cwd=workspace, check=True, capture_output=True)
        middle = time.perf_counter()
        answer = app.get("/changes")
        pairs.append((time.perf_counter() - middle, middle - begin))
        found = (len(status.stdout.splitlines()), len(answer["files"]))
        assert found == (edits, edits), found
    return pairs[1:]

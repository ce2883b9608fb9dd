"""What the workspace's own checkers say of files that a call has changed: the end of its result.

A checker runs where the workspace has configured it and it is installed, there or on the commands' PATH. A checker that cannot do
its work is a line in the server's log, and nothing for the model.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from agent_server.calling.checkers import CHECKERS, Checker, Finding
from agent_server.calling.permissions import Called, Places, judge
from agent_server.commands.execution import Command, Owner
from agent_server.commands.output import CUT
from agent_server.errors import AgentServerError
from agent_server.messages import ToolCall
from agent_server.sessions.run import Caller, Run
from agent_server.workspace_config import ConfigInvalid, read
from tools import ToolResult

logger = logging.getLogger(__name__)

CHECK_TIME = 5.0
"""Seconds for all checkers together, side by side: the model waits for them after every change."""

MAX_LATE = 3
"""Times that a checker may be late in one project and conversation: each is a wait of CHECK_TIME for nothing."""

MAX_RUNS = 8
"""Runs of checkers after a call, which may have changed files of several projects."""

MAX_FILES = 50
"""Files of a call that are checked."""

MAX_SHOWN = 20
"""Errors of the changed files that are shown, of all checkers."""

MAX_ELSEWHERE = 5
"""Errors of other files that are shown: a change may have broken them."""

MAX_MESSAGE = 300
"""Characters of an error that are shown."""

OUTPUT_BYTES = 256 * 1024
"""Bytes of a checker's output that are kept: some thousand errors."""

OPENCODE_NAMES = {"tsc": "typescript"}
"""What OpenCode calls the language servers of checkers that have other names."""

BIN_FOLDERS = ("node_modules/.bin", ".venv/bin", "venv/bin")
"""Where a project has its own programs."""


class _Run(msgspec.Struct, frozen=True):
    """One command of a checker, in the folder of its configuration."""

    checker: Checker
    folder: Path
    argv: Sequence[str]
    project: str
    """What lateness is counted by: the checker and the folder."""


class _Told(msgspec.Struct, frozen=True):
    """What a run has found; None when it was not done in time. Not `is_whole` where it printed more than is kept."""

    run: _Run
    findings: Sequence[Finding] | None
    is_whole: bool = True

    @property
    def name(self) -> str:
        return self.run.checker.name


async def diagnosed(caller: Caller, call: ToolCall, result: ToolResult) -> ToolResult:
    """Gives the result of a call that has changed files, with what the checkers say of them.

    Without the tool `bash` nothing runs, nor where the workspace's rules hold such a command: checkers run what is in the workspace,
    which a call that may only edit could have written.
    """
    if "bash" not in caller.tools:
        return result
    around = caller.around
    root = around.workspace.root
    runs, files = await asyncio.to_thread(_plan, caller, result)
    if not runs:
        return result
    owner = Owner(caller.session_id, caller.task_id, call.id)
    async with around.pause.aside(), asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(caller, run, owner)) for run in runs]
    told = [found for task in tasks if (found := task.result()) is not None]
    late = sorted({one.run.project for one in told if one.findings is None})
    parts = [*_parts(told, {str(path) for path in files}, root), *(_of_late(project, caller.late.get(project, 0) + 1) for project in late)]
    details = {**result.details, "late": late} if late else result.details
    return msgspec.structs.replace(result, content="\n\n".join([result.content, *parts]), details=details)


def _is_wanted(root: Path, checker: Checker) -> bool:
    """Whether opencode.json leaves a checker on: `lsp` may be false, or have it `disabled` by its name or OpenCode's. Blocks."""
    try:
        said = read(root).get("lsp")
    except ConfigInvalid:
        return True
    named = [said.get(name) for name in (checker.name, OPENCODE_NAMES.get(checker.name))] if isinstance(said, dict) else []
    return said is not False and not any(isinstance(one, dict) and one.get("disabled") is True for one in named)


def _may_run(caller: Caller, checker: Checker) -> bool:
    """Whether a call of bash with this command would run unasked."""
    if not isinstance(caller, Run):  # over MCP there are no rules
        return True
    around, call = caller.around, Called("bash", {"command": f"{checker.name} ."})
    places = Places(str(around.workspace.root), str(around.outputs))
    return judge(caller.rules, list(caller.conversation.allowed), call, places).verdict == "allow"


def _plan(caller: Caller, result: ToolResult) -> tuple[Sequence[_Run], Sequence[Path]]:
    """Gives what is to be run, and the files that were changed and are there. Blocks."""
    root = caller.around.workspace.root
    files = [path for name in _changed(result)[:MAX_FILES] if (path := root / name).is_relative_to(root) and path.is_file()]
    runs: list[_Run] = []
    for checker in CHECKERS if files else ():
        projects: dict[Path, list[Path]] = {}
        for path in files:
            if path.suffix in checker.suffixes and (folder := _configured(checker, path, root)) is not None:
                projects.setdefault(folder, []).append(path)
        if projects and not (_is_wanted(root, checker) and _may_run(caller, checker)):
            continue
        for folder, own in projects.items():
            project = f"{checker.name} {folder.relative_to(root)}"
            if caller.late.get(project, 0) >= MAX_LATE:
                continue
            if (program := _program(checker.name, folder, root, caller.around.processes.environment)) is not None:
                runs += [_Run(checker, folder, [program, *arguments], project) for arguments in checker.commands(folder, own)]
    return runs[:MAX_RUNS], files


def _changed(result: ToolResult) -> list[str]:
    details = result.details
    return sorted({*details.get("paths", ()), *([details["path"]] if "path" in details else ())})


def _upwards(path: Path, root: Path) -> Iterator[Path]:
    """The folders from that of a file up to the workspace."""
    yield from (folder for folder in path.parents if folder.is_relative_to(root))


def _configured(checker: Checker, path: Path, root: Path) -> Path | None:
    return next((folder for folder in _upwards(path, root) if checker.configured(folder)), None)


def _program(name: str, folder: Path, root: Path, environment: Mapping[str, str]) -> str | None:
    for place in _upwards(folder / name, root):
        for binaries in BIN_FOLDERS:
            if (path := place / binaries / name).is_file() and os.access(path, os.X_OK):
                return str(path)
    return shutil.which(name, path=environment.get("PATH", os.defpath))


async def _run(caller: Caller, run: _Run, owner: Owner) -> _Told | None:
    """Runs a checker; None when it could not do its work."""
    name = run.checker.name
    wanted = Command(run.argv, run.folder, env={"NO_COLOR": "1"}, timeout=CHECK_TIME, limit=OUTPUT_BYTES)
    try:
        ended = await caller.around.processes.run(wanted, owner, _ignore)
    except AgentServerError as error:
        logger.warning("%s could not be run on a changed file: %s", name, error)
        return None
    if ended.timed_out:
        return _Told(run, None)
    # Of a longer output the beginning is read: what its rest is about is not known without what is left out.
    output = ended.stdout.partition(CUT)[0] if ended.truncated else ended.stdout
    findings = list(run.checker.read(output, run.folder))
    if ended.exit_code != 0 and (ended.exit_code not in run.checker.found or not findings):
        how = ended.signal or f"exit code {ended.exit_code}"
        said = " ".join((ended.stderr or ended.stdout).split())
        logger.warning("%s could not check a changed file (%s): %s", name, how, said[:MAX_MESSAGE])
        return None
    return _Told(run, findings, not ended.truncated)


def _ignore(stream: str, chunk: str, offset: int, skipped: int) -> None:
    pass


def _parts(told: Sequence[_Told], files: set[str], root: Path) -> Iterator[str]:
    """The texts that are appended. They depend on what was found alone, not on the order in which it was."""
    names = sorted({one.name for one in told})
    found = {name: sorted({each for one in told if one.name == name for each in one.findings or ()}) for name in names}
    own = {name: [each for each in found[name] if each.path in files] for name in names}
    cut = {one.name for one in told if not one.is_whole}
    share = MAX_SHOWN // max(1, sum(bool(each) for each in own.values()))
    for name in names:
        if own[name]:
            yield f"{name} found {_count(own[name], name in cut)} in the changed files:\n{_lines(own[name], share, root)}"
    left = MAX_ELSEWHERE
    for name in names:
        others = [each for each in found[name] if each.path not in files]
        if others and left:
            yield f"{name} found {_count(others, name in cut)} in other files:\n{_lines(others, left, root)}"
            left -= min(left, len(others))


def _of_late(project: str, times: int) -> str:
    name, _, folder = project.partition(" ")
    told = f"{name} was not done within {CHECK_TIME:g} s: what it would find is not known."
    if times < MAX_LATE:
        return told
    where = "" if folder == "." else f" in {folder}"
    return f"{told} It is not run after changes{where} any more in this conversation; run it by yourself when you need to know."


def _count(findings: Sequence[Finding], is_cut: bool) -> str:
    return f"{'at least ' if is_cut else ''}{len(findings)} error{'s' if len(findings) > 1 else ''}"


def _lines(findings: Sequence[Finding], most: int, root: Path) -> str:
    lines = [_line(each, root) for each in findings[:most]]
    return "\n".join([*lines, f"... and {len(findings) - most} more"] if len(findings) > most else lines)


def _line(finding: Finding, root: Path) -> str:
    path = finding.path.removeprefix(f"{root}/")
    text = finding.text if len(finding.text) <= MAX_MESSAGE else f"{finding.text[: MAX_MESSAGE - 1]}…"
    return f"{path}:{finding.line}:{finding.column}: {text}"

"""Tells what a task can have changed, so that nobody else's files are taken for its own."""

from collections.abc import Collection

from agent_server.events.log import EventLog
from agent_server.sessions.tasks import Task
from tools import MASK

FILE_TOOLS = frozenset({"write", "edit", "apply_patch"})
"""Tools that change files, which their result names."""

REPLACEMENT = "\ufffd"


async def may_have_changed(log: EventLog, task: Task, read_only: Collection[str]) -> frozenset[bytes] | None:
    """Gives the paths that a task can have changed; None is any, as of a task that ran commands.

    `read_only` names the tools that change nothing.
    """
    used = set(task.tools).difference(read_only)
    if not used:
        return frozenset()
    if not used <= FILE_TOOLS:
        return None
    paths: set[bytes] = set()
    for event in await log.read(task_id=task.task_id, types=("tool.finished",)):
        if event.data["tool"] in used:
            details = event.data.get("details", {})
            named = [*details.get("paths", ()), *([details["path"]] if "path" in details else ())]
            if event.data["interrupted"] or any(MASK in path or REPLACEMENT in path for path in named):
                return None  # what it wrote is not known, or not its whole name
            paths.update(path.encode() for path in named)
    return frozenset(paths)

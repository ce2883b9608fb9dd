"""Takes back what the last tasks of a session did, and brings it back: the files they changed, and their part of the conversation.

Both are moves of the workspace from one recorded state to another, which is in the log before the first file is touched: a start
after a crash finishes what had begun. The conversation needs no work of its own, its fold follows the events (`conversation.py`).

    revert.started                         the states it leads from and to: `from`, `to`
    session.reverted, session.unreverted   all files are restored, but for those in `skipped`
    revert.failed                          all files are as before, but for those in `left`
"""

import asyncio
import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent_server.changes.authorship import may_have_changed
from agent_server.changes.changes import Entry, shown
from agent_server.changes.checkpoints import Checkpoints, created
from agent_server.changes.restore import Blocked, Restoration, moves_of
from agent_server.changes.shadow import Shadow
from agent_server.commands.processes import finish
from agent_server.errors import AgentServerError, Conflict, InvalidRequest, NotFound, Unprocessable
from agent_server.events import Draft, Event
from agent_server.events.log import EventLog
from agent_server.ids import new_id
from agent_server.sessions import session_index, tasks
from agent_server.sessions.entries import prompt_id
from agent_server.sessions.sessions import Sessions
from agent_server.sessions.tasks import Task

logger = logging.getLogger(__name__)

MAX_TASKS = 1_000
"""Tasks that are reverted at once."""

MAX_BESIDE = 1_000
"""Tasks of other sessions, at work at the same time as one that is reverted, whose changes are compared."""

NAMED_FILES = 1_000
"""Paths in a reply and in an event; the rest are counted."""

NAMED_CONFLICTS = 100

Action = Literal["revert", "unrevert"]
DONE: Mapping[str, str] = {"revert": "session.reverted", "unrevert": "session.unreverted"}


class RevertIndex:
    """The table `reverts`: how far each has come; `at` is the event that began the last move, `done` the session.reverted."""

    version = 1
    tables: Sequence[str] = ("reverts",)
    schema: Sequence[str] = (
        "CREATE TABLE reverts (revert_id TEXT PRIMARY KEY, session_id TEXT, state TEXT, at INTEGER, done INTEGER) WITHOUT ROWID",
        "CREATE INDEX reverts_open ON reverts (at) WHERE state IN ('reverting', 'unreverting')",
        "CREATE INDEX reverts_session ON reverts (session_id, done)",
    )

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if event.type in ("session.deleted", "session.restored"):
                db.execute("UPDATE reverts SET state = 'deleted' WHERE session_id = ? AND state = 'reverted'", (event.session_id,))
            statement = _FOLDS.get((event.type, event.data.get("action", "")))
            if statement is not None:
                db.execute(statement, {"id": event.data["revertId"], "session": event.session_id, "seq": event.seq})


_FOLDS: Mapping[tuple[str, str], str] = {
    ("revert.started", "revert"): "INSERT OR REPLACE INTO reverts VALUES (:id, :session, 'reverting', :seq, NULL)",
    ("revert.started", "unrevert"): "UPDATE reverts SET state = 'unreverting', at = :seq WHERE revert_id = :id",
    ("session.reverted", "revert"): "UPDATE reverts SET state = 'reverted', done = :seq WHERE revert_id = :id",
    ("session.unreverted", "unrevert"): "UPDATE reverts SET state = 'unreverted' WHERE revert_id = :id",
    ("revert.failed", "revert"): "UPDATE reverts SET state = 'failed' WHERE revert_id = :id",
    ("revert.failed", "unrevert"): "UPDATE reverts SET state = 'reverted' WHERE revert_id = :id",
}


class Wanted(msgspec.Struct, frozen=True):
    """What a path should be now, if nobody else changed it, and what it is to be."""

    expected: Entry | None
    target: Entry | None


class Reverts:
    """Reverts of all sessions, one at a time. `read_only` names the tools that change nothing."""

    def __init__(self, log: EventLog, workspace: Path, checkpoints: Checkpoints, sessions: Sessions, read_only: Collection[str]) -> None:
        self._log = log
        self._workspace = workspace
        self._checkpoints = checkpoints
        self._sessions = sessions
        self._read_only = read_only
        self._turn = asyncio.Lock()  # moves of the workspace take turns

    async def recover(self) -> None:
        """Finishes what a killed server had begun; files that were changed since are left, and named. Errors: none but the log's."""
        statement = "SELECT at FROM reverts WHERE state IN ('reverting', 'unreverting') ORDER BY at"
        for (at,) in await self._log.query(lambda db: db.execute(statement).fetchall()):
            (event, *_) = await self._log.read(after=at - 1, types=("revert.started",))
            session_id, data = event.session_id or "", dict(event.data)
            try:
                shadow = await self._checkpoints.shadow()
                differences = await shadow.in_thread(shadow.entries, data["from"], data["to"])
                restoration = Restoration(self._workspace, moves_of(differences), data["revertId"])
                skipped = await shadow.in_thread(shadow.with_contents, restoration.apply_what_can_be)
            except (AgentServerError, OSError) as error:
                logger.error("the %s %s cannot be finished: %s", data["action"], data["revertId"], error)
                await self._fail(session_id, data, error, ())
            else:
                await self._log.append(_done(session_id, data, differences, skipped=skipped))

    async def revert(self, session_id: str, *, task_id: str | None = None, message_id: str | None = None, force: bool) -> Mapping[str, Any]:
        """Takes a task and all later ones of its session back; gives what `session.reverted` says.

        Errors: NotFound; Conflict when a task is processing, or files were changed by others (unless `force`), or cannot be written.
        """
        first = await self._find(session_id, task_id, message_id)
        async with self._sessions.held(session_id), self._turn:
            later = await tasks.find_from(self._log, first, MAX_TASKS + 1)
            found = [task for task in later if task.ended is not None and not task.is_reverted]  # others came since, and wait
            if not found or found[0].task_id != first.task_id:
                raise Conflict(
                    f"{first.task_id} is reverted already; name an earlier task, or unrevert.", details={"taskId": first.task_id}
                )
            if len(found) > MAX_TASKS:
                raise Unprocessable(f"More than {MAX_TASKS} tasks cannot be reverted at once; revert to a later one first.")
            data = {"revertId": new_id("rev"), "action": "revert", "taskIds": [task.task_id for task in found]}
            return await finish(self._take_back(session_id, data, found, force=force))  # type: ignore[no-any-return]  # Any, as finish says

    async def _take_back(self, session_id: str, data: Mapping[str, Any], found: Sequence[Task], *, force: bool) -> Mapping[str, Any]:
        shadow = await self._checkpoints.shadow()
        async with _Recorded(self._checkpoints, shadow, _before(data)) as before:
            wanted: dict[bytes, Wanted] = {}
            foreign: set[bytes] = set()
            for task in found:
                changed = await self._changed_by(shadow, task, before.tree)
                foreign |= _chain(wanted, changed)
                for other in await tasks.find_beside(self._log, task, MAX_BESIDE) if changed else ():
                    is_subagent = other.parent_id == task.task_id  # what it changed is the task's own doing
                    if not other.is_reverted and not is_subagent:
                        foreign |= changed.keys() & (await self._changed_by(shadow, other, before.tree)).keys()
            return await self._move(session_id, data, shadow, before, wanted, foreign, force=force)

    async def unrevert(self, session_id: str, *, force: bool) -> Mapping[str, Any]:
        """Undoes the last revert of a session; gives what `session.unreverted` says.

        Errors: as of `revert`; and Conflict when there is none, or a task was created since.
        """
        async with self._sessions.held(session_id), self._turn:
            statement = "SELECT revert_id, done FROM reverts WHERE session_id = ? AND state = 'reverted' ORDER BY done DESC LIMIT 1"
            last = await self._log.query(lambda db: db.execute(statement, (session_id,)).fetchone())
            if last is None:
                raise Conflict(f"Nothing of {session_id} is reverted, so there is nothing to bring back.")
            revert_id, done = last
            newest = await tasks.find_newest_started(self._log, session_id)
            if newest is not None and (newest.started or 0) > done:
                message = f"{newest.task_id} came after the revert, which therefore cannot be undone any more."
                raise Conflict(message, details={"taskId": newest.task_id})
            (event,) = [
                e for e in await self._log.read(after=done - 1, session_id=session_id, types=("session.reverted",)) if e.seq == done
            ]
            data = {"revertId": revert_id, "action": "unrevert", "taskIds": event.data["taskIds"]}
            return await finish(self._bring_back(session_id, data, force=force))  # type: ignore[no-any-return]  # as above

    async def _bring_back(self, session_id: str, data: Mapping[str, Any], *, force: bool) -> Mapping[str, Any]:
        shadow, revert_id = await self._checkpoints.shadow(), data["revertId"]
        try:
            differences = await shadow.in_thread(shadow.entries, shadow.tree(f"{revert_id}-after"), shadow.tree(f"{revert_id}-before"))
        except NotFound as error:
            raise Conflict(f"What was reverted is not recorded any more, to save disk space: {error}") from error
        wanted = {path: Wanted(expected, target) for path, (expected, target) in differences.items()}
        async with _Recorded(self._checkpoints, shadow, _before(data)) as before:
            return await self._move(session_id, data, shadow, before, wanted, set(), force=force)

    async def _move(
        self,
        session_id: str,
        data: Mapping[str, Any],
        shadow: Shadow,
        before: "_Recorded",
        wanted: Mapping[bytes, Wanted],
        foreign: Collection[bytes],
        *,
        force: bool,
    ) -> Mapping[str, Any]:
        changed, conflicts = await shadow.in_thread(_plan, shadow, before.tree, wanted, foreign)
        if conflicts and not force:
            raise _conflict("were changed by somebody else since; send force: true to restore them all the same", conflicts)
        left_out = shadow.left_out.to_wire()
        async with _Grafted(self._checkpoints, shadow, before, changed) as after:
            differences = await shadow.in_thread(shadow.entries, before.tree, after.tree)
            restoration = Restoration(self._workspace, moves_of(differences), data["revertId"])
            _require_free(await shadow.in_thread(restoration.check))
            states = {"from": before.tree, "to": after.tree, "force": force}
            kept = [created(state.name, state.tree, session_id) for state in (before, after)]
            await self._log.append(*kept, Draft("revert.started", {**data, **states}, session_id, sync=True))
            before.is_kept = after.is_kept = True
            try:
                await shadow.in_thread(shadow.with_contents, restoration.apply)
            except (AgentServerError, OSError) as error:
                raise await self._undo(session_id, data, shadow, restoration, error) from error
            (event,) = await self._log.append(_done(session_id, data, differences, overwritten=conflicts, left_out=left_out))
        return event.data

    async def _undo(
        self, session_id: str, data: Mapping[str, Any], shadow: Shadow, restoration: Restoration, error: Exception
    ) -> AgentServerError:
        """Puts files back after a failure, and gives the error that says how that went."""
        try:
            left = await shadow.in_thread(shadow.with_contents, restoration.backwards().apply_what_can_be)
        except (AgentServerError, OSError) as another:
            logger.error("files could not be put back: %s", another)
            left = restoration.paths
        await self._fail(session_id, data, error, left)
        outcome = f"{len(left)} files could not be put back" if left else "all files are as before"
        return Conflict(f"The {data['action']} failed, and {outcome}: {error}", details={"paths": _named(left, NAMED_CONFLICTS)})

    async def _fail(self, session_id: str, data: Mapping[str, Any], error: Exception, left: Collection[bytes]) -> None:
        code = error.code if isinstance(error, AgentServerError) else AgentServerError.code
        failure = {**data, "error": {"code": code, "message": str(error)}, "left": _named(left), "leftCount": len(left)}
        await self._log.append(Draft("revert.failed", failure, session_id, sync=True))

    async def _changed_by(self, shadow: Shadow, task: Task, now: str) -> dict[bytes, tuple[Entry | None, Entry | None]]:
        """Gives what a task changed: what differs between the states before and after it, and it can have touched."""
        paths = await may_have_changed(self._log, task, self._read_only) if task.started is not None else frozenset[bytes]()
        if paths is not None and not paths:
            return {}
        try:
            end = now if task.ended is None else shadow.tree(f"{task.task_id}-end")
            differences = await shadow.in_thread(shadow.entries, shadow.tree(f"{task.task_id}-start"), end)
        except NotFound as error:
            message = (
                f"The states of the workspace before and after {task.task_id} are not both recorded, so it cannot be reverted: {error}"
            )
            raise Conflict(message, details={"taskId": task.task_id}) from error
        return differences if paths is None else {path: both for path, both in differences.items() if path in paths}

    async def _find(self, session_id: str, task_id: str | None, message_id: str | None) -> Task:
        session = await session_index.find(self._log, session_id)
        if task_id is None:
            task_id = await self._begun_by(session_id, message_id or "")
        task = await tasks.find(self._log, task_id)
        if task.session_id != session_id:
            details = {"taskId": task_id, "sessionId": task.session_id}
            raise NotFound(f"{task_id} is a task of {task.session_id}; revert that session.", code="TASK_NOT_FOUND", details=details)
        if task.created < session.created:
            message = f"{task_id} is of a session of this name that was deleted, or of before it was restored from a snapshot."
            raise NotFound(message, code="TASK_NOT_FOUND", details={"taskId": task_id})
        return task

    async def _begun_by(self, session_id: str, message_id: str) -> str:
        """Gives the task that a message began; the id of such a message is its task's, but for the prefix."""
        for event in await self._log.read(session_id=session_id, context=True):
            if event.task_id is None:
                continue
            if event.type == "task.created" and message_id in (event.data.get("messageId"), prompt_id(event.task_id)):
                return event.task_id
            if event.data.get("messageId") == message_id and event.type in ("message.completed", "message.added"):
                text = f"{message_id} did not begin a task, it is a part of {event.task_id}; name that as taskId."
                raise InvalidRequest(text, path="messageId")
        raise NotFound(f"There is no message {message_id} in {session_id}.", details={"messageId": message_id})


class _Recorded:
    """A state of the workspace that is recorded for a move, and forgotten again unless the move begins."""

    def __init__(self, checkpoints: Checkpoints, shadow: Shadow, name: str) -> None:
        self._checkpoints = checkpoints
        self._shadow = shadow
        self.name = name
        self.tree = ""
        self.is_kept = False

    async def _record(self) -> str:
        return await self._shadow.in_thread(self._shadow.checkpoint, self.name)

    async def __aenter__(self) -> "_Recorded":
        self._checkpoints.in_use.add(self.name)
        try:
            self.tree = await self._record()
        except BaseException:
            self._checkpoints.in_use.discard(self.name)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._checkpoints.in_use.discard(self.name)
        if not self.is_kept:
            await self._shadow.in_thread(self._shadow.drop, self.name)


class _Grafted(_Recorded):
    """The state that a move leads to: another one, with these paths changed."""

    def __init__(self, checkpoints: Checkpoints, shadow: Shadow, before: _Recorded, changed: Mapping[bytes, Entry | None]) -> None:
        super().__init__(checkpoints, shadow, f"{before.name.removesuffix('-before')}-after")
        self._before = before
        self._changed = changed

    async def _record(self) -> str:
        return await self._shadow.in_thread(self._shadow.graft, self.name, self._before.tree, self._changed)


def _chain(wanted: dict[bytes, Wanted], changed: Mapping[bytes, tuple[Entry | None, Entry | None]]) -> set[bytes]:
    """Adds what a later task changed, and gives the paths that somebody changed between it and the ones before."""
    foreign = set()
    for path, (old, new) in changed.items():
        known = wanted.get(path)
        if known is not None and known.expected != old:
            foreign.add(path)
        wanted[path] = Wanted(new, old if known is None else known.target)
    return foreign


def _plan(
    shadow: Shadow, now: str, wanted: Mapping[bytes, Wanted], foreign: Collection[bytes]
) -> tuple[dict[bytes, Entry | None], set[bytes]]:
    """Gives the paths to be changed, each with what it is to be, and those of them that somebody else has changed."""
    files = {path for path, want in wanted.items() if want.target is not None}
    folders = {folder for path in files for folder in _above(path)}
    there = shadow.paths(now, lambda path: path in wanted or path in folders or any(above in files for above in _above(path)))
    changed = {path: want.target for path, want in wanted.items() if there.get(path) != want.target}
    conflicts = {path for path in changed if path in foreign or there.get(path) != wanted[path].expected}
    # A file where a folder is to be, or in a folder that is to be a file: of somebody else, as no task that is reverted made it.
    in_the_way = there.keys() - wanted.keys()
    return {**changed, **dict.fromkeys(in_the_way)}, conflicts | in_the_way


def _above(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


def _require_free(blocked: Blocked) -> None:
    if blocked.locked:
        raise _conflict("cannot be written, so the files in them cannot be restored; change their permissions", blocked.locked)
    if blocked.changed:
        raise _conflict(
            "are not as they are recorded, as they are ignored, too large or cannot be read, and would be lost; move them away",
            blocked.changed,
        )


def _conflict(what: str, paths: Collection[bytes]) -> Conflict:
    named = _named(paths, NAMED_CONFLICTS)
    few = ", ".join(named[:3]) + (", …" if len(paths) > 3 else "")
    return Conflict(f"{few} {what}.", details={"paths": named, "count": len(paths)})


def _done(
    session_id: str,
    data: Mapping[str, Any],
    files: Collection[bytes],
    *,
    overwritten: Collection[bytes] = (),
    skipped: Collection[bytes] = (),
    left_out: Mapping[str, Any] | None = None,
) -> Draft:
    told = {
        "checkpointId": _before(data),
        "files": _named(files),
        "fileCount": len(files),
        "overwritten": _named(overwritten),
        "skipped": _named(skipped),
        "leftOut": left_out or {"count": 0, "files": []},
    }
    return Draft(DONE[data["action"]], {**{name: data[name] for name in ("revertId", "action", "taskIds")}, **told}, session_id, sync=True)


def _before(data: Mapping[str, Any]) -> str:
    """Gives the name of the checkpoint that a move begins with."""
    return f"{data['revertId']}-before" if data["action"] == "revert" else f"{data['revertId']}-unrevert-before"


def _named(paths: Iterable[bytes], limit: int = NAMED_FILES) -> list[str]:
    return [shown(path) for path in sorted(paths)[:limit]]

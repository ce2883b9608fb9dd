"""Tasks: the index of them that is folded from the log, and what is read from it."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from agent_server.errors import NotFound
from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.wire import timestamp

TERMINAL = frozenset({"task.completed", "task.failed"})

Values: TypeAlias = Callable[[Event], dict[str, Any] | None]
"""What a statement takes of an event; None where it is not to be run."""


class TaskIndex:
    """The tables `tasks` and `task_tools`: where each task stands. The rest of a task is in its first and last event."""

    version = 5
    tables: Sequence[str] = ("tasks", "task_tools", "task_changes")
    schema: Sequence[str] = (
        """CREATE TABLE tasks (
            task_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, created INTEGER NOT NULL, created_at INTEGER NOT NULL,
            started INTEGER, started_at INTEGER, ended INTEGER, ended_at INTEGER, status TEXT NOT NULL, phase TEXT NOT NULL,
            steps INTEGER NOT NULL DEFAULT 0, resumptions INTEGER NOT NULL DEFAULT 0, elapsed INTEGER NOT NULL DEFAULT 0,
            run_at INTEGER, message_id TEXT, prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
            cached_tokens INTEGER NOT NULL DEFAULT 0, reasoning_tokens INTEGER NOT NULL DEFAULT 0, cost REAL,
            idempotency_key TEXT UNIQUE, request_hash TEXT, is_reverted INTEGER NOT NULL DEFAULT 0, parent_id TEXT)""",
        "CREATE INDEX tasks_created ON tasks (created)",
        "CREATE INDEX tasks_session ON tasks (session_id, created)",
        "CREATE INDEX tasks_processing ON tasks (created) WHERE status = 'processing'",
        "CREATE INDEX tasks_parent ON tasks (parent_id) WHERE parent_id IS NOT NULL",
        "CREATE TABLE task_tools (task_id TEXT, name TEXT, count INTEGER, PRIMARY KEY (task_id, name)) WITHOUT ROWID",
        "CREATE TABLE task_changes (path TEXT, task_id TEXT, PRIMARY KEY (path, task_id)) WITHOUT ROWID",
    )

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if event.task_id is not None and (fold := _FOLDS.get(event.type)) is not None:
                statement, values = fold
                if (given := values(event)) is not None:
                    db.execute(statement, {"task": event.task_id, "seq": event.seq, "time": event.time, **given})
                if event.type == "tool.requested":
                    db.execute(_COUNT, {"task": event.task_id, "name": event.data["tool"]})
                if event.type in TERMINAL:
                    used = [(event.task_id, tool["name"], tool["count"]) for tool in event.data.get("toolsUsed", ())]
                    db.executemany("INSERT OR REPLACE INTO task_tools VALUES (?, ?, ?)", used)
                    changes = event.data.get("changes", ())
                    paths = [(path, event.task_id) for change in changes for path in (change["path"], change.get("oldPath")) if path]
                    db.executemany("INSERT OR IGNORE INTO task_changes VALUES (?, ?)", paths)
            elif event.type in ("session.reverted", "session.unreverted"):
                marks = [(event.type == "session.reverted", task_id, task_id) for task_id in event.data.get("taskIds", ())]
                db.executemany("UPDATE tasks SET is_reverted = ? WHERE task_id = ? OR parent_id = ?", marks)


def _created(event: Event) -> dict[str, Any]:
    data = event.data
    key, parent = data.get("idempotencyKey"), data.get("parentTaskId")
    return {"session": event.session_id, "key": key, "hash": data.get("requestHash"), "parent": parent}


def _answered(event: Event) -> dict[str, Any]:
    return {"message": event.data["messageId"], **_usage(event)}


def _usage(event: Event) -> dict[str, Any]:
    usage = event.data.get("usage") or {}
    return {
        "prompt": usage.get("prompt_tokens", 0),
        "completion": usage.get("completion_tokens", 0),
        "cached": usage.get("cached_tokens", 0),
        "reasoning": usage.get("reasoning_tokens", 0),
        "cost": usage.get("cost"),
    }


def _resumed(event: Event) -> dict[str, Any]:
    data = event.data
    return {"phase": data.get("phase", "running"), "resumptions": data.get("resumption", 0), "elapsed": data.get("elapsed_ms", 0)}


def _end(event: Event) -> dict[str, Any]:
    # The last event has the sum of what retention may have removed.
    return {"phase": event.data.get("phase", "done"), "steps": event.data.get("steps")}


def _nothing(event: Event) -> dict[str, Any]:
    return {}


def _awaited(event: Event) -> dict[str, Any] | None:
    # Only what a client gave says how much is still waited for.
    return {} if event.data.get("awaited") == 0 else None


def _phase(phase: str, values: Values = _nothing) -> tuple[str, Values]:
    return f"UPDATE tasks SET phase = '{phase}' WHERE task_id = :task AND status = 'processing' AND phase != '{phase}'", values


_COUNT = "INSERT INTO task_tools VALUES (:task, :name, 1) ON CONFLICT DO UPDATE SET count = count + 1"


_END = (
    "UPDATE tasks SET status = '{}', phase = :phase, ended = :seq, ended_at = :time, steps = coalesce(:steps, steps) WHERE task_id = :task"
)

# What a subagent uses is its parent's use too.
_USED = (
    "UPDATE tasks SET phase = iif(task_id = :task, 'running', phase), {}prompt_tokens = prompt_tokens + :prompt, "
    "completion_tokens = completion_tokens + :completion, cached_tokens = cached_tokens + :cached, "
    "reasoning_tokens = reasoning_tokens + :reasoning, "
    "cost = CASE WHEN :cost IS NULL THEN cost ELSE coalesce(cost, 0) + :cost END "
    "WHERE task_id IN (:task, (SELECT parent_id FROM tasks WHERE task_id = :task))"
)

_FOLDS: Mapping[str, tuple[str, Values]] = {
    "task.created": (
        "INSERT OR IGNORE INTO tasks (task_id, session_id, created, created_at, status, phase, idempotency_key, request_hash, parent_id) "
        "VALUES (:task, :session, :seq, :time, 'processing', 'queued', :key, :hash, :parent)",
        _created,
    ),
    "task.started": (
        "UPDATE tasks SET phase = 'running', started = :seq, started_at = :time, run_at = :time WHERE task_id = :task",
        _nothing,
    ),
    "task.resumed": (
        "UPDATE tasks SET phase = :phase, resumptions = :resumptions, elapsed = :elapsed, run_at = :time WHERE task_id = :task",
        _resumed,
    ),
    "task.retrying": _phase("retrying"),
    "step.started": _phase("running"),
    "message.delta": _phase("running"),
    "message.completed": (_USED.format("message_id = iif(task_id = :task, :message, message_id), "), _answered),
    "session.compacted": (_USED.format(""), _usage),
    "compaction.failed": (_USED.format(""), _usage),
    "tool.started": (
        _COUNT,
        lambda event: {"name": event.data["tool"]},
    ),
    "tool.requested": _phase("waiting"),
    "permission.requested": _phase("waiting"),
    "permission.replied": _phase("running", _awaited),
    "question.asked": _phase("waiting"),
    "question.answered": _phase("running", _awaited),
    "tool.finished": _phase("running", _awaited),
    "step.finished": ("UPDATE tasks SET steps = steps + 1, resumptions = 0 WHERE task_id = :task", _nothing),
    "task.completed": (_END.format("completed"), _end),
    "task.failed": (_END.format("failed"), _end),
}


class Task(msgspec.Struct, frozen=True):
    """Where a task stands. Times are Unix milliseconds, `elapsed` the milliseconds it ran before its last resumption; tokens and
    costs are its own and its subagents'; `parent_id` is the task that it is a subagent of;
    `created`, `started` and `ended` are the numbers of those events; `given` and `outcome` what they say."""

    task_id: str
    session_id: str
    created: int
    created_at: int
    started: int | None
    started_at: int | None
    ended: int | None
    ended_at: int | None
    status: str
    phase: str
    steps: int
    resumptions: int
    elapsed: int
    run_at: int | None
    message_id: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: float | None
    request_hash: str | None
    is_reverted: bool
    parent_id: str | None
    given: Mapping[str, Any]
    outcome: Mapping[str, Any]
    tools: Mapping[str, int]

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "cost": self.cost,
        }

    @property
    def tools_used(self) -> list[dict[str, Any]]:
        return [{"name": name, "count": count} for name, count in self.tools.items()]

    @property
    def duration(self) -> int | None:
        """Milliseconds from the start of its work to its end; None before the end."""
        return self.ended_at - (self.started_at or self.created_at) if self.ended_at is not None else None

    def to_wire(self) -> dict[str, Any]:
        """Gives the task as `GET /tasks/{id}` shows it."""
        return {
            "taskId": self.task_id,
            "sessionId": self.session_id,
            "status": self.status,
            "phase": self.phase,
            "prompt": self.given.get("prompt"),
            "model": self.given.get("model"),
            "provider": self.given.get("provider"),
            "createdAt": timestamp(self.created_at),
            "startedAt": timestamp(self.started_at) if self.started_at is not None else None,
            "completedAt": timestamp(self.ended_at) if self.ended_at is not None else None,
            "response": self.outcome.get("response"),
            "output": self.outcome.get("output"),
            "usage": self.usage,
            "tokensUsed": self.usage["total_tokens"],
            "duration_ms": self.duration,
            "messageId": self.message_id,
            "toolsUsed": self.tools_used,
            "steps": self.steps,
            "changes": self.outcome.get("changes", []),
            "error": self.outcome.get("error"),
            "reverted": bool(self.is_reverted),
            "parentSessionId": self.given.get("parentSessionId"),
            "parentTaskId": self.parent_id,
            "toolCallId": self.given.get("toolCallId"),
        }


_NAMES = tuple(member.name for member in msgspec.structs.fields(Task) if member.name not in ("given", "outcome", "tools"))

_SELECT = (
    f"SELECT {', '.join('t.' + name for name in _NAMES)}, c.data, e.data "
    "FROM tasks t JOIN events c ON c.seq = t.created LEFT JOIN events e ON e.seq = t.ended WHERE "
)


def _select(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[Task]:
    tasks = []
    for *columns, given, outcome in db.execute(_SELECT + where, values).fetchall():
        fields: dict[str, Any] = dict(zip(_NAMES, columns, strict=True))
        tools = dict(db.execute("SELECT name, count FROM task_tools WHERE task_id = ? ORDER BY name", (fields["task_id"],)).fetchall())
        decoded = msgspec.json.decode(outcome) if outcome else {}
        tasks.append(Task(**fields, given=msgspec.json.decode(given), outcome=decoded, tools=tools))
    return tasks


async def find(log: EventLog, task_id: str) -> Task:
    """Gives one task.

    Errors: NotFound (TASK_NOT_FOUND).
    """
    found = await log.query(lambda db: _select(db, "t.task_id = ?", [task_id]))
    if not found:
        raise NotFound(f"There is no task {task_id}; GET /tasks lists those there are.", code="TASK_NOT_FOUND", details={"taskId": task_id})
    return found[0]


async def exists(log: EventLog, task_id: str) -> bool:
    return bool(await log.query(lambda db: db.execute("SELECT 1 FROM tasks WHERE task_id = ?", (task_id,)).fetchall()))


async def find_children(log: EventLog, task_id: str) -> list[Task]:
    """Gives the subagents of a task, oldest first."""
    return await log.query(lambda db: _select(db, "t.parent_id = ? ORDER BY t.created", [task_id]))


async def cost_beside(log: EventLog, task: Task) -> float:
    """Gives the USD that were spent for the same limit as a task's, but not by itself: by its subagents, or by its parent's task."""
    if task.parent_id is None:
        statement, values = "SELECT sum(cost) FROM tasks WHERE parent_id = ?", [task.task_id]
    else:  # the parent's costs are all there are, its own among them
        statement = "SELECT sum(iif(task_id = ?, cost, -cost)) FROM tasks WHERE task_id IN (?, ?)"
        values = [task.parent_id, task.parent_id, task.task_id]
    (cost,) = await log.query(lambda db: db.execute(statement, values).fetchone())
    return cost or 0.0


async def find_by_key(log: EventLog, key: str) -> Task | None:
    """Gives the task that was created with this Idempotency-Key."""
    found = await log.query(lambda db: _select(db, "t.idempotency_key = ?", [key]))
    return found[0] if found else None


async def find_all(
    log: EventLog, *, status: str | None = None, session_id: str | None = None, before: int | None = None, limit: int = 50
) -> list[Task]:
    """Gives tasks, newest first; `before` is the `created` of the last one of the page before."""
    conditions, values = ["1"], []
    for condition, value in (("t.status = ?", status), ("t.session_id = ?", session_id), ("t.created < ?", before)):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    where = f"{' AND '.join(conditions)} ORDER BY t.created DESC LIMIT ?"
    return await log.query(lambda db: _select(db, where, [*values, limit]))


async def find_from(log: EventLog, task: Task, limit: int) -> list[Task]:
    """Gives a task and the later ones of its session, oldest first."""
    where = "t.session_id = ? AND t.created >= ? ORDER BY t.created LIMIT ?"
    return await log.query(lambda db: _select(db, where, [task.session_id, task.created, limit]))


async def find_newest_started(log: EventLog, session_id: str) -> Task | None:
    """Gives the task of a session that began last."""
    where = "t.session_id = ? AND t.started IS NOT NULL ORDER BY t.started DESC LIMIT 1"
    found = await log.query(lambda db: _select(db, where, [session_id]))
    return found[0] if found else None


async def find_beside(log: EventLog, task: Task, limit: int) -> list[Task]:
    """Gives the tasks of other sessions that were at work at a time when this one, which has ended, was."""
    where = "t.session_id != ? AND t.started < ? AND coalesce(t.ended, ?) > ? ORDER BY t.created DESC LIMIT ?"
    values = [task.session_id, task.ended, task.ended, task.started, limit]
    return await log.query(lambda db: _select(db, where, values))


async def find_unfinished(log: EventLog) -> list[Task]:
    """Gives the tasks that are still processing, oldest first."""
    return await log.query(lambda db: _select(db, "t.status = 'processing' ORDER BY t.created", []))


async def tasks_that_changed(log: EventLog, paths: Iterable[str]) -> dict[str, list[str]]:
    """Gives for each of these paths the tasks that changed it and were not reverted, oldest first."""
    reverted = "EXISTS (SELECT 1 FROM tasks t WHERE t.task_id = c.task_id AND t.is_reverted)"
    statement = f"SELECT task_id FROM task_changes c WHERE path = ? AND NOT {reverted} ORDER BY task_id"

    def read(db: sqlite3.Connection) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in paths:
            rows = db.execute(statement, (path,)).fetchall()
            if rows:
                found[path] = [task_id for (task_id,) in rows]
        return found

    return await log.query(read)

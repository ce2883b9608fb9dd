"""What a task asks its client while it works, permissions and questions, and what the client said: a fold of the task's events."""

from collections.abc import Mapping
from typing import Any

from agent_server.errors import NotFound
from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.events.store import COLUMNS, event_of

ASKING = {"permission.requested": "permissionId", "question.asked": "questionId"}
ANSWERING = {"permission.replied": "permissionId", "question.answered": "questionId"}
"""The types of these events, and the field that has the request's id."""


class Waits:
    """Requests by the id of the tool call they are about: `open` has what was asked and not answered, `answers` what was."""

    def __init__(self) -> None:
        self.open: dict[str, Event] = {}
        self.answers: dict[str, Mapping[str, Any]] = {}

    def apply(self, event: Event) -> None:
        """Takes the next event in; twice is once. Skips types that are none of these."""
        if event.type in ASKING:
            if event.data["toolCallId"] not in self.answers:
                self.open[event.data["toolCallId"]] = event
        elif event.type in ANSWERING:
            self.open.pop(event.data["toolCallId"], None)
            self.answers[event.data["toolCallId"]] = event.data
        elif event.type == "tool.finished":
            self.open.pop(event.data["toolCallId"], None)
            self.answers.pop(event.data["toolCallId"], None)


async def load(log: EventLog, task_id: str) -> Waits:
    """Folds a task's requests from the log."""
    waits = Waits()
    for event in await log.read(task_id=task_id, types=(*ASKING, *ANSWERING, "tool.finished")):
        waits.apply(event)
    return waits


async def find(log: EventLog, session_id: str, kind: str, request_id: str) -> Event:
    """Gives a request of this type that a task of the session has made. Errors: NotFound."""
    own = "task_id IN (SELECT task_id FROM tasks WHERE session_id = ?)"
    statement = f"SELECT {COLUMNS} FROM events WHERE {own} AND type = ? AND json_extract(data, ?) = ?"
    values = (session_id, kind, f"$.{ASKING[kind]}", request_id)
    rows = await log.query(lambda db: db.execute(statement, values).fetchall())
    if rows:
        return event_of(rows[0])
    noun = kind.partition(".")[0]
    told = f"The session has no {noun} {request_id[:128]}; GET /sessions/{{id}}/{noun}s lists the open ones."
    raise NotFound(told, details={ASKING[kind]: request_id})

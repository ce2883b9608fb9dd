"""A session that begins with what another one holds.

The messages are copied, so that either can be continued, compacted and deleted without the other.
"""

from agent_server.errors import Conflict, NotFound
from agent_server.events import Draft
from agent_server.events.log import EventLog
from agent_server.ids import new_id
from agent_server.sessions import session_index
from agent_server.sessions.conversation import load
from agent_server.sessions.entries import Entry, entry_to_wire

FORKED = "Not run: the conversation was forked before this call had ended."


async def fork(log: EventLog, session_id: str, at_message_id: str | None = None) -> str:
    """Makes a session whose conversation is that of another one, up to and with a message and the results of its calls; gives its id.

    Errors: NotFound for a session or message that is not there; Conflict for a session that has not begun.
    """
    source = await session_index.find(log, session_id)
    state = await load(log, session_id)
    if state.began is None:
        raise Conflict("The session's first task has not begun; fork it when it has.", details={"sessionId": session_id})
    entries = _until(state.closed(FORKED), at_message_id)
    forked_id = new_id("sess")
    told = {name: state.began[name] for name in ("date", "agent", "system")}
    origin = {"sessionId": session_id, "messageId": entries[-1].message_id if entries else None}
    created = Draft("session.created", {**told, "title": source.title, "forkedFrom": origin}, forked_id, sync=True)
    await log.append(created, *(Draft("message.copied", entry_to_wire(entry), forked_id) for entry in entries))
    return forked_id


def _until(entries: list[Entry], message_id: str | None) -> list[Entry]:
    if message_id is None:
        return entries
    end = max((at + 1 for at, entry in enumerate(entries) if entry.message_id == message_id), default=0)
    if not end:
        raise NotFound(
            f"The session has no message {message_id[:128]}; GET /sessions/{{id}}/messages lists those it has.",
            details={"messageId": message_id},
        )
    return entries[:end]

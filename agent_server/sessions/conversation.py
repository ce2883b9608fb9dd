"""A session's conversation: the fold of its events into the messages a model is sent.

The same `apply` takes the events read from the log after a restart and those the loop has just appended, so that both
give the same messages, and so the same bytes. Every tool call has exactly one result in what a request is made of.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from agent_server.calling import plan
from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.messages import Image, Message, Part, Text, ToolCall
from agent_server.sessions.repair import FORMS, Form, Said, forms, reformed
from agent_server.sessions.stuck import Repetition

NOT_RUN = "Not run: the task ended before this call began."
INTERRUPTED = "Interrupted: the server stopped while this call ran. It may have run, in part or whole; check before you repeat it."

SUMMARY = "What was said and done before this is summarised here; the messages themselves are no longer shown.\n\n{}"

GO_ON = "\n\nThis is no new request: go on with the task from here, without beginning anew."
"""What a summary in the midst of a task ends with."""

PRUNED = "[This old output was removed to make room; make the call again if it is still needed.]"

ANSWER = (
    "Your answer to this, the last message without tool calls, must be one JSON value and nothing else: no prose, no code fence. "
    "It must be valid under this JSON Schema:\n{}"
)

MAX_FILES = 10_000
"""Files whose stamps are kept: of more, those that were read or written last."""


class Entry(msgspec.Struct, frozen=True):
    """One message in its place. A tool's result has the id of the message that made the call, so that an id names a whole turn.

    `created_at` is Unix milliseconds; `instructions` names the nested instruction files that a result showed, `todos` is the list
    that a call wrote, `files` has the stamps of the files that its call, or what is summarised, has read or written.
    """

    message_id: str
    message: Message
    created_at: int
    task_id: str | None = None
    is_error: bool = False
    is_summary: bool = False
    instructions: tuple[str, ...] = ()
    todos: Sequence[Mapping[str, Any]] | None = None
    files: Mapping[str, str | None] = {}


class Conversation:
    """The messages of one session, without the system prompt, and what the loop must know of them.

    `began` is what session.created says, `instructions` the nested instruction files that were shown, `read_until` how far the
    output of each process in the background was, `files` the stamps of the files that were read or written, by name, `allowed` the
    permissions and patterns that a client has allowed for good; `steps`, `cost` (USD), `corrections` (answers that did not fit the
    schema), `repairs` (forms that a provider wanted) and `repetition` are the present task's, `usage` the last model call's;
    `call_ids` are those of all calls, also of messages that are no longer shown: none may come again.
    `measured` is how many tokens the first `measured_at` entries took there, with all that goes before them (0: not known);
    `compactions` counts those in a row, failed ones too, that the present task has made since its last answer.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.began: Mapping[str, Any] | None = None
        self.entries: list[Entry] = []
        self.instructions: set[str] = set()
        self.read_until: dict[str, int] = {}
        self.files: dict[str, str] = {}
        self.allowed: set[tuple[str, str]] = set()
        self.steps = 0
        self.corrections = 0
        self.repairs = 0
        self.repetition = Repetition()
        self.call_ids: set[str] = set()
        self.usage: Mapping[str, Any] = {}
        self.cost = 0.0
        self.measured = self.measured_at = 0
        self.compactions = 0
        self._prompts: dict[str, Entry] = {}  # of tasks that have not begun
        self._added: dict[str, list[Entry]] = {}  # by task: what came while it worked, and is in no request yet
        self._open: dict[str, ToolCall] = {}
        self._task_id: str | None = None
        self._plans: set[str] = set()  # the tasks in plan mode
        self._is_plan = False

    @property
    def messages(self) -> Sequence[Message]:
        """What the next request is made of: the conversation so far, and then what was added for it."""
        return [entry.message for entry in self._shown]

    @property
    def added(self) -> Sequence[str]:
        """The ids of the messages that came while the present task worked, and are in no answered request yet."""
        return [entry.message_id for entry in self.waiting]

    @property
    def waiting(self) -> Sequence[Entry]:
        """The messages that come after `entries` in the next request."""
        return self._added.get(self._task_id or "", ())

    @property
    def open_calls(self) -> Sequence[ToolCall]:
        """The calls of the last message that have no result yet."""
        return list(self._open.values())

    @property
    def settled(self) -> Sequence[Entry]:
        """The entries without the last turn, if one of its calls is open."""
        return self.entries[: self._asked_at()] if self._open else self.entries

    @property
    def is_answered(self) -> bool:
        """Whether the last message is an assistant's without calls, and nothing came after it: the task's final answer."""
        last = self.entries[-1].message if self.entries else None
        return last is not None and last.role == "assistant" and not last.tool_calls and not self.added

    def closed(self, output: str = NOT_RUN) -> list[Entry]:
        """Gives the entries with a result for every call: `output` for those that are open."""
        ends = [_result(self.entries[self._asked_at()], call_id, {"output": output, "isError": True}) for call_id in self._open]
        return [*self.entries, *ends]

    @property
    def forms(self) -> Sequence[Form]:
        """The other forms in which the next request can be made, where its provider refuses it: once for each task."""
        return forms(self._said(self._shown)) if not self.repairs else ()

    def in_form(self, form: Form) -> Sequence[Message]:
        """What the next request is made of, in another form."""
        return reformed(self._said(self._shown), form)

    @property
    def _shown(self) -> list[Entry]:
        return [*self.entries, *self._added.get(self._task_id or "", ())]

    def _said(self, entries: Sequence[Entry]) -> list[Said]:
        own = [entry.message.role == "user" and entry.task_id == self._task_id and not entry.is_summary for entry in entries]
        # A task whose prompt is in a summary has that to go by.
        return [(entry.message, is_own or (entry.is_summary and not any(own))) for entry, is_own in zip(entries, own, strict=True)]

    def apply(self, event: Event) -> None:
        """Takes the next event in. Skips types that are none of a conversation's."""
        fold = _FOLDS.get(event.type)
        if fold is not None:
            fold(self, event)

    # The folds, one for each type

    def _created(self, event: Event) -> None:
        self.began = event.data

    def _deleted(self, event: Event) -> None:
        self._begin_anew()

    def _copied(self, event: Event) -> None:
        self._close_calls()
        entry = entry_from_wire(event.data)
        self.entries.append(entry)
        self.call_ids.update(call.id for call in entry.message.tool_calls)
        self.instructions.update(entry.instructions)
        remember(self.files, entry.files)

    def _accepted(self, event: Event) -> None:
        content = parts(event.data["prompt"])
        if (schema := event.data.get("outputSchema")) is not None:
            content = (*content, Text("\n\n" + ANSWER.format(msgspec.json.encode(schema, order="sorted").decode())))
        task_id = event.task_id or ""
        if event.data.get("mode") == "plan":
            content = (*content, Text("\n\n" + plan.PROMPT))
            self._plans.add(task_id)
        self._prompts[task_id] = Entry(prompt_id(task_id), Message("user", content), event.time, task_id)

    def _started(self, event: Event) -> None:
        self._close_calls()
        task_id = event.task_id or ""
        self._task_id = task_id
        self.steps, self.corrections, self.repairs, self.compactions, self.cost = 0, 0, 0, 0, 0.0
        self.repetition = Repetition()
        blank = Entry(prompt_id(task_id), Message("user", (Text(""),)), event.time, task_id)
        entry = self._prompts.pop(task_id, blank)
        if self._is_plan and task_id not in self._plans:
            message = msgspec.structs.replace(entry.message, content=(*entry.message.content, Text("\n\n" + plan.OVER)))
            entry = msgspec.structs.replace(entry, message=message)
        self._is_plan = task_id in self._plans
        self.entries.append(entry)

    def _came(self, event: Event) -> None:
        task_id, message_id = event.task_id or "", event.data["messageId"]
        waiting = self._added.setdefault(task_id, [])
        if all(entry.message_id != message_id for entry in waiting):
            waiting.append(Entry(message_id, Message("user", parts(event.data["prompt"])), event.time, task_id))
            self.corrections += event.data.get("reason") == "output"

    def _answered(self, event: Event) -> None:
        data = event.data
        self._close_calls()
        self._enter(event.task_id or "", data.get("added", ()))
        calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in data.get("toolCalls", ()))
        content = (Text(data["text"]),) if data["text"] else ()
        message = Message("assistant", content, calls, reasoning=data.get("reasoning"))
        self.entries.append(Entry(data["messageId"], message, event.time, event.task_id))
        self._open = {call.id: call for call in calls}
        self.call_ids.update(self._open)
        self.repetition.begin_turn()
        self.steps += 1
        self.usage = data.get("usage") or {}
        self.cost += self.usage.get("cost") or 0.0
        self.compactions = 0
        self._measure(message)

    def _measure(self, answer: Message) -> None:
        used = self.usage.get
        hidden = used("reasoning_tokens") or 0 if answer.reasoning is None else 0  # such reasoning is not sent back
        prompt = used("prompt_tokens") or 0
        self.measured = prompt + max(0, (used("completion_tokens") or 0) - hidden) if prompt else 0
        self.measured_at = len(self.entries)

    def _enter(self, task_id: str, message_ids: Sequence[str]) -> None:
        """Puts what was added and sent into its place, before the answer to it."""
        waiting = self._added.get(task_id, [])
        entering = [entry for entry in waiting if entry.message_id in message_ids]
        if entering:
            self.repetition = Repetition()  # what is done from here on answers something else
        self.entries += entering
        self._added[task_id] = [entry for entry in waiting if entry.message_id not in message_ids]

    def _returned(self, event: Event) -> None:
        call_id = event.data["toolCallId"]
        if (call := self._open.pop(call_id, None)) is not None:
            self.repetition.add(call.name, call.arguments, event.data)
            self.entries.append(_result(self.entries[self._asked_at()], call_id, event.data, event.time))
        details = event.data.get("details", {})
        self.instructions.update(details.get("instructions", ()))
        if "nextOffset" in details:
            self.read_until[details["processId"]] = details["nextOffset"]
        remember(self.files, details.get("files", {}))

    def _replied(self, event: Event) -> None:
        if event.data["response"] == "always":
            self.allowed.update((each["permission"], each["pattern"]) for each in event.data.get("always", ()))

    def _compacted(self, event: Event) -> None:
        until = event.data["replaces"]["untilMessageId"]
        cut = next((at + 1 for at in reversed(range(len(self.entries))) if self.entries[at].message_id == until), 0)
        cut = min(cut, len(self.settled))  # a call is never parted from its result, also one to come
        if cut:
            gone = self.entries[:cut]
            keeps = event.data.get("keeps", ())
            kept = [entry for entry in gone if entry.message_id in keeps and entry.message.role == "user"]
            message = summary_message(event.data["summary"], goes_on=event.task_id is not None and self.steps > 0)
            ids = (event.data["messageId"], message, event.time, event.task_id)
            self.entries[:cut] = [*kept, Entry(*ids, is_summary=True, **_standing(gone))]
            self._changed()
        self._spent(event)

    def _pruned(self, event: Event) -> None:
        gone = frozenset(event.data["toolCallIds"])
        self.entries = [_without_output(entry) if entry.message.tool_call_id in gone else entry for entry in self.entries]
        self._changed()

    def _spent(self, event: Event) -> None:
        self.cost += (event.data.get("usage") or {}).get("cost") or 0.0
        self.compactions += event.task_id is not None

    def _changed(self) -> None:
        """Forgets what is no longer true when entries have gone."""
        self.instructions = {name for entry in self.entries for name in entry.instructions}
        self.measured = self.measured_at = 0

    def _repaired(self, event: Event) -> None:
        data = event.data
        if data["form"] not in FORMS:
            return
        self._close_calls()
        self._enter(event.task_id or "", data["added"])
        messages = reformed(self._said(self.entries), data["form"])
        if data["form"] == "plain":
            pairs = zip(self.entries, messages, strict=True)
            self.entries = [msgspec.structs.replace(entry, message=message) for entry, message in pairs]
        else:
            shown = tuple(sorted(self.instructions)) if data["form"] == "transcript" else ()
            told = {"instructions": shown, **_standing(self.entries)}
            self.entries = [Entry(data["messageId"], messages[0], event.time, event.task_id, is_summary=True, **told)]
        self.repairs += 1
        self._changed()

    def _ended(self, event: Event) -> None:
        task_id = event.task_id or ""
        self._added.pop(task_id, None)
        if event.type == "task.failed" and task_id != self._task_id:
            self._prompts.pop(task_id, None)  # it never began, while another one may be at work
            return
        self._close_calls()
        # A prompt that no model answered is left out: it may be the very reason of the failure.
        if event.type == "task.failed" and self.entries and self.entries[-1].message_id == prompt_id(task_id):
            self.entries.pop()

    def _close_calls(self) -> None:
        if self._open:
            self.entries = self.closed()
            self._open = {}

    def _asked_at(self) -> int:
        """The place of the last assistant's message: the one that open calls are in."""
        return next(at for at in reversed(range(len(self.entries))) if self.entries[at].message.role == "assistant")


_FOLDS: Mapping[str, Callable[[Conversation, Event], None]] = {
    "session.created": Conversation._created,
    "session.deleted": Conversation._deleted,
    "session.compacted": Conversation._compacted,
    "session.pruned": Conversation._pruned,
    "compaction.failed": Conversation._spent,
    "session.repaired": Conversation._repaired,
    "message.copied": Conversation._copied,
    "message.added": Conversation._came,
    "message.completed": Conversation._answered,
    "tool.finished": Conversation._returned,
    "permission.replied": Conversation._replied,
    "task.created": Conversation._accepted,
    "task.started": Conversation._started,
    "task.completed": Conversation._ended,
    "task.failed": Conversation._ended,
}


def _result(asked: Entry, call_id: str, data: Mapping[str, Any], at: int | None = None) -> Entry:
    message = Message("tool", (Text(data["output"]), *parts(data.get("images", ()))), tool_call_id=call_id)
    details = data.get("details", {})
    told = {"instructions": tuple(details.get("instructions", ())), "files": details.get("files", {}), "todos": details.get("todos")}
    at = asked.created_at if at is None else at
    return Entry(asked.message_id, message, at, asked.task_id, bool(data.get("isError")), **told)


def remember(files: dict[str, str], seen: Mapping[str, str | None]) -> None:
    """Takes the newest stamps in; a file without one is gone."""
    for name, stamp in seen.items():
        files.pop(name, None)
        if stamp is not None:
            files[name] = stamp
    if len(files) > MAX_FILES:
        for name in list(files)[:-MAX_FILES]:  # a copy: calls side by side do this in threads
            files.pop(name, None)


def _standing(gone: Sequence[Entry]) -> dict[str, Any]:
    """What still holds of entries whose place a summary takes: the files that were seen, and the newest todo list."""
    files = {name: stamp for entry in gone for name, stamp in entry.files.items()}
    return {"files": files, "todos": next((entry.todos for entry in reversed(gone) if entry.todos is not None), None)}


def _without_output(entry: Entry) -> Entry:
    message = Message("tool", (Text(PRUNED),), tool_call_id=entry.message.tool_call_id)
    return msgspec.structs.replace(entry, message=message, instructions=())


def summary_message(summary: str, *, goes_on: bool) -> Message:
    """Gives the message that a summary is. With `goes_on`, it stands in the midst of a task."""
    return Message("user", (Text(SUMMARY.format(summary) + (GO_ON if goes_on else "")),))


def prompt_id(task_id: str) -> str:
    """Gives the id of the message that a task's prompt is."""
    return f"msg_{task_id.removeprefix('task_')}"


def parts(prompt: Any) -> tuple[Part, ...]:
    """Turns a prompt as the API has it (a text, or an array of parts) into a message's content."""
    if isinstance(prompt, str):
        return (Text(prompt),)
    return tuple(Text(part["text"]) if part["type"] == "text" else Image(part["mediaType"], part["data"]) for part in prompt)


def parts_to_wire(content: Sequence[Part]) -> list[dict[str, Any]]:
    """Gives a message's content as the API has it."""
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image", "mediaType": part.media_type, "data": part.data}
        for part in content
    ]


def entry_to_wire(entry: Entry) -> dict[str, Any]:
    """Gives an entry as message.copied says it: `entry_from_wire` makes the same bytes for a provider of it."""
    message = entry.message
    lists = {"todos": entry.todos} if entry.todos is not None else {}
    return {
        "messageId": entry.message_id,
        "role": message.role,
        "content": parts_to_wire(message.content),
        "toolCalls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls],
        "toolCallId": message.tool_call_id,
        "reasoning": message.reasoning,
        "createdAt": entry.created_at,
        "taskId": entry.task_id,
        "isError": entry.is_error,
        "isSummary": entry.is_summary,
        "instructions": entry.instructions,
        **lists,
        "files": entry.files,
    }


def entry_from_wire(data: Mapping[str, Any]) -> Entry:
    calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in data["toolCalls"])
    message = Message(data["role"], parts(data["content"]), calls, data["toolCallId"], data["reasoning"])
    flags = (data["isError"], data["isSummary"], tuple(data["instructions"]))
    told = {"files": data.get("files", {}), "todos": data.get("todos")}
    return Entry(data["messageId"], message, data["createdAt"], data["taskId"], *flags, **told)


def standing(events: Iterable[Event]) -> list[Event]:
    """Leaves out of a session's events those of tasks that were reverted, and puts back those that were unreverted.

    All since the first of these tasks began goes, so that what follows continues a conversation that was there before. A restored
    conversation takes the place of all before it; the copies of its events mean nothing until then.
    """
    kept: list[Event] = []
    cut: list[tuple[str, int, list[Event]]] = []
    copies: dict[str, list[Event]] = {}
    for event in events:
        if event.type == "context.restored":
            copies.setdefault(event.data["restoreId"], []).append(_original(event))
        elif event.type == "session.restored":
            kept, cut = copies.pop(event.data["restoreId"], []), []
        elif event.type == "session.reverted":
            task_ids = frozenset(event.data["taskIds"])
            at = next((at for at, each in enumerate(kept) if each.type == "task.started" and each.task_id in task_ids), len(kept))
            gone = [each for each in kept[at:] if not _waits(each, task_ids)]
            cut.append((event.data["revertId"], at, gone))
            kept[at:] = [each for each in kept[at:] if _waits(each, task_ids)]
        elif event.type == "session.unreverted" and cut and cut[-1][0] == event.data["revertId"]:
            _, at, gone = cut.pop()
            kept[at:at] = gone
        else:
            kept.append(event)
    return kept


def _original(event: Event) -> Event:
    """Gives the event that a `context.restored` is the copy of, at the copy's place."""
    data = event.data
    return msgspec.structs.replace(event, time=data["time"], type=data["type"], task_id=data["taskId"], data=data["data"])


def _waits(event: Event, task_ids: Collection[str]) -> bool:
    """Whether it is of a task that came while the others were reverted, and begins after that."""
    return event.task_id is not None and event.task_id not in task_ids and event.type in ("task.created", "message.added", "task.failed")


async def load(log: EventLog, session_id: str) -> Conversation:
    """Folds a session's conversation from the log."""
    conversation = Conversation(session_id)
    for event in standing(await log.read(session_id=session_id, context=True)):
        conversation.apply(event)
    return conversation

"""A session's conversation: the fold of its events into the messages a model is sent.

The same `apply` takes the events read from the log after a restart and those the loop has just appended, so that both
give the same messages, and so the same bytes. Every tool call has exactly one result in what a request is made of.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.messages import Message, Text, ToolCall
from agent_server.sessions.entries import (
    NOT_RUN,
    Entry,
    accepted,
    entry_from_wire,
    is_plan,
    parts,
    prompt_id,
    returned,
    still_true,
    summary_message,
    with_plan_over,
    without_output,
)
from agent_server.sessions.repair import FORMS, MAX_REPAIRS, SHORT_FORMS, Form, Said, forms, reformed
from agent_server.sessions.seen_files import remember
from agent_server.sessions.standing import standing
from agent_server.sessions.stuck import Repetition


class Conversation:
    """The messages of one session, without the system prompt, and what the loop must know of them.

    `began` is what session.created says, `instructions` the nested instruction files that were shown, `read_until` how far the
    output of each process in the background was, `files` the stamps of the files that were read or written, by name, `allowed` the
    permissions and patterns that a client has allowed for good, `late` how often checkers were not done in time; `steps`, `cost` (USD),
    `repairs` (forms that a provider wanted) and `repetition` are the present task's, `usage` the last model call's;
    `call_ids` are those of all calls, also of messages that are no longer shown: none may come again.
    `measured` is how many tokens the first `measured_at` entries took there, with all that goes before them (0: not known);
    `changes` counts how often entries have gone or become others; `compactions` those in a row, failed ones too, that the present
    task has made since its last answer.
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
        self.late: Counter[str] = Counter()
        self.steps = 0
        self.repairs = 0
        self.repetition = Repetition()
        self.call_ids: set[str] = set()
        self.usage: Mapping[str, Any] = {}
        self.cost = 0.0
        self.measured = self.measured_at = 0
        self.compactions = self.changes = 0
        self._prompts: dict[str, Entry] = {}  # of tasks that have not begun
        self._added: dict[str, list[Entry]] = {}  # by task: what came while it worked, and is in no request yet
        self._sent_back: set[str] = set()  # of the present task: what was said of answers that did not fit
        self._open: dict[str, ToolCall] = {}
        self._task_id: str | None = None
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
    def corrections(self) -> int:
        """How many answers of the present task did not fit its schema."""
        return len(self._sent_back)

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
        ends = [returned(self.entries[self._asked_at()], call_id, {"output": output, "isError": True}) for call_id in self._open]
        return [*self.entries, *ends]

    def forms(self, *, is_too_long: bool = False) -> Sequence[Form]:
        """The other forms in which the next request can be made, where its provider refuses it, or has no room for it."""
        return forms(self._said(self._shown), is_too_long=is_too_long) if self.repairs < MAX_REPAIRS else ()

    def in_form(self, form: Form) -> Sequence[Message]:
        """What the next request is made of, in another form."""
        return reformed(self._said(self._shown), form)

    @property
    def _shown(self) -> list[Entry]:
        return [*self.entries, *self._added.get(self._task_id or "", ())]

    def _said(self, entries: Sequence[Entry]) -> list[Said]:
        own = [entry.message.role == "user" and entry.task_id == self._task_id and not entry.is_summary for entry in entries]
        # A task whose prompt is in a summary has that to go by.
        has_prompt = any(entry.message_id == prompt_id(self._task_id or "") for entry in entries)
        return [(entry.message, is_own or (entry.is_summary and not has_prompt)) for entry, is_own in zip(entries, own, strict=True)]

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
        if entry.message_id == prompt_id(entry.task_id or ""):
            self._is_plan = is_plan(entry)
        self.call_ids.update(call.id for call in entry.message.tool_calls)
        self.instructions.update(entry.instructions)
        remember(self.files, entry.files)

    def _accepted(self, event: Event) -> None:
        self._prompts[event.task_id or ""] = accepted(event)

    def _started(self, event: Event) -> None:
        self._close_calls()
        task_id = event.task_id or ""
        self._task_id = task_id
        self.steps, self.repairs, self.compactions, self.cost = 0, 0, 0, 0.0
        self._sent_back = set()
        self.repetition = Repetition()
        blank = Entry(prompt_id(task_id), Message("user", (Text(""),)), event.time, task_id)
        entry = self._prompts.pop(task_id, blank)
        was_plan, self._is_plan = self._is_plan, is_plan(entry)
        self.entries.append(with_plan_over(entry) if was_plan and not self._is_plan else entry)

    def _came(self, event: Event) -> None:
        task_id, message_id = event.task_id or "", event.data["messageId"]
        waiting = self._added.setdefault(task_id, [])
        if all(entry.message_id != message_id for entry in waiting):
            waiting.append(Entry(message_id, Message("user", parts(event.data["prompt"])), event.time, task_id))
            if event.data.get("reason") == "output":
                self._sent_back.add(message_id)

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
            asked_at = self._asked_at()
            self.entries.insert(self._place(asked_at, call_id), returned(self.entries[asked_at], call_id, event.data, event.time))
        details = event.data.get("details", {})
        self.instructions.update(details.get("instructions", ()))
        if "nextOffset" in details:
            self.read_until[details["processId"]] = details["nextOffset"]
        remember(self.files, details.get("files", {}))
        self.late.update(details.get("late", ()))

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
            self.entries[:cut] = [*kept, Entry(*ids, is_summary=True, **still_true(gone))]
            self._changed()
        self._spent(event)

    def _pruned(self, event: Event) -> None:
        gone = frozenset(event.data["toolCallIds"])
        self.entries = [without_output(entry) if entry.message.tool_call_id in gone else entry for entry in self.entries]
        self._changed()

    def _spent(self, event: Event) -> None:
        self.cost += (event.data.get("usage") or {}).get("cost") or 0.0
        self.compactions += event.task_id is not None

    def _changed(self) -> None:
        """Forgets what is no longer true when entries have gone."""
        self.instructions = {name for entry in self.entries for name in entry.instructions}
        self.measured = self.measured_at = 0
        self.changes += 1

    def _repaired(self, event: Event) -> None:
        data = event.data
        if data["form"] not in (*FORMS, *SHORT_FORMS):
            return
        self._close_calls()
        self._enter(event.task_id or "", data["added"])
        messages = reformed(self._said(self.entries), data["form"])
        if data["form"] == "plain":
            pairs = zip(self.entries, messages, strict=True)
            self.entries = [msgspec.structs.replace(entry, message=message) for entry, message in pairs]
        else:
            shown = tuple(sorted(self.instructions)) if data["form"] == "transcript" else ()
            cut = len(self.entries) - len(messages) + 1
            told = {"instructions": shown, **still_true(self.entries[:cut])}
            self.entries[:cut] = [Entry(data["messageId"], messages[0], event.time, event.task_id, is_summary=True, **told)]
        self.repairs += 1
        self._changed()

    def _ended(self, event: Event) -> None:
        task_id = event.task_id or ""
        waiting = self._added.pop(task_id, [])
        if event.type == "task.failed" and task_id != self._task_id:
            self._prompts.pop(task_id, None)  # it never began, while another one may be at work
            return
        self._close_calls()
        # A prompt that no model answered is left out, with what came after it: it may be the very reason of the failure.
        if event.type == "task.failed" and self.entries and self.entries[-1].message_id == prompt_id(task_id):
            self.entries.pop()
        else:  # what the user has said while it worked is for the next task's model to know
            self.entries += [entry for entry in waiting if entry.message_id not in self._sent_back]

    def _close_calls(self) -> None:
        if self._open:
            self.entries = self.closed()
            self._open = {}

    def _place(self, asked_at: int, call_id: str) -> int:
        """The place of a call's result: in the order of the calls, whichever of those side by side ends first."""
        order = {call.id: number for number, call in enumerate(self.entries[asked_at].message.tool_calls)}
        after = (at for at in range(asked_at + 1, len(self.entries)) if order[self.entries[at].message.tool_call_id or ""] > order[call_id])
        return next(after, len(self.entries))

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


async def load(log: EventLog, session_id: str) -> Conversation:
    """Folds a session's conversation from the log."""
    conversation = Conversation(session_id)
    for event in standing(await log.read(session_id=session_id, context=True)):
        conversation.apply(event)
    return conversation

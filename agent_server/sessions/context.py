"""The room that a conversation has in its model: how full it is, and what goes when it is full.

Before each model call its tokens are estimated. When they are too many, old tool outputs are removed first (`session.pruned`), and
then a summary takes the place of all but the newest turns (`session.compacted`). Both are in the log before the next request is
made, so that after any restart the same bytes are sent. A provider that refuses a call as too long leads here too. Where no summary
can be had, what is old is left out without one (`repair.py`): no session is too long for its next prompt.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from agent_server.gateway import Fault, ModelError
from agent_server.messages import ToolSpec
from agent_server.pause import Broken
from agent_server.sessions.ask import Ask
from agent_server.sessions.entries import PRUNED, Entry, prompt_id
from agent_server.sessions.run import Paused, Run
from agent_server.sessions.summary import Chosen, NoSummary, Summarised, choose, summarise
from agent_server.sessions.tokens import message_tokens, specs_tokens, text_tokens

ANSWER_TOKENS = 20_000
"""Tokens that are left free for an answer, where the task names no max_tokens: longer ones are rare, and the estimate may be off."""

ANSWER_SHARE = 4
"""They are at most one part in so many of a window, and one in two where the task names them: a small window must not be all answer."""

KEPT_TOKENS = 20_000
"""Tokens of the newest turns that a summary leaves as they are."""

KEPT_SHARE = 4
"""They, and the task's prompt, have at most one part in so many of the room, and of the conversation itself."""

PROTECTED_TOKENS = 40_000
"""Tokens of the newest tool outputs that are never pruned."""

PROTECTED_TURNS = 2
"""The last messages with calls whose outputs are never pruned, however long."""

PROTECTED_TOOLS = frozenset({"skill"})
"""Tools whose outputs are never pruned: they are instructions."""

LEAST_GAIN = 20_000
"""Tokens that a pruning must gain: each costs the provider's cache of all that follows."""

MAX_COMPACTIONS = 2
"""Compactions in a row, with no answer in between, failed ones too: what two did not mend, a third does not."""

SHRINKS_BY = 0.1
"""The part of what a summary replaces by which it must be shorter; else it is none."""

FACTORS = (0.5, 3.0)
"""Between these lies how many tokens a provider counts for one of ours; what is beyond is no matter of tokenizers."""

UNBELIEVED = 0.9
"""A count that after a compaction is still more than this part of the one before is not believed: some servers sum up all calls.
Nor is one of a prompt that was answered, where it is more than the window and no matter of tokenizers (FACTORS)."""

OF_SUMMARIES = frozenset({Fault.BAD_REQUEST, Fault.CONTEXT_OVERFLOW, Fault.EMPTY, Fault.BAD_RESPONSE})
"""Faults of a request for a summary after which the task's own, which was refused as too long, is made without what is old. After others
it fails, and nothing is lost: a summary may be had later."""

ALL_BUT_KEYS = frozenset(Fault) - {Fault.AUTHENTICATION}
"""Those after which a request that only we find too long is made as it is: there is room for it as a rule."""

PRUNED_TOKENS = text_tokens(PRUNED)


async def open_room(run: Run, specs: list[ToolSpec]) -> "Room":
    """Finds out how much the task's model can read. Errors: none."""
    window = await run.around.windows.find(run.options.provider, run.options.model)
    return Room(run, specs, window)


def limit_of(window: int, max_tokens: int | None) -> int:
    """Gives how many tokens a request may have."""
    answer = min(ANSWER_TOKENS, window // ANSWER_SHARE) if max_tokens is None else min(max_tokens, window // 2)
    return window - answer


class Room:
    """One task's. The estimate looks at each message once, and at all again where some went or became others."""

    def __init__(self, run: Run, specs: list[ToolSpec], window: int) -> None:
        self._run = run
        self.offer(specs)
        self._window = window
        self._limit = limit_of(window, run.options.max_tokens)
        self._factor = 1.0
        self._rest = 0.0
        self._compacted_at = 0
        self._believes = True
        self._too_long: ModelError | None = None
        self._forget()

    def offer(self, specs: list[ToolSpec]) -> None:
        """Takes the tools that requests offer from here on."""
        self._specs = specs
        self._base = message_tokens(self._run.system) + specs_tokens(specs)

    def _forget(self) -> None:
        self._changes = self._run.conversation.changes
        self._raw = 0
        self._counted = 0
        self._measured_at = 0
        self._rest = min(self._rest, 0.0)  # what the estimate did not explain has gone with the messages

    def estimate(self) -> int:
        """Gives how many tokens the next request has, about: what the provider counted last, and an estimate of what has come since."""
        conversation = self._run.conversation
        if conversation.changes != self._changes:
            self._forget()
        if conversation.measured_at > self._measured_at:
            self._measured_at = conversation.measured_at
            self._count_to(self._measured_at)
            self._calibrate(conversation.measured)
        self._count_to(len(conversation.entries))
        waiting = sum(message_tokens(entry.message) for entry in conversation.waiting)
        return max(0, round(self._rest + self._factor * (self._base + self._raw + waiting)))

    def _count_to(self, end: int) -> None:
        entries = self._run.conversation.entries
        for at in range(self._counted, end):
            self._raw += message_tokens(entries[at].message)
        self._counted = max(self._counted, end)

    def _calibrate(self, measured: int) -> None:
        if not measured:
            return
        prompt = self._run.conversation.usage.get("prompt_tokens") or 0
        raw = self._base + self._raw
        least, most = FACTORS
        is_absurd = prompt > self._window and measured > most * raw
        if is_absurd or (self._compacted_at and measured > self._compacted_at * UNBELIEVED):
            self._believes = False
        self._compacted_at = 0
        if not self._believes:
            self._factor, self._rest = 1.0, 0.0
            return
        self._factor = min(max(measured / raw, least), most)
        self._rest = measured - self._factor * raw

    async def ask(self) -> bool:
        """Makes a model call, and gives whether it was answered; else the provider found it too long, and there is more room now.

        Errors: as Ask's, and as `make`.
        """
        call = Ask(self._run, self._too_long)
        try:
            await call.ask(self._specs)
        except ModelError as error:
            if error.fault is not Fault.CONTEXT_OVERFLOW or call.is_begun or self._too_long is not None:
                raise
            await self.make(error)
            return False
        self._too_long = None
        return True

    async def make(self, refused: ModelError | None = None) -> bool:
        """Sees to it that the next request fits, and gives whether anything had to go for that. `refused` is why the last one did not.

        Where nothing can go, and the provider has not refused, it has the last word. Where it has, and no summary can be had, the
        request is made without what is old.
        Errors: ModelError with Fault.CONTEXT_OVERFLOW when there is no way, another one when the model made no summary; Paused.
        """
        if refused is not None:
            self._limit = min(self._limit, self.estimate() - 1)
        elif not self._is_over:
            return False
        conversation = self._run.conversation
        made = await self._prune()
        while self._is_over:
            chosen = self._choose()
            if chosen is None and refused is None and not (conversation.compactions and conversation.steps):
                break
            if chosen is None or conversation.compactions >= MAX_COMPACTIONS:
                if conversation.steps:  # what the task itself has said and done is too much
                    raise self._overflow(refused)
                self._too_long = self._overflow(refused)
                break
            try:
                made = await self._compact(chosen, is_refused=refused is not None) or made
            except ModelError as error:
                if error.fault not in (OF_SUMMARIES if refused is not None else ALL_BUT_KEYS):
                    raise
                if refused is not None:
                    self._too_long = self._overflow(refused)  # the request itself can be made in a form that needs no summary
                else:
                    self._limit = self._window  # it is made as it is, and no summary asked for again as long as there is room
                break
        return made

    @property
    def _is_over(self) -> bool:
        return self.estimate() > self._limit

    async def _prune(self) -> bool:
        call_ids, gain = prunable(self._run.conversation.settled)
        if gain < LEAST_GAIN:
            return False
        await self._run.append(self._run.draft("session.pruned", {"toolCallIds": call_ids, "tokens": gain}))
        return True

    def _choose(self) -> Chosen | None:
        """Chooses what is to be summarised: at a second try all there is, save what no model has answered."""
        conversation = self._run.conversation
        self.estimate()
        share = max(0, min(self._limit, self._raw)) // KEPT_SHARE
        keep = 0 if conversation.compactions else min(KEPT_TOKENS, share)
        prompt = prompt_id(self._run.task_id)
        first = next((entry for entry in conversation.entries if entry.message_id == prompt), None)
        is_short = first is not None and message_tokens(first.message) * KEPT_SHARE <= self._limit
        chosen = choose(conversation.settled, keep=keep, prompt_id=prompt) or choose(conversation.settled, prompt_id=prompt)
        return chosen if is_short or chosen is None else Chosen(chosen.entries)

    async def _compact(self, chosen: Chosen, *, is_refused: bool) -> bool:
        """Puts a summary into the place of what was chosen; or notes that there is none, and leaves all as it was."""
        run = self._run
        run.is_waiting = True  # nothing is told before the end: a drain may break it off
        try:
            done = await self._summarise(chosen, is_refused=is_refused)
        except ModelError as error:
            usage = {"usage": error.usage} if isinstance(error, NoSummary) else {}
            await self._fail(error.details["reason"], error.message, **usage)
            if isinstance(error, NoSummary):
                return False
            raise
        finally:
            run.is_waiting = False
        if text_tokens(done.summary) > chosen.tokens * (1 - SHRINKS_BY):
            await self._fail("no_shorter", "The summary is no shorter than what it was to replace.", usage=done.usage)
            return False
        self._compacted_at = run.conversation.measured
        await run.append(run.draft("session.compacted", done.to_wire(), sync=True))
        return True

    async def _summarise(self, chosen: Chosen, *, is_refused: bool) -> Summarised:
        run = self._run
        while True:
            with suppress(Broken):
                async with run.around.pause.call():
                    return await summarise(
                        run.around.gateway,
                        chosen,
                        run.system,
                        self._specs,
                        run.options,
                        window=self._window,
                        is_refused=is_refused,
                        on_retry=self._retrying,
                    )
            await run.around.pause.point()
            if run.is_draining():
                raise Paused

    async def _retrying(self, error: ModelError, attempt: int, delay: float) -> None:
        said = {"attempt": attempt, "delay_ms": round(delay * 1000), "reason": error.fault.value, "error": error.message}
        await self._run.append(self._run.draft("task.retrying", said))

    async def _fail(self, reason: str, error: str, **more: Any) -> None:
        await self._run.append(self._run.draft("compaction.failed", {"reason": reason, "error": error, **more}))

    def _overflow(self, refused: ModelError | None) -> ModelError:
        tokens, compactions = self.estimate(), self._run.conversation.compactions
        text = (
            f"The conversation takes about {tokens} tokens and does not fit the model's window, also after {compactions} compactions; "
            "begin a new session, or name a model that reads more."
        )
        error = ModelError(Fault.CONTEXT_OVERFLOW, text if refused is None else f"{refused.message.rstrip('.')}. {text}")
        error.details |= {**(refused.details if refused is not None else {}), "tokens": tokens, "window": self._window}
        error.details["compactions"] = compactions
        return error


def prunable(entries: Sequence[Entry]) -> tuple[list[str], int]:
    """Gives the calls whose outputs are old and long enough to go, oldest first, and how many tokens that gains."""
    names = {call.id: call.name for entry in entries for call in entry.message.tool_calls}
    recent: set[str] = set()
    call_ids: list[str] = []
    seen = gain = 0
    for entry in reversed(entries):
        call_id = entry.message.tool_call_id
        if call_id is None or names.get(call_id) in PROTECTED_TOOLS:
            continue
        if len(recent) < PROTECTED_TURNS:
            recent.add(entry.message_id)
        size = message_tokens(entry.message)
        if seen >= PROTECTED_TOKENS and entry.message_id not in recent and size > PRUNED_TOKENS * 2:
            call_ids.append(call_id)
            gain += size - PRUNED_TOKENS
        seen += size
    return call_ids[::-1], gain

"""One model call of a task, with its retries: deltas and the message as events."""

from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

from agent_server.commands.output import MaskedText
from agent_server.events import Draft
from agent_server.gateway import Completion, Delta, Fault, ModelError, ReasoningDelta, TextDelta
from agent_server.gateway.calls import distinct
from agent_server.gateway.retry import stream_with_retries
from agent_server.ids import new_id
from agent_server.messages import Image, Message, ToolSpec, Usage
from agent_server.pause import Broken
from agent_server.sessions.repair import Form
from agent_server.sessions.run import Paused, Run


class Ask:
    """One model call with its retries: streams deltas as events, and ends with message.completed.

    With `too_long`, which says why the conversation cannot be sent as it is, only forms with less of it are sent.
    """

    def __init__(self, run: Run, too_long: ModelError | None = None) -> None:
        self._run = run
        self._too_long = too_long
        self._added: Sequence[str] = ()
        self._form: Form | None = None
        self._refusal: ModelError | None = None
        self._begin()

    def _begin(self) -> None:
        self._message_id = new_id("msg")
        self._text = self._sink("message.delta", self._message_id)
        self._reasoning = self._sink("reasoning.delta", self._message_id)
        self._is_begun = self._is_complete = False

    def _sink(self, kind: str, message_id: str) -> MaskedText:
        run = self._run
        return MaskedText(run.around.secrets, lambda text: run.around.log.say(run.draft(kind, {"messageId": message_id, "delta": text})))

    @property
    def is_begun(self) -> bool:
        """Whether anything of the message was told."""
        return self._is_begun

    async def ask(self, specs: list[ToolSpec]) -> None:
        """Errors: ModelError, LogUnavailable; Paused when the server stops while the call is held."""
        run = self._run
        while not self._is_complete:
            with suppress(Broken):
                async with run.around.pause.call():
                    await self._stream(specs)
            if not self._is_complete:
                await self._break_off()

    async def _stream(self, specs: list[ToolSpec]) -> None:
        """Makes the call; in other forms of the conversation where the provider refuses it as it is."""
        self._form, self._refusal = None, None
        if self._too_long is not None and not self._take_form(self._too_long):
            raise self._too_long
        while True:
            try:
                return await self._stream_once(specs)
            except ModelError as error:
                if not self._takes_another_form(error):
                    raise _explained(self._refusal or error, self._run.conversation.messages) from error
                await self._let_go()

    def _takes_another_form(self, error: ModelError) -> bool:
        """Whether the call is to be made again, in the next form."""
        if error.fault is not Fault.BAD_REQUEST and not (self._form is not None and error.fault is Fault.CONTEXT_OVERFLOW):
            return False
        return self._take_form(error)

    def _take_form(self, error: ModelError) -> bool:
        """Takes the next form, where there is one."""
        forms = self._run.conversation.forms(is_too_long=self._too_long is not None)
        left = forms[forms.index(self._form) + 1 :] if self._form is not None else forms
        if not left:
            return False
        self._form, self._refusal = left[0], self._refusal or error
        return True

    def _messages(self) -> Sequence[Message]:
        """What the next try is made of: a message that came meanwhile is in it, too."""
        conversation = self._run.conversation
        self._added = conversation.added
        return [self._run.system, *(conversation.messages if self._form is None else conversation.in_form(self._form))]

    async def _stream_once(self, specs: list[ToolSpec]) -> None:
        run = self._run
        run.is_waiting = True
        try:
            tries = stream_with_retries(run.around.gateway, self._messages, specs, run.options, on_retry=self._discard)
            async with aclosing(tries) as stream:
                async for delta in stream:
                    self._take(delta)
        finally:
            run.is_waiting = False
            self._end()  # no delta may come after the event that ends the task

    def _take(self, delta: Delta) -> None:
        match delta:
            case TextDelta(text):
                self._is_begun = True
                self._reasoning.end()
                self._text.add(text)
            case ReasoningDelta(text):
                self._is_begun = True
                self._text.end()
                self._reasoning.add(text)
            case Completion():
                self._complete(delta)

    def _complete(self, completion: Completion) -> None:
        run, message = self._run, completion.message
        self._is_complete = True
        self._end()
        calls = []
        for call in distinct(message.tool_calls, run.conversation.call_ids):  # the model cannot know those that were compacted
            run.arguments[call.id] = call.arguments
            calls.append({"id": call.id, "name": call.name, "arguments": call.arguments})
        data: dict[str, Any] = {
            "messageId": self._message_id,
            "text": message.text,
            "toolCalls": calls,
            "usage": usage_to_wire(completion.usage),
            "finishReason": completion.finish_reason,
        }
        if message.reasoning is not None:
            data["reasoning"] = message.reasoning
        if self._added:
            data["added"] = self._added
        run.post(*self._repair(), run.draft("message.completed", data))

    def _repair(self) -> list[Draft]:
        """What the log says of the form that the provider took, so that all later requests begin with it."""
        if self._form is None or self._refusal is None:
            return []
        why = {"reason": self._refusal.fault.value, "error": self._refusal.message}
        return [self._run.draft("session.repaired", {"messageId": new_id("msg"), "form": self._form, "added": self._added, **why})]

    def _end(self) -> None:
        self._text.end()
        self._reasoning.end()

    async def _break_off(self) -> None:
        """Waits until the call may be made again, as another message."""
        run = self._run
        await self._let_go()
        await run.around.pause.point()
        if run.is_draining():
            raise Paused

    async def _let_go(self) -> None:
        drafts = [self._run.draft("message.discarded", {"messageId": self._message_id})] if self._is_begun else []
        self._begin()  # before anything is waited for: a call that is broken off here must not be discarded twice
        await self._run.append(*drafts)

    async def _discard(self, error: ModelError, attempt: int, delay: float) -> None:
        self._end()
        run = self._run
        retrying = {"attempt": attempt, "delay_ms": round(delay * 1000), "reason": error.fault.value, "error": error.message}
        await self._let_go()
        await run.append(run.draft("task.retrying", retrying))


def _explained(error: ModelError, messages: Sequence[Message]) -> ModelError:
    """Gives the error with what may be its cause: not every model takes images, and few say so clearly."""
    if error.fault is Fault.BAD_REQUEST and any(isinstance(part, Image) for message in messages for part in message.content):
        error.details["hasImages"] = True
        error.message = f"{error.message} The conversation has images; use a model that takes them."
    return error


def usage_to_wire(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
        "reasoning_tokens": usage.reasoning,
        "total_tokens": usage.prompt + usage.completion,
        "cost": usage.cost,
    }

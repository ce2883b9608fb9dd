"""The one loop: fold the log into messages, ask the model, append what it says, run its calls, again.

It begins wherever the log says the task stands, so that a first start and a resumption are the same thing. It leaves
out queues, deadlines and cancelling, which are `sessions.py`; how a call is run is `calls.py`.
"""

from contextlib import aclosing
from typing import Any

from agent_server.calls import run_calls
from agent_server.errors import Unprocessable
from agent_server.gateway import Completion, Delta, ModelError, ReasoningDelta, TextDelta
from agent_server.gateway.retry import stream_with_retries
from agent_server.ids import new_id
from agent_server.messages import ToolSpec, Usage
from agent_server.output import MaskedText
from agent_server.run import Run


class Paused(Exception):
    """The server is stopping: the task stands at a safe point, and goes on at the next start."""


async def work(run: Run) -> str:
    """Works on a task until the model answers without calls, and gives that answer.

    Errors: ModelError; Unprocessable at a limit, with details.reason; LogUnavailable; Paused. Cancellation: at any await;
    calls that had begun stay open in the log, for whoever ends or resumes the task to settle.
    """
    conversation = run.conversation
    steps = run.task.steps
    specs = [ToolSpec(tool.name, tool.description, tool.parameters) for tool in run.tools.values()]
    while True:
        await run_calls(run)
        if conversation.steps > steps:  # not so before the first step, nor when the log has the end of the last one
            steps += 1
            run.post(run.draft("step.finished", {"step": steps, "usage": conversation.usage}))
        if conversation.is_answered:
            return conversation.messages[-1].text
        if run.is_draining():
            raise Paused
        _check_limits(run, steps)
        run.post(run.draft("step.started", {"step": steps + 1}))
        await _Ask(run).ask(specs)


def _check_limits(run: Run, steps: int) -> None:
    cost = run.conversation.cost
    if steps >= run.max_steps:
        reached, reason, name = f"{steps} steps", "max_steps", "maxSteps"
    elif run.max_cost is not None and cost >= run.max_cost:
        reached, reason, name = f"a cost of {cost:.4f} USD", "max_cost", "maxCost"
    else:
        return
    raise Unprocessable(f"The task stopped at {reached}, its limit; raise {name} or give it less to do.", details={"reason": reason})


class _Ask:
    """One model call with its retries: streams deltas as events, and ends with message.completed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begin()

    def _begin(self) -> None:
        self._message_id = new_id("msg")
        self._text = self._sink("message.delta", self._message_id)
        self._reasoning = self._sink("reasoning.delta", self._message_id)
        self._is_begun = False

    def _sink(self, kind: str, message_id: str) -> MaskedText:
        run = self._run
        return MaskedText(run.around.secrets, lambda text: run.around.log.say(run.draft(kind, {"messageId": message_id, "delta": text})))

    async def ask(self, specs: list[ToolSpec]) -> None:
        run = self._run
        messages = [run.system, *run.conversation.messages]
        run.is_asking = True
        try:
            async with aclosing(stream_with_retries(run.around.gateway, messages, specs, run.options, on_retry=self._discard)) as stream:
                async for delta in stream:
                    self._take(delta)
        finally:
            run.is_asking = False
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
        self._end()
        calls = []
        for call in message.tool_calls:
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
        run.post(run.draft("message.completed", data))

    def _end(self) -> None:
        self._text.end()
        self._reasoning.end()

    async def _discard(self, error: ModelError, attempt: int, delay: float) -> None:
        self._end()
        run = self._run
        retrying = {"attempt": attempt, "delay_ms": round(delay * 1000), "reason": error.fault.value, "error": error.message}
        drafts = [run.draft("message.discarded", {"messageId": self._message_id})] if self._is_begun else []
        await run.append(*drafts, run.draft("task.retrying", retrying))
        self._begin()


def usage_to_wire(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
        "reasoning_tokens": usage.reasoning,
        "total_tokens": usage.prompt + usage.completion,
        "cost": usage.cost,
    }

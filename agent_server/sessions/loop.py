"""The one loop: fold the log into messages, ask the model, append what it says, run its calls, again.

It begins wherever the log says the task stands, so that a first start and a resumption are the same thing. It leaves
out queues, deadlines and cancelling, which are `sessions.py`; a model call is `ask.py`, the room it needs `context.py`, how a call
is run `calling/calls.py`.
"""

from typing import Any

from agent_server.calling.calls import run_calls
from agent_server.errors import Unprocessable
from agent_server.events import Draft
from agent_server.messages import ToolSpec
from agent_server.sessions.answers import accept
from agent_server.sessions.context import open_room
from agent_server.sessions.run import Paused, Run


async def work(run: Run) -> dict[str, Any]:
    """Works on a task until the model answers without calls, and gives that answer: `response`, and `output` where it has a schema.

    Errors: ModelError; Unprocessable at a limit, with details.reason; LogUnavailable; Paused. Cancellation: at any await;
    calls that had begun stay open in the log, for whoever ends or resumes the task to settle.
    """
    conversation = run.conversation
    steps = run.task.steps
    room = await open_room(run, _specs(run))
    while True:
        await run_calls(run)
        if conversation.steps > steps:  # not so before the first step, nor when the log has the end of the last one
            steps += 1
            run.post(run.draft("step.finished", {"step": steps, "usage": conversation.usage}), *_unpriced(run, steps))
        if conversation.is_answered and (answer := accept(run)) is not None:
            run.is_closed = True  # what comes from here on is refused rather than lost
            return answer
        await run.around.pause.point()
        if run.is_draining():
            raise Paused
        _check_limits(run, steps, await run.spent())
        if await run.renew():
            room.offer(_specs(run))
        if await room.make():
            _check_limits(run, steps, await run.spent())  # a summary costs too
        run.post(run.draft("step.started", {"step": steps + 1}))
        while not await room.ask():
            _check_limits(run, steps, await run.spent())


def _specs(run: Run) -> list[ToolSpec]:
    return [ToolSpec(tool.name, tool.description, tool.parameters) for tool in run.tools.values()]


def _unpriced(run: Run, steps: int) -> list[Draft]:
    """Says, after the first step, where a limit of the cost does not hold."""
    if run.max_cost is None or steps > 1 or run.conversation.usage.get("cost") is not None:
        return []
    text = f"maxCost does not hold: neither the provider nor the table of prices says what {run.options.model} costs."
    return [run.draft("log", {"level": "WARNING", "source": "task", "text": text})]


def _check_limits(run: Run, steps: int, cost: float) -> None:
    reached: dict[str, Any]
    if steps >= run.max_steps:
        what, name, reached = f"{steps} steps", "maxSteps", {"reason": "max_steps", "limit": run.max_steps, "reached": steps}
    elif run.max_cost is not None and cost >= run.max_cost:
        what, name = f"a cost of {cost:.4f} USD", "maxCost"
        reached = {"reason": "max_cost", "limit": run.max_cost, "reached": cost}
    elif not run.conversation.added and (stuck := run.conversation.repetition.stuck()) is not None:
        text = f"The task stopped because its calls repeated themselves {stuck['reached']} times; say what it should do otherwise."
        raise Unprocessable(text, details=stuck)
    else:
        return
    raise Unprocessable(f"The task stopped at {what}, its limit; raise {name} or give it less to do.", details=reached)

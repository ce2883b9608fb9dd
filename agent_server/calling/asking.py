"""Asks the client, and waits: whether a call may run, and what the model wants to know.

What is asked is in the log before anybody can answer, and the answer before anything is done with it, so that both outlive the server.
While a task waits it leaves its place to others.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import msgspec

from agent_server.calling.custom import CustomTool, Offered
from agent_server.calling.permissions import Called, Judgement, Places, judge
from agent_server.calling.plan import REFUSED, may_run
from agent_server.events import Draft
from agent_server.ids import new_id
from agent_server.mcp.naming import plain
from agent_server.messages import ToolCall
from agent_server.sessions.entries import SKIPPED
from agent_server.sessions.run import Caller, Paused, Run
from tools import Answers, ToolError

ARRIVAL = 2.0
"""Seconds that a question waits for its first listener: a stream that broke off comes back after one."""

MAX_DEPTH = 100
"""Levels of a call's arguments that events have as JSON: what Python just decodes, it may not encode again, or decode elsewhere."""

FORBIDDEN = "A rule of this workspace forbids this call ({}: {}). Go on without it, or say what you need."
UNASKED = "A rule of this workspace has this call asked about ({}: {}), and nobody is there to allow it. Go on without it, and say so."
REJECTED = "The user does not allow this call."
NOBODY = "Nobody is there to answer. Decide yourself what is most likely wanted, go on, and state your assumption in the final answer."
UNANSWERED = "The user does not want to answer. Go on without."
MESSAGED = "The user sent a message in place of an answer."


async def wait_until(run: Run, is_over: Callable[[], bool]) -> None:
    """Waits for what a client adds to the task. Errors: Paused when the server stops."""
    if run.is_draining():
        raise Paused
    run.is_waiting = True
    try:
        async with run.around.pause.aside(), run.slot.left():
            while not is_over():
                run.changed.clear()
                await run.changed.wait()
    finally:
        run.is_waiting = bool(run.waits.open)  # beside this one, another question may be open


# Permissions


async def permitted(run: Run, calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Gives those of the calls that may run; the others have their result. Asks the client where a rule says so, unless it has said
    that it does not answer.

    What has begun was allowed before. Errors: Paused.
    """
    if not (run.rules or run.is_plan):
        return list(calls)
    fresh = [call for call in calls if call.id not in run.begun | run.requested]
    judged = {call.id: judgement for call in fresh if (judgement := await _judge(run, call)).verdict != "allow"}
    is_answered = run.task.given.get("interactive") is not False
    asks = [call for call in fresh if call.id in judged and judged[call.id].verdict == "ask" and is_answered]
    await _ask(run, asks, judged)
    ends = [_refused(run, call, judged[call.id]) for call in fresh if call.id in judged and not _is_granted(run, call)]
    if ends:
        await run.append(*ends)
    gone = {end.data["toolCallId"] for end in ends}
    return [call for call in calls if call.id not in gone]


async def _judge(run: Run, call: ToolCall) -> Judgement:
    tool = run.tools.get(call.name)
    allowed = Judgement("allow", call.name)
    if tool is None:
        return allowed  # which is told when it runs
    if run.is_plan and not may_run(tool):
        return Judgement("deny", "plan")
    try:
        arguments = tool.parse(run.arguments.get(call.id, call.arguments))
    except ToolError:
        return allowed  # so is this
    if not run.rules:
        return allowed
    return await asyncio.to_thread(judge, run.rules, list(run.conversation.allowed), _called(run, tool, arguments), _places(run))


def _called(run: Run, tool: Offered, arguments: Any) -> Called:
    given: Mapping[str, Any] = arguments if isinstance(arguments, dict) else msgspec.to_builtins(arguments)
    if not isinstance(tool, CustomTool):
        return Called(tool.name, given)
    if tool.server is None or tool.own_name is None:
        return Called(tool.name, given, is_own=False)
    # OpenCode's name for it, which rules of files for that have; and its own, which it may have lost to another server's tool.
    own = plain(tool.own_name)
    likely = (own,) if own not in run.around.tools else ()
    return Called(tool.name, given, is_own=False, names=(plain(f"{tool.server}_{tool.own_name}"),), likely=likely)


def _places(run: Run) -> Places:
    return Places(str(run.around.workspace.root), str(run.around.outputs))


async def _ask(run: Run, calls: Sequence[ToolCall], judged: Mapping[str, Judgement]) -> None:
    """Asks about the calls that nobody was asked about, and waits until each is answered, or a message comes in place of that."""
    known = run.waits.open.keys() | run.waits.answers.keys()
    requests = [_request(run, call, judged[call.id]) for call in calls if call.id not in known]
    if requests:
        _, told = run.around.log.post(*_told_to_parent(run, requests))
        await run.append(*requests)
        await told
    while still := [call for call in calls if call.id in run.waits.open]:
        count = len(still)
        await wait_until(run, lambda count=count: _open(run, calls) < count or bool(run.conversation.added))  # type: ignore[misc]  # a default
        settled = [call for call in calls if call.id in run.waits.open and await _is_settled(run, call)]
        if settled:
            await run.append(*(_replied(run, call, is_allowed=not run.conversation.added) for call in settled))


def _open(run: Run, calls: Sequence[ToolCall]) -> int:
    return sum(call.id in run.waits.open for call in calls)


async def _is_settled(run: Run, call: ToolCall) -> bool:
    """Whether a call needs no answer any more: a message has come, or an answer to another one allows it too."""
    return bool(run.conversation.added) or (await _judge(run, call)).verdict == "allow"


def _request(run: Run, call: ToolCall, judgement: Judgement) -> Draft:
    data = {
        "permissionId": new_id("perm"),
        "toolCallId": call.id,
        "tool": call.name,
        "permission": judgement.permission,
        "patterns": list(judgement.patterns),
        "always": [{"permission": permission, "pattern": pattern} for permission, pattern in judgement.always],
        "input": given(call),
    }
    return run.draft("permission.requested", data, sync=True)


def _told_to_parent(run: Run, requests: Sequence[Draft]) -> list[Draft]:
    """Gives what those hear who follow the task that this one works for: they do not see its events, and it waits for them."""
    about = run.task.given
    if (parent := about.get("parentTaskId")) is None:
        return []
    place = {"toolCallId": about["toolCallId"], "subagent": {"sessionId": run.session_id, "taskId": run.task_id}}
    return [Draft("subagent.asked", {**request.data, **place}, about["parentSessionId"], parent) for request in requests]


def given(call: ToolCall) -> Any:
    """Gives a call's arguments as events have them: as JSON where they are, and no deeper than MAX_DEPTH."""
    try:
        value = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return call.arguments
    return call.arguments if _is_deep(value) else value


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inside for each in values if isinstance(each, dict | list)]
    return bool(level)


def _replied(run: Run, call: ToolCall, *, is_allowed: bool) -> Draft:
    asked = run.waits.open[call.id].data
    response, reason = ("once", "always") if is_allowed else ("reject", "message")
    data = {name: asked[name] for name in ("permissionId", "toolCallId", "tool")}
    awaited = len(run.waits.open.keys() - {call.id})
    return run.draft("permission.replied", {**data, "response": response, "reason": reason, "awaited": awaited}, sync=True)


def _is_granted(run: Run, call: ToolCall) -> bool:
    return run.waits.answers.get(call.id, {}).get("response") in ("once", "always")


def _refused(run: Run, call: ToolCall, judgement: Judgement) -> Draft:
    answer = run.waits.answers.get(call.id, {})
    if judgement.verdict == "deny":
        shown = ", ".join(judgement.patterns)
        reason, text = ("plan", REFUSED) if judgement.permission == "plan" else ("denied", FORBIDDEN.format(judgement.permission, shown))
    elif not answer:
        reason, text = "unasked", UNASKED.format(judgement.permission, ", ".join(judgement.patterns))
    elif answer.get("reason") == "message":
        reason, text = "skipped", SKIPPED
    else:
        reason, text = "rejected", f"{REJECTED} They say: {answer['message']}" if answer.get("message") else REJECTED
    end = {"toolCallId": call.id, "tool": call.name, "isError": True, "interrupted": False, "duration_ms": 0}
    output = text if reason == "skipped" else f"Error: {text}"
    return run.draft("tool.finished", {**end, "output": output, "details": {"reason": reason}, "skipped": reason == "skipped"})


# Questions


async def ask_questions(caller: Caller, call: ToolCall, questions: Sequence[Mapping[str, Any]]) -> Answers:
    """Asks the client, who answers once, also after a restart. Errors: ToolError without an answer; Paused."""
    if not isinstance(caller, Run):
        raise ToolError(NOBODY)
    run = caller
    if call.id not in run.waits.open and call.id not in run.waits.answers:
        if not await _is_heard_soon(run):
            raise ToolError(NOBODY)
        asked = {"questionId": new_id("ques"), "toolCallId": call.id, "tool": call.name, "questions": list(questions)}
        await run.append(run.draft("question.asked", asked, sync=True))
    if call.id in run.waits.open:
        await _await_answer(run, call)
    answer = run.waits.answers[call.id]
    if answer.get("rejected"):
        raise ToolError({"no_client": NOBODY, "message": MESSAGED}.get(answer.get("reason", ""), UNANSWERED))
    return [list(chosen) for chosen in answer["answers"]]


def _is_heard(run: Run) -> bool:
    """Whether a client would hear a question: the task says so, or somebody follows its events."""
    declared = run.task.given.get("interactive")
    return run.around.audience.hears(run.task_id) if declared is None else bool(declared)


async def _is_heard_soon(run: Run) -> bool:
    clock = run.around.pause.clock
    until = clock.time() + (ARRIVAL if run.task.given.get("interactive") is None else 0)
    while not _is_heard(run) and clock.time() < until:
        await _listen(run, until - clock.time())
    return _is_heard(run)


async def _listen(run: Run, seconds: float | None) -> None:
    """Waits until something may have changed, for the task or in who follows tasks; no longer than this time."""
    run.changed.clear()
    with run.around.audience.watched(run.changed), suppress(TimeoutError):
        async with run.around.pause.clock.timeout(seconds) if seconds is not None else nullcontext():
            await run.changed.wait()


async def _await_answer(run: Run, call: ToolCall) -> None:
    if run.is_draining():
        raise Paused
    run.is_waiting = True
    try:
        async with run.around.pause.aside(), run.slot.left():
            reason = await _until_answered(run, call)
    finally:
        run.is_waiting = bool(run.waits.open.keys() - {call.id})
    if reason is not None and call.id in run.waits.open:
        asked = run.waits.open[call.id].data
        data = {name: asked[name] for name in ("questionId", "toolCallId")}
        awaited = len(run.waits.open.keys() - {call.id})
        await run.append(run.draft("question.answered", {**data, "rejected": True, "reason": reason, "awaited": awaited}, sync=True))


async def _until_answered(run: Run, call: ToolCall) -> str | None:
    """Returns when the answer is there: None; or when there will be none: the reason."""
    clock, patience = run.around.pause.clock, run.around.audience.patience
    heard_at = clock.time()
    while call.id in run.waits.open:
        if run.conversation.added:
            return "message"
        if _is_heard(run):
            await _listen(run, None)
            heard_at = clock.time()
        elif (left := heard_at + patience - clock.time()) > 0:
            await _listen(run, left)
        else:
            return "no_client"
    return None

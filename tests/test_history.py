"""Every request is a conversation that providers take, whatever happened before: lives of a session as a server can write them, and
a real server in front of a strict provider that is killed and cancelled at many moments."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.calling.calls import nudged
from agent_server.events import Event
from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.calls import distinct
from agent_server.gateway.providers import Endpoint
from agent_server.messages import Message, Text, ToolCall
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.entries import INTERRUPTED, SKIPPED, entry_to_wire, prompt_id
from agent_server.sessions.standing import standing
from agent_server.sessions.summary import Summarised, choose
from tests.emulators.history import complaint
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import bash
from tests.serving import ServerProcess

ENDPOINT = Endpoint("http://127.0.0.1/v1", None, {}, "m", "openai-compatible")
SYSTEM = Message("system", (Text("Be good."),))
IDS = ["", "call_0", "call_0", "call_1", "x" * 50]
ARGUMENTS = ["", "{}", '{"a": 1}', "{oops", "[1]", "null", '"\\ud800"']
TEXTS = ["", " ", "\n", "Well."]
TOOLS = ["bash", "bash", "read", "task", "skill", "no such tool!"]
IMAGE = {"type": "image", "mediaType": "image/png", "data": "QQ=="}


class Life:
    """One session, whose events are written in the order in which the server writes them. `draw` decides what happens."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._log: list[Event] = []
        self._state = Conversation("s")
        self._number = 0
        self._ended: list[str] = []
        self._reverted: str | None = None
        self.requests = 0
        self.add("session.created", {"system": "", "date": "", "agent": ""})

    def draw(self, *choices: Any) -> Any:
        return self._data.draw(st.sampled_from(choices))

    def add(self, kind: str, data: dict[str, Any], task_id: str | None = None) -> None:
        event = Event(len(self._log) + 1, 1_000 + len(self._log), kind, json.loads(json.dumps(data)), "s", task_id)
        self._log.append(event)
        self._state.apply(event)

    def new(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}_{self._number}"

    def restart(self) -> None:
        folded = Conversation("s")
        for event in standing(self._log):
            folded.apply(event)
        self._state = folded

    def request(self) -> None:
        """What a task would send: a strict provider takes it, and a restart would send the same."""
        self.requests += 1
        sent = self._encoded()
        assert complaint(json.loads(sent)) is None, sent
        for form in [*self._state.forms(), *self._state.forms(is_too_long=True)]:
            body = BodyEncoder().encode(ENDPOINT, [SYSTEM, *self._state.in_form(form)], (), None)
            assert complaint(json.loads(body)) is None, (form, body)
        self.restart()
        assert self._encoded() == sent

    def _encoded(self) -> bytes:
        return BodyEncoder().encode(ENDPOINT, [SYSTEM, *self._state.messages], (), None)

    def task(self) -> None:
        task_id = self.new("task")
        mode = self.draw({}, {}, {"mode": "plan"}, {"outputSchema": {"type": "object"}})
        self.add("task.created", {"prompt": self.draw("do it", [IMAGE]), **mode}, task_id)
        if self.draw(False, False, True):
            return self._end(task_id, "task.failed")  # cancelled in the queue
        self.add("task.started", {}, task_id)
        self._ended.append(task_id)
        self._reverted = None
        for _ in range(self.draw(0, 1, 2, 3)):
            self._steer(task_id)
            self._make_room(task_id)
            self.request()
            if not self._step(task_id):
                return None
        if self.draw(False, True):
            return self._end(task_id, "task.failed")
        self.request()
        self._say(task_id, [], "Done.")
        return self._end(task_id, "task.completed")

    def _steer(self, task_id: str) -> None:
        if self.draw(False, False, True):
            self.add("message.added", {"messageId": self.new("msg"), "prompt": "and this"}, task_id)

    def _say(self, task_id: str, calls: list[ToolCall], text: str) -> None:
        data: dict[str, Any] = {"messageId": self.new("msg"), "text": text, "toolCalls": [_wire(call) for call in calls], "usage": {}}
        if self.draw(False, True):
            data["reasoning"] = {"text": "Hm.", "field": "reasoning_content", "provider": "openai-compatible", "model": "m"}
        added = list(self._state.added)
        self._steer(task_id)  # while the model speaks: it is for the next request
        forms = [*self._state.forms(), *self._state.forms(is_too_long=True)]
        if forms and self.draw(False, False, True):
            form = self.draw(*forms)
            self.add("session.repaired", {"messageId": self.new("msg"), "form": form, "added": added}, task_id)
        self.add("message.completed", {**data, "added": added}, task_id)

    def _step(self, task_id: str) -> bool:
        """One answer with calls, and how they end; gives whether the task goes on."""
        said = [ToolCall(self.draw(*IDS), self.draw(*TOOLS), self.draw(*ARGUMENTS)) for _ in range(self.draw(1, 1, 2, 4))]
        calls = list(distinct(said, self._state.call_ids))
        self._say(task_id, calls, self.draw(*TEXTS))
        for call in calls:
            self._steer(task_id)
            if self._state.added:
                self.add("tool.finished", {**_result(call, SKIPPED), "skipped": True}, task_id)
                continue
            match self.draw("ends", "ends", "ends", "crash", "crash before", "cancel", "cancel before"):
                case "ends":
                    self._finish(call, self.draw("", " ", "fine", "long " * 20_000), task_id)
                case "crash" if call.name != "task":  # a subagent goes on after it
                    self.restart()
                    self.add("tool.finished", {**_result(call, INTERRUPTED), "interrupted": True}, task_id)
                case "crash" | "crash before":
                    self.restart()
                    self._finish(call, "fine", task_id)
                case "cancel":
                    self.add("tool.finished", {**_result(call, "Cancelled."), "interrupted": True}, task_id)
                    self._end(task_id, "task.failed")
                    return False
                case _:
                    self._end(task_id, "task.failed")
                    return False
        return True

    def _finish(self, call: ToolCall, output: str, task_id: str) -> None:
        data = _result(call, output)
        if call.name == "task":
            data["details"] = {"sessionId": "other", "taskId": self.new("task"), "agentType": "general", "status": "completed", "usage": {}}
        if self.draw(False, False, True):
            data["images"] = [IMAGE]
        data |= nudged(self._state.repetition.nudge(call.name, call.arguments, data), data)
        self.add("tool.finished", data, task_id)

    def _end(self, task_id: str, kind: str) -> None:
        self.add(kind, {}, task_id)

    def _make_room(self, task_id: str) -> None:
        match self.draw("enough", "enough", "prune", "compact", "compact to the prompt", "fail"):
            case "prune":
                results = [entry.message.tool_call_id for entry in self._state.settled if entry.message.tool_call_id is not None]
                if results:
                    gone = results[: self._data.draw(st.integers(1, len(results)))]
                    self.add("session.pruned", {"toolCallIds": gone, "tokens": 1}, task_id)
            case "compact":
                self._compact(task_id)
            case "compact to the prompt":
                keep = self._data.draw(st.integers(0, 60))
                chosen = choose(self._state.settled, keep=keep, prompt_id=prompt_id(task_id))
                if chosen is not None:
                    self.add("session.compacted", Summarised(self.new("msg"), "Much.", chosen, {}).to_wire(), task_id)
            case "fail":
                self.add("compaction.failed", {"reason": "no_shorter", "error": "", "usage": {}}, task_id)

    def _compact(self, task_id: str | None) -> None:
        entries = self._state.settled
        if entries:
            replaces = {"untilMessageId": self._data.draw(st.sampled_from([entry.message_id for entry in entries]))}
            self.add("session.compacted", {"messageId": self.new("msg"), "summary": "Much.", "replaces": replaces}, task_id)

    def between(self) -> None:
        match self.draw("nothing", "nothing", "compact", "fork", "revert", "unrevert", "delete"):
            case "compact":
                self._compact(None)
            case "fork":
                entries = self._state.closed()
                self._log, self._state, self._ended, self._reverted = [], Conversation("s"), [], None
                self.add("session.created", {"system": "", "date": "", "agent": ""})
                for entry in entries:
                    self.add("message.copied", entry_to_wire(entry))
            case "revert" if self._ended:
                self._reverted = self.new("revert")
                self.add("session.reverted", {"revertId": self._reverted, "taskIds": self._ended[-self.draw(1, 2) :]})
                self._ended = []
                self.restart()
            case "unrevert" if self._reverted is not None:
                self.add("session.unreverted", {"revertId": self._reverted})
                self._reverted = None
                self.restart()
            case "delete":
                self.add("session.deleted", {})
                self._log, self._ended, self._reverted = self._log[-1:], [], None
                self.add("session.created", {"system": "", "date": "", "agent": ""})
                self.restart()


def _wire(call: ToolCall) -> dict[str, str]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _result(call: ToolCall, output: str) -> dict[str, Any]:
    return {"toolCallId": call.id, "tool": call.name, "output": output, "isError": False}


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_request_of_every_life_is_one_that_providers_take(data: st.DataObject) -> None:
    life = Life(data)
    for _ in range(data.draw(st.integers(1, 5))):
        life.task()
        life.between()
    life.task()


# Before a strict provider


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def same(number: int) -> dict[str, Any]:
    """A call as servers make it that count anew in each message."""
    return {**bash(f"echo {number}; sleep 0.03; echo {number} >> done"), "id": "call_0"}


READ = {"name": "read", "arguments": {"filePath": "done"}, "id": "call_0"}
MOMENTS = [("message.delta", 1), ("message.completed", 1), ("tool.started", 3), ("tool.started", 4), ("tool.finished", 1)]
MOMENTS += [("tool.finished", 4), ("step.finished", 1)]


def script(model: OpenAIEmulator) -> None:
    calls = [READ, READ, same(1), same(2), READ]
    five = {"text": "I do five things.", "tool_calls": calls, "delay": 0.002, "pieces": 2}
    model.script(five, five, {"text": "Done."}, {"text": "Fine."})


@pytest.mark.parametrize(
    ("kind", "number", "how"),
    [(*moment, how) for moment in MOMENTS for how in ("kill", "cancel")] + [("tool.started", 3, "stop"), ("message.delta", 1, "stop")],
)
def test_the_next_prompt_is_taken_whenever_a_task_was_broken_off(
    kind: str, number: int, how: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    script(model)
    task_id = agent.submit("work")
    if how == "cancel":
        _wait(agent, task_id, kind, number)
        assert agent.post(f"/tasks/{task_id}/cancel").status_code == 200
    else:
        _end_server(agent, task_id, kind, number, how)
        agent.start()
        assert agent.finish(task_id)["status"] == "completed"
    model_said = len(model.requests())
    if how == "cancel":
        model.script({"text": "Fine."})
        model_said = 0
    assert agent.post("/run", {"prompt": "and now?"}).json()["response"] == "Fine."
    assert not of_type(agent.task_events(task_id), "session.repaired")
    for request in model.requests():
        ids = [call["id"] for message in request.json["messages"] for call in message.get("tool_calls") or ()]
        assert len(ids) == len(set(ids))
    assert len(model.requests()) == model_said + 1


def _wait(agent: ServerProcess, task_id: str, kind: str, number: int) -> None:
    seq = 0
    for _ in range(number):
        seq = agent.wait_for(task_id, kind, after=seq)["seq"]


def _end_server(agent: ServerProcess, task_id: str, kind: str, number: int, how: str) -> None:
    if how == "kill":
        agent.kill_at(task_id, kind, number)
    else:
        _wait(agent, task_id, kind, number)
        assert agent.stop() == 0


@pytest.mark.parametrize(
    "turn", [{"without_index": True, "pieces": 1}, {"pieces": 3}, {"whole": True}], ids=["unnumbered", "pieces", "whole"]
)
def test_calls_that_all_have_the_same_id_are_run_and_answered_each(
    turn: dict[str, Any], agent: ServerProcess, model: OpenAIEmulator
) -> None:
    model.script(*[{"tool_calls": [same(n), same(n + 1)], **turn} for n in (1, 3)], {"text": "Done."})
    task_id = agent.submit("work")
    assert agent.finish(task_id)["response"] == "Done."
    assert (agent.workspace / "done").read_text() == "1\n2\n3\n4\n"
    results = [message for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]
    assert [message["content"] for message in results] == ["1", "2", "3", "4"]
    assert len({message["tool_call_id"] for message in results}) == 4
    assert_requests(model.requests())

"""A provider that refuses a conversation gets it in another form; a complaint about something else changes nothing."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.providers import Endpoint
from agent_server.messages import Image, Message, Text, ToolCall
from agent_server.sessions.repair import FORMS, MAX_REPAIRS, RECENT_TOKENS, SHORT_FORMS, Said, forms, reformed
from tests.emulators.history import complaint, refusal
from tests.emulators.openai import OpenAIEmulator, Record
from tests.ended import assert_requests, of_type
from tests.scripts import bash
from tests.serving import ServerProcess

PIXEL = "iVBORw0KGgo="
IMAGE = {"type": "image", "mediaType": "image/png", "data": PIXEL}
SIGNED = [{"type": "reasoning.text", "text": "Hm.", "signature": "sig", "index": 0}]
ENDPOINT = Endpoint("http://127.0.0.1/v1", None, {}, "m", "openai-compatible")


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def refusing(*what: str, **turn: Any) -> dict[str, Any]:
    return {"text": "Taken.", **turn, "refuses": list(what)}


def begin(agent: ServerProcess, model: OpenAIEmulator) -> list[Record]:
    """A first task with all that a provider can refuse: an image, reasoning that is signed, calls; gives its requests."""
    prompt = [{"type": "text", "text": "Look at this wombat."}, IMAGE]
    model.script(
        {"text": "I look.", "reasoning_details": SIGNED, "tool_calls": [bash("echo seen"), bash("echo twice")]},
        {"text": "A wombat."},
    )
    assert agent.post("/run", {"prompt": prompt}).json()["response"] == "A wombat."
    return model.requests()


def contents(record: Record) -> str:
    return json.dumps(record.json["messages"][1:])


def repairs(agent: ServerProcess, task_id: str) -> list[dict[str, Any]]:
    return [dict(event) for event in of_type(agent.task_events(task_id), "session.repaired")]


@pytest.mark.parametrize(
    ("what", "form", "kept", "lost"),
    [
        ("reasoning", "plain", ["wombat", "I look.", "tool_calls", "seen"], ["reasoning_details", PIXEL]),
        ("images", "plain", ["wombat", "I look.", "tool_calls", "seen"], [PIXEL, "reasoning_details"]),
        ("calls", "transcript", ["wombat", "I look.", "echo twice", "seen", "A wombat."], ["tool_calls", PIXEL]),
        ("roles", "transcript", ["wombat", "I look.", "echo twice", "seen", "A wombat."], ["tool_calls", PIXEL]),
        ("word wombat", "prompt", [], ["wombat", "seen", PIXEL]),
    ],
)
def test_a_refused_conversation_is_sent_in_a_form_that_is_taken(
    what: str, form: str, kept: list[str], lost: list[str], agent: ServerProcess, model: OpenAIEmulator
) -> None:
    begin(agent, model)
    model.script(refusing(what), refusing(what, text="Again."), refusing(what, text="And again."))
    task_id = agent.submit("And now?")
    assert agent.finish(task_id)["response"] == "Taken."
    (repaired,) = repairs(agent, task_id)
    assert repaired["form"] == form
    taken = model.requests()[-1]
    assert refusal(taken.json, what) is None
    assert "And now?" in contents(taken)
    assert [word for word in kept if word not in contents(taken)] == []
    assert [word for word in lost if word in contents(taken)] == []
    tries = len(model.requests())
    assert tries == {"plain": 2, "transcript": 3, "prompt": 4}[form]
    # What was taken is what the session begins with from here on, also after a restart; nothing is refused again.
    assert agent.post("/run", {"prompt": "More?"}).json()["response"] == "Again."
    agent.kill()
    agent.start()
    assert agent.post("/run", {"prompt": "Still more?"}).json()["response"] == "And again."
    requests = model.requests()[tries - 1 :]
    assert len(requests) == 3
    assert_requests(requests)


@pytest.mark.parametrize("what", ["reasoning", "calls", "roles", "word seen"])
def test_a_complaint_in_the_middle_of_a_task_does_not_end_it(what: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    first = {"text": "I look.", "reasoning_details": SIGNED, "tool_calls": [bash("echo seen")]}
    model.script(first, refusing(what, tool_calls=[bash("echo more")], text="On."), {"text": "Done."})
    task_id = agent.submit("Look at this wombat.")
    assert agent.finish(task_id)["response"] == "Done."
    assert len(repairs(agent, task_id)) == 1
    last = contents(model.requests()[-1])
    assert "wombat" in last
    assert "more" in last
    assert_requests(model.requests()[-2:])


def test_what_the_user_says_for_the_task_stays_as_it_is(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin(agent, model)
    model.script(refusing("calls"))
    second = [{"type": "text", "text": "Compare it with this."}, {**IMAGE, "data": "QUJD"}]
    assert agent.post("/run", {"prompt": second}).json()["response"] == "Taken."
    (only,) = model.requests()[-1].json["messages"][1:]
    assert only["role"] == "user"
    assert "data:image/png;base64,QUJD" in json.dumps(only)
    assert PIXEL not in json.dumps(only)


def test_a_message_that_came_meanwhile_is_in_the_form_that_is_taken(agent: ServerProcess, model: OpenAIEmulator) -> None:
    gate = bash("echo begun; until [ -e go ]; do sleep 0.02; done")
    model.script({"text": "I look.", "tool_calls": [gate, bash("true")]}, refusing("roles"), refusing("roles", text="Again."))
    task_id = agent.submit("Look at this wombat.")
    agent.wait_for(task_id, "tool.output")
    agent.post(f"/tasks/{task_id}/messages", {"prompt": "And at that koala."})
    (agent.workspace / "go").touch()
    assert agent.finish(task_id)["response"] == "Taken."
    assert [message["role"] for message in model.requests()[-1].json["messages"]] == ["system", "user"]
    assert contents(model.requests()[-1]).index("wombat") < contents(model.requests()[-1]).index("koala")
    assert agent.post("/run", {"prompt": "More?"}).json()["response"] == "Again."
    assert_requests(model.requests()[-2:])


def test_a_complaint_that_no_form_helps_changes_nothing(agent: ServerProcess, model: OpenAIEmulator) -> None:
    before = begin(agent, model)
    model.script(refusing("everything"))
    reply = agent.post("/run", {"prompt": "And now?", "model": "nonesuch"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "MODEL_ERROR")
    assert "The model `nonesuch` does not exist" in error["message"]
    assert len(model.requests()) == 4
    assert repairs(agent, error["details"]["taskId"]) == []
    model.script({"text": "Fine."})
    assert agent.post("/run", {"prompt": "And now?"}).json()["response"] == "Fine."
    assert_requests([*before, *model.requests()])


@pytest.mark.parametrize(
    ("then", "tries"),
    [({"status": 401}, 2), ({"status": 400, "error": {"message": "Too long.", "code": "context_length_exceeded"}}, 3)],
    ids=["unauthorized", "too-long"],
)
def test_another_failure_in_a_form_is_no_other_end(then: dict[str, Any], tries: int, agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Hello."}, {"status": 400, "error": {"message": "I refuse."}}, then, {"status": 401})
    agent.post("/run", {"prompt": "hello"})
    error = agent.post("/run", {"prompt": "And now?"}).json()["error"]
    assert (error["code"], "I refuse." in error["message"]) == ("MODEL_ERROR", True)
    assert len(model.requests()) == 1 + tries
    assert repairs(agent, error["details"]["taskId"]) == []


def test_a_first_prompt_is_tried_in_no_other_form(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(refusing("everything"))
    assert agent.post("/run", {"prompt": "hello"}).status_code == 502
    assert len(model.requests()) == 1


def test_a_second_complaint_in_a_task_does_not_end_it_either(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin(agent, model)
    model.script(refusing("reasoning", tool_calls=[bash("echo more")]), refusing("calls", tool_calls=[bash("true")]), refusing("roles"))
    task_id = agent.submit("And now?")
    assert agent.finish(task_id)["response"] == "Taken."
    assert [event["form"] for event in repairs(agent, task_id)] == ["plain", "transcript", "transcript"]
    transcripts = [contents(record) for record in model.requests() if "as a transcript" in contents(record)]
    assert {text.count("as a transcript") for text in transcripts} == {text.count("Go on with what") for text in transcripts} == {1}
    assert all(word in transcripts[-1] for word in ("wombat", "A wombat.", "And now?", "echo more"))


def test_what_the_user_said_for_the_task_outlives_a_second_complaint(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin(agent, model)
    gate = bash("echo begun; until [ -e go ]; do sleep 0.02; done; echo koala")
    model.script(refusing("word wombat", tool_calls=[gate]), refusing("word koala"))
    task_id = agent.submit("And now?")
    agent.wait_for(task_id, "tool.output")
    agent.post(f"/tasks/{task_id}/messages", {"prompt": "And then?"})
    (agent.workspace / "go").touch()
    assert agent.finish(task_id)["response"] == "Taken."
    assert [event["form"] for event in repairs(agent, task_id)] == ["prompt", "prompt"]
    last = contents(model.requests()[-1])
    assert [last.count(text) for text in ("And now?", "And then?", "is left out", "koala")] == [1, 1, 1, 0]


def test_a_task_that_needs_another_form_for_each_step_comes_to_an_end(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("true")]}, *[refusing("calls", tool_calls=[bash(f"echo {n}")]) for n in range(MAX_REPAIRS + 5)])
    task_id = agent.submit("go")
    error = agent.finish(task_id)["error"]
    assert (error["code"], "tool_use" in error["message"]) == ("MODEL_ERROR", True)
    assert len(repairs(agent, task_id)) == MAX_REPAIRS
    model.script(refusing("calls"))
    assert agent.post("/run", {"prompt": "Go on."}).json()["response"] == "Taken."


def test_a_server_that_dies_in_a_repair_does_it_again(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin(agent, model)
    model.script(refusing("calls", text="Half of it", cut_after=3, stall=60), refusing("calls", text="Whole."))
    task_id = agent.submit("And now?")
    agent.kill_at(task_id, "message.delta")
    agent.start()
    assert agent.finish(task_id)["response"] == "Whole."
    assert [event["form"] for event in repairs(agent, task_id)] == ["transcript"]


def test_an_answer_that_was_refused_half_way_is_discarded(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin(agent, model)
    filtered = {"text": "I will", "delay": 0.02, "stream_error": {"message": "Output blocked by content filtering policy", "code": 400}}
    model.script(filtered, {"text": "Fine."})
    task_id = agent.submit("And now?")
    assert agent.finish(task_id)["response"] == "Fine."
    told = agent.task_events(task_id)
    begun = {event["messageId"] for event in of_type(told, "message.delta")}
    completed = {event["messageId"] for event in of_type(told, "message.completed")}
    assert {event["messageId"] for event in of_type(told, "message.discarded")} == begun - completed
    assert len(begun - completed) == 1


def test_a_repair_is_taken_back_with_its_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    before = begin(agent, model)
    model.script(refusing("calls"))
    task_id = agent.submit("And now?")
    agent.finish(task_id)
    assert agent.post("/sessions/sess_main/revert", {"taskId": task_id}).status_code == 200
    model.script({"text": "As it was."})
    agent.post("/run", {"prompt": "And now?"})
    assert_requests([*before, *model.requests()])


def test_a_fork_of_a_repaired_session_is_taken_too(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin(agent, model)
    model.script(refusing("calls", "images"), refusing("calls", "images", text="There too."))
    agent.post("/run", {"prompt": "And now?"})
    forked = agent.post("/sessions/sess_main/fork").json()["sessionId"]
    assert agent.post("/run", {"prompt": "And here?", "sessionId": forked}).json()["response"] == "There too."
    for before, after in pairwise([request.body for request in model.requests()[-2:]]):
        assert after.startswith(before[:-2])


# The forms

TEXT = st.text("ab \n", max_size=5)
OWN = st.tuples(st.builds(lambda text: Message("user", (Text(text), Image("image/png", PIXEL))), TEXT), st.just(True))
PAST = st.one_of(
    st.builds(lambda text: [Message("user", (Text(text), Image("image/png", PIXEL)))], TEXT),
    st.builds(
        lambda text, ids: [
            Message("assistant", (Text(text),), tuple(ToolCall(i, "bash", "{") for i in ids), reasoning={"text": "x"}),
            *(Message("tool", (Text(text),), tool_call_id=i) for i in ids),
        ],
        TEXT,
        st.lists(st.sampled_from("xyz"), unique=True, max_size=3),
    ),
).map(lambda messages: [(message, False) for message in messages])


@given(st.lists(st.one_of(PAST, OWN.map(lambda own: [own])), max_size=8))
def test_every_form_is_smaller_trouble(turns: Sequence[Sequence[Said]]) -> None:
    said = [each for turn in turns for each in turn]
    offered = forms(said)
    assert offered == [form for form in FORMS if form in offered]
    assert bool(offered) == any(not is_own for _, is_own in said)
    own = [part for message, is_own in said if is_own for part in message.content]
    for form in offered:
        messages = reformed(said, form)
        assert [encode(reformed(said, form))] == [encode(messages)]
        parts = [part for message in messages for part in message.content]
        assert [part for part in parts if any(part is each for each in own)] == own
        assert sum(isinstance(part, Image) for part in parts) == sum(isinstance(part, Image) for part in own)
        body = {"messages": [{"role": "system", "content": "s"}, *json.loads(encode(messages))]}
        assert not any("reasoning" in key for message in body["messages"] for key in message)
        if form != "plain":
            assert [message["role"] for message in body["messages"]] == ["system", "user"]
            assert complaint(body) is None


def turn(size: int) -> list[Said]:
    """A call and its result of so many tokens."""
    call = ToolCall(f"call_{size}", "bash", "{}")
    return [(Message("assistant", (), (call,)), False), (Message("tool", (Text("x" * 4 * size),), tool_call_id=call.id), False)]


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [([RECENT_TOKENS, 9_000, 9_001], 2), ([50_000, 10], 1), ([10, 50_000], None), ([10, 20], None)],
    ids=["as-many-as-fit", "one", "none-fits", "all-fit"],
)
@pytest.mark.parametrize("is_new", [False, True])
def test_of_what_is_too_long_the_newest_turns_stay(sizes: list[int], kept: int | None, is_new: bool) -> None:
    prompt: list[Said] = [(Message("user", (Text("Do it."),)), True)]
    past = [said for size in sizes for said in turn(size)]
    said = [*past, *prompt] if is_new else [*prompt, *past]
    offered = forms(said, is_too_long=True)
    assert offered == ["prompt"] if kept is None else [*SHORT_FORMS]
    for form in offered:
        messages = reformed(said, form)
        left = 2 * (kept or 0) if form == "recent" else 0
        rest = [message for message, _ in (past[len(past) - left :] if left else [])]
        assert messages[1:] == ([*rest, prompt[0][0]] if is_new and left else rest)
        assert ("Do it." in messages[0].text) == (not (is_new and left))
        body = {"messages": [{"role": "system", "content": "s"}, *json.loads(encode(messages))]}
        assert complaint(body) is None


def encode(messages: Sequence[Message]) -> bytes:
    body: list[Any] = json.loads(BodyEncoder().encode(ENDPOINT, messages, (), None))["messages"]
    return json.dumps(body).encode()

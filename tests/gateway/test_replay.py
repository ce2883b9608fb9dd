import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from agent_server.gateway import Fault, ModelError, ModelOptions, TextDelta
from agent_server.gateway.replay import ReplayGateway, load, recordings
from agent_server.messages import Message, Text, Usage
from tests.gateway.conftest import collect, user

DEMO = ModelOptions("replay", "demo")


def with_results(messages: Sequence[Message], answer: Message) -> list[Message]:
    return [*messages, answer, *(Message("tool", (Text("done"),), tool_call_id=call.id) for call in answer.tool_calls)]


async def test_a_recording_is_played_turn_by_turn_and_then_over() -> None:
    gateway, messages, recording = ReplayGateway(), [user("Go")], load("demo")
    for turn in recording.turns:
        deltas, completion = await collect(gateway, messages, options=DEMO)
        assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == turn.text == completion.message.text
        assert [call.name for call in completion.message.tool_calls] == [call.name for call in turn.tool_calls]
        assert (completion.usage, completion.finish_reason) == (Usage(cost=0.0), "tool_calls" if turn.tool_calls else "stop")
        messages = with_results(messages, completion.message)
    _, completion = await collect(gateway, messages, options=DEMO)
    assert "over" in completion.message.text
    ids = [call.id for message in messages for call in message.tool_calls]
    assert len(ids) == len(set(ids))


async def test_a_users_message_begins_the_recording_again() -> None:
    gateway = ReplayGateway()
    _, first = await collect(gateway, [user("Go")], options=DEMO)
    _, again = await collect(gateway, [*with_results([user("Go")], first.message), user("Again")], options=DEMO)
    assert again.message.text == first.message.text
    assert again.message.tool_calls[0].id != first.message.tool_calls[0].id


async def test_a_recording_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"description": "d", "turns": [{"text": "Hi"}]}')
    _, completion = await collect(ReplayGateway(), options=ModelOptions("replay", str(path)))
    assert completion.message.text == "Hi"


@pytest.mark.parametrize("model", ["nothing", "", "../demo", "missing.json"])
async def test_an_unknown_recording_is_refused(model: str) -> None:
    with pytest.raises(ModelError) as caught:
        await collect(ReplayGateway(), options=ModelOptions("replay", model))
    assert caught.value.fault is Fault.BAD_REQUEST
    assert model in caught.value.message
    assert model.endswith(".json") or "demo" in caught.value.message


async def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"turns": "none"}')
    with pytest.raises(ModelError, match="is no recording"):
        await collect(ReplayGateway(), options=ModelOptions("replay", str(path)))


def test_the_demo_works_in_an_empty_workspace(tmp_path: Path) -> None:
    """Plays its calls as the tools would: each edit must match once, and the tests must fail first and pass at last."""
    codes = []
    for call in (call for turn in load("demo").turns for call in turn.tool_calls):
        given = call.arguments
        path = tmp_path / given.get("filePath", "")
        if call.name == "write":
            path.write_text(given["content"])
        elif call.name == "edit":
            assert path.read_text().count(given["oldString"]) == 1
            path.write_text(path.read_text().replace(given["oldString"], given["newString"]))
        elif call.name == "bash":
            command = given["command"].replace("python3", sys.executable)
            codes.append(subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=False).returncode)
        else:
            assert call.name in ("read", "glob", "grep")
    assert codes == [1, 0, 0]
    assert load("demo").prompt


def test_every_packaged_recording_loads() -> None:
    assert "demo" in recordings()
    for name in recordings():
        recording = load(name)
        assert recording.turns[-1].tool_calls == []
        assert msgspec.json.decode(msgspec.json.encode(recording), type=type(recording)) == recording

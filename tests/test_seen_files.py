"""What a session has read and written: a fold of its log, which holds over restarts, forks and compactions."""

import base64
import subprocess
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)

READ = {"name": "read", "arguments": {"filePath": "a.txt"}}
WRITE = {"name": "write", "arguments": {"filePath": "a.txt", "content": "whole\n"}}


def edit(old: str, new: str) -> dict[str, Any]:
    return {"name": "edit", "arguments": {"filePath": "a.txt", "oldString": old, "newString": new}}


def patch(old: str, new: str) -> dict[str, Any]:
    text = f"*** Begin Patch\n*** Update File: a.txt\n@@\n-{old}\n+{new}\n*** End Patch"
    return {"name": "apply_patch", "arguments": {"patchText": text}}


def results(server: ServerProcess, model: OpenAIEmulator, *calls: dict[str, Any], session: str = "sess_main") -> list[dict[str, Any]]:
    """Runs a task that makes the calls, one after the other, and gives their ends."""
    model.script(*({"tool_calls": [call]} for call in calls), {"text": "Done."})
    reply = server.post("/run", {"prompt": "go", "sessionId": session})
    assert reply.status_code == 200, reply.text
    return [event for event in server.task_events(reply.json()["taskId"]) if event["type"] == "tool.finished"]


def output(server: ServerProcess, model: OpenAIEmulator, call: dict[str, Any], session: str = "sess_main") -> str:
    (end,) = results(server, model, call, session=session)
    return str(end["output"])


def test_a_file_must_be_read_in_the_same_session(anew: ServerProcess, model: OpenAIEmulator) -> None:
    (anew.workspace / "a.txt").write_text("one\n")
    assert "has not been read in this session" in output(anew, model, edit("one", "two"))
    assert "has not been read in this session" in output(anew, model, WRITE)
    results(anew, model, READ)
    assert "has not been read in this session" in output(anew, model, edit("one", "two"), session="other")
    assert "1 place" in output(anew, model, edit("one", "two"))
    assert (anew.workspace / "a.txt").read_text() == "two\n"


def test_a_formatter_of_the_task_itself_makes_the_next_edit_fail_until_the_file_is_read(anew: ServerProcess, model: OpenAIEmulator) -> None:
    (anew.workspace / "a.txt").write_text("one\n")
    format_it = {"name": "bash", "arguments": {"command": "sed -i 's/^/  /' a.txt"}}
    ends = results(anew, model, READ, edit("one", "two"), format_it, edit("two", "three"), WRITE, READ, edit("two", "three"))
    assert [end["isError"] for end in ends] == [False, False, False, True, True, False, False]
    assert all("has changed on disk since it was last read" in ends[at]["output"] for at in (3, 4))
    assert (anew.workspace / "a.txt").read_text() == "  three\n"


def test_a_patch_needs_no_reading_and_another_sessions_patch_is_a_change(anew: ServerProcess, model: OpenAIEmulator) -> None:
    (anew.workspace / "a.txt").write_text("one\n")
    ends = results(anew, model, patch("one", "two"), edit("two", "three"))
    assert [end["isError"] for end in ends] == [False, False]
    assert "+two" in ends[0]["diff"]
    assert "+three" in ends[1]["diff"]
    results(anew, model, patch("three", "four"), session="other")
    assert "has changed on disk" in output(anew, model, edit("four", "five"))


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_what_was_read_is_known_after_a_restart(anew: ServerProcess, model: OpenAIEmulator, way: str) -> None:
    (anew.workspace / "a.txt").write_text("one\n")
    results(anew, model, READ)
    getattr(anew, way)()
    anew.start()
    assert "1 place" in output(anew, model, edit("one", "two"))
    anew.stop()
    (anew.workspace / "a.txt").write_text("two, changed\n")
    anew.start()
    assert "has changed on disk" in output(anew, model, edit("two", "three"))


def test_what_was_read_is_known_after_a_compaction_and_in_forks(anew: ServerProcess, model: OpenAIEmulator) -> None:
    (anew.workspace / "a.txt").write_text("one\n")
    results(anew, model, READ)
    fork = anew.post("/sessions/sess_main/fork").json()["sessionId"]
    assert "1 place" in output(anew, model, edit("one", "two"), session=fork)
    results(anew, model, READ)
    model.script({"text": "A summary."})
    assert anew.post("/sessions/sess_main/compact").json()["compacted"]
    assert "1 place" in output(anew, model, edit("two", "three"))
    model.script({"text": "A summary."})
    assert anew.post("/sessions/sess_main/compact").json()["compacted"]
    fork = anew.post("/sessions/sess_main/fork").json()["sessionId"]
    anew.stop()
    anew.start()
    assert "1 place" in output(anew, model, edit("three", "four"), session=fork)


def test_a_fork_from_before_the_reading_does_not_know_the_file(anew: ServerProcess, model: OpenAIEmulator) -> None:
    (anew.workspace / "a.txt").write_text("one\n")
    model.script({"text": "Hello."})
    anew.post("/run", {"prompt": "hi", "sessionId": "sess_main"})
    greeting = anew.get("/sessions/sess_main/messages").json()["messages"][-1]["messageId"]
    results(anew, model, READ)
    fork = anew.post("/sessions/sess_main/fork", {"atMessageId": greeting}).json()["sessionId"]
    assert "has not been read" in output(anew, model, edit("one", "two"), session=fork)


def test_reads_side_by_side_are_all_known(anew: ServerProcess, model: OpenAIEmulator) -> None:
    names = [f"{n}.txt" for n in range(12)]
    for name in names:
        (anew.workspace / name).write_text("one\n")
    model.script(
        {"tool_calls": [{"name": "read", "arguments": {"filePath": name}} for name in names]},
        {"tool_calls": [{"name": "edit", "arguments": {"filePath": name, "oldString": "one", "newString": "two"}} for name in names]},
        {"text": "Done."},
    )
    anew.post("/run", {"prompt": "go"})
    assert {(anew.workspace / name).read_text() for name in names} == {"two\n"}


def test_an_image_is_shown_to_the_model_after_the_results_and_is_kept(anew: ServerProcess, model: OpenAIEmulator) -> None:
    (anew.workspace / "a.png").write_bytes(PNG)
    (anew.workspace / "a.txt").write_text("one\n")
    picture = {"name": "read", "arguments": {"filePath": "a.png"}}
    model.script({"tool_calls": [picture, READ, picture]}, {"text": "I see."})
    reply = anew.post("/run", {"prompt": "look"}).json()
    ends = [event for event in anew.task_events(reply["taskId"]) if event["type"] == "tool.finished"]  # in the order they ended
    image = {"type": "image", "mediaType": "image/png", "data": base64.b64encode(PNG).decode()}
    assert [end["images"] for end in ends if "images" in end] == [[image], [image]]
    first = model.requests()[-1]
    roles = [message["role"] for message in first.json["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "tool", "user", "user"]
    shown = first.json["messages"][-1]["content"]
    assert shown[1] == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}}

    anew.kill()
    anew.start()
    model.script({"text": "Again."})
    anew.post("/run", {"prompt": "and now"})
    assert model.requests()[-1].body.startswith(first.body[:-2])
    fork = anew.post("/sessions/sess_main/fork").json()["sessionId"]
    model.script({"text": "Again."})
    anew.post("/run", {"prompt": "and now", "sessionId": fork})
    assert model.requests()[-1].body.startswith(first.body[:-2])


def test_a_secret_in_a_files_name_does_not_keep_it_from_being_edited(anew: ServerProcess, model: OpenAIEmulator) -> None:
    name = "sk-test-key-of-the-model.txt"
    (anew.workspace / name).write_text("a\n")
    read = {"name": "read", "arguments": {"filePath": name}}
    first, second = ({"name": "edit", "arguments": {"filePath": name, "oldString": old, "newString": new}} for old, new in ("ab", "bc"))
    ends = results(anew, model, read, first)
    assert [end["isError"] for end in ends] == [False, False]
    anew.kill()
    anew.start()
    results(anew, model, second)
    assert (anew.workspace / name).read_text() == "c\n"


def test_a_revert_after_a_patch_takes_its_files_back(anew: ServerProcess, model: OpenAIEmulator) -> None:
    subprocess.run(["mkdir", "-p", anew.workspace / "src"], check=True)
    (anew.workspace / "a.txt").write_text("one\n")
    (anew.workspace / "gone.txt").write_text("gone\n")
    text = (
        "*** Begin Patch\n*** Update File: a.txt\n*** Move to: src/b.txt\n@@\n-one\n+two\n"
        "*** Delete File: gone.txt\n*** Add File: new.txt\n+new\n*** End Patch"
    )
    (end,) = results(anew, model, {"name": "apply_patch", "arguments": {"patchText": text}})
    assert anew.post("/sessions/sess_main/revert", {"taskId": end["taskId"]}).status_code == 200
    found = {str(path.relative_to(anew.workspace)): path.read_text() for path in anew.workspace.rglob("*") if path.is_file()}
    assert found == {"a.txt": "one\n", "gone.txt": "gone\n"}

"""Snapshots: made, listed, deleted, carried to another server, restored. Larger workspaces: SNAPSHOT_MIB=2048."""

import contextlib
import gzip
import json
import os
import re
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.scripts import bash, plan
from tests.serving import TOKEN, ServerProcess, serving
from tests.snapshots.archives import MANIFEST, archive, contents, folder, link, made, packed, tree

MIB = int(os.environ.get("SNAPSHOT_MIB", "64"))
KEY = "sk-test-key-of-the-model"


@pytest.fixture(scope="module")
def shared(place: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    environ = {"OPENROUTER_API_KEY": "sk-or-canary-0123456789", "SLACK_BOT_TOKEN": "xoxb-canary-0123456789"}
    with serving(place / "snapshots", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, **environ) as running:
        yield running


@pytest.fixture
def server(shared: ServerProcess) -> Iterator[ServerProcess]:
    """A server that many tests use: its workspace and its snapshots are emptied after each."""
    yield shared
    if shared.is_running:
        subprocess.run(["find", shared.workspace, "-mindepth", "1", "-delete"], check=True)
        for each in shared.get("/snapshots").json():
            delete(shared, each["snapshotId"])


@pytest.fixture(scope="module")
def other(place: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(place / "other", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as running:
        yield running


def create(server: ServerProcess, name: str | None = None) -> dict[str, Any]:
    with server.client() as client:
        response = client.post("/snapshot", json={"name": name} if name else {}, timeout=600)
    assert response.status_code == 201, response.text
    body: dict[str, Any] = response.json()
    return body


def fetch(server: ServerProcess, reference: str) -> bytes:
    response = server.get(f"/snapshots/{reference}/archive")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/gzip")
    return response.content


def put(server: ServerProcess, reference: str, data: bytes) -> httpx.Response:
    with server.client() as client:
        return client.put(f"/snapshots/{reference}/archive", content=data)


def delete(server: ServerProcess, reference: str) -> httpx.Response:
    with server.client() as client:
        return client.delete(f"/snapshots/{reference}")


def restore(server: ServerProcess, reference: str) -> dict[str, Any]:
    response = server.post(f"/snapshots/{reference}/restore")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def carry(source: ServerProcess, target: ServerProcess, name: str) -> dict[str, Any]:
    create(source, name)
    assert put(target, name, fetch(source, name)).status_code == 201
    return restore(target, name)


def fill(workspace: Path) -> None:
    """All that a workspace may have, and a repository of its own."""
    subprocess.run(["git", "init", "-q"], cwd=workspace, check=True)
    (workspace / "text.txt").write_text("text\n")
    (workspace / "run.sh").write_text("#!/bin/sh\n")
    (workspace / "run.sh").chmod(0o751)
    (workspace / "empty").mkdir()
    (workspace / "deep" / "er").mkdir(parents=True)
    (workspace / "deep" / "er" / "bytes").write_bytes(bytes(range(256)) * 5_000)
    (workspace / "link").symlink_to("text.txt")
    (workspace / "dangling").symlink_to("/nowhere/at/all")
    (workspace / "python").symlink_to("/usr/bin/python3")
    (workspace / ("long" * 50)).write_text("long\n")
    Path(os.fsdecode(os.fsencode(workspace) + b"/not-utf8-\xff")).write_text("bytes\n")
    (workspace / "zeros").write_bytes(bytes(3_000_000))
    (workspace / "nothing").touch()
    os.utime(workspace / "text.txt", ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
    (workspace / "deep" / "er").chmod(0o500)


# Made, listed, deleted


def test_a_snapshot_is_made_listed_and_deleted(server: ServerProcess) -> None:
    first = create(server)
    assert re.fullmatch("snap_[0-9a-z]{26}", first["snapshotId"])
    assert first["name"] == first["snapshotId"]
    assert first["size"] == len(fetch(server, first["snapshotId"]))
    second = create(server, "second one")
    assert server.get("/snapshots").json() == [second, first]
    assert delete(server, "second one").json() == second
    assert delete(server, first["snapshotId"]).status_code == 200
    assert server.get("/snapshots").json() == []
    assert list((server.data / "snapshots").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "snap_mine", "x" * 129, "a\nb", 5])
def test_a_name_that_is_none_is_refused(name: Any, server: ServerProcess) -> None:
    assert server.post("/snapshot", {"name": name}).json()["error"]["code"] == "INVALID_REQUEST"


def test_a_name_is_given_once(server: ServerProcess) -> None:
    create(server, "one")
    response = server.post("/snapshot", {"name": "one"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert put(server, "one", fetch(server, "one")).json()["error"]["code"] == "CONFLICT"
    assert len(server.get("/snapshots").json()) == 1


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("GET", "/archive"), ("POST", "/restore")])
def test_what_is_not_there_is_not_found(method: str, path: str, server: ServerProcess) -> None:
    with server.client() as client:
        response = client.request(method, f"/snapshots/none{path}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "SNAPSHOT_NOT_FOUND")


def test_snapshots_outlive_a_restart(server: ServerProcess) -> None:
    (server.workspace / "a.txt").write_text("a\n")
    kept = create(server, "kept")
    server.stop()
    server.start()
    assert server.get("/snapshots").json() == [kept]
    (server.workspace / "a.txt").unlink()
    restore(server, "kept")
    assert (server.workspace / "a.txt").read_text() == "a\n"


# What is in them


def test_a_workspace_comes_back_as_it_was_on_another_server(server: ServerProcess, other: ServerProcess) -> None:
    fill(server.workspace)
    before = tree(server.workspace)
    (other.workspace / "in the way").write_text("gone\n")
    (other.workspace / "deep").mkdir()
    (other.workspace / "deep" / "old").write_text("gone\n")
    body = carry(server, other, "whole")
    assert tree(other.workspace) == before
    assert body["entries"] == len(before)
    assert subprocess.run(["git", "status"], cwd=other.workspace, check=True, capture_output=True).stderr == b""
    assert (other.workspace / "zeros").stat().st_blocks * 512 < 3_000_000


def test_any_tar_opens_the_archive(server: ServerProcess, tmp_path: Path) -> None:
    fill(server.workspace)
    create(server, "tar")
    subprocess.run(["tar", "xz"], input=fetch(server, "tar"), cwd=tmp_path, check=True)
    unpacked = tree(tmp_path / "workspace")
    assert {path: what[:2] for path, what in unpacked.items()} == {path: what[:2] for path, what in tree(server.workspace).items()}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["name"]) == ("agent-server-snapshot", 1, "tar")
    assert manifest["configuration"]["agentType"] == "opencode"


def test_what_is_no_file_is_left_out(server: ServerProcess) -> None:
    os.mkfifo(server.workspace / "pipe")
    (server.workspace / "file").write_text("x")
    deep = server.workspace
    for _ in range(210):
        deep = deep / "d"
        deep.mkdir()
    create(server, "special")
    end = json.loads(contents(fetch(server, "special"))["end.json"])
    assert sorted(each["path"][:4] for each in end["leftOut"]["files"]) == ["d/d/", "pipe"]
    os.unlink(server.workspace / "pipe")
    restore(server, "special")
    assert (server.workspace / "file").read_text() == "x"


def test_no_secret_is_in_a_snapshot(server: ServerProcess, model: OpenAIEmulator) -> None:
    canaries = [TOKEN, KEY, "sk-or-canary-0123456789", "xoxb-canary-0123456789", "patched-canary-0123456789", "given-canary-0123456789"]
    model.script(plan([bash(f"echo {' '.join(canaries[:4])}")], text=f"It is {canaries[0]}."))
    task_id = server.submit(f"keep {canaries[1]} to yourself", sessionId="secret")
    server.finish(task_id)
    with server.client() as client:
        assert client.patch("/env", json={"env": {"MY_PASSWORD": canaries[4]}}).status_code == 200
    server.execute("echo $MY_PASSWORD; echo $MY_TOKEN", env={"MY_TOKEN": canaries[5]})
    create(server, canaries[2])
    name = server.get("/snapshots").json()[0]["snapshotId"]
    plain = gzip.decompress(fetch(server, name))
    assert b"REDACTED" in plain
    stored = b"".join(path.read_bytes() for path in (server.data / "snapshots").iterdir() if path.suffix == ".json")
    for canary in canaries:
        assert canary.encode() not in plain + stored
    for path in (server.data / "token.sha256", server.data / "identity.json"):
        assert not path.exists() or path.read_bytes() not in plain


def test_a_value_that_became_a_secret_later_is_masked_too(server: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "It is later-canary-0123456789."})
    server.finish(server.submit(sessionId="later"))
    server.execute("true", env={"MY_TOKEN": "later-canary-0123456789"})
    create(server, "later")
    assert b"later-canary" not in gzip.decompress(fetch(server, "later"))


# Conversations


def history(request: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = request.json["messages"]
    return messages


def test_a_conversation_goes_on_on_another_server(server: ServerProcess, other: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("echo one > one.txt; echo did it")], [bash("cat one.txt")]))
    server.finish(server.submit("the first task", sessionId="carried"))
    last = history(model.requests()[-1])
    body = carry(server, other, "talk")
    assert body["sessions"] >= 1
    model.script({"text": "I know."})
    other.finish(other.submit("the second task", sessionId="carried"))
    (request,) = model.requests()
    assert history(request)[: len(last)] == last
    assert [message["role"] for message in history(request)[len(last) :]] == ["assistant", "user"]
    assert request.json["tools"] == model_tools(server, model)


def model_tools(server: ServerProcess, model: OpenAIEmulator) -> Any:
    model.script({"text": "Hello."})
    server.finish(server.submit(sessionId="tools"))
    return model.requests()[0].json["tools"]


def test_a_restore_takes_a_conversation_back_and_the_log_keeps_all(server: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Blue."}, {"text": "Red."}, {"text": "Which?"}, {"text": "Again?"})
    first = server.submit("my colour is blue", sessionId="colours")
    server.finish(first)
    create(server, "blue")
    second = server.submit("now it is red", sessionId="colours")
    server.finish(second)
    told = server.task_events(second)
    for turn in (3, 4):
        restore(server, "blue")
        server.finish(server.submit(f"turn {turn}", sessionId="colours"))
        said = [message["content"] for message in history(model.requests()[-1])[1:]]
        assert said == ["my colour is blue", "Blue.", f"turn {turn}"]
    assert server.task_events(second) == told
    assert server.get(f"/tasks/{first}").json()["usage"] == server.get(f"/tasks/{first}").json()["usage"]
    server.stop()
    server.start()
    model.script({"text": "Still."})
    server.finish(server.submit("after a restart", sessionId="colours"))
    said = [message["content"] for message in history(model.requests()[-1])[1:]]
    assert said == ["my colour is blue", "Blue.", "turn 4", "Again?", "after a restart"]


def test_a_task_is_counted_once_however_often_it_is_restored(server: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "One.", "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}})
    task_id = server.submit(sessionId="once")
    before = server.finish(task_id)
    create(server, "once")
    restore(server, "once")
    restore(server, "once")
    assert server.get(f"/tasks/{task_id}").json() == before


def test_a_snapshot_of_a_restored_conversation_is_whole(server: ServerProcess, other: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "A."}, {"text": "B."}, {"text": "C."})
    server.finish(server.submit("a", sessionId="chain"))
    carry(server, other, "chain-1")
    other.finish(other.submit("b", sessionId="chain"))
    create(other, "chain-2")
    lines = [json.loads(line) for line in contents(fetch(other, "chain-2"))["conversations.jsonl"].splitlines()]
    assert not [line for line in lines if line["type"].endswith(".restored")]
    assert put(server, "chain-2", fetch(other, "chain-2")).status_code == 201
    restore(server, "chain-2")
    server.finish(server.submit("c", sessionId="chain"))
    assert [message["content"] for message in history(model.requests()[-1])[1:]] == ["a", "A.", "b", "B.", "c"]


def test_a_restored_session_is_listed_and_shown(server: ServerProcess, other: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("echo hi")]))
    server.finish(server.submit("A title of its own", sessionId="listed"))
    carry(server, other, "listed")
    shown = other.get("/sessions/listed").json()
    assert (shown["title"], shown["agentType"], shown["status"], shown["tasks"]) == ("A title of its own", "opencode", "idle", 0)
    assert "listed" in [session["sessionId"] for session in other.get("/sessions").json()["sessions"]]
    messages = other.get("/sessions/listed/messages").json()["messages"]
    assert messages == server.get("/sessions/listed/messages").json()["messages"]
    assert len(messages) == 3
    forked = other.post("/sessions/listed/fork").json()["sessionId"]
    assert len(other.get(f"/sessions/{forked}/messages").json()["messages"]) == 3


def test_what_was_reverted_stays_so_and_reverts_of_before_are_over(server: ServerProcess, model: OpenAIEmulator) -> None:
    def task(text: str) -> str:
        model.script(plan([bash(f"echo {text} > {text}.txt")], text=f"Wrote {text}."))
        return str(server.finish(server.submit(text, sessionId="reverts"))["taskId"])

    first, second = task("first"), task("second")
    assert server.post("/sessions/reverts/revert", {"taskId": second}).status_code == 200
    create(server, "reverted")
    assert server.post("/sessions/reverts/unrevert").status_code == 200
    restore(server, "reverted")
    assert sorted(path.name for path in server.workspace.iterdir()) == ["first.txt"]
    third = task("third")
    assert [m["content"] for m in history(model.requests()[0])[1:] if m["role"] == "user"] == ["first", "third"]
    assert server.post("/sessions/reverts/revert", {"taskId": first}).json()["error"]["code"] == "TASK_NOT_FOUND"
    assert server.post("/sessions/reverts/revert", {"taskId": third}).status_code == 200
    assert sorted(path.name for path in server.workspace.iterdir()) == ["first.txt"]
    assert server.post("/sessions/reverts/unrevert").status_code == 200
    restore(server, "reverted")
    assert server.post("/sessions/reverts/unrevert").status_code == 409


def test_a_task_at_work_is_held_while_its_snapshot_is_made_and_is_not_done_again_by_a_copy(
    server: ServerProcess, other: ServerProcess, model: OpenAIEmulator
) -> None:
    model.script({"script": "bash-true", "steps": 30, "command": "echo {step} >> steps.txt; sleep 0.02"})
    task_id = server.submit("work", sessionId="busy")
    server.wait_for(task_id, "step.finished")
    body = carry(server, other, "busy")
    assert server.finish(task_id)["status"] == "completed"
    done = (other.workspace / "steps.txt").read_text().split()
    lines = [json.loads(line) for line in contents(fetch(other, "busy"))["conversations.jsonl"].splitlines()]
    finished = [line for line in lines if line["type"] == "tool.finished" and line["sessionId"] == "busy"]
    assert len(finished) - len(done) in (0, 1), "the workspace and the conversation do not agree"
    assert not any(line["data"]["interrupted"] for line in finished[:-1])
    assert finished[-1]["data"]["interrupted"] is ("may have run" in finished[-1]["data"]["output"])
    assert body["sessions"]
    assert other.get("/health").json()["tasks"] == {"processing": 0}
    model.script({"text": "I see."})
    assert other.finish(other.submit("go on", sessionId="busy"))["status"] == "completed"


def test_a_restore_is_refused_while_a_task_is_at_work(server: ServerProcess, model: OpenAIEmulator) -> None:
    create(server, "idle")
    model.script(plan([bash("until [ -e end.txt ]; do sleep 0.02; done")]))
    task_id = server.submit(sessionId="at-work")
    server.wait_for(task_id, "tool.started")
    response = server.post("/snapshots/idle/restore")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert response.json()["error"]["details"]["taskIds"] == [task_id]
    (server.workspace / "end.txt").touch()
    assert server.finish(task_id)["status"] == "completed"
    restore(server, "idle")


def test_changes_stay_true_after_a_restore(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (server.workspace / "base.txt").write_text("base\n")
        assert server.get("/changes").json()["files"] == []
        (server.workspace / "base.txt").write_text("changed\n")
        (server.workspace / "new.txt").write_text("new\n")
        create(server, "changed")
        for name in ("base.txt", "new.txt"):
            (server.workspace / name).unlink()
        assert server.get("/changes").json()["files"] == ["base.txt"]
        restore(server, "changed")
        found = {change["path"]: change["status"] for change in server.get("/changes").json()["changes"]}
        assert found == {"base.txt": "modified", "new.txt": "added"}


# Carried


def test_a_part_of_an_archive_can_be_fetched(server: ServerProcess) -> None:
    create(server, "parts")
    whole = fetch(server, "parts")
    for wanted, given in (("bytes=5-9", whole[5:10]), ("bytes=10-", whole[10:]), ("bytes=-7", whole[-7:])):
        response = server.get("/snapshots/parts/archive", Range=wanted)
        assert (response.status_code, response.content) == (206, given)
    for wanted in ("bytes=9-5", "lines=1-2", "bytes=0-1,3-4", "bytes=-", "nonsense"):
        response = server.get("/snapshots/parts/archive", Range=wanted)
        assert (response.status_code, response.content) == (200, whole)
    response = server.get("/snapshots/parts/archive", Range=f"bytes={len(whole)}-")
    assert (response.status_code, response.json()["error"]["code"]) == (416, "INVALID_REQUEST")
    with server.client() as client:
        head = client.head("/snapshots/parts/archive")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(whole)), b"")


def test_an_id_is_kept_where_it_is_carried(server: ServerProcess, other: ServerProcess) -> None:
    snapshot = create(server, "with an id")
    response = put(other, snapshot["snapshotId"], fetch(server, "with an id"))
    assert (response.status_code, response.json()) == (201, snapshot)
    again = put(other, snapshot["snapshotId"], fetch(server, "with an id"))
    assert again.json()["error"]["code"] == "CONFLICT"
    assert delete(other, "with an id").status_code == 200


TALK = {"sessionId": "s", "taskId": "t", "time": 1}
CREATED = {**TALK, "type": "task.created", "data": {"prompt": "p"}}
STARTED = {**TALK, "type": "task.started", "data": {}}

HOSTILE = {
    "up": archive(made("workspace/../up")),
    "up by a folder": archive(folder("workspace/.."), made("workspace/../up")),
    "here": archive(made("workspace/./a")),
    "absolute": archive(made("/etc/absolute")),
    "empty name": archive(made("workspace//a")),
    "outside": archive(made("elsewhere/a")),
    "the workspace itself": archive(folder("workspace")),
    "below a link": archive(link("workspace/l", "/tmp"), made("workspace/l/a")),
    "below a file": archive(made("workspace/f"), made("workspace/f/a")),
    "below nothing": archive(made("workspace/d/a")),
    "twice": archive(made("workspace/a"), made("workspace/a")),
    "a link twice": archive(link("workspace/a", "/etc/passwd"), made("workspace/a", b"x")),
    "out of order": archive(made("workspace/b"), made("workspace/a")),
    "back in a folder": archive(folder("workspace/a"), made("workspace/b"), made("workspace/a/c")),
    "hard link": archive(made("workspace/a", kind=b"1", link=b"/etc/passwd")),
    "device": archive(made("workspace/a", kind=b"3")),
    "pipe": archive(made("workspace/a", kind=b"6")),
    "our own folder": archive(folder("workspace/.agent-server-restore")),
    "a name too long": archive(made("workspace/" + "x" * 256)),
    "too deep": archive(*(folder("workspace/" + "/".join("d" * depth)) for depth in range(1, 210))),
    "a link to nothing": archive(link("workspace/l", "")),
    "a folder with contents": archive(made("workspace/a", b"x", kind=b"5")),
    "wrong count": archive(made("workspace/a"), count=2),
    "something after the end": archive(after=[made("workspace/a")]),
    "bytes after the end": archive(end=bytes(1024) + b"x" * 512),
    "no end": packed([made("manifest.json", json.dumps(MANIFEST).encode()), made("conversations.jsonl")]),
    "no manifest": packed([made("conversations.jsonl"), made("end.json", b'{"entries":0}')]),
    "no conversations": packed([made("manifest.json", json.dumps(MANIFEST).encode()), made("end.json", b'{"entries":0}')]),
    "another format": archive(manifest={"format": "other"}),
    "a later version": archive(manifest={"version": 2}),
    "a hostile name": archive(manifest={"name": "../../etc"}),
    "a broken manifest": archive(manifest={"createdAt": "then"}),
    "no json": archive(lines=[b"no json"]),
    "no event": archive(lines=[{"sessionId": "s"}]),
    "another event": archive(lines=[{**TALK, "type": "log", "data": {}}]),
    "a restore in a restore": archive(lines=[{**TALK, "type": "session.restored", "data": {"restoreId": "r"}}]),
    "no prompt": archive(lines=[{**CREATED, "data": {}}]),
    "a prompt that is none": archive(lines=[{**CREATED, "data": {"prompt": 5}}, STARTED]),
    "a message that is none": archive(lines=[{**TALK, "type": "message.completed", "data": {"text": "x", "toolCalls": [5]}}]),
    "no system prompt": archive(lines=[{**TALK, "type": "session.created", "data": {}}]),
    "a session twice": archive(lines=[CREATED, {**CREATED, "sessionId": "u"}, CREATED]),
    "a session that is none": archive(lines=[{**CREATED, "sessionId": "a\nb"}]),
    "deep json": archive(
        lines=[b'{"sessionId":"s","taskId":null,"time":1,"type":"task.failed","data":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}"]
    ),
    "empty": b"",
    "no gzip": b"PK\3\4" * 100,
    "no tar": gzip.compress(b"x" * 5_000),
    "nothing in it": gzip.compress(b""),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_bad_archive_changes_nothing(what: str, server: ServerProcess, tmp_path: Path) -> None:
    (server.workspace / "mine.txt").write_text("mine\n")
    before = server.newest()
    response = put(server, "hostile", HOSTILE[what])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST"), response.text
    assert server.get("/snapshots").json() == []
    assert list((server.data / "snapshots").iterdir()) == []
    assert (server.workspace / "mine.txt").read_text() == "mine\n"
    told = [line["type"] for line in server.get("/logs?lines=200&level=debug").json()["logs"] if line["seq"] > before]
    assert not [kind for kind in told if kind.startswith(("snapshot.", "session.", "context."))]
    assert not Path("/etc/absolute").exists()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99, -8, -1])
def test_an_archive_that_was_cut_off_or_damaged_is_refused(keep: float, server: ServerProcess) -> None:
    (server.workspace / "some").write_bytes(os.urandom(100_000))
    create(server, "whole")
    whole = fetch(server, "whole")
    cut = whole[: int(keep)] if keep < 0 else whole[: int(len(whole) * keep)]
    assert put(server, "cut", cut).status_code == 400
    damaged = bytearray(whole)
    damaged[int(keep) if keep < 0 else int(len(whole) * keep)] ^= 0x55
    if keep != -8 or damaged != whole:
        assert put(server, "damaged", bytes(damaged)).status_code == 400


def test_links_are_taken_as_they_are_and_set_user_id_is_not(server: ServerProcess, tmp_path: Path) -> None:
    data = archive(
        link("workspace/a", str(tmp_path)),
        folder("workspace/b", mode=0o7777),
        made("workspace/b/c", b"x", mode=0o4755),
    )
    assert put(server, "links", data).status_code == 201
    restore(server, "links")
    assert os.readlink(server.workspace / "a") == str(tmp_path)
    assert stat.S_IMODE((server.workspace / "b" / "c").stat().st_mode) == 0o755
    assert stat.S_IMODE((server.workspace / "b").stat().st_mode) == 0o1777
    assert list(tmp_path.iterdir()) == []


# Bounds


def test_their_number_and_size_are_bounded(tmp_path: Path) -> None:
    with serving(tmp_path, MAX_SNAPSHOTS="2", MAX_SNAPSHOT_BYTES=str(2 << 20)) as server:
        (server.workspace / "random").write_bytes(os.urandom(3 << 20))
        response = server.post("/snapshot")
        assert (response.status_code, response.json()["error"]["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
        assert response.json()["error"]["details"] == {"reason": "max_snapshot_bytes"}
        response = put(server, "big", b"x" * (3 << 20))
        assert response.json()["error"]["details"] == {"reason": "max_snapshot_bytes"}
        assert list((server.data / "snapshots").iterdir()) == []
        (server.workspace / "random").unlink()
        create(server, "one")
        data = fetch(server, "one")
        assert put(server, "two", data).status_code == 201
        for response in (server.post("/snapshot"), put(server, "three", data)):
            assert (response.status_code, response.json()["error"]["details"]) == (422, {"reason": "max_snapshots"})
        delete(server, "one")
        bomb = archive(*(made(f"workspace/{number}", bytes(4 << 20)) for number in range(4)))
        assert len(bomb) < 1 << 20
        response = put(server, "bomb", bomb)
        assert (response.status_code, response.json()["error"]["details"]["reason"]) == (422, "disk")
        assert [path.suffix for path in sorted((server.data / "snapshots").iterdir())] == [".json", ".gz"]


def test_a_full_disk_is_said_before_anything_is_done(small_disk: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (server.workspace / "a").write_text("a")
        create(server, "one")
        data = fetch(server, "one")
    tight = ServerProcess(tmp_path / "tight", WORKSPACE_DIR=str(small_disk / "workspace"))
    tight.workspace = small_disk / "workspace"
    tight.workspace.mkdir()
    tight.start()
    try:
        response = put(tight, "one", data)
        assert (response.status_code, response.json()["error"]["details"]["reason"]) == (422, "disk")
    finally:
        tight.kill()


def peak(server: ServerProcess) -> int:
    """The most memory the server had at once, in MiB. Source: proc(5)."""
    assert server.process is not None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def test_memory_stays_flat_however_large_the_workspace_is(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as server, serving(tmp_path / "two") as target:
        create(server, "small")
        carried(server, target, "small", tmp_path)
        before = peak(server), peak(target)
        for number in range(0, MIB, 32):
            (server.workspace / f"zeros-{number}").write_bytes(bytes(16 << 20))
            (server.workspace / f"random-{number}").write_bytes(os.urandom(16 << 20))
        create(server, "large")
        assert httpx.get(f"{server.url}/health").status_code == 200
        carried(server, target, "large", tmp_path)
        assert sum(path.stat().st_size for path in target.workspace.iterdir()) == MIB << 20
        assert peak(server) - before[0] < 24
        assert peak(target) - before[1] < 24


def carried(source: ServerProcess, target: ServerProcess, name: str, folder: Path) -> None:
    """Carries a snapshot by way of a file, so that this process stays small too, and restores it."""
    with (
        source.client() as client,
        client.stream("GET", f"/snapshots/{name}/archive") as response,
        (folder / "carried").open("wb") as file,
    ):
        for chunk in response.iter_bytes():
            file.write(chunk)
    with (
        httpx.Client(base_url=target.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=600) as client,
        (folder / "carried").open("rb") as file,
    ):
        assert client.put(f"/snapshots/{name}/archive", content=iter(lambda: file.read(1 << 20), b"")).status_code == 201
        assert client.post(f"/snapshots/{name}/restore").status_code == 200


def test_health_answers_while_a_snapshot_is_made(server: ServerProcess) -> None:
    (server.workspace / "random").write_bytes(os.urandom(20 << 20))
    making = threading.Thread(target=create, args=[server, "busy"])
    making.start()
    while making.is_alive() and not list((server.data / "snapshots").glob("*.part")):
        time.sleep(0.001)
    slowest = 0.0
    busy = 0
    with server.client() as client:
        while making.is_alive():
            before = time.monotonic()
            assert client.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - before)
            busy += client.post("/snapshot", json={"name": f"beside {busy}"}).status_code == 409
    making.join()
    assert busy
    assert slowest < 1


def test_files_that_change_meanwhile_do_no_harm(server: ServerProcess, other: ServerProcess) -> None:
    churn = (
        "mkdir -p churn; i=0; touch running; while [ -e running ]; do i=$((i+1)); head -c $((RANDOM * 20)) /dev/urandom > churn/f$((i%40));"
        " rm -rf churn/d$((i%7)); mkdir -p churn/d$((i%7))/e; echo $i > churn/d$((i%7))/e/f; ln -sfn $i churn/l$((i%5)); "
        ": > churn/f$(((i+20)%40)); done"
    )
    running = threading.Thread(target=lambda: server.execute(churn, timeout=60_000))
    running.start()
    while not (server.workspace / "running").exists():
        time.sleep(0.01)
    try:
        for number in range(4):
            name = f"churned {number}"
            create(server, name)
            assert put(other, name, fetch(server, name)).status_code == 201
            assert restore(other, name)["entries"] > 0
    finally:
        (server.workspace / "running").unlink(missing_ok=True)
        running.join()


def test_a_mounted_folder_is_not_replaced(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (server.workspace / "a.txt").write_text("a\n")
        create(server, "before")
        (server.workspace / "b.txt").write_text("b\n")
        (server.workspace / "mounted").mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", server.workspace / "mounted"], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            response = server.post("/snapshots/before/restore")
            assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
            assert sorted(path.name for path in server.workspace.iterdir()) == ["a.txt", "b.txt", "mounted"]
        finally:
            subprocess.run(["umount", "--lazy", server.workspace / "mounted"], check=True)
        restore(server, "before")
        assert sorted(path.name for path in server.workspace.iterdir()) == ["a.txt"]


def test_the_workspace_may_be_a_mount_itself(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    server = ServerProcess(tmp_path, WORKSPACE_DIR=str(small_disk))
    server.workspace = small_disk
    (small_disk / "lost+found").mkdir()
    (small_disk / "a.txt").write_text("a\n")
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        create(server, "mount")
        (small_disk / "a.txt").write_text("b\n")
        (small_disk / "c.txt").write_text("c\n")
        restore(server, "mount")
        assert sorted(path.name for path in small_disk.iterdir()) == ["a.txt", "lost+found"]
        assert (small_disk / "a.txt").read_text() == "a\n"

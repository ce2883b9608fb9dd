"""Reverting what a session's last tasks did, and bringing it back: files and conversation."""

import contextlib
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators.history import complaint
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests
from tests.scripts import STALLED, bash, plan
from tests.serving import ServerProcess, events, serving
from tests.workspaces import fingerprint, git, look, write

KEY = "sk-test-key-of-the-model"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """One server for the tests that leave it running; each has a session and a folder of the workspace to itself."""
    with serving(tmp_path_factory.mktemp("shared"), AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as running:
        yield running


class Job:
    """A session of a test, and its folder."""

    def __init__(self, server: ServerProcess, model: OpenAIEmulator, name: str) -> None:
        self.server = server
        self.model = model
        self.session = f"sess_{name}"
        self.folder = server.workspace / name
        self.folder.mkdir()
        (self.folder / ".keep").touch()
        self.name = name

    def run(self, *calls: dict[str, Any], session: str | None = None, prompt: str = "go") -> str:
        """Has a task make these calls, and gives its id."""
        self.model.script(plan(list(calls)) if calls else plan())
        reply = self.server.post("/run", {"prompt": prompt, "sessionId": session or self.session})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["taskId"])

    def bash(self, command: str, **more: Any) -> str:
        return self.run(bash(f"cd {self.name} && {command}"), **more)

    def write(self, path: str, content: str, **more: Any) -> str:
        return self.run({"name": "write", "arguments": {"filePath": f"{self.name}/{path}", "content": content}}, **more)

    def post(self, verb: str, status: int = 200, **body: Any) -> Any:
        reply = self.server.post(f"/sessions/{self.session}/{verb}", body)
        assert reply.status_code == status, reply.text
        return reply.json()

    def revert(self, task_id: str, status: int = 200, **more: Any) -> Any:
        return self.post("revert", status, taskId=task_id, **more)

    def unrevert(self, status: int = 200, **more: Any) -> Any:
        return self.post("unrevert", status, **more)

    def said(self) -> list[str]:
        """What the last request to the model has said so far, without the system prompt."""
        body = self.model.requests()[-1].json
        assert complaint(body) is None
        return [str(message["content"]) for message in body["messages"][1:]]

    def modes(self) -> dict[str, int]:
        return {str(path.relative_to(self.folder)): path.lstat().st_mode for path in sorted(self.folder.rglob("*"))}

    def paths(self, error: Any) -> list[str]:
        """The paths that a refusal names, in this folder."""
        assert error["error"]["code"] == "CONFLICT"
        return [path.removeprefix(f"{self.name}/") for path in error["error"]["details"]["paths"]]


@pytest.fixture
def job(shared: ServerProcess, model: OpenAIEmulator, request: pytest.FixtureRequest) -> Job:
    return Job(shared, model, f"job{abs(hash(request.node.name)):x}")


# The main job


def test_a_revert_takes_a_task_and_all_later_ones_back_and_unrevert_brings_them(job: Job) -> None:
    job.write("a", "one\n", prompt="first")
    kept = look(job.folder)
    second = job.write("a", "two\n", prompt="second")
    third = job.bash("mkdir -p deep/er && echo new > deep/er/b && chmod +x deep/er/b && ln -s a link", prompt="third")
    after, modes = look(job.folder), job.modes()
    reply = job.revert(second)
    assert reply["taskIds"] == [second, third]
    assert reply["sessionId"] == job.session
    assert sorted(reply["files"]) == [f"{job.name}/{path}" for path in ("a", "deep/er/b", "link")]
    assert reply["fileCount"] == 3
    assert reply["overwritten"] == []
    assert look(job.folder) == kept
    assert not (job.folder / "deep").exists()
    assert job.unrevert()["taskIds"] == [second, third]
    assert look(job.folder) == after
    assert job.modes() == modes


def test_the_conversation_is_that_of_before_and_comes_back(job: Job) -> None:
    job.run(prompt="first")
    second = job.bash("true", prompt="second")
    job.run(prompt="third")
    everything = job.said()
    assert [text for text in everything if text in ("first", "second", "third")] == ["first", "second", "third"]
    job.revert(second)
    job.run(prompt="fourth")
    assert job.said() == ["first", "Done.", "fourth"]
    fourth = job.server.get(f"/tasks?sessionId={job.session}").json()["tasks"][0]["taskId"]
    job.revert(fourth)
    job.unrevert()
    job.run(prompt="fifth")
    assert job.said() == ["first", "Done.", "fourth", "Done.", "fifth"]


def test_what_came_back_is_byte_for_byte_what_was_sent(job: Job) -> None:
    job.run(prompt="first")
    second = job.bash("echo out", prompt="second")
    job.run(prompt="third")
    before = job.model.requests()
    job.revert(second)
    job.unrevert()
    job.run(prompt="fourth")
    assert_requests([*before, *job.model.requests()])
    assert job.said()[-3:] == ["third", "Done.", "fourth"]


def test_reverted_tasks_are_still_shown_and_said_to_be_reverted(job: Job) -> None:
    first, second = job.write("a", "1"), job.write("a", "2")
    job.revert(second)
    listed = job.server.get(f"/tasks?sessionId={job.session}").json()["tasks"]
    assert [(task["taskId"], task["reverted"]) for task in listed] == [(second, True), (first, False)]
    changes = {change["path"]: change["taskIds"] for change in job.server.get("/changes").json()["changes"]}
    assert changes[f"{job.name}/a"] == [first]
    job.unrevert()
    assert job.server.get(f"/tasks/{second}").json()["reverted"] is False
    changes = {change["path"]: change["taskIds"] for change in job.server.get("/changes").json()["changes"]}
    assert changes[f"{job.name}/a"] == [first, second]


def test_reverts_are_undone_in_turn(job: Job) -> None:
    tasks = [job.write("a", str(number)) for number in range(3)]
    states = ["0", "1", "2"]
    job.revert(tasks[2])
    job.revert(tasks[1])
    assert (job.folder / "a").read_text() == "0"
    for state in states[1:]:
        job.unrevert()
        assert (job.folder / "a").read_text() == state
    assert "nothing to bring back" in job.unrevert(409)["error"]["message"]


def test_the_first_task_of_a_session_can_be_reverted(job: Job) -> None:
    first = job.write("a", "1", prompt="first")
    job.revert(first)
    assert not (job.folder / "a").exists()
    job.run(prompt="second")
    assert job.said() == ["second"]


def test_a_task_is_named_by_the_message_that_began_it(job: Job) -> None:
    task = job.server.get(f"/tasks/{job.write('a', '1')}").json()
    reply = job.post("revert", 400, messageId=task["messageId"])
    assert reply["error"]["details"]["path"] == "messageId"
    assert task["taskId"] in reply["error"]["message"]
    assert job.post("revert", 404, messageId="msg_x")["error"]["code"] == "NOT_FOUND"
    assert job.post("revert", messageId=task["taskId"].replace("task_", "msg_"))["taskIds"] == [task["taskId"]]


def test_the_messages_of_a_session_are_those_that_stand(job: Job) -> None:
    job.run(prompt="first")
    second = job.run(prompt="second")

    def texts() -> list[str]:
        messages = job.server.get(f"/sessions/{job.session}/messages").json()["messages"]
        return [message["content"][0]["text"] for message in messages]

    everything = texts()
    (began,) = [m["messageId"] for m in job.server.get(f"/sessions/{job.session}/messages").json()["messages"] if m["taskId"] == second][:1]
    assert job.post("revert", messageId=began)["taskIds"] == [second]
    assert texts() == everything[:2] == ["first", "Done."]
    forked = job.post("fork", 201)["sessionId"]
    assert len(job.server.get(f"/sessions/{forked}/messages").json()["messages"]) == 2
    job.unrevert()
    assert texts() == everything


def test_a_session_that_was_deleted_brings_nothing_back(job: Job) -> None:
    task = job.write("a", "1")
    job.revert(task)
    with job.server.client() as client:
        assert client.delete(f"/sessions/{job.session}").status_code == 200
    job.unrevert(404)
    job.run(prompt="anew")
    assert job.said() == ["anew"]
    job.unrevert(409)
    assert job.revert(task, 404)["error"]["code"] == "TASK_NOT_FOUND"


@pytest.mark.parametrize("body", [{}, {"taskId": "task_x", "messageId": "msg_x"}, {"taskId": ""}, {"taskId": 1}])
def test_a_body_that_names_no_one_task_is_refused(job: Job, body: dict[str, Any]) -> None:
    assert job.post("revert", 400, **body)["error"]["code"] == "INVALID_REQUEST"


def test_what_is_not_there_is_not_found(job: Job, model: OpenAIEmulator) -> None:
    assert job.revert("task_x", 404)["error"]["code"] == "SESSION_NOT_FOUND"
    assert job.unrevert(404)["error"]["code"] == "SESSION_NOT_FOUND"
    task = job.run()
    assert job.revert("task_x", 404)["error"]["code"] == "TASK_NOT_FOUND"
    assert job.unrevert(409)["error"]["code"] == "CONFLICT"
    other = job.run(session=f"{job.session}_other")
    assert job.revert(other, 404)["error"]["details"]["sessionId"] == f"{job.session}_other"
    job.revert(task)
    assert "already" in job.revert(task, 409)["error"]["message"]


def test_a_session_with_a_running_task_is_refused(job: Job) -> None:
    done = job.write("a", "1")
    job.model.script(STALLED)
    running = job.server.submit("more", sessionId=job.session)
    job.server.wait_for(running, "message.delta")
    for verb, body in (("revert", {"taskId": done}), ("unrevert", {})):
        assert job.post(verb, 409, **body)["error"]["details"] == {"sessionId": job.session}
    job.server.post(f"/tasks/{running}/cancel")
    assert job.revert(done)["taskIds"] == [done, running]


def test_a_task_that_comes_after_makes_unrevert_impossible(job: Job) -> None:
    first = job.write("a", "1")
    job.revert(first)
    second = job.run()
    error = job.unrevert(409)["error"]
    assert error["details"] == {"taskId": second}
    assert "cannot be undone" in error["message"]


def test_a_task_that_is_sent_during_a_revert_begins_after_it(job: Job) -> None:
    task = job.bash("for i in $(seq 400); do echo $i > f$i; done")
    job.model.script(plan())
    after = job.server.newest()
    thread = threading.Thread(target=job.revert, args=[task])
    thread.start()
    with job.server.client() as client, client.stream("GET", f"/events?after={after}") as response:
        told = events(response)
        next(event for event in told if event["type"] == "revert.started")
        sent = job.server.submit("next", sessionId=job.session)
        kinds = [next(told)["type"]]
        while kinds[-1] != "task.completed":
            kinds.append(next(told)["type"])
    thread.join()
    assert job.server.finish(sent)["status"] == "completed"
    assert [kind for kind in kinds if kind in ("session.reverted", "task.started")] == ["session.reverted", "task.started"]
    assert job.said() == ["next"]
    assert job.unrevert(409)["error"]["details"] == {"taskId": sent}


# Files of others


def others(folder: Path) -> list[Path]:
    return [folder / name for name in (".keep", "mine", "new")]


def test_only_files_that_the_tasks_changed_are_touched(job: Job) -> None:
    write(job.folder / "mine", "before")
    task = job.bash("echo 1 > a; echo 2 > b")
    write(job.folder / "mine", "after")
    write(job.folder / "new", "mine")
    marks = [(info.st_ino, info.st_ctime_ns) for info in (path.stat() for path in others(job.folder))]
    job.revert(task)
    assert sorted(job.folder.iterdir()) == others(job.folder)
    assert [(info.st_ino, info.st_ctime_ns) for info in (path.stat() for path in others(job.folder))] == marks


def replaced(path: Path) -> Path:
    path.unlink()
    return path


EDITS: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: path.write_text("mine"),
    "deleted": Path.unlink,
    "made a program": lambda path: path.chmod(0o755),
    "made a link": lambda path: replaced(path).symlink_to("nowhere"),
    "made a folder": lambda path: write(replaced(path) / "mine", "mine"),
    "made a pipe": lambda path: os.mkfifo(replaced(path)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_that_was_changed_since_is_a_conflict(job: Job, edit: str) -> None:
    write(job.folder / "a", "original")
    task = job.bash("echo task > a; echo task > b")
    EDITS[edit](job.folder / "a")
    before = fingerprint(job.folder)
    error = job.revert(task, 409)
    assert set(job.paths(error)) <= {"a", "a/mine"}
    assert "a" in job.paths(error)[0]
    assert fingerprint(job.folder) == before
    assert job.server.get(f"/tasks/{task}").json()["reverted"] is False
    if edit == "made a pipe":  # no recording has one: force would lose it
        assert job.paths(job.revert(task, 409, force=True)) == ["a"]
        assert fingerprint(job.folder) == before
        return
    now = look(job.folder)
    reply = job.revert(task, force=True)
    assert reply["overwritten"]
    assert look(job.folder) == {b".keep": ("file", b""), b"a": ("file", b"original")}
    changes = job.server.get(f"/changes?since={reply['checkpointId']}").json()
    assert f"{job.name}/a" in changes["files"]
    job.unrevert()
    assert look(job.folder) == now


def test_a_change_between_two_tasks_is_a_conflict(job: Job) -> None:
    first = job.bash("echo 1 > a")
    write(job.folder / "a", "mine\n")
    second = job.bash("echo 2 >> a")
    assert job.paths(job.revert(first, 409)) == ["a"]
    job.revert(second)
    assert (job.folder / "a").read_text() == "mine\n"
    job.unrevert()
    job.revert(first, force=True)
    assert not (job.folder / "a").exists()


def test_a_change_of_another_session_is_a_conflict_and_one_of_its_own_files_is_not(job: Job) -> None:
    task = job.bash("echo 1 > a; echo 1 > b")
    job.bash("echo other > c", session=f"{job.session}_other")
    job.revert(task)
    job.unrevert()
    job.bash("echo other > b", session=f"{job.session}_other")
    assert job.paths(job.revert(task, 409)) == ["b"]


def test_what_a_task_beside_it_wrote_is_left_alone(job: Job) -> None:
    """The file tools name what they change; a command may have changed all that differs."""
    other = f"{job.session}_other"
    job.model.script(plan([bash(f"cd {job.name}; echo 1 > by-command; until [ -e go ]; do sleep 0.02; done")]))
    slow = job.server.submit("slow", sessionId=other)
    job.server.wait_for(slow, "tool.started")
    while not (job.folder / "by-command").exists():
        time.sleep(0.01)
    quick = job.write("by-write", "1")
    reply = job.revert(quick, 409)
    assert job.paths(reply) == ["by-write"]
    (job.folder / "go").touch()
    job.server.finish(slow)
    job.revert(quick, force=True)
    assert sorted(path.name for path in job.folder.iterdir()) == [".keep", "by-command", "go"]


def test_a_task_that_only_read_has_changed_nothing(job: Job) -> None:
    job.model.script(plan([{"name": "read", "arguments": {"filePath": f"{job.name}/.keep"}}], [bash("true")], delay=0))
    task = job.run({"name": "read", "arguments": {"filePath": f"{job.name}/.keep"}})
    write(job.folder / "mine", "1")
    assert job.revert(task)["fileCount"] == 0
    assert (job.folder / "mine").exists()


def test_a_change_after_the_revert_is_a_conflict_of_unrevert(job: Job) -> None:
    task = job.write("a", "task")
    job.revert(task)
    write(job.folder / "a", "mine")
    assert job.paths(job.unrevert(409)) == ["a"]
    reply = job.unrevert(force=True)
    assert reply["overwritten"] == [f"{job.name}/a"]
    assert (job.folder / "a").read_text() == "task"


def test_what_is_already_as_it_was_is_no_conflict(job: Job) -> None:
    write(job.folder / "a", "original")
    task = job.write("a", "task")
    write(job.folder / "a", "original")
    assert job.revert(task)["fileCount"] == 0


# What is restored


KINDS: dict[str, str] = {
    "contents": "printf '\\0\\1\\377' > binary; printf 'a\\r\\n' > text; : > program",
    "modes": "chmod -x program; chmod +x text",
    "links": "ln -sfn nowhere link; ln -s text another; ln -sfn .. link-to-folder",
    "deletions": "rm -r text program folder link link-to-folder",
    "renames": "mv text moved; mv folder shifted; mv link turned",
    "a file to a folder": "rm text; mkdir -p text/deep; echo 1 > text/deep/x",
    "a folder to a file": "rm -r folder; echo 1 > folder",
    "a file to a link": "rm text; ln -s program text",
    "a link to a file": "rm link; echo 1 > link",
    "a folder to a link": "mv folder hidden; ln -s hidden folder",
    "a link to a folder, to a folder": "rm link-to-folder; mkdir link-to-folder; echo 1 > link-to-folder/a",
    "around": "mv text t; mv program text; mv folder program; mv t folder",
    "names": "for n in $'caf\\351' $'line\\nfeed' ' ' '-n' '*' $'\\377\\376'; do echo 1 > \"$n\"; done; mv $'th\\351' $'\\350'",
    "folders": "mkdir -p x/y/z; echo 1 > x/y/z/f; mkdir -p empty/inside",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_restored_exactly_both_ways(job: Job, kind: str) -> None:
    write(job.folder / "text", "line\n" * 10)
    write(job.folder / "program", "#!/bin/sh\n").chmod(0o755)
    write(job.folder / "binary", b"\0\1" * 1000)
    write(job.folder / "folder" / "a", "1")
    write(job.folder / "folder" / "deep" / "b", "2")
    write(job.folder / "secret", "3").chmod(0o600)
    write(job.folder / os.fsdecode(b"th\xe9"), "4")
    (job.folder / "link").symlink_to("text")
    (job.folder / "link-to-folder").symlink_to("folder")
    before = look(job.folder)
    task = job.bash(KINDS[kind])
    after = look(job.folder)
    assert before != after
    job.revert(task)
    assert look(job.folder) == before
    assert stat.S_IMODE((job.folder / "secret").stat().st_mode) == 0o600
    job.unrevert()
    assert look(job.folder) == after
    assert not list(job.folder.rglob(".rev_*"))


def test_folders_that_become_empty_go_and_those_that_were_empty_stay(job: Job) -> None:
    (job.folder / "was-empty").mkdir()
    task = job.bash("mkdir -p new/er; echo 1 > new/er/a")
    (job.folder / "new" / "mine").mkdir()
    job.revert(task)
    assert sorted(str(path.relative_to(job.folder)) for path in job.folder.rglob("*")) == [".keep", "new", "new/mine", "was-empty"]


def test_the_mode_and_owner_of_a_file_are_kept(job: Job) -> None:
    write(job.folder / "a", "1").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(job.folder / "a", 12345, 12345)
        os.chown(job.folder, 12345, 12345)
    owner = (job.folder / "a").stat().st_uid
    task = job.bash("echo 2 > a; chmod +x a; mkdir b; echo 3 > b/c; chmod 600 b/c")
    job.revert(task)
    info = (job.folder / "a").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o640, owner)
    job.unrevert()
    assert stat.S_IMODE((job.folder / "a").stat().st_mode) == 0o750
    assert (job.folder / "b").stat().st_uid == (job.folder / "b" / "c").stat().st_uid == owner


def test_a_task_that_failed_is_reverted_too(job: Job) -> None:
    job.model.script({"tool_calls": [bash(f"echo 1 > {job.name}/a")]}, {"status": 401})
    task = job.server.finish(job.server.submit(sessionId=job.session))
    assert task["status"] == "failed"
    job.revert(task["taskId"])
    assert not (job.folder / "a").exists()


def test_the_users_repository_is_left_alone(shared: ServerProcess, model: OpenAIEmulator, job: Job) -> None:
    git(job.folder, "init")
    write(job.folder / "a", "1")
    git(job.folder, "add", "a")
    git(job.folder, "commit", "-m", "mine")
    commit = "git -c user.name=A -c user.email=a@example.com commit -qam agent"
    task = job.bash(f"echo 2 > a; {commit}; git branch other; echo 3 > b; git stash -qu; echo 4 > b")
    repository = fingerprint(job.folder / ".git")
    job.revert(task)
    assert (job.folder / "a").read_text() == "1"
    assert not (job.folder / "b").exists()
    assert fingerprint(job.folder / ".git") == repository


# What must not happen


def test_nothing_is_written_through_a_folder_that_became_a_link(job: Job, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside / "a", "outside")
    write(job.folder / "folder" / "a", "original")
    task = job.bash("echo task > folder/a; echo task > folder/b")
    shutil.rmtree(job.folder / "folder")
    (job.folder / "folder").symlink_to(outside)
    before = fingerprint(outside)
    assert job.paths(job.revert(task, 409))
    assert fingerprint(outside) == before
    job.revert(task, force=True)  # the link is recorded, so it may go
    assert fingerprint(outside) == before
    assert not (job.folder / "folder").is_symlink()
    assert (job.folder / "folder" / "a").read_text() == "original"


def test_a_link_out_of_the_workspace_that_a_task_made_is_removed_and_not_followed(job: Job, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside / "a", "outside")
    write(job.folder / "folder" / "a", "original")
    task = job.bash(f"rm -r folder; ln -s {outside} folder; echo through > folder/b")
    before = fingerprint(outside)
    job.revert(task)
    assert (job.folder / "folder" / "a").read_text() == "original"
    job.unrevert()
    assert os.readlink(job.folder / "folder") == str(outside)
    assert fingerprint(outside) == before


def test_ignored_files_in_the_way_are_a_conflict_that_force_does_not_override(job: Job) -> None:
    write(job.folder / ".gitignore", "*.log\n")
    write(job.folder / "a", "original")
    task = job.bash("rm a; mkdir a; echo 1 > a/x")
    write(job.folder / "a" / "precious.log", "mine")
    before = fingerprint(job.folder)
    for force in (False, True):
        assert job.paths(job.revert(task, 409, force=force)) == ["a/precious.log"]
        assert fingerprint(job.folder) == before
    (job.folder / "a" / "precious.log").unlink()
    job.revert(task)
    assert (job.folder / "a").read_text() == "original"


def test_a_file_too_large_to_be_recorded_is_never_overwritten(job: Job) -> None:
    task = job.bash("echo 1 > a; head -c 11000000 /dev/zero > large")
    write(job.folder / "a", b"\0" * 11_000_000)
    before = fingerprint(job.folder)
    for force in (False, True):
        assert job.paths(job.revert(task, 409, force=force)) == ["a"]
    assert fingerprint(job.folder) == before
    write(job.folder / "a", "1\n")
    reply = job.revert(task)
    assert (job.folder / "large").exists()
    assert {"path": f"{job.name}/large", "reason": "large"} in reply["leftOut"]["files"]
    (job.folder / "large").unlink()


def test_a_folder_that_may_not_be_written_is_said_so_and_nothing_is_done(tmp_path: Path, model: OpenAIEmulator) -> None:
    with _unprivileged(tmp_path, model) as server:
        job = Job(server, model, "job")
        os.chown(job.folder, 65534, 65534)
        task = job.bash("mkdir locked; echo 1 > locked/a; echo 1 > b")
        (job.folder / "locked").chmod(0o555)
        before = fingerprint(job.folder)
        for force in (False, True):
            error = job.revert(task, 409, force=force)
            assert job.paths(error) == ["locked"]
            assert "permissions" in error["error"]["message"]
        assert fingerprint(job.folder) == before
        (job.folder / "locked").chmod(0o755)
        job.revert(task)
        assert [path.name for path in job.folder.iterdir()] == [".keep"]


@contextlib.contextmanager
def _unprivileged(folder: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server that has no rights of root's."""
    server = ServerProcess(folder / "served", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY)
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is needed to give up root's rights")
        server.argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *server.argv]
        for path in (folder / "served", server.workspace):
            os.chown(path, 65534, 65534)
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and path != Path("/tmp") and path.is_relative_to("/tmp"):
                path.chmod(path.stat().st_mode | 0o011)
    server.start()
    try:
        yield server
    finally:
        server.kill()


# Crashes and failures


MANY = 300
"""Files that a revert has to restore, so that there is time to end the server in its middle."""


@pytest.mark.parametrize("verb", ["revert", "unrevert"])
@pytest.mark.parametrize("moment", ["begun", "halfway"])
def test_what_a_killed_server_had_begun_is_finished_at_the_next_start(
    agent: ServerProcess, model: OpenAIEmulator, verb: str, moment: str
) -> None:
    job = Job(agent, model, "job")
    for number in range(20):
        write(job.folder / f"f{number}", "1\n")
    job.run(prompt="first")
    states = [look(job.folder)]
    task = job.bash(f"for i in f*; do echo 2 > $i; done; for i in $(seq {MANY}); do echo 2 > g$i; done")
    states.append(look(job.folder))
    if verb == "unrevert":
        job.revert(task)
        states.reverse()
    after, (end, begin) = agent.newest(), states
    thread = threading.Thread(target=_sent_in_vain, args=[agent, f"/sessions/{job.session}/{verb}", {"taskId": task}])
    thread.start()
    if moment == "begun":
        with agent.client() as client, client.stream("GET", f"/events?after={after}") as response:
            next(event for event in events(response) if event["type"] == "revert.started")
    else:
        while abs(len(os.listdir(job.folder)) - len(begin)) < MANY / 2:
            pass
    agent.kill()
    thread.join()
    if moment == "halfway":
        assert look(job.folder) not in states
    agent.start()
    job.run(prompt="second")
    assert look(job.folder) == end
    assert not list(job.folder.glob(".*.tmp"))
    assert agent.get(f"/tasks/{task}").json()["reverted"] is (verb == "revert")
    assert [text for text in job.said() if text in ("first", "go", "second")] == [
        "first",
        *(["go"] if verb == "unrevert" else []),
        "second",
    ]


def _sent_in_vain(server: ServerProcess, path: str, body: Any) -> None:
    with contextlib.suppress(httpx.TransportError):
        server.post(path, body)


def test_a_file_that_was_changed_while_the_server_was_down_is_left_and_named(agent: ServerProcess, model: OpenAIEmulator) -> None:
    job = Job(agent, model, "job")
    task = job.bash("echo 1 > a; echo 1 > b")
    job.revert(task)
    agent.stop()
    with sqlite3.connect(agent.data / "events.db") as db:  # as if it had been killed before it could say that it was done
        db.execute("DELETE FROM events WHERE type = 'session.reverted'")
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
    db.close()
    write(job.folder / "a", "mine")
    write(job.folder / "b", "1\n")
    agent.start()
    with agent.client() as client, client.stream("GET", "/events?after=0") as response:
        done = next(event for event in events(response) if event["type"] == "session.reverted")
    assert done["skipped"] == ["job/a"]
    assert agent.get(f"/tasks/{task}").json()["reverted"] is True
    assert look(job.folder) == {b".keep": ("file", b""), b"a": ("file", b"mine")}


def test_a_revert_that_fails_midway_is_taken_back_and_says_so(small_disk: Path, tmp_path: Path, model: OpenAIEmulator) -> None:
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, WORKSPACE_DIR=str(small_disk)) as server:
        server.workspace = small_disk
        job = Job(server, model, "job")
        write(job.folder / "large", os.urandom(2 << 20))
        write(job.folder / "small", "1")
        task = job.bash("rm large; echo 2 > small; echo 1 > new")
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as filler:
            while True:
                filler.write(b"\0" * 4096)
                filler.flush()
        before = look(job.folder)
        error = job.revert(task, 409)["error"]
        assert "all files are as before" in error["message"]
        assert "large" in error["message"]
        assert look(job.folder) == before
        assert server.get(f"/tasks/{task}").json()["reverted"] is False
        (small_disk / "filler").unlink()
        job.revert(task)
        assert sorted(path.name for path in job.folder.iterdir()) == [".keep", "large", "small"]


def test_the_indexes_of_reverts_are_built_again_from_the_log(agent: ServerProcess, model: OpenAIEmulator) -> None:
    job = Job(agent, model, "job")
    tasks = [job.write("a", str(number)) for number in range(3)]
    job.revert(tasks[1])
    job.unrevert()
    job.revert(tasks[2])
    before = agent.get("/tasks").json()
    agent.stop()
    with sqlite3.connect(agent.data / "events.db") as db:
        db.execute("DROP TABLE reverts")
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
    db.close()
    agent.start()
    assert agent.get("/tasks").json() == before
    assert job.unrevert()["taskIds"] == [tasks[2]]
    assert (job.folder / "a").read_text() == "2"


def test_a_revert_whose_states_are_gone_is_refused(agent: ServerProcess, model: OpenAIEmulator) -> None:
    job = Job(agent, model, "job")
    task = job.write("a", "1")
    states = agent.data / "shadow" / "refs" / "checkpoints"
    (states / f"{task}-start").rename(states / "away")
    error = job.revert(task, 409)["error"]
    assert error["details"] == {"taskId": task}
    (states / "away").rename(states / f"{task}-start")
    reply = job.revert(task)
    (states / reply["checkpointId"]).unlink()
    assert "not recorded any more" in job.unrevert(409)["error"]["message"]

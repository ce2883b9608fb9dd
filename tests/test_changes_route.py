"""GET /changes against a real server: revisions of the user's repository, what is left out, which tasks, how much is kept."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.scripts import bash, plan
from tests.serving import ServerProcess, events, serving
from tests.workspaces import fingerprint, git, write


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose workspace is a repository with two commits, a tag and a branch, and files in every state."""
    folder = tmp_path_factory.mktemp("repository")
    workspace = folder / "workspace"
    write(workspace / "a", "1\n")
    write(workspace / "committed.log", "kept\n")
    write(workspace / "old", "line\n" * 20)
    git(workspace, "init")
    git(workspace, "add", "-A")
    git(workspace, "commit", "-m", "first")
    git(workspace, "tag", "v1")
    write(workspace / ".gitignore", "*.log\n/build/\n")
    write(workspace / "b", "2\n")
    git(workspace, "add", "-A")
    git(workspace, "commit", "-m", "second")
    git(workspace, "branch", "side/branch")
    with serving(folder) as server:
        write(workspace / "a", "changed\n")
        (workspace / "old").rename(workspace / "moved")
        write(workspace / "build" / "out", "3")
        write(workspace / "debug.log", "4")
        yield server


def told(server: ServerProcess, query: str) -> dict[str, str]:
    reply = server.get(f"/changes?{query}")
    assert reply.status_code == 200, reply.text
    return {change["path"]: change["status"] for change in reply.json()["changes"]}


SINCE_SECOND = {"a": "modified", "moved": "renamed"}
SINCE_FIRST = {**SINCE_SECOND, ".gitignore": "added", "b": "added"}


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("HEAD", SINCE_SECOND),
        ("HEAD~1", SINCE_FIRST),
        ("v1", SINCE_FIRST),
        ("v1^{commit}", SINCE_FIRST),
        ("side/branch", SINCE_SECOND),
        ("main@{0}", SINCE_SECOND),
    ],
)
def test_since_names_a_revision(repository: ServerProcess, since: str, expected: dict[str, str]) -> None:
    assert told(repository, f"since={since}") == expected


def test_a_commit_is_named_by_its_id_and_shown_with_its_diff(repository: ServerProcess) -> None:
    commit = git(repository.workspace, "rev-parse", "v1").strip()
    for name in (commit, commit[:10]):
        reply = repository.get(f"/changes?since={name}&diff=true").json()
        assert reply["base"] == name
        changes = {change["path"]: change for change in reply["changes"]}
        assert "-1\n+changed\n" in changes["a"]["diff"]
        assert changes["moved"]["oldPath"] == "old"


def test_what_is_committed_and_not_recorded_is_not_called_deleted(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    write(workspace / "large", b"\0" * 11_000_000)
    write(workspace / "a.log", "committed\n" * 20)
    git(workspace, "init")
    git(workspace, "add", "-A")
    git(workspace, "commit", "-m", "first")
    write(workspace / ".gitignore", "*.log\n")
    write(workspace / "copy", "committed\n" * 20)
    with serving(tmp_path) as server:
        reply = server.get("/changes?since=HEAD").json()
    assert [(change["path"], change["status"]) for change in reply["changes"]] == [(".gitignore", "added"), ("copy", "added")]
    assert {file["path"]: file["reason"] for file in reply["leftOut"]["files"]} == {"large": "large", "a.log": "ignored"}


@pytest.mark.parametrize("since", ["nope", "HEAD~9", "task_x", "deadbeef", "HEAD^{blob}", "main@{9}", "a", "refs/heads"])
def test_an_unknown_revision_is_not_found(repository: ServerProcess, since: str) -> None:
    reply = repository.get(f"/changes?since={since}")
    assert reply.status_code == 404
    assert since in reply.json()["error"]["message"]


NO_REVISIONS = ["-h", "--all", "--output=/tmp/x", "HEAD:a", "HEAD..v1", ":/first", "", "%00", "HEAD%0A", "x" * 300, " HEAD"]


@pytest.mark.parametrize("since", NO_REVISIONS)
def test_what_can_be_no_revision_is_refused(repository: ServerProcess, since: str) -> None:
    reply = repository.get(f"/changes?since={since}")
    assert reply.status_code == 400
    assert reply.json()["error"]["details"]["path"] == "since"


def test_the_repository_is_only_read(repository: ServerProcess) -> None:
    before = fingerprint(repository.workspace / ".git")
    for since in ("HEAD", "v1", "nope", "side/branch"):
        repository.get(f"/changes?since={since}&diff=true")
    assert fingerprint(repository.workspace / ".git") == before


def test_ignored_files_are_left_out_and_named(repository: ServerProcess) -> None:
    left_out = repository.get("/changes").json()["leftOut"]
    named = {file["path"]: file["reason"] for file in left_out["files"]}
    assert {name: named[name] for name in ("build/", "debug.log")} == {"build/": "ignored", "debug.log": "ignored"}
    assert left_out["count"] == len(left_out["files"])


def test_a_workspace_without_a_repository_has_no_revisions(server: ServerProcess) -> None:
    reply = server.get("/changes?since=HEAD")
    assert reply.status_code == 404
    assert "no git repository" in reply.json()["error"]["message"]


def test_a_worktree_has_the_revisions_of_its_repository(tmp_path: Path) -> None:
    write(tmp_path / "main" / "a", "1\n")
    git(tmp_path / "main", "init")
    git(tmp_path / "main", "add", "-A")
    git(tmp_path / "main", "commit", "-m", "first")
    git(tmp_path / "main", "worktree", "add", str(tmp_path / "workspace"))
    with serving(tmp_path) as server:
        write(server.workspace / "a", "2\n")
        assert told(server, "since=main") == {"a": "modified"}


def test_a_repository_cannot_make_the_server_run_programs(tmp_path: Path) -> None:
    """A partial clone would fetch what it lacks, by the program that its configuration names."""
    workspace = tmp_path / "workspace"
    write(workspace / "a", "1\n")
    git(workspace, "init")
    git(workspace, "add", "-A")
    git(workspace, "commit", "-m", "first")
    blob = git(workspace, "rev-parse", "HEAD:a").strip()
    program, ran = tmp_path / "program", tmp_path / "ran"
    write(program, f"#!/bin/sh\ntouch {ran}\n").chmod(0o755)
    settings = {
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": "ssh://host/x",
        **dict.fromkeys(("core.fsmonitor", "core.sshCommand", "remote.origin.uploadpack", "diff.external"), str(program)),
        "core.repositoryFormatVersion": "1",
    }
    with (workspace / ".git" / "config").open("a") as config:
        for name, value in settings.items():
            section, _, key = name.rpartition(".")
            section = section.replace("remote.origin", 'remote "origin"')
            config.write(f"[{section}]\n\t{key} = {value}\n")
    with serving(tmp_path) as server:
        write(workspace / "a", "2\n")
        assert told(server, "since=HEAD&diff=true") == {"a": "modified"}
        (workspace / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
        write(workspace / "a", "3\n" * 50)
        assert server.get("/changes?since=HEAD&diff=true").status_code == 404
        assert server.get(f"/changes?since={'01234567' * 5}").status_code == 404
    assert not ran.exists()


# Tasks


def test_the_tasks_before_a_rename_are_named(agent: ServerProcess, model: OpenAIEmulator) -> None:
    write(agent.workspace / "a", "line\n" * 50)
    assert agent.get("/changes").json()["files"] == []
    ids = []
    for command in ("echo 1 >> a", "mv a b", "mv b c; echo 2 > other"):
        model.script(plan([bash(command)]))
        ids.append(agent.post("/run", {"prompt": "go"}).json()["taskId"])
    changes = {change["path"]: change for change in agent.get("/changes").json()["changes"]}
    assert changes["c"]["oldPath"] == "a"
    assert changes["c"]["taskIds"] == ids
    assert changes["other"]["taskIds"] == ids[2:]


def test_a_task_that_has_ended_says_what_its_state_left_out(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("head -c 11000000 /dev/zero > large; echo 1 > small")]))
    task_id = agent.post("/run", {"prompt": "go"}).json()["taskId"]
    (agent.workspace / "large").unlink()
    reply = agent.get(f"/changes?taskId={task_id}").json()
    assert reply["files"] == ["small"]
    assert reply["leftOut"] == {"count": 1, "files": [{"path": "large", "reason": "large"}]}


def test_a_name_that_is_not_utf_8_is_told(server: ServerProcess) -> None:
    server.get("/changes")
    (server.workspace / os.fsdecode(b"caf\xe9")).write_bytes(b"\0\1")
    (change,) = server.get("/changes?diff=true").json()["changes"]
    assert change["path"] == "caf\\xe9"
    assert change["binary"] is True
    assert "diff" not in change


# The disk


def test_the_oldest_states_go_when_there_are_too_many_and_the_first_stays(tmp_path: Path, model: OpenAIEmulator) -> None:
    environ = {"AGENT_BASE_URL": model.url, "AGENT_API_KEY": "sk-test-key-of-the-model", "MAX_CHECKPOINT_BYTES": str(1 << 20)}
    with serving(tmp_path, **environ) as server:
        write(server.workspace / "first", "1\n")
        model.script(plan([bash("head -c 200000 /dev/urandom > data; echo {prompt} > name")]))
        ids = [server.post("/run", {"prompt": f"p{number}"}).json()["taskId"] for number in range(6)]
        with server.client() as client, client.stream("GET", "/events?after=0") as response:
            dropped = next(event for event in events(response) if "checkpoints were dropped" in event["message"])
        assert not dropped["message"].startswith("0 of")
        ids += [server.post("/run", {"prompt": f"p{number}"}).json()["taskId"] for number in (6, 7)]
        reply = server.get(f"/changes?since={ids[0]}")
        assert reply.status_code == 404
        assert server.get("/changes").json()["base"] == "base"
        assert server.get(f"/changes?since={ids[-1]}").json()["files"] == ["data", "name"]
        assert server.post("/sessions/sess_main/revert", {"taskId": ids[0]}).status_code == 409
        assert server.post("/sessions/sess_main/revert", {"taskId": ids[-1]}).status_code == 200
        assert (server.workspace / "name").read_text() == "p6\n"
        used = subprocess.run(["du", "-sk", server.data / "shadow" / "objects"], capture_output=True, check=True, text=True).stdout
        assert int(used.split()[0]) < 2048

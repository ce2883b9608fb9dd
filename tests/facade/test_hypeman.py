"""The real client of Hypeman against this one instance."""

import time
from collections.abc import Iterator

import pytest
from hypeman import APIStatusError, ConflictError, Hypeman, NotFoundError

from tests.emulators.openai import OpenAIEmulator
from tests.serving import TOKEN, ServerProcess, serving


@pytest.fixture(scope="module")
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", INSTANCE_NAME="my-agent", PLAIN="shown") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Hypeman]:
    with Hypeman(base_url=server.url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture
def instance_id(server: ServerProcess) -> str:
    return str(server.get("/status").json()["instanceId"])


def test_list_and_get_show_the_one_instance(client: Hypeman, instance_id: str) -> None:
    (listed,) = client.instances.list()
    assert (listed.id, listed.name, listed.state) == (instance_id, "my-agent", "Running")
    assert listed.vcpus
    assert listed.image.startswith("agent-server:")
    assert listed.created_at.timestamp() <= time.time()
    assert listed.env is not None
    assert listed.env["PLAIN"] == "shown"
    assert TOKEN not in str(listed.env)
    for name in (instance_id, "my-agent"):
        assert client.instances.get(name).id == instance_id
    assert client.instances.list(state="Stopped") == []


def test_an_unknown_instance_is_not_found(client: Hypeman) -> None:
    with pytest.raises(NotFoundError) as raised:
        client.instances.get("other")
    assert raised.value.response.json()["error"]["code"] == "INSTANCE_NOT_FOUND"


def test_stat_tells_of_paths(client: Hypeman, server: ServerProcess, instance_id: str) -> None:
    (server.workspace / "file.txt").write_text("12345")
    (server.workspace / "link").symlink_to("file.txt")
    found = client.instances.stat(instance_id, path="file.txt")
    assert (found.exists, found.is_file, found.is_dir, found.size) == (True, True, False, 5)
    link = client.instances.stat(instance_id, path="link")
    assert (link.is_symlink, link.link_target) == (True, "file.txt")
    assert client.instances.stat(instance_id, path="link", follow_links=True).is_file
    assert not client.instances.stat(instance_id, path="nothing").exists


def test_stats_are_of_this_machine(client: Hypeman, instance_id: str) -> None:
    stats = client.instances.stats(instance_id)
    assert stats.instance_id == instance_id
    assert 0 < stats.memory_rss_bytes <= stats.allocated_memory_bytes
    assert stats.allocated_vcpus >= 1
    assert client.instances.stats(instance_id).cpu_seconds >= stats.cpu_seconds > 0


def test_logs_are_strings_and_follow_what_comes(client: Hypeman, server: ServerProcess, instance_id: str) -> None:
    server.execute("echo before")
    with client.instances.logs(instance_id, tail=5) as history:
        lines = list(history)
    assert 1 <= len(lines) <= 5
    assert all(isinstance(line, str) for line in lines)
    with client.instances.logs(instance_id, tail=1, follow=True) as stream:
        following = iter(stream)
        next(following)
        server.execute("echo while-it-follows")
        assert any("while-it-follows" in line for line, _ in zip(following, range(20), strict=False))
    with client.instances.logs(instance_id, source="vmm", tail=5) as none:
        assert list(none) == []


@pytest.mark.parametrize(("halt", "go", "state"), [("stop", "start", "Stopped"), ("standby", "restore", "Standby")])
def test_a_stopped_instance_refuses_tasks_until_it_is_started(
    client: Hypeman, server: ServerProcess, model: OpenAIEmulator, instance_id: str, halt: str, go: str, state: str
) -> None:
    model.script({"text": "done"})
    assert getattr(client.instances, halt)(instance_id).state == state
    refused = server.post("/run", {"prompt": "go"})
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["code"], error["current_status"]) == ("INSTANCE_NOT_RUNNING", state.lower())
    assert client.instances.wait(instance_id, state=state, api_timeout="1s").timed_out is False  # type: ignore[arg-type]  # of a parametrize
    assert client.instances.wait(instance_id, state="Running", api_timeout="200ms").timed_out is True
    assert getattr(client.instances, go)(instance_id).state == "Running"
    assert server.post("/run", {"prompt": "go"}).json()["response"] == "done"


def test_update_changes_the_environment_of_commands(client: Hypeman, server: ServerProcess, instance_id: str) -> None:
    updated = client.instances.update(instance_id, env={"CHANGED_BY": "hypeman", "SOME_TOKEN": "value-of-a-token"})
    assert updated.env is not None
    assert updated.env["CHANGED_BY"] == "hypeman"
    assert "value-of-a-token" not in str(updated.env)
    assert server.execute("echo $CHANGED_BY")["stdout"] == "hypeman\n"


def test_snapshots_are_made_listed_restored_and_deleted(client: Hypeman, server: ServerProcess, instance_id: str) -> None:
    (server.workspace / "kept.txt").write_text("as it was")
    snapshot = client.instances.snapshots.create(instance_id, kind="Stopped", name="first")
    assert (snapshot.name, snapshot.source_instance_id) == ("first", instance_id)
    assert snapshot.size_bytes > 0
    (server.workspace / "kept.txt").write_text("changed")
    assert [one.id for one in client.snapshots.list()] == [snapshot.id]
    assert client.instances.snapshots.restore(snapshot.id, id=instance_id, target_state="Running").state == "Running"
    assert (server.workspace / "kept.txt").read_text() == "as it was"
    client.snapshots.delete(snapshot.id)
    assert client.snapshots.list() == []
    with pytest.raises(NotFoundError):
        client.instances.snapshots.restore(snapshot.id, id=instance_id)


def test_what_needs_a_control_plane_says_so(client: Hypeman, instance_id: str) -> None:
    for call in (
        lambda: client.instances.create(image="x", name="y"),
        lambda: client.instances.fork(instance_id, name="other"),
        lambda: client.instances.delete(instance_id),
        lambda: client.instances.volumes.attach("vol", id=instance_id, mount_path="/mnt"),
    ):
        with pytest.raises(APIStatusError) as raised:
            call()
        assert raised.value.status_code == 501
        assert raised.value.response.json()["error"]["code"] == "CONTROL_PLANE_ONLY"


def test_conflicts_are_the_clients_own_error(client: Hypeman, instance_id: str) -> None:
    client.instances.snapshots.create(instance_id, kind="Stopped", name="twice")
    with pytest.raises(ConflictError):
        client.instances.snapshots.create(instance_id, kind="Stopped", name="twice")

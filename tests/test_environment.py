"""PATCH /env: variables for the commands to come, kept, masked, and never the server's own."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.scripts import bash
from tests.serving import ServerProcess, serving
from tools import MASK


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving(HTTP_PROXY="http://proxy.example") as running:
        yield running


def patch(server: ServerProcess, env: Any) -> httpx.Response:
    with server.client() as client:
        return client.patch("/env", json={"env": env})


def test_later_commands_have_what_was_set(shared: ServerProcess) -> None:
    assert shared.execute("echo [$GREETING]")["stdout"] == "[]\n"
    assert patch(shared, {"GREETING": "hello there", "EMPTY": ""}).json() == {"env": {"EMPTY": MASK, "GREETING": MASK}}
    assert shared.execute("echo [$GREETING] [${EMPTY-unset}]")["stdout"] == "[hello there] []\n"
    assert shared.execute("echo $GREETING", env={"GREETING": "mine"})["stdout"] == "mine\n"
    assert patch(shared, {"GREETING": None, "EMPTY": None, "NEVER_SET": None}).json() == {"env": {}}
    assert shared.execute("echo [$GREETING] [${EMPTY-unset}]")["stdout"] == "[] [unset]\n"


def test_what_commands_inherit_comes_back_when_the_other_value_goes(shared: ServerProcess) -> None:
    patch(shared, {"HTTP_PROXY": "http://other.example"})
    assert shared.execute("echo $HTTP_PROXY")["stdout"] == "http://other.example\n"
    patch(shared, {"HTTP_PROXY": None})
    assert shared.execute("echo $HTTP_PROXY")["stdout"] == "http://proxy.example\n"


def test_a_credential_is_given_to_commands_and_masked_in_what_they_say(shared: ServerProcess) -> None:
    patch(shared, {"DEPLOY_TOKEN": "deploy-0123456789"})
    assert shared.execute('[ "$DEPLOY_TOKEN" = deploy-012345"6789" ] && echo same; echo $DEPLOY_TOKEN')["stdout"] == f"same\n{MASK}\n"
    assert "deploy-0123456789" not in shared.get("/status").text + shared.get("/logs?lines=1000&level=DEBUG").text + shared.log()
    patch(shared, {"DEPLOY_TOKEN": None})
    assert shared.execute("echo deploy-0123456789")["stdout"] == f"{MASK}\n"  # output of before may still come


def test_status_shows_the_names_only(shared: ServerProcess) -> None:
    patch(shared, {"DATABASE_URL": "postgres://me:hidden@db"})
    shown = shared.get("/status").json()["environment"]
    assert {"DATABASE_URL", "PATH"} <= shown.keys()
    assert set(shown.values()) == {MASK}
    patch(shared, {"DATABASE_URL": None})
    assert "DATABASE_URL" not in shared.get("/status").json()["environment"]


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"AGENT_SERVER_TOKEN": "another-token-0123"}, ["AGENT_SERVER_", "own"]),
        ({"AGENT_SERVER_PROCESS": "x"}, ["AGENT_SERVER_"]),
        ({"agent_server_process": None}, ["AGENT_SERVER_"]),
        ({"": "x"}, ["name"]),
        ({"A=B": "x"}, ["name"]),
        ({"1A": "x"}, ["name"]),
        ({"A-B": "x"}, ["name"]),
        ({"A\n": "x"}, ["name"]),
        ({"É": "x"}, ["name"]),
        ({"A" * 300: "x"}, ["name"]),
        ({"A": "b\0c"}, ["NUL"]),
        ({"A": "x" * 100_001}, ["100000"]),
        ({"A": 7}, ["env"]),
        ({"GOOD": "x", "BAD NAME": "y"}, ["BAD NAME"]),
        ("A=B", ["env"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_no_command_can_have_is_refused_whole(shared: ServerProcess, env: Any, words: list[str]) -> None:
    response = patch(shared, env)
    assert response.status_code == 400
    assert all(word in response.json()["error"]["message"] for word in words)
    assert patch(shared, {}).json() == {"env": {}}


def test_too_much_together_is_refused(shared: ServerProcess) -> None:
    response = patch(shared, {f"LARGE_{number}": "x" * 90_000 for number in range(6)})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "RESOURCE_LIMIT_EXCEEDED"
    assert patch(shared, {}).json() == {"env": {}}


def test_commands_of_tasks_have_them_and_the_servers_own_keys_stay_out(agent: ServerProcess, model: OpenAIEmulator) -> None:
    patch(agent, {"GREETING": "hello", "AGENT_MODEL": "mine"})
    model.script({"tool_calls": [bash("echo $GREETING $AGENT_MODEL; env")]}, {"text": "Done."})
    task = agent.finish(agent.submit())
    (finished,) = [event for event in agent.task_events(task["taskId"]) if event["type"] == "tool.finished"]
    assert finished["output"].startswith("hello mine\n")
    assert "AGENT_API_KEY" not in finished["output"]
    assert task["model"] != "mine"


def test_they_are_kept_in_a_file_that_only_the_server_reads(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        patch(server, {"GREETING": "hello", "DEPLOY_TOKEN": "deploy-0123456789"})
        path = server.data / "environment.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server.kill()
        server.start()
        assert server.execute("echo $GREETING $DEPLOY_TOKEN")["stdout"] == f"hello {MASK}\n"
        server.stop()
        path.write_text("[]")
        with pytest.raises(AssertionError, match=r"environment\.json in DATA_DIR is damaged"):
            server.start()


@pytest.mark.parametrize(("method", "path", "name"), [("PATCH", "/env", "environment.json"), ("PUT", "/integrations", "integrations.json")])
def test_what_cannot_be_kept_is_told_and_changes_nothing(method: str, path: str, name: str) -> None:
    with serving() as server:
        (server.data / name / "in the way").mkdir(parents=True)
        with server.client() as client:
            response = client.request(method, path, json={"env": {"COLOUR": "red"}, "integrationEnv": {"TELEGRAM_BOT_TOKEN": ""}})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
        assert response.json()["error"]["details"] == {"reason": "disk"}
        assert server.execute("echo [$COLOUR]")["stdout"] == "[]\n"
        assert "Traceback" not in server.log()
        assert not [left for left in server.data.iterdir() if left.name.startswith(f".{name}")]

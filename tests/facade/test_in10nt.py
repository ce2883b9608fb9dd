"""in10nt's HTTP API: its documented calls under /instances/{id}."""

from collections.abc import Iterator

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess, serving


@pytest.fixture(scope="module")
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(
        AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", INSTANCE_ID="inst_abc123", INSTANCE_NAME="my-agent"
    ) as it:
        yield it


def test_the_list_is_an_array_of_one(server: ServerProcess) -> None:
    (instance,) = server.get("/instances").json()
    assert (instance["instanceId"], instance["name"], instance["status"]) == ("inst_abc123", "my-agent", "running")
    assert instance["agentUrl"] == server.url
    assert instance["agentType"] == "opencode"
    assert instance["createdAt"].endswith("Z")


@pytest.mark.parametrize("name", ["inst_abc123", "my-agent", "inst%5Fabc123"])
def test_every_route_is_there_under_the_instance(server: ServerProcess, model: OpenAIEmulator, name: str) -> None:
    base = f"/instances/{name}"
    assert server.get(f"{base}/health").json()["status"] == "healthy"
    assert server.get(base).json()["instanceId"] == "inst_abc123"
    model.script({"text": "built"})
    done = server.post(f"{base}/run", {"prompt": "Build a REST API", "timeout": 480000, "max_tokens": 8000}).json()
    assert (done["status"], done["response"]) == ("completed", "built")
    assert server.get(f"{base}/tasks/{done['taskId']}").json()["status"] == "completed"
    assert done["taskId"] in [task["taskId"] for task in server.get(f"{base}/tasks").json()["tasks"]]
    assert server.post(f"{base}/execute", {"command": "echo hi"}).json()["output"] == "hi\n"
    assert "changes" in server.get(f"{base}/changes").json()
    assert "ports" in server.get(f"{base}/ports").json()
    assert "entries" in server.get(f"{base}/files/tree").json()
    assert "tools" in server.get(f"{base}/tools").json()


@pytest.mark.parametrize("path", ["/instances/other", "/instances/other/health", "/instances/other/run", "/instances/o/other/logs"])
def test_another_instance_is_not_here(server: ServerProcess, path: str) -> None:
    response = server.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "INSTANCE_NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/instances/inst_abc123/nothing", "/instances/inst_abc123//health", "/instances/inst_abc123/instances/inst_abc123/health"]
)
def test_what_no_route_has_is_not_found(server: ServerProcess, path: str) -> None:
    response = server.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "restart", "POST"), ("POST", "logs", "GET, HEAD"), ("GET", "run", "POST"), ("PUT", "snapshots/one/restore", "POST")],
)
def test_a_method_that_a_route_does_not_take_is_not_allowed(server: ServerProcess, method: str, path: str, allowed: str) -> None:
    with server.client() as client:
        response = client.request(method, f"/instances/inst_abc123/{path}")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert sorted(response.headers["allow"].split(", ")) == allowed.split(", ")


def test_paths_reach_the_route_as_they_were_sent(server: ServerProcess) -> None:
    (server.workspace / "a b%.txt").write_text("odd name")
    assert server.get("/instances/my-agent/files?path=a%20b%25.txt").text == "odd name"


def test_snapshots_are_saved_templates(server: ServerProcess) -> None:
    made = server.post("/instances/inst_abc123/snapshot", {"name": "web-app-template"})
    assert made.status_code == 201
    (saved,) = server.get("/saved-templates").json()
    assert (saved["name"], saved["snapshotId"]) == ("web-app-template", made.json()["snapshotId"])
    with server.client() as client:
        assert client.delete("/saved-templates/web-app-template").status_code in (200, 204)
        assert client.delete("/saved-templates/web-app-template").status_code == 404
    assert server.get("/saved-templates").json() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/instances"),
        ("DELETE", "/instances/inst_abc123"),
        ("POST", "/container-templates"),
        ("GET", "/container-templates"),
        ("GET", "/container-templates/t/status"),
        ("DELETE", "/container-templates/t"),
    ],
)
def test_what_is_the_control_planes_says_so(server: ServerProcess, method: str, path: str) -> None:
    with server.client() as client:
        response = client.request(method, path, json={"name": "x", "image": "y"} if method == "POST" else None)
    assert (response.status_code, response.json()["error"]["code"]) == (501, "CONTROL_PLANE_ONLY")


def test_restart_drains_and_starts_again(server: ServerProcess) -> None:
    before = server.get("/status").json()
    assert server.process is not None
    pid = server.process.pid
    response = server.post("/instances/inst_abc123/restart")
    assert (response.status_code, response.json()) == (202, {"instanceId": "inst_abc123", "status": "restarting"})
    server.await_restart()
    after = server.get("/status").json()
    assert after["restartCount"] == before["restartCount"] + 1
    assert server.process.pid == pid

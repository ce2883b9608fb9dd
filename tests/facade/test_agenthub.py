"""AgentHub's routes, in the shapes its reference documents."""

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.nodejs import FOLDER, NODE
from tests.serving import TOKEN, ServerProcess, serving


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(INSTANCE_ID="inst_mine", INSTANCE_NAME="market-tracker", API_KEY="secret-key-123") as running:
        yield running


def test_a_list_by_organization_is_a_page(server: ServerProcess) -> None:
    page = server.get("/instances/by_org_id/org-1?status=running&limit=10").json()
    assert page["pagination"] == {"limit": 10, "has_more": False, "next_cursor": None}
    (instance,) = page["data"]
    assert (instance["id"], instance["name"], instance["status"]) == ("inst_mine", "market-tracker", "running")
    assert instance["deployment"]["replicas"] == 1
    assert instance["metrics"]["uptime_seconds"] >= 0
    assert server.get("/instances/by_org_id/org-1?status=stopped").json()["data"] == []


def test_an_instance_has_every_documented_field_and_no_secret(server: ServerProcess) -> None:
    instance = server.get("/instances/inst_mine").json()
    documented = {
        *("id", "name", "agent_id", "build_id", "organization_id", "user_id", "created_at", "updated_at", "status", "deployment"),
        *("config", "resources", "env_vars", "metrics"),
    }
    assert documented <= set(instance)
    assert set(instance["deployment"]) == {"url", "resource_name", "deployment_type", "replicas", "restart_count"}
    assert set(instance["config"]) == {"port", "health_path", "long_running", "enable_http", "stdin_enabled"}
    assert set(instance["resources"]) == {"cpu", "memory", "cpu_limit", "memory_limit"}
    assert "secret-key-123" not in str(instance)
    assert instance["env_vars"]["API_KEY"] != ""


def test_the_status_of_the_deployment(server: ServerProcess) -> None:
    status = server.get("/instances/status/org-1/inst_mine").json()
    assert (status["status"], status["replicas"], status["restart_count"]) == ("RUNNING", 1, 0)
    assert status["health_checks"]["status"] == "healthy"
    assert datetime.fromisoformat(status["health_checks"]["last_check"]).tzinfo is not None
    assert set(status["resource_usage"]) == {"cpu_percent", "memory_mb", "network_rx_bytes", "network_tx_bytes"}
    missing = server.get("/instances/status/org-1/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "INSTANCE_NOT_FOUND")


def test_exec_gives_the_output_as_text(server: ServerProcess) -> None:
    with server.client() as client:
        response = client.post("/instances/org-1/inst_mine/exec", json=["python3", "-c", "print('Hello from instance!')"])
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == "Hello from instance!\n"
    assert response.headers["x-exit-code"] == "0"


def test_stdin_goes_to_the_newest_process_that_reads_it(server: ServerProcess) -> None:
    nobody = server.post("/instances/org-1/inst_mine/stdin", {"input": "hello\n"})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (409, "CONFLICT")
    started = server.post("/execute", {"command": 'while read -r line; do echo "heard $line"; done', "background": True})
    assert started.status_code == 202
    answer = server.post("/instances/org-1/inst_mine/stdin", {"input": "hello\n"})
    assert (answer.status_code, answer.text) == (200, "heard hello\n")
    assert server.post("/instances/org-1/inst_mine/stdin", {"input": "again\n"}).text == "heard again\n"


def test_logs_are_lines_with_time_level_and_message(server: ServerProcess) -> None:
    logs = server.get("/instances/org-1/inst_mine/logs?lines=5").json()["logs"]
    assert 1 <= len(logs) <= 5
    assert {"timestamp", "level", "message"} <= set(logs[0])


def test_an_update_changes_name_and_environment_and_nothing_else(server: ServerProcess) -> None:
    with server.client() as client:
        updated = client.put("/instances/inst_mine", json={"name": "renamed", "env_vars": {"NEW_SETTING": "value"}})
        assert updated.status_code == 200
        assert (updated.json()["name"], updated.json()["env_vars"]["NEW_SETTING"]) == ("renamed", "value")
        assert client.get("/instances/renamed").status_code == 200
        refused = client.put("/instances/inst_mine", json={"name": "x", "resources": {"memory": "2Gi"}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (501, "CONTROL_PLANE_ONLY")
        assert client.get("/instances/inst_mine").json()["name"] == "renamed"
    assert server.execute("echo $NEW_SETTING")["stdout"] == "value\n"


@pytest.mark.parametrize(("method", "path"), [("POST", "/instances"), ("DELETE", "/instances/inst_mine?force=true")])
def test_making_and_removing_is_the_control_planes(server: ServerProcess, method: str, path: str) -> None:
    with server.client() as client:
        response = client.request(method, path, json={"name": "n", "agent_id": "a", "build_id": "b", "organization_id": "o"})
    assert (response.status_code, response.json()["error"]["code"]) == (501, "CONTROL_PLANE_ONLY")
    assert "control plane" in response.json()["error"]["message"]


def test_nothing_is_run_on_a_stopped_instance(server: ServerProcess) -> None:
    server.post("/instances/inst_mine/stop")
    try:
        with server.client() as client:
            refused = client.post("/instances/org-1/inst_mine/exec", json=["true"])
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "INSTANCE_NOT_RUNNING"
        assert refused.json()["error"]["current_status"] == "stopped"
    finally:
        server.post("/instances/inst_mine/start")


def test_it_all_needs_the_token(server: ServerProcess) -> None:
    assert TOKEN
    for path in ("/instances", "/instances/inst_mine/health", "/instances/by_org_id/o", "/instances/inst_mine/files?path=x"):
        with server.client(Authorization="Bearer wrong") as client:
            assert client.get(path).status_code == 401


def test_the_documented_javascript_works(server: ServerProcess) -> None:
    script = [NODE, str(FOLDER / "agenthub.mjs"), server.url, TOKEN, "org-1", "inst_mine"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        said = []
        for line in client.stdout:
            said.append(json.loads(line))
            if said[-1]["step"] == "open":
                server.execute("echo the last line")
        assert client.wait(20) == 0
    steps = {one["step"]: one["value"] for one in said}
    assert steps["list"]["data"][0]["id"] == "inst_mine"
    assert steps["exec"].startswith("Python 3.")
    assert steps["log"].startswith("[INFO] ")
    assert "the last line" in steps["log"]

"""The OpenAPI document: whole, valid, and true of what the server answers."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no types

from agent_server import __version__
from agent_server.app import endpoints
from agent_server.http import Endpoint
from agent_server.openapi import document
from tests.emulators.openai import OpenAIEmulator
from tests.serving import TOKEN, ServerProcess, serving

DOCUMENT = document(endpoints())
ALL = [(method, path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()]
OPERATIONS = [one for one in ALL if "operationId" in one[2]]
"""Those that are described by types. The others are described in words, and tested where they are made."""


@pytest.fixture(scope="module")
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_BASE_URL=model.url, INSTANCE_NAME="one", MAX_BODY_BYTES="100000") as running:
        yield running


def check(method: str, path: str, response: httpx.Response) -> Any:
    """Checks a JSON reply against the document: its schema, and that it has no field the schema does not name."""
    described = DOCUMENT["paths"][path][method]["responses"].get(str(response.status_code))
    assert described is not None, f"{method} {path} answered {response.status_code}, which is not documented"
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(response.json())
    objects = response.json() if schema.get("type") == "array" else [response.json()]
    properties = DOCUMENT["components"]["schemas"][schema.get("items", schema)["$ref"].rpartition("/")[2]]["properties"]
    if path != "/openapi.json":
        assert all(set(one) <= set(properties) for one in objects)
    for name in response.headers:
        if name.startswith("x-") or name in ("retry-after", "allow", "www-authenticate"):
            assert name in {header.lower() for header in described["headers"]}
    return response.json()


def test_every_route_is_in_it_and_says_what_it_is() -> None:
    assert {(method.upper(), path) for method, path, _ in ALL} == {(e.method, e.path.replace(":path}", "}")) for e in endpoints()}
    assert {path for _, path, _ in ALL} == {
        *("/", "/health", "/status", "/login", "/openapi.json", "/run", "/tasks", "/tasks/{task_id}", "/tasks/{task_id}/events"),
        *("/tasks/{task_id}/cancel", "/events", "/logs", "/execute", "/exec", "/changes", "/processes", "/terminal"),
        *(f"/processes/{{process_id}}{each}" for each in ("", "/output", "/stdin", "/signal", "/resize", "/attach")),
        *("/tools", "/mcp", "/mcp/config", "/metrics"),
        *("/ports", "/open-ports", "/proxy/{port}", "/proxy/{port}/{path}"),
        *("/integrations", "/integrations/{name}/webhook", "/env"),
        *("/tasks/{task_id}/messages", "/tasks/{task_id}/tool-results", "/sessions", "/sessions/{session_id}"),
        *("/sessions/{session_id}/messages", "/sessions/{session_id}/fork", "/sessions/{session_id}/compact"),
        "/sessions/{session_id}/todos",
        *("/files", "/files/stat", "/stat", "/files/tree", "/files/search", "/files/watch", "/files/archive"),
        *("/sessions/{session_id}/revert", "/sessions/{session_id}/unrevert"),
        *("/permissions", "/sessions/{session_id}/permissions", "/sessions/{session_id}/permissions/{permission_id}"),
        *("/sessions/{session_id}/questions", "/sessions/{session_id}/questions/{question_id}"),
        *("/snapshot", "/snapshots", "/snapshots/{snapshot}", "/snapshots/{snapshot}/archive", "/snapshots/{snapshot}/restore"),
        *("/instances", "/instances/{id}", "/instances/{id}/restart", "/instances/by_org_id/{org}", "/instances/status/{org}/{id}"),
        *("/instances/{org}/{id}/stdin", "/instances/{id}/fork", "/instances/{id}/volumes/{volume}", "/instances/{id}/{route}"),
        *(f"/instances/{{id}}/{each}" for each in ("stats", "logs", "wait", "stop", "standby", "start", "restore", "snapshots")),
        *("/instances/{id}/snapshots/{snapshot}/restore", "/saved-templates", "/saved-templates/{name}"),
        *("/container-templates", "/container-templates/{template}", "/container-templates/{template}/status"),
        *("/lifecycle/quiesce", "/lifecycle/resume", "/lifecycle/stop", "/lifecycle/start", "/activity"),
    }
    for _, _, operation in ALL:
        assert operation["summary"]
        assert operation["responses"]


def test_it_is_an_openapi_3_1_document() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"] == {"title": "agent-server", "version": __version__}
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(ids) == len(set(ids))
    for _, path, operation in OPERATIONS:
        parameters = operation.get("parameters", [])
        assert {p["name"] for p in parameters if p["in"] == "path"} == set(re.findall("{(.+?)}", path))
        assert len({(p["in"], p["name"]) for p in parameters}) == len(parameters)
        assert all(p["required"] for p in parameters if p["in"] == "path")
        for status, response in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9][0-9]", status)
            assert response["description"]


def test_every_schema_is_json_schema_and_every_reference_is_there() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for _, _, operation in OPERATIONS:
        for parameter in operation.get("parameters", []):
            Draft202012Validator.check_schema(parameter["schema"])
    references = set(re.findall(r"'#/components/schemas/(\w+)'", str(DOCUMENT)))
    assert references == set(DOCUMENT["components"]["schemas"]) - unreferenced()


def unreferenced() -> set[str]:
    """Queries are written out as parameters."""
    return {e.query.__name__ for e in endpoints() if isinstance(e, Endpoint) and e.query is not None}


def test_only_health_login_and_signed_callbacks_are_public() -> None:
    assert {name for scheme in DOCUMENT["security"] for name in scheme} == set(DOCUMENT["components"]["securitySchemes"])
    assert {(method, path) for method, path, operation in OPERATIONS if operation.get("security") == []} == {
        ("get", "/health"),
        ("post", "/login"),
        ("post", "/integrations/{name}/webhook"),
    }


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_route_describes_its_errors(method: str, path: str, operation: dict[str, Any]) -> None:
    expected = {"400", "403", "405", "413", "500"} | (set() if path == "/health" else {"401"})
    assert expected <= set(operation["responses"])
    for status, response in operation["responses"].items():
        if status >= "400" and not (path == "/health" and status == "503"):
            assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorReply"}


def test_the_server_shows_it(server: ServerProcess) -> None:
    assert check("get", "/openapi.json", server.get("/openapi.json")) == DOCUMENT


def test_what_the_server_answers_about_itself_is_as_described(server: ServerProcess) -> None:
    root = check("get", "/", server.get("/"))
    assert all(path in DOCUMENT["paths"] for path in root["links"].values())
    check("get", "/health", server.get("/health"))
    check("get", "/health", httpx.get(server.url + "/health"))
    status = check("get", "/status", server.get("/status"))
    assert status["instanceName"] == "one"
    assert status["environment"]["AGENT_SERVER_TOKEN"] == "***REDACTED***"
    assert TOKEN not in str(status)
    assert status["restartCount"] == 0
    assert status["resources"]["memoryMb"] > 10
    check("get", "/tools", server.get("/tools"))
    check("get", "/mcp/config", server.get("/mcp/config"))
    check("post", "/login", httpx.post(server.url + "/login", json={"token": TOKEN}))


def test_logs_changes_and_commands_are_as_described(server: ServerProcess) -> None:
    (server.workspace / "new.txt").write_text("one\n")
    (server.workspace / "data.bin").write_bytes(b"\0\1")
    check("get", "/changes", server.get("/changes?diff=true&unknown=1"))
    for body in (
        {"command": "echo hi; echo no >&2; exit 3"},
        {"command": "kill -TERM $$"},
        {"command": "sleep 20", "timeout": 50},
        {"command": ["head", "-c", "3000000", "/dev/zero"]},
        {"command": "true", "unknown": 1},
    ):
        check("post", "/execute", server.post("/execute", body))
    check("post", "/open-ports", server.post("/open-ports", {"ports": [5173]}))
    assert check("get", "/ports", server.get("/ports"))["ports"]
    assert len(check("get", "/logs", server.get("/logs?level=debug&lines=10000"))["logs"]) > 5


def test_processes_are_as_described(server: ServerProcess) -> None:
    body = {"command": "cat", "background": True, "pty": {"cols": 100, "unknown": 1}}
    started = check("post", "/execute", server.post("/execute", body))
    assert started["pty"] == {"cols": 100, "rows": 24}
    path, one = "/processes/{process_id}", f"/processes/{started['processId']}"
    check("get", path, server.get(one))
    check("post", f"{path}/stdin", server.post(f"{one}/stdin", {"input": "x", "unknown": 1}))
    check("post", f"{path}/resize", server.post(f"{one}/resize", {"cols": 80, "rows": 50}))
    check("post", f"{path}/signal", server.post(f"{one}/signal", {"signal": "WINCH"}))
    check("get", "/processes", server.get("/processes"))
    with server.client() as client:
        check("delete", path, client.delete(one))
    for name, sent in (("stdin", {}), ("resize", {"cols": 80, "rows": 50}), ("signal", {"signal": 1})):
        check("post", f"{path}/{name}", server.post(f"{one}/{name}", sent))
        check("post", f"{path}/{name}", server.post(f"/processes/none/{name}", sent))
    check("get", "/processes", server.get("/processes"))


def test_files_are_as_described(server: ServerProcess) -> None:
    with server.client() as client:
        check("put", "/files", client.put("/files?path=a/f", content=b"needle\n"))
        check("put", "/files", client.put("/files?path=a/f", content=b"needle\n"))
        check("put", "/files", client.put("/files?path=a", content=b""))
        check("get", "/files", client.get("/files?path=a/f", headers={"Range": "bytes=99-"}))
        check("get", "/files", client.get("/files?path=missing"))
        client.put("/files?path=a/%FF", content=b"")
        check("get", "/files/tree", client.get("/files/tree"))
        check("get", "/files/stat", client.get("/files/stat?path=a/f&follow_links=1"))
        check("get", "/stat", client.get("/stat?path=missing"))
        assert check("get", "/files/search", client.get("/files/search?query=needle"))["matches"]
        archive = client.get("/files/archive?path=a")
        check("put", "/files/archive", client.put("/files/archive?path=b", content=archive.content))
        check("delete", "/files", client.delete("/files?path=b"))
        statuses = {"200": archive, "304": client.get("/files?path=a/f", headers={"If-None-Match": "*"})}
        statuses["206"] = client.get("/files?path=a/f", headers={"Range": "bytes=0-1"})
        for status, response in statuses.items():
            described = DOCUMENT["paths"]["/files/archive" if status == "200" else "/files"]["get"]["responses"][status]
            assert response.status_code == int(status)
            assert list(described.get("content", ())) == {"200": ["application/gzip"], "206": ["*/*"], "304": []}[status]
            assert bool(response.headers.get("content-type")) == bool(response.content)


def test_snapshots_and_lifecycle_are_as_described(server: ServerProcess) -> None:
    check("post", "/snapshot", server.post("/snapshot", {"name": "described"}))
    check("post", "/snapshot", server.post("/snapshot", {"name": "described"}))
    check("get", "/snapshots", server.get("/snapshots"))
    check("post", "/snapshots/{snapshot}/restore", server.post("/snapshots/described/restore"))
    with server.client() as client:
        check("put", "/snapshots/{snapshot}/archive", client.put("/snapshots/other/archive", content=b"no"))
        archive = client.get("/snapshots/described/archive").content
        check("put", "/snapshots/{snapshot}/archive", client.put("/snapshots/other/archive", content=archive))
        check("get", "/snapshots/{snapshot}/archive", client.get("/snapshots/described/archive", headers={"Range": "bytes=99999999-"}))
        check("delete", "/snapshots/{snapshot}", client.delete("/snapshots/described"))
        check("delete", "/snapshots/{snapshot}", client.delete("/snapshots/described"))
    check("get", "/activity", server.get("/activity"))
    check("post", "/lifecycle/quiesce", server.post("/lifecycle/quiesce"))
    check("post", "/run", server.post("/run", {"prompt": "go"}))
    check("post", "/lifecycle/resume", server.post("/lifecycle/resume"))
    check("post", "/lifecycle/stop", server.post("/lifecycle/stop", {"status": "standby"}))
    check("post", "/run", server.post("/run", {"prompt": "go"}))
    check("post", "/lifecycle/start", server.post("/lifecycle/start"))


def test_a_task_is_as_described_in_each_of_its_states(server: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(
        {"text": "Now.", "tool_calls": [{"name": "write", "arguments": {"filePath": "a.txt", "content": "a\n"}}]},
        {"text": "Done.", "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "cost": 0.1}},
    )
    done = check("post", "/run", server.post("/run", {"prompt": [{"type": "text", "text": "go"}]}))
    assert (done["status"], done["phase"], done["tokensUsed"]) == ("completed", "done", done["usage"]["total_tokens"])

    model.script({"tool_calls": [{"name": "bash", "arguments": {"command": "touch begun; read x < never", "timeout": 60_000}}]})
    server.execute("mkfifo never")
    accepted = [check("post", "/run", server.post("/run", {"prompt": "wait", "async": True, "sessionId": "s"})) for _ in range(2)]
    assert {task["status"] for task in accepted} == {"processing"}
    ids = [task["taskId"] for task in accepted]
    with server.client() as client, client.stream("GET", f"/tasks/{ids[0]}/events") as stream:
        next(line for line in stream.iter_lines() if '"process.started"' in line)
    phases = [check("get", "/tasks/{task_id}", server.get(f"/tasks/{task_id}"))["phase"] for task_id in ids]
    assert phases == ["running", "queued"]
    assert len(check("get", "/tasks", server.get("/tasks?limit=2"))["tasks"]) == 2
    cancelled = [check("post", "/tasks/{task_id}/cancel", server.post(f"/tasks/{task_id}/cancel")) for task_id in reversed(ids)]
    assert {(task["status"], task["phase"], task["error"]["code"]) for task in cancelled} == {("failed", "cancelled", "TASK_CANCELLED")}
    check("get", "/changes", server.get(f"/changes?taskId={done['taskId']}&diff=true"))

    model.script({"status": 400, "error": {"message": "no such model"}})
    failed = check("post", "/run", server.post("/run", {"prompt": "fail"}))
    assert failed["error"]["code"] == "MODEL_ERROR"
    model.script({"text": "late", "delay": 0.5, "stall": 20})
    late = check("post", "/run", server.post("/run", {"prompt": "late", "timeout": 100}))
    assert late["error"]["code"] == "TASK_TIMEOUT"
    for task_id in (failed["error"]["details"]["taskId"], late["error"]["details"]["taskId"]):
        check("get", "/tasks/{task_id}", server.get(f"/tasks/{task_id}"))
    check("get", "/tasks", server.get("/tasks?status=failed"))


def test_sessions_are_as_described_with_all_that_is_done_to_them(server: ServerProcess, model: OpenAIEmulator) -> None:
    asked = {"text": "I ask.", "tool_calls": [{"name": "mine", "arguments": {"a": 1}, "id": "call_mine"}]}
    model.script(asked, {"text": '{"b": 2}'}, {"text": "In short."})
    body = {"prompt": "go", "sessionId": "described", "async": True, "tools": [{"name": "mine"}], "outputSchema": {"type": "object"}}
    task_id = check("post", "/run", server.post("/run", body))["taskId"]
    server.wait_for(task_id, "tool.requested")
    assert check("get", "/tasks/{task_id}", server.get(f"/tasks/{task_id}"))["phase"] == "waiting"
    check("get", "/sessions/{session_id}/messages", server.get("/sessions/described/messages"))
    check("get", "/sessions/{session_id}/todos", server.get("/sessions/described/todos"))
    check("post", "/sessions/{session_id}/compact", server.post("/sessions/described/compact"))
    check("post", "/tasks/{task_id}/messages", server.post(f"/tasks/{task_id}/messages", {"prompt": "more"}))
    result = {"toolCallId": "call_mine", "output": [1]}
    for _ in range(2):
        check("post", "/tasks/{task_id}/tool-results", server.post(f"/tasks/{task_id}/tool-results", result))
    assert server.finish(task_id)["output"] == {"b": 2}
    check("get", "/tasks/{task_id}", server.get(f"/tasks/{task_id}"))
    for wrong in (result | {"output": 2}, {"toolCallId": "none", "error": "x"}):
        check("post", "/tasks/{task_id}/tool-results", server.post(f"/tasks/{task_id}/tool-results", wrong))
    check("post", "/tasks/{task_id}/messages", server.post(f"/tasks/{task_id}/messages", {"prompt": "late"}))
    check("get", "/sessions", server.get("/sessions"))
    check("get", "/sessions/{session_id}", server.get("/sessions/described"))
    check("get", "/sessions/{session_id}/messages", server.get("/sessions/described/messages?limit=1"))
    forked = check("post", "/sessions/{session_id}/fork", server.post("/sessions/described/fork"))
    for _ in range(2):
        check("post", "/sessions/{session_id}/compact", server.post(f"/sessions/{forked['sessionId']}/compact"))
    with server.client() as client:
        for _ in range(2):
            check("delete", "/sessions/{session_id}", client.delete("/sessions/described"))


def test_permissions_and_questions_are_as_described(server: ServerProcess, model: OpenAIEmulator) -> None:
    (server.workspace / "opencode.json").write_text('{"permission": {"write": "ask"}}')
    write = {"name": "write", "arguments": {"filePath": "asked.txt", "content": "a\n"}}
    question = {"name": "question", "arguments": {"questions": [{"question": "Why?", "options": [{"label": "So."}]}]}}
    model.script({"tool_calls": [write, question]}, {"text": "Done."})
    body = {"prompt": "go", "sessionId": "asking", "async": True, "mode": "build", "interactive": True}
    task_id = check("post", "/run", server.post("/run", body))["taskId"]
    server.wait_for(task_id, "permission.requested")
    check("get", "/permissions", server.get("/permissions"))
    for kind, given in (("permission", {"response": "once"}), ("question", {"answers": [["So."]]})):
        server.wait_for(task_id, "permission.requested" if kind == "permission" else "question.asked")
        path = f"/sessions/{{session_id}}/{kind}s"
        (asked,) = check("get", path, server.get(f"/sessions/asking/{kind}s"))[f"{kind}s"]
        for _ in range(2):
            reply = server.post(f"/sessions/asking/{kind}s/{asked[f'{kind}Id']}", given)
            check("post", f"{path}/{{{kind}_id}}", reply)
        check("post", f"{path}/{{{kind}_id}}", server.post(f"/sessions/asking/{kind}s/none", given))
    assert server.finish(task_id)["response"] == "Done."
    (server.workspace / "opencode.json").unlink()


def test_a_revert_is_as_described(server: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "write", "arguments": {"filePath": "reverted.txt", "content": "a\n"}}]}, {"text": "Done."})
    done = server.post("/run", {"prompt": "go", "sessionId": "reverted"}).json()
    for verb in ("revert", "unrevert"):
        path = f"/sessions/{{session_id}}/{verb}"
        check("post", path, server.post(f"/sessions/none/{verb}", {"taskId": "task_none"}))
        reply = check("post", path, server.post(f"/sessions/reverted/{verb}", {"taskId": done["taskId"]} if verb == "revert" else {}))
        assert reply["files"] == ["reverted.txt"]
    check("post", path, server.post("/sessions/reverted/unrevert"))


def test_errors_are_as_described(server: ServerProcess) -> None:
    for method, path, operation in OPERATIONS:
        concrete = re.sub("{[^}]+}", "none", path)
        strange = httpx.request(method, server.url + concrete, headers={"Origin": "https://evil.example"})
        check(method, path, strange)
        assert strange.status_code == 403
        if path != "/health":
            unknown = httpx.request(method, server.url + concrete)
            check(method, path, unknown)
        with server.client() as client:
            check(method, path, client.request("PUT", concrete))
            if "requestBody" in operation:
                check(method, path, client.request(method, concrete, content=b"{"))
                check(method, path, client.request(method, concrete, content=b" " * 100_001))
            if "{" in path and "requestBody" not in operation:
                check(method, path, client.request(method, concrete))
            if any(parameter["in"] == "query" for parameter in operation.get("parameters", [])):
                named = (p["name"] for p in operation["parameters"] if p["in"] == "query" and p["schema"].get("type") != "string")
                name, value = next(named, "path"), "-x"
                check(method, path, client.request(method, concrete, params={name: value if name != "path" else "a\0b"}))

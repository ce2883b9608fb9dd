"""GET /tools and GET /mcp/config."""

from collections.abc import Iterator

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no types

from tests.rawhttp import answer, connect
from tests.serving import TOKEN, ServerProcess, serving
from tools import load


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(INSTANCE_NAME="my box/1") as running:
        yield running


def test_every_tool_is_listed_as_a_model_sees_it(server: ServerProcess) -> None:
    listed = server.get("/tools").json()["tools"]
    assert listed == [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "source": "builtin"} for tool in load().values()
    ]
    for tool in listed:
        Draft202012Validator.check_schema(tool["parameters"])


def test_the_config_connects_a_client_without_telling_the_token(server: ServerProcess) -> None:
    response = server.get("/mcp/config")
    assert response.json() == {
        "mcpServers": {
            "my-box-1": {"type": "http", "url": f"{server.url}/mcp", "headers": {"Authorization": "Bearer ${AGENT_SERVER_TOKEN}"}}
        }
    }
    assert TOKEN not in response.text


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"Host": "machine.vm.internal:3000"}, "http://machine.vm.internal:3000/mcp"),
        ({"Host": "[::1]:3000"}, "http://[::1]:3000/mcp"),
        ({"Host": "agent.example", "X-Forwarded-Proto": "https"}, "https://agent.example/mcp"),
        ({"Host": "agent.example", "X-Forwarded-Proto": "javascript"}, "http://agent.example/mcp"),
        ({"Host": "agent.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}, "http://agent.example/mcp"),
    ],
)
def test_the_url_is_where_the_request_came_to(server: ServerProcess, headers: dict[str, str], url: str) -> None:
    (entry,) = server.get("/mcp/config", **headers).json()["mcpServers"].values()
    assert entry["url"] == url


@pytest.mark.parametrize("host", ["a b", "evil.example/x?", "user@evil.example", "", "a:1:2", '"'])
def test_a_host_that_is_none_is_refused(server: ServerProcess, host: str) -> None:
    with connect(server.url) as connection:
        connection.sendall(f"GET /mcp/config HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        response, body = answer(connection)
    assert (response.status, body["error"]["code"]) == (400, "INVALID_REQUEST")


def test_without_authentication_no_header_is_asked_for() -> None:
    with serving(AGENT_SERVER_TOKEN="", AGENT_SERVER_AUTH="none") as server:
        assert server.get("/mcp/config").json() == {"mcpServers": {"agent-server": {"type": "http", "url": f"{server.url}/mcp"}}}

"""What a workspace's files say of MCP servers, and what is not understood of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent_server.calling.custom import McpConfig, OAuth
from agent_server.mcp import configs

VARIABLES = {"NAME": "value", "EMPTY": ""}


def plain(root: Path, entry: Any) -> configs.Found:
    (root / ".mcp.json").write_text(json.dumps({"mcpServers": {"one": entry}}))
    return configs.read(root, VARIABLES)


def opencode(root: Path, entry: Any) -> configs.Found:
    (root / "opencode.json").write_text(json.dumps({"mcp": {"one": entry}}))
    return configs.read(root, VARIABLES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a ${NAME} b ${NAME}", "a value b value"),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${MISSING:-}", ""),
        ("${MISSING:-a:-b}", "a:-b"),
        ("$NAME ${NAME {env:NAME}", "$NAME ${NAME {env:NAME}"),
    ],
)
def test_variables_of_the_plain_form(tmp_path: Path, text: str, value: str) -> None:
    found = plain(tmp_path, {"command": "run", "args": [text], "env": {"X": text}, "cwd": text})
    assert found == configs.Found([McpConfig("one", "run", [value], {"X": value}, value)], [])


def test_variables_of_opencodes_form(tmp_path: Path) -> None:
    text, value = "{env:NAME}/${NAME}/{env:EMPTY}", "value/${NAME}/"
    found = opencode(tmp_path, {"type": "local", "command": ["run", text], "environment": {"X": text}, "cwd": text, "timeout": 5000})
    assert found == configs.Found([McpConfig("one", "run", [value], {"X": value}, value, timeout=5000)], [])
    remote = {"type": "remote", "url": "https://x.example/{env:NAME}", "headers": {"X": text}, "oauth": {"clientId": text, "scope": "a"}}
    found = opencode(tmp_path, remote)
    oauth = OAuth(value, scope="a")
    assert found == configs.Found([McpConfig("one", url="https://x.example/value", headers={"X": value}, oauth=oauth)], [])


@pytest.mark.parametrize("text", ["{env:MISSING}", "Bearer {file:~/.token}"])
def test_what_cannot_be_filled_in_is_not_sent_as_it_stands(tmp_path: Path, text: str) -> None:
    found = opencode(tmp_path, {"type": "remote", "url": "https://x.example", "headers": {"Authorization": text}})
    assert found.servers == []
    (complaint,) = found.complaints
    assert "PATCH /env" in complaint


@pytest.mark.parametrize(
    "entry", [{"enabled": False}, {"disabled": True, "type": "none", "command": 5}, {"enabled": False, "command": "${MISSING}"}]
)
def test_what_is_switched_off_is_not_looked_at(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert plain(tmp_path, entry) == opencode(tmp_path, entry) == configs.Found([], [])


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / ".mcp.json").write_text('{"mcpServers": {"one": {"command": "run"}}}', encoding="utf-8-sig")
    assert configs.read(tmp_path, {}) == configs.Found([McpConfig("one", "run")], [])

"""The official conformance suite, for the server and the client: what applies passes, what does not is named with its reason."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodejs import MODULES, NODE
from tests.serving import ServerProcess

SUITE = MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"

TEXT_ONLY = "the result of a tool is a text here (ToolResult)"
NO_RESOURCES = "no resources are offered: files are read by the tool `read`"
NO_PROMPTS = "no prompts are offered"
NOT_ASKING = "no tool asks the client's model or user: calls run without anybody at hand"
NO_LOGGING = "no logging is offered (the protocol deprecates it): live output comes as progress, all else is in /events and /logs"

NOT_OFFERED = {
    "logging-set-level": NO_LOGGING,
    "tools-call-with-logging": NO_LOGGING,
    "completion-complete": "there are no prompts and no resource templates whose arguments could be completed",
    "tools-call-image": TEXT_ONLY,
    "tools-call-audio": TEXT_ONLY,
    "tools-call-embedded-resource": TEXT_ONLY,
    "tools-call-mixed-content": TEXT_ONLY,
    "tools-call-sampling": NOT_ASKING,
    "tools-call-elicitation": NOT_ASKING,
    "elicitation-sep1034-defaults": NOT_ASKING,
    "elicitation-sep1330-enums": NOT_ASKING,
    "resources-list": NO_RESOURCES,
    "resources-read-text": NO_RESOURCES,
    "resources-read-binary": NO_RESOURCES,
    "resources-templates-read": NO_RESOURCES,
    "resources-subscribe": NO_RESOURCES,
    "resources-unsubscribe": NO_RESOURCES,
    "prompts-list": NO_PROMPTS,
    "prompts-get-simple": NO_PROMPTS,
    "prompts-get-with-args": NO_PROMPTS,
    "prompts-get-embedded-resource": NO_PROMPTS,
    "prompts-get-with-image": NO_PROMPTS,
    "server-sse-polling": "the stream of a call is not resumed: a call whose stream is lost goes on, and its end is in the event log",
}
"""Scenarios of what this server does not have, each with the reason."""

PASSED = {
    "server-initialize": 1,
    "ping": 1,
    "tools-list": 1,
    "tools-call-simple-text": 1,
    "tools-call-error": 1,
    "tools-call-with-progress": 1,
    "json-schema-2020-12": 4,
    "server-sse-multiple-streams": 2,
    "dns-rebinding-protection": 2,
}
"""Scenarios that pass, and how many checks they make."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with the suite's tools, without authentication: the suite sends none."""
    server = ServerProcess(tmp_path, AGENT_SERVER_TOKEN="", AGENT_SERVER_AUTH="none")
    server.argv = [sys.executable, "-P", str(Path(__file__).with_name("serve.py"))]
    server.start()
    yield server
    server.kill()


def test_every_scenario_passes_that_applies(server: ServerProcess, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.yml"
    baseline.write_text("server:\n" + "".join(f"  - {name}\n" for name in NOT_OFFERED))
    command = [NODE, str(SUITE), "server", "--url", f"{server.url}/mcp", "--suite", "all", "--expected-failures", str(baseline)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    results = re.findall(r"^(.) ([a-z0-9-]+): (\d+) passed, (\d+) failed", ended.stdout, re.M)
    # A scenario that fails or passes against the list makes it end with 1.
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    passed = {name: int(count) for _, name, count, failed in results if name not in NOT_OFFERED and failed == "0"}
    assert passed == PASSED
    assert {name for _, name, _, _ in results} == {*PASSED, *NOT_OFFERED}
    assert "Traceback" not in server.log()


TIMED = "sse-retry"
"""A scenario that measures times, and is run by itself."""

PLAYED = {
    "initialize": 1,
    "tools_call": 1,
    "elicitation-sep1034-client-defaults": 5,
    "sse-retry": 3,
    "auth/metadata-default": 13,
    "auth/metadata-var1": 13,
    "auth/metadata-var2": 13,
    "auth/metadata-var3": 13,
    "auth/basic-cimd": 13,
    "auth/scope-from-www-authenticate": 14,
    "auth/scope-from-scopes-supported": 14,
    "auth/scope-omitted-when-undefined": 14,
    "auth/scope-step-up": 21,
    "auth/scope-retry-limit": 10,
    "auth/token-endpoint-auth-basic": 18,
    "auth/token-endpoint-auth-post": 18,
    "auth/token-endpoint-auth-none": 18,
    "auth/pre-registration": 13,
    "auth/2025-03-26-oauth-metadata-backcompat": 13,
    "auth/2025-03-26-oauth-endpoint-fallback": 7,
    "auth/resource-mismatch": 2,
    "auth/offline-access-scope": 15,
    "auth/offline-access-not-supported": 14,
    "auth/client-credentials-jwt": 8,
    "auth/client-credentials-basic": 8,
    "auth/cross-app-access-complete-flow": 9,
}
"""The scenarios for clients, all of which pass, and how many checks they make."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[str]:
    """The command that has our client go through a scenario."""
    path = tmp_path / "socket"
    process = subprocess.Popen([sys.executable, "-m", "tests.mcp.conform", str(path)])
    try:
        until = time.monotonic() + 30
        while not is_listening(path):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield f"{sys.executable} -S -E {Path(__file__).with_name('ask.py')} {path}"
    finally:
        process.kill()
        process.wait()


def is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


def test_our_client_passes_every_scenario(client: str, tmp_path: Path) -> None:
    command = [NODE, str(SUITE), "client", "--command", client]
    alone = subprocess.run([*command, "--scenario", TIMED], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Passed: 3/3, 0 failed, 0 warnings" in alone.stdout + alone.stderr
    ended = subprocess.run([*command, "--suite", "all", "--timeout", "80000"], cwd=tmp_path, capture_output=True, text=True, timeout=90)
    results = re.findall(r"^. ([A-Za-z0-9_/-]+): (\d+) passed, (\d+) failed", ended.stdout + ended.stderr, re.M)
    passed = {name: int(count) for name, count, failed in results if failed == "0" or name == TIMED}
    assert {**passed, TIMED: 3} == PLAYED
    assert {name for name, _, _ in results} == {*PLAYED}

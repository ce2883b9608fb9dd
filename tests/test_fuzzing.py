"""Requests that schemathesis makes up from /openapi.json, valid ones and others: no failure, nothing that is not documented.

Every route is asked, but for those that never end an answer, that answer by themselves, or that end the server.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_server.app import endpoints
from agent_server.openapi import document
from tests.emulators.openai import OpenAIEmulator
from tests.scripts import plan
from tests.serving import TOKEN, ServerProcess, serving

ENDS_THE_SERVER = r"/(quiesce|restart|stop|standby|wait)$"
"""Paths that keep the server from answering what comes after, or answer as late as they are asked to."""

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
"""What is looked at: each status is documented, and so is its body, which from 400 on is the error envelope."""

CONFIGURATION = """\
hooks = "tests.fuzzing"

[checks]
# 500 is a fault of ours; these are documented answers: no such model, not now, not in time.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501", "502", "503", "504"]

[phases.coverage]
# Other methods are in test_openapi.py.
unexpected-methods = []
"""

EXAMPLES = 200
"""Requests made up in all, about, besides those at the edges of each field."""


def excluded() -> list[str]:
    """Gives `METHOD /path` of each operation that is left out."""
    found = []
    for path, methods in document(endpoints())["paths"].items():
        for method, operation in methods.items():
            good = [answer.get("content", {}) for status, answer in operation["responses"].items() if status < "300"]
            is_stream = any(set(content) == {"text/event-stream"} for content in good)
            if is_stream or "default" in operation["responses"] or re.search(ENDS_THE_SERVER, path):
                found.append(f"{method.upper()} {path}")
    return found


@pytest.fixture
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    model.script(plan())
    with serving(AGENT_BASE_URL=model.url, MAX_CONCURRENT_TASKS="1") as running:
        yield running


def test_no_request_makes_the_server_fail_or_say_what_is_not_documented(server: ServerProcess, tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    described = tmp_path / "openapi.json"  # from a file: the address it comes from would be left out
    described.write_text(server.get("/openapi.json").text)
    operations = sum(len(methods) for methods in document(endpoints())["paths"].values())
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration)),
        *("run", str(described), "--url", server.url, "-H", f"Authorization: Bearer {TOKEN}", "--checks", CHECKS),
        *("--phases", "coverage,fuzzing", "--max-examples", str(max(3, min(20, EXAMPLES // operations)))),
        *("--seed", "1", "--continue-on-failure", "--request-timeout", "20", "--no-color"),
    ]
    for name in excluded():
        command += ["--exclude-name", name]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr
    assert f"Tested: {operations - len(excluded())}\n" in ended.stdout, ended.stdout
    assert server.is_running
    assert "Traceback" not in server.log()


def test_what_is_left_out_is_little() -> None:
    assert {"GET /events", "GET /tasks/{task_id}/events", "GET /mcp"} <= set(excluded())
    assert not {"POST /run", "POST /execute", "GET /logs", "GET /metrics"} & set(excluded())

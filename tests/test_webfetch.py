"""The tool `webfetch` as a task uses it: what its settings allow, and what the log says of it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent_server.errors import SettingsError
from agent_server.settings import load
from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess, serving


class Site(BaseHTTPRequestHandler):
    """A page of many lines."""

    def do_GET(self) -> None:
        body = b"<h1>Site</h1>" + b"<p>line" * 5_000
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of a web server on 127.0.0.1."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def fetched(agent: ServerProcess, model: OpenAIEmulator, url: str) -> dict[str, object]:
    model.script({"tool_calls": [{"name": "webfetch", "arguments": {"url": url}}]}, {"text": "done"})
    task = agent.submit()
    agent.finish(task)
    (event,) = [event for event in agent.task_events(task) if event["type"] == "tool.finished"]
    found: dict[str, object] = event
    return found


def test_an_allowed_host_is_fetched_and_a_long_page_is_spilled(tmp_path: Path, model: OpenAIEmulator, site: int) -> None:
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-a-key-of-the-model", WEBFETCH_ALLOW="127.0.0.1, x.example") as agent:
        found = fetched(agent, model, f"http://127.0.0.1:{site}/")
        assert not found["isError"]
        output = str(found["output"])
        assert output.startswith("# Site\n\nline\n\nline")
        place = output.rpartition("the whole is in ")[2].split()[0]
        assert Path(place).read_text().count("line") == 5_000
        assert found["details"] == {"url": f"http://127.0.0.1:{site}/", "status": 200, "contentType": "text/html", "bytes": 35_013}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "0x7f.1"])
def test_without_leave_nothing_of_this_machine_is(lasting: ServerProcess, model: OpenAIEmulator, site: int, host: str) -> None:
    found = fetched(lasting, model, f"http://{host}:{site}/")
    assert found["isError"]
    assert "its address is" in str(found["output"])


@pytest.mark.parametrize("value", ["http://127.0.0.1", "10.0.0.0/40", "*"])
def test_an_entry_that_cannot_be_used_ends_the_start(value: str) -> None:
    with pytest.raises(SettingsError, match="WEBFETCH_ALLOW"):
        load({"WEBFETCH_ALLOW": value})

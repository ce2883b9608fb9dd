"""/mcp, spoken to by the SDK's own client and by hand: the same tools, rules and log as in a task."""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, TextContent

from tests.serving import TOKEN, ServerProcess, is_alive, serving
from tools import MASK, load

KEY = "sk-or-a-key-that-nobody-may-see"

LEGACY, MODERN = "legacy", "auto"
"""The sessions of the protocol until 2025-11-25, and the requests that stand alone of 2026-07-28, which a client finds out."""

JSON_AND_SSE = "application/json, text/event-stream"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(OPENROUTER_API_KEY=KEY, MAX_BODY_BYTES="200000") as running:
        yield running


@pytest.fixture(params=[LEGACY, MODERN])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def connected(server: ServerProcess, mode: str = LEGACY) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as http,
        Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def text(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def told(server: ServerProcess, after: int, *types: str) -> list[dict[str, Any]]:
    """The events above `after`, of these types."""
    end = f"end-of-{time.monotonic_ns()}"
    server.execute(f"echo {end}")
    found: list[dict[str, Any]] = []
    with server.client() as client, client.stream("GET", f"/events?after={after}") as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if event["type"] == "process.started" and event["command"] == f"echo {end}":
                    break
                if event["type"] in types:
                    found.append(event)
    return found


def end_of(server: ServerProcess, after: int, tool: str, seconds: float = 10) -> dict[str, Any]:
    """The end of the first call of a tool above `after`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        events = told(server, after, "tool.started", "tool.finished")
        call_id = next(event["toolCallId"] for event in events if event["type"] == "tool.started" and event["tool"] == tool)
        for event in events:
            if event["type"] == "tool.finished" and event["toolCallId"] == call_id:
                return event
    raise AssertionError(f"the call of {tool} did not end")


def pid_in(path: Path, seconds: float = 10) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
        time.sleep(0.01)
    raise AssertionError(f"{path} was not written")


def gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until and is_alive(pid):
        time.sleep(0.01)
    return not is_alive(pid)


async def test_the_tools_are_those_of_the_instance(server: ServerProcess, mode: str) -> None:
    async with connected(server, mode) as client:
        offered = (await client.list_tools()).tools
        assert client.server_info is not None
        assert client.server_info.name == "agent-server"
    assert {tool.name: (tool.description, tool.input_schema) for tool in offered} == {
        tool.name: (tool.description, tool.parameters) for tool in load().values() if not tool.delegates and tool.name != "question"
    }
    read_only = {tool.name for tool in offered if tool.annotations is not None and tool.annotations.read_only_hint}
    assert read_only == {tool.name for tool in load().values() if tool.read_only} - {"question"}


async def test_a_call_runs_and_is_told_in_the_log(server: ServerProcess, mode: str) -> None:
    before = server.newest()
    async with connected(server, mode) as client:
        result = await client.call_tool("bash", {"command": "echo from $PWD; exit 3"})
    assert (text(result), result.is_error) == (f"from {server.workspace}\n(Exit code 3.)", False)
    started, process, exited, finished = told(server, before, "tool.started", "tool.finished", "process.started", "process.exited")[:4]
    assert (started["type"], started["tool"], started["input"]) == ("tool.started", "bash", {"command": "echo from $PWD; exit 3"})
    assert (finished["type"], finished["output"], finished["isError"]) == ("tool.finished", text(result), False)
    assert {event["sessionId"] for event in (started, process, exited, finished)} == {"mcp"}
    assert {event["taskId"] for event in (started, process, exited, finished)} == {None}
    assert {event["toolCallId"] for event in (started, process, exited, finished)} == {started["toolCallId"]}


async def test_files_are_written_and_read(server: ServerProcess) -> None:
    async with connected(server) as client:
        await client.call_tool("write", {"filePath": "a/b.txt", "content": "one\ntwo\n"})
        assert "two" in text(await client.call_tool("read", {"filePath": "a/b.txt"}))
    assert (server.workspace / "a" / "b.txt").read_text() == "one\ntwo\n"


async def test_a_file_must_be_read_over_mcp_before_it_is_changed(server: ServerProcess, mode: str) -> None:
    path = server.workspace / f"unread-{mode}.txt"
    path.write_text("one\n")
    change = {"filePath": path.name, "oldString": "one", "newString": "two"}
    async with connected(server, mode) as client:
        assert "has not been read" in text(await client.call_tool("edit", change))
        await client.call_tool("read", {"filePath": path.name})
    async with connected(server, mode) as other:  # clients need not have sessions, so all are one
        assert not (await other.call_tool("edit", change)).is_error
        path.write_text("one\n")
        assert "has changed on disk" in text(await other.call_tool("edit", change))
        path.unlink()
        assert not (await other.call_tool("write", {"filePath": path.name, "content": "new\n"})).is_error
        assert not (await other.call_tool("write", {"filePath": path.name, "content": "newer\n"})).is_error


async def test_edits_of_one_file_at_the_same_time_are_all_kept(server: ServerProcess) -> None:
    (server.workspace / "many.txt").write_text("".join(f"<{n}>\n" for n in range(30)))
    async with connected(server) as client:
        await client.call_tool("read", {"filePath": "many.txt"})
        edits = ({"filePath": "many.txt", "oldString": f"<{n}>", "newString": f"[{n}]"} for n in range(30))
        results = await asyncio.gather(*(client.call_tool("edit", arguments) for arguments in edits))
    assert [text(result) for result in results if result.is_error] == []
    assert (server.workspace / "many.txt").read_text() == "".join(f"[{n}]\n" for n in range(30))


async def test_an_image_is_an_image(server: ServerProcess, mode: str) -> None:
    data = b"\x89PNG\r\n\x1a\n" + bytes(50)
    (server.workspace / "a.png").write_bytes(data)
    async with connected(server, mode) as client:
        said, image = (await client.call_tool("read", {"filePath": "a.png"})).content
    assert isinstance(said, TextContent)
    assert isinstance(image, ImageContent)
    assert "attached" in said.text
    assert (image.mime_type, base64.b64decode(image.data)) == ("image/png", data)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("read", {"filePath": "/etc/passwd"}, "outside the workspace"),
        ("read", {"filePath": "/proc/self/environ"}, "/proc"),
        ("read", {"filePath": "none.txt"}, "none.txt"),
        ("read", {}, "Invalid arguments for read"),
        ("bash", {"command": 5}, "Invalid arguments for bash"),
        ("bash", {"command": "true", "timeout": 10**30}, "Invalid arguments for bash"),
        ("write", {"filePath": "x", "content": MASK}, "secret"),
    ],
)
async def test_what_a_tool_refuses_is_an_error_result(server: ServerProcess, tool: str, arguments: dict[str, Any], said: str) -> None:
    async with connected(server) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert said in text(result)


async def test_a_tool_that_is_none_is_a_protocol_error(server: ServerProcess, mode: str) -> None:
    before = server.newest()
    async with connected(server, mode) as client:
        with pytest.raises(MCPError, match="Unknown tool 'nothing'"):
            await client.call_tool("nothing", {})
    assert told(server, before, "tool.started") == []


async def test_secrets_are_masked_in_results_progress_and_events(server: ServerProcess, mode: str) -> None:
    before, pieces = server.newest(), []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        pieces.append(message or "")

    async with connected(server, mode) as client:
        command = f"printf 'is {KEY[:9]}'; sleep 0.02; echo {KEY[9:]}"
        result = await client.call_tool("bash", {"command": command}, progress_callback=tell)
    assert text(result) == f"is {MASK}"
    assert "".join(pieces) == f"is {MASK}\n"
    assert KEY not in json.dumps(told(server, before, "tool.started", "tool.output", "tool.finished"))


async def test_live_output_comes_as_progress(server: ServerProcess, mode: str) -> None:
    pieces: list[tuple[float, str]] = []
    is_first = asyncio.Event()

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        pieces.append((progress, message or ""))
        is_first.set()

    fifo = server.workspace / "go"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    async with connected(server, mode) as client:
        call = asyncio.create_task(client.call_tool("bash", {"command": "echo one; cat go; echo three"}, progress_callback=tell))
        await asyncio.wait_for(is_first.wait(), 10)
        assert not call.done()
        await asyncio.to_thread(fifo.write_text, "two\n")
        assert text(await call) == "one\ntwo\nthree"
    assert "".join(piece for _, piece in pieces) == "one\ntwo\nthree\n"
    assert [at for at, _ in pieces] == [float(len("".join(p for _, p in pieces[: n + 1]))) for n in range(len(pieces))]


async def test_a_long_result_is_cut_and_its_file_can_be_read(server: ServerProcess) -> None:
    async with connected(server) as client:
        result = text(await client.call_tool("bash", {"command": "seq 100000"}))
        file = result.partition("the whole is in ")[2].split()[0]
        assert "99999" in text(await client.call_tool("grep", {"pattern": "^99999$", "path": file}))
    assert len(result) < 60_000


async def test_a_cancelled_call_is_killed_and_told(server: ServerProcess, mode: str) -> None:
    before = server.newest()
    file = server.workspace / f"pid-{mode}"
    command = f"setsid sh -c 'echo $$ > {file.name}; exec sleep 600' & wait"
    async with connected(server, mode) as client:
        call = asyncio.create_task(client.call_tool("bash", {"command": command}))
        pid = await asyncio.to_thread(pid_in, file)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(gone, pid)
        assert text(await client.call_tool("bash", {"command": "echo on"})) == "on"
    end = end_of(server, before, "bash")
    assert ("Cancelled" in end["output"], end["isError"], end["interrupted"]) == (True, True, True)


async def test_the_end_of_a_session_kills_its_calls(server: ServerProcess) -> None:
    file = server.workspace / "pid-of-session"
    async with session(server) as (client, headers):
        body = call("bash", command=f"echo $$ > {file.name}; exec sleep 600")
        async with client.stream("POST", "/mcp", json=body, headers=headers):
            pid = await asyncio.to_thread(pid_in, file)
            assert (await client.delete("/mcp", headers=headers)).status_code == 200
            assert await asyncio.to_thread(gone, pid)
        assert (await client.post("/mcp", json=call("list"), headers=headers)).status_code == 404


async def test_a_client_that_goes_away_leaves_its_call_running(server: ServerProcess) -> None:
    done = server.workspace / "done"
    os.mkfifo(server.workspace / "gate")
    async with session(server) as (client, headers):
        before = server.newest()
        async with client.stream("POST", "/mcp", json=call("bash", command="cat gate; echo yes > done"), headers=headers):
            pass
        await asyncio.to_thread((server.workspace / "gate").write_text, "")
        assert await asyncio.to_thread(lambda: "yes" in server.execute("until [ -s done ]; do sleep 0.05; done; cat done")["stdout"])
    assert done.read_text() == "yes\n"
    assert end_of(server, before, "bash")["isError"] is False


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@contextlib.asynccontextmanager
async def session(server: ServerProcess) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """A session opened by hand."""
    async with server.async_client(Accept=JSON_AND_SSE) as client:
        opened = await client.post("/mcp", json=INITIALIZE)
        assert opened.status_code == 200, opened.text
        yield client, {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Mcp-Protocol-Version": "2025-11-25"}


# Who may ask, and what is refused


def test_it_needs_the_token(server: ServerProcess) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = httpx.request(method, f"{server.url}/mcp", json=INITIALIZE, headers={"Accept": JSON_AND_SSE})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")
    strange = server.post("/mcp", INITIALIZE, Accept=JSON_AND_SSE, Origin="https://evil.example")
    assert (strange.status_code, strange.json()["error"]["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    ("method", "content", "headers", "status", "code"),
    [
        ("POST", b"{}", {"Content-Type": "text/plain"}, 400, "INVALID_REQUEST"),
        ("POST", b" " * 200_001, {"Content-Type": "application/json"}, 413, "PAYLOAD_TOO_LARGE"),
        ("GET", b"", {"Mcp-Protocol-Version": "2026-07-28"}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", b"{}", {"Mcp-Protocol-Version": "2026-07-28", "Accept": "text/html"}, 406, "INVALID_REQUEST"),
    ],
)
def test_what_is_no_message_of_mcp_is_refused_in_the_envelope(
    server: ServerProcess, method: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    with server.client(Accept=JSON_AND_SSE) as client:
        response = client.request(method, "/mcp", content=content, headers={"Content-Type": "application/json", **headers})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["requestId"]) == (status, code, response.headers["x-request-id"])
    assert status != 405 or response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', 400),
        (b"[" * 100_000, 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\ud800"}}', 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}', 200),
    ],
)
def test_hostile_bodies_are_answered_as_json_rpc(server: ServerProcess, content: bytes, status: int) -> None:
    with server.client(Accept=JSON_AND_SSE) as client:
        response = client.post("/mcp", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    body = response.text.partition("data: ")[2] if status == 200 else response.text
    assert isinstance(json.loads(body)["error"]["code"], int)


async def test_an_unknown_session_is_404(server: ServerProcess) -> None:
    async with server.async_client(Accept=JSON_AND_SSE) as client:
        for method in ("GET", "POST", "DELETE"):
            response = await client.request(method, "/mcp", json=call("list"), headers={"Mcp-Session-Id": "0" * 32})
            assert response.status_code == 404


async def test_sessions_are_bounded() -> None:
    with serving() as server:
        async with server.async_client(Accept=JSON_AND_SSE) as client:
            answers = [(await client.post("/mcp", json=INITIALIZE)) for _ in range(65)]
            assert [answer.status_code for answer in answers] == [200] * 64 + [503]
            headers = {"Mcp-Session-Id": answers[0].headers["mcp-session-id"]}
            assert (await client.delete("/mcp", headers=headers)).status_code == 200
            assert (await client.post("/mcp", json=INITIALIZE)).status_code == 200


async def test_calls_are_bounded() -> None:
    with serving() as server:
        async with connected(server) as client:
            held = [asyncio.create_task(client.call_tool("bash", {"command": "exec sleep 600"})) for _ in range(64)]
            while len(server.get("/processes").json()["processes"]) < 64:  # noqa: ASYNC110  # the server is what is waited for
                await asyncio.sleep(0.05)
            result = await client.call_tool("list", {})
            assert "64 calls are at work" in text(result)
            for each in held:
                each.cancel()
            await asyncio.gather(*held, return_exceptions=True)


# The start and the end


def test_the_first_request_does_not_stall_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        first: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: first.append(server.post("/mcp", INITIALIZE, Accept=JSON_AND_SSE)))
        with server.client() as client:
            client.get("/health")
            thread.start()
            meanwhile = 0
            while not first:
                assert client.get("/health").status_code == 200
                meanwhile += 1
        thread.join()
    assert first[0].status_code == 200
    assert meanwhile > 5  # an import in the event loop lets one pass


async def test_a_stop_lets_calls_end_and_closes_streams(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        os.mkfifo(server.workspace / "gate")
        async with session(server) as (client, headers), client.stream("GET", "/mcp", headers=headers) as stream:
            assert stream.status_code == 200
            request = client.post("/mcp", json=call("bash", command="touch begun; cat gate; echo ended"), headers=headers)
            waiting = asyncio.create_task(request)
            await asyncio.to_thread(server.execute, "until [ -e begun ]; do sleep 0.05; done")
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            while (await client.get("/health")).status_code == 200:
                pass
            refused = await client.post("/mcp", json=INITIALIZE)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "DRAINING")
            await asyncio.to_thread((server.workspace / "gate").write_text, "")
            assert "ended" in (await waiting).text
            await stream.aread()  # a stream that is cut raises here
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert "Traceback" not in server.log()
        assert "ERROR" not in server.log()


async def test_a_stop_ends_calls_that_do_not_within_its_grace(tmp_path: Path) -> None:
    with serving(tmp_path, SHUTDOWN_GRACE_MS="100") as server:
        async with session(server) as (client, headers):
            waiting = asyncio.create_task(client.post("/mcp", json=call("bash", command="echo $$ > pid; exec sleep 600"), headers=headers))
            pid = await asyncio.to_thread(pid_in, server.workspace / "pid")
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.gather(waiting, return_exceptions=True)
        assert not is_alive(pid)
        assert "Traceback" not in server.log()
        server.start()
        (finished,) = told(server, 0, "tool.finished")
        assert finished["interrupted"] is True


async def test_a_call_that_a_kill_cut_off_is_told_as_interrupted_and_not_run_again(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with session(server) as (client, headers):
            body = call("bash", command="echo once >> ran; echo $$ > pid; exec sleep 600")
            waiting = asyncio.create_task(client.post("/mcp", json=body, headers=headers))
            pid = await asyncio.to_thread(pid_in, server.workspace / "pid")
            server.kill()
            with pytest.raises(httpx.TransportError):
                await waiting
        server.start()
        while not (ends := told(server, 0, "tool.finished")):
            pass
        assert (ends[0]["interrupted"], ends[0]["isError"], ends[0]["sessionId"]) == (True, True, "mcp")
        assert gone(pid)
        assert (server.workspace / "ran").read_text() == "once\n"
        server.stop()
        server.start()
        assert len(told(server, 0, "tool.finished")) == 1


async def test_a_command_in_the_background_is_read_from_its_beginning_unless_an_offset_is_given(server: ServerProcess) -> None:
    async with connected(server) as client:
        started = text(await client.call_tool("bash", {"command": "echo one; exec sleep 300", "background": True}))
        process_id = started.removeprefix("Started in the background: ").split(".")[0]
        first = await client.call_tool("bash_output", {"processId": process_id, "wait": 20_000})
        again = await client.call_tool("bash_output", {"processId": process_id})
        rest = await client.call_tool("bash_output", {"processId": process_id, "offset": 4})
        for told in (first, again):
            assert re.fullmatch(r"one\n\(Running for \d+ s\. Next offset: 4\.\)", text(told))
        assert re.fullmatch(r"\(nothing new\)\n\(Running for \d+ s\. Next offset: 4\.\)", text(rest))
        assert text(await client.call_tool("bash_kill", {"processId": process_id})) == "Ended by SIGTERM: killed."
    assert server.get(f"/processes/{process_id}").json()["sessionId"] == "mcp"

"""The contract of integrations, held with one of our own: it is one file, added to a copy of the packages that a real server runs."""

import asyncio
import hashlib
import hmac
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from integrations import Connection, Reply, Undeliverable, load
from tests.emulators.openai import OpenAIEmulator
from tests.imports import ROOT
from tests.integrations.conftest import KEY, Since, state
from tests.serving import ServerProcess, events

SECRET = "the-secret-of-echo"

ECHO = '''
"""Says what it is told by signed callbacks, and writes what it has to deliver into a file."""
import asyncio, hashlib, hmac, json
from pathlib import Path
import msgspec
from integrations import Answer, BadSignature, Callback, Connection, Inbound, Integration, Reply
from tools import Tool, ToolResult

class Shout(msgspec.Struct):
    text: str

async def shout(arguments, context):
    return ToolResult(arguments.text.upper())

class Echo(Connection):
    account = "as echo"

    def __init__(self, context):
        self._context = context
        self._file = Path(context.environ["ECHO_FILE"])

    async def receive(self):
        match self._context.environ.get("ECHO_MODE"):
            case "crash":
                raise ZeroDivisionError("in the integration")
            case "hurry":
                return
            case "exit":
                raise SystemError("out of order")
        await asyncio.Event().wait()

    async def callback(self, callback: Callback):
        signature = hmac.new(self._context.environ["ECHO_SECRET"].encode(), callback.body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature, callback.headers.get("x-signature", "")):
            raise BadSignature
        message = json.loads(callback.body)
        if "challenge" in message:
            return Answer(message["challenge"].encode())
        inbound = Inbound(key=callback.headers["x-delivery"], conversation=message["chat"], sender="echo", to={"chat": message["chat"]},
                          text=message["text"])
        await self._context.submit(inbound)
        return Answer()

    def split(self, text):
        if text == "unsplittable":
            raise KeyError(text)
        return [text]

    async def deliver(self, reply: Reply):
        if reply.text == "undefined":
            raise KeyError("a fault of its own")
        with self._file.open("a") as file:
            file.write(json.dumps([reply.key, reply.to, reply.text]) + "\\n")
        return "1"

async def start(context):
    if context.environ.get("ECHO_MODE") == "no start":
        raise ZeroDivisionError("at the start")
    return Echo(context)

INTEGRATION = Integration("Echo", ("ECHO_SECRET",), ("ECHO_FILE", "ECHO_MODE"), start,
                          (Tool("shout", "Gives a text in upper case.", Shout, shout, read_only=True),))
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, with an integration more."""
    folder = tmp_path_factory.mktemp("site")
    for package in ("agent_server", "integrations", "tools"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "integrations" / "echo.py").write_text(ECHO)
    return folder


def server_of(site: Path, folder: Path, **environ: str) -> ServerProcess:
    """A server that runs those packages."""
    server = ServerProcess(folder, **environ)
    path = f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv[1:] = ['serve']"
    server.argv = [sys.executable, "-P", "-c", f"{path}; from agent_server.__main__ import main; sys.exit(main())"]
    return server


@pytest.fixture
def echo(site: Path, tmp_path: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    file = str(tmp_path / "delivered")
    server = server_of(site, tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, ECHO_SECRET=SECRET, ECHO_FILE=file).start()
    wait_connected(server)
    yield server
    if server.is_running:
        server.kill()


def wait_connected(server: ServerProcess) -> None:
    """Waits for it, also where it has connected before."""
    with server.client() as client, client.stream("GET", "/events?after=0") as response:
        starts = server.get("/status").json()["restartCount"] + 1
        for event in events(response):
            starts -= event["type"] == "integration.connected"
            if not starts:
                return


def call_back(server: ServerProcess, body: Any, *, delivery: str = "1", secret: str = SECRET) -> httpx.Response:
    content = json.dumps(body).encode()
    signature = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-Signature": signature, "X-Delivery": delivery}
    return httpx.post(f"{server.url}/integrations/ECHO/webhook", content=content, headers=headers)


def delivered(server: ServerProcess) -> list[Any]:
    file = Path(server.environ["ECHO_FILE"])
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_signed_callback_makes_a_task_whose_response_is_delivered(echo: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Hello yourself."})
    since = Since(echo)
    assert call_back(echo, {"chat": "a", "text": "hello"}).status_code == 200
    since.wait_for("integration.sent")
    assert delivered(echo) == [["echo:1:1", {"chat": "a"}, "Hello yourself."]]
    assert since.tasks()[0]["sessionId"] == "echo:a"


def test_a_delivery_that_is_repeated_makes_one_task(echo: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "Yes."}, "times": 2})
    since = Since(echo)

    async def at_once() -> list[int]:
        return [response.status_code for response in await asyncio.gather(*(asyncio.to_thread(again) for _ in range(8)))]

    def again() -> httpx.Response:
        return call_back(echo, {"chat": "a", "text": "hello"})

    assert asyncio.run(at_once()) == [200] * 8
    since.wait_for("integration.sent")
    echo.kill()
    echo.start()
    wait_connected(echo)
    assert again().status_code == 200
    assert call_back(echo, {"chat": "a", "text": "another"}, delivery="2").status_code == 200
    since.wait(lambda event: event["type"] == "integration.sent" and event["key"] == "echo:2")
    assert [task["prompt"] for task in since.tasks()] == ["another", "hello"]
    assert len(delivered(echo)) == 2


@pytest.mark.parametrize("secret", ["", "another-secret"])
def test_a_callback_with_a_wrong_signature_is_refused(echo: ServerProcess, secret: str) -> None:
    response = call_back(echo, {"chat": "a", "text": "hello"}, secret=secret)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "UNAUTHORIZED"
    with_token = echo.post("/integrations/echo/webhook", {"chat": "a", "text": "hello"})
    assert with_token.status_code == 401  # the server's token is no signature
    assert echo.get("/tasks").json()["tasks"] == []


def test_the_integration_says_what_a_callback_is_answered_with(echo: ServerProcess) -> None:
    response = call_back(echo, {"challenge": "3eZbrw1a"})
    assert (response.status_code, response.text) == (200, "3eZbrw1a")
    assert call_back(echo, "x" * (4 << 20)).status_code == 413
    assert call_back(echo, {"no": "text"}).status_code == 500
    assert state(echo, "Echo")["status"] == "connected"


def test_its_tools_are_the_agents_while_it_is_on(echo: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "shout", "arguments": {"text": "hi"}}]}, {"text": "Done."}, {"text": "Done."})
    sources = {tool["name"]: tool["source"] for tool in echo.get("/tools").json()["tools"]}
    assert (sources["shout"], sources["bash"]) == ("integration", "builtin")
    task = echo.finish(echo.submit())
    (finished,) = [event for event in echo.task_events(task["taskId"]) if event["type"] == "tool.finished"]
    assert finished["output"] == "HI"
    with echo.client() as client:
        client.put("/integrations", json={"integrations": []})
    echo.finish(echo.submit())
    offered = [{tool["function"]["name"] for tool in record.json["tools"]} for record in model.requests()]
    assert ["shout" in names for names in offered] == [True, True, False]
    assert call_back(echo, {"challenge": "x"}).status_code == 401


@pytest.mark.parametrize("mode", ["crash", "exit", "no start", "hurry"])
def test_a_fault_of_an_integration_ends_nothing_else(site: Path, tmp_path: Path, model: OpenAIEmulator, mode: str) -> None:
    file = str(tmp_path / "delivered")
    server = server_of(site, tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, ECHO_SECRET=SECRET, ECHO_FILE=file, ECHO_MODE=mode)
    server.start()
    try:
        model.script({"text": "Yes."})
        assert server.finish(server.submit())["status"] == "completed"
        server.execute("sleep 2")
        assert server.get("/health").json()["status"] == "healthy"
        found = state(server, "Echo")
        if mode == "hurry":
            assert found["status"] == "connected"
        else:
            assert server.log().count("Echo failed") in (2, 3)  # each time after a longer wait
        with server.client() as client:
            client.put("/integrations", json={"integrationEnv": {"ECHO_MODE": None}})
        assert state(server, "Echo")["status"] == "connected"
    finally:
        server.kill()


@pytest.mark.parametrize("text", ["undefined", "unsplittable"])
def test_a_reply_that_the_integration_fails_on_does_not_hold_up_the_next(echo: ServerProcess, model: OpenAIEmulator, text: str) -> None:
    model.script({"text": text}, {"text": "The next."})
    since = Since(echo)
    call_back(echo, {"chat": "a", "text": "hello"})
    error = since.wait_for("integration.error")
    assert error["key"] == "echo:1"
    call_back(echo, {"chat": "a", "text": "again"}, delivery="2")
    since.wait(lambda event: event["type"] == "integration.sent" and event["key"] == "echo:2")
    assert delivered(echo)[-1][2] == "The next."


def test_a_module_that_cannot_be_imported_ends_the_start_and_is_named(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    (copy / "integrations" / "broken.py").write_text("import a_library_that_is_not_there\n")
    server = server_of(copy, tmp_path / "server")
    with pytest.raises(AssertionError, match=r"integrations/broken\.py cannot be loaded: ModuleNotFoundError"):
        server.start()
    (copy / "integrations" / "broken.py").write_text("SOMETHING_ELSE = 1\n")
    with pytest.raises(AssertionError, match=r"integrations/broken\.py cannot be loaded: AttributeError"):
        server.start()


def test_what_an_integration_need_not_do() -> None:
    async def ask() -> None:
        connection = Connection()
        assert connection.split("text") == ["text"]
        await connection.show_working({})
        await connection.stop()
        with pytest.raises(Undeliverable):
            await connection.deliver(Reply("k", {}, "text"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connection.receive()

    asyncio.run(ask())


def test_httpx_is_loaded_only_where_telegram_is_started() -> None:
    assert load()["Telegram"].start is not None
    code = "import sys, integrations; integrations.load(); sys.exit('httpx' in sys.modules or 'asyncio' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

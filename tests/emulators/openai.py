"""An OpenAI-compatible model that says what it is told to: `python -m tests.emulators.openai --port 0`.

A real server in a process of its own, which prints `{"port": N}` and then answers

    POST /v1/chat/completions   the next turn of the script
    POST /raw/…                 the same, where it fails or has a `raw` body: for APIs of another form. Of these, it checks
                                what comes at …/messages, as Anthropic does
    PUT  /script                a list of turns, one for each request, or of {"repeat": turn, "times": n}
    GET  /requests              what came, in order; DELETE forgets it

It checks each conversation as strictly as real providers do (`history.py`) unless it is --lenient.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from tests.emulators.history import anthropic_complaint, complaint, refusal
from tests.emulators.http import Connection, Request, serve

REPOSITORY = Path(__file__).parents[2]

IMAGE_DATA = re.compile(rb'data:image/[^"]*')

KEPT_BYTES = 64 * 2**20
"""Bodies of requests that are kept: the oldest go first, so that a benchmark of 1,000 steps does not fill the memory."""

KEPT_REQUESTS = 100_000


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """`arguments` is an object, or a string that is sent as it is."""

    name: str
    arguments: dict[str, Any] | str = ""
    id: str = ""


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """One answer. All times are seconds; `pieces` is into how many deltas each text is cut."""

    text: str = ""
    reasoning: str = ""
    reasoning_field: str = "reasoning"
    reasoning_details: list[dict[str, Any]] = []
    tool_calls: list[Call] = []
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    pieces: int = 3
    repeat_names: bool = False
    """Says id and name again in each piece of a call, as llama.cpp does."""
    without_index: bool = False
    whole: bool = False
    """One JSON answer instead of a stream."""
    raw: str | None = None
    """The body of the answer, as it is."""
    content_type: str = "text/event-stream"
    delay: float = 0
    """Before each event."""
    stall: float = 0
    """After `cut_after` events, or before the first one."""

    status: int = 200
    headers: dict[str, str] = {}
    error: dict[str, Any] = msgspec.field(default_factory=lambda: {"message": "The emulator was told to fail."})
    drop: bool = False
    """Closes the connection without an answer."""
    cut_after: int | None = None
    """Events after which the connection is closed."""
    stream_error: dict[str, Any] | None = None
    """An error that comes as the last event."""
    garbage: bool = False
    """Ends in an event that is no JSON."""

    refuses: list[str] = []
    """What it does not take of a conversation (`history.refusal`): it answers 400, and keeps the turn for the next request."""

    script: str | None = None
    """"bash-true": calls bash with `command` until `steps` results are in the request, and then says `text`. It is a function
    of the request, so it serves all sessions, and outlives a restart of either side. {step} in the command is its number.
    "plan": makes the calls of `plan`, one list for each answer since the last prompt, and then says `text`; with {step}, and
    {prompt} for that prompt, in string arguments. Each answer but the last also says `saying`.
    "prompts": plays the turn that `by_prompt` has for the last prompt, which may be a script again: agents beside one another."""
    steps: int = 0
    command: str = "true"
    plan: list[list[Call]] = []
    saying: str = ""
    by_prompt: dict[str, "Turn"] = {}


class Record(msgspec.Struct):
    """A request that came: times are CLOCK_MONOTONIC of its last byte, and of the last byte of its answer (0: not yet)."""

    path: str
    headers: dict[str, str]
    body: str
    arrived_ns: int
    answered_ns: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Model:
    """The state of the emulator."""

    def __init__(self, *, is_strict: bool, keeps_bodies: bool) -> None:
        self._is_strict = is_strict
        self._keeps_bodies = keeps_bodies
        self._script: deque[tuple[Turn, int]] = deque()
        self._records: deque[Record] = deque(maxlen=KEPT_REQUESTS)
        self._bodies: deque[Record] = deque()
        self._kept = 0

    async def answer(self, request: Request, connection: Connection) -> None:
        match request.method, request.path:
            case "PUT", "/script":
                self._script = _parse(request.body)
                await connection.answer(200, b"{}")
            case "GET", "/requests":
                await connection.answer(200, msgspec.json.encode(list(self._records)))
            case "DELETE", "/requests":
                self._forget()
                await connection.answer(200, b"{}")
            case "POST", "/v1/chat/completions":
                await self._complete(request, connection)
            case "POST", path if path.startswith("/raw/"):
                await self._complete(request, connection)
            case _:
                await connection.answer(404, _error({"message": f"There is no {request.method} {request.path}."}))

    async def _complete(self, request: Request, connection: Connection) -> None:
        record = self._keep(request)
        try:
            await self._play(request, connection)
        finally:
            record.answered_ns = time.monotonic_ns()

    async def _play(self, request: Request, connection: Connection) -> None:
        if self._is_strict and request.path.endswith("/v1/messages") and (text := anthropic_complaint(msgspec.json.decode(request.body))):
            await connection.answer(400, _error({"message": text, "type": "invalid_request_error"}))
            return
        body = {} if request.path.startswith("/raw/") else msgspec.json.decode(request.body)
        if body and self._is_strict and (text := complaint(body)):
            await connection.answer(400, _error({"message": text, "type": "invalid_request_error"}))
            return
        wanted = self._script[0][0].refuses if self._script else []
        if text := next((text for what in wanted if (text := refusal(body, what))), None):
            await connection.answer(400, _error({"message": text, "type": "invalid_request_error"}))
            return
        turn = self._next()
        if turn is None:
            await connection.answer(401, _error({"message": "The emulator's script is over."}))
        elif turn.script:
            await _send(_scripted(turn, body), body, _size(request.body), connection)
        else:
            await _send(turn, body, _size(request.body), connection)

    def _next(self) -> Turn | None:
        if not self._script:
            return None
        turn, times = self._script[0]
        if not turn.script:
            self._script.popleft()
            if times > 1:
                self._script.appendleft((turn, times - 1))
        return turn

    def _keep(self, request: Request) -> Record:
        record = Record(request.path, dict(request.headers), "", request.arrived_ns)
        self._records.append(record)
        if self._keeps_bodies:
            record.body = request.body.decode()
            self._bodies.append(record)
            self._kept += len(record.body)
        while self._kept > KEPT_BYTES:
            oldest = self._bodies.popleft()
            self._kept -= len(oldest.body)
            oldest.body = ""
        return record

    def _forget(self) -> None:
        self._records.clear()
        self._bodies.clear()
        self._kept = 0


def _parse(body: bytes) -> deque[tuple[Turn, int]]:
    items = msgspec.json.decode(body, type=list[dict[str, Any]])
    return deque((msgspec.convert(item.get("repeat", item), Turn), item.get("times", 1)) for item in items)


def _scripted(turn: Turn, body: dict[str, Any]) -> Turn:
    if turn.script == "plan":
        return _planned(turn, body)
    if turn.script == "prompts":
        prompt = next(message["content"] for message in reversed(body["messages"]) if message["role"] == "user")
        chosen = turn.by_prompt.get(prompt) or Turn(status=400, error={"message": f"Nothing is scripted for {prompt!r}."})
        return _scripted(chosen, body) if chosen.script else chosen
    done = sum(message["role"] == "tool" for message in body["messages"])
    if done >= turn.steps:
        return msgspec.structs.replace(turn, text=turn.text or f"Done after {done} steps.")
    arguments = {"command": turn.command.replace("{step}", str(done)), "description": f"Step {done}"}
    return msgspec.structs.replace(turn, text="", tool_calls=[Call("bash", arguments, f"call_{done}")])


def _planned(turn: Turn, body: dict[str, Any]) -> Turn:
    messages = body["messages"]
    asked = max(at for at, message in enumerate(messages) if message["role"] == "user")
    step = sum(message["role"] == "assistant" for message in messages[asked:])
    if step >= len(turn.plan):
        return turn
    filled = {"{step}": str(step), "{prompt}": str(messages[asked]["content"])}
    calls = [
        Call(call.name, _filled(call.arguments, filled), f"call_{len(messages)}_{number}") for number, call in enumerate(turn.plan[step])
    ]
    return msgspec.structs.replace(turn, text=turn.saying, tool_calls=calls)


def _filled(arguments: dict[str, Any] | str, values: dict[str, str]) -> dict[str, Any] | str:
    if isinstance(arguments, str):
        return arguments
    filled = dict(arguments)
    for name, argument in filled.items():
        if isinstance(argument, str):
            for mark, value in values.items():
                argument = argument.replace(mark, value)
            filled[name] = argument
    return filled


async def _send(turn: Turn, body: dict[str, Any], size: int, connection: Connection) -> None:
    if turn.drop:
        await connection.cut()
    elif turn.status != 200:
        await connection.answer(turn.status, _error(turn.error), headers=turn.headers)
    elif turn.whole:
        await connection.answer(200, msgspec.json.encode(_whole(turn, _usage(turn, size))))
    else:
        await _stream(turn, list(_events(turn, body.get("model", ""), _usage(turn, size))), connection)


async def _stream(turn: Turn, events: Sequence[bytes], connection: Connection) -> None:
    await connection.begin(turn.content_type)
    sent = events[: turn.cut_after]
    if not turn.delay and not turn.stall:
        await connection.send(b"".join(sent) or b": begin\n\n")
    else:
        await _send_slowly(turn, sent, connection)
    if turn.cut_after is None:
        await connection.end()
    else:
        await connection.cut()


async def _send_slowly(turn: Turn, events: Sequence[bytes], connection: Connection) -> None:
    if turn.cut_after is None:
        await asyncio.sleep(turn.stall)
    for event in events:
        await asyncio.sleep(turn.delay)
        await connection.send(event)
    if turn.cut_after is not None:
        await asyncio.sleep(turn.stall)


def _events(turn: Turn, model: str, usage: dict[str, Any]) -> Iterator[bytes]:
    if turn.raw is not None:
        yield turn.raw.encode()
        return

    def event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _data({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]})

    yield event({"role": "assistant", "content": ""})
    yield from (event({turn.reasoning_field: piece}) for piece in _pieces(turn.reasoning, turn.pieces))
    yield from (event({"reasoning_details": [detail]}) for detail in turn.reasoning_details)
    yield from (event({"content": piece}) for piece in _pieces(turn.text, turn.pieces))
    yield from (event({"tool_calls": [piece]}) for piece in _call_pieces(turn))
    if turn.garbage:
        yield b'data: {"choices": oops\n\n'
        return
    if turn.stream_error is not None:
        yield _data({"error": turn.stream_error, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]})
        return
    yield event({}, _finish_reason(turn))
    yield _data({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _call_pieces(turn: Turn) -> Iterator[dict[str, Any]]:
    for number, call in enumerate(turn.tool_calls):
        for position, piece in enumerate(_pieces(_arguments(call), turn.pieces) or [""]):
            part: dict[str, Any] = {} if turn.without_index else {"index": number}
            function = {"arguments": piece}
            if position == 0 or turn.repeat_names:
                part |= {"id": _id(call, number), "type": "function"}
                function["name"] = call.name
            yield part | {"function": function}


def _whole(turn: Turn, usage: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {"id": _id(call, number), "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
        for number, call in enumerate(turn.tool_calls)
    ]
    message = {"role": "assistant", "content": turn.text or None, **({"tool_calls": calls} if calls else {})}
    if turn.reasoning:
        message[turn.reasoning_field] = turn.reasoning
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(turn)}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}


def _finish_reason(turn: Turn) -> str:
    return turn.finish_reason or ("tool_calls" if turn.tool_calls else "stop")


def _size(body: bytes) -> int:
    """Bytes, without those of images: no provider counts them as text."""
    return len(IMAGE_DATA.sub(b"", body)) if b"data:image/" in body else len(body)


def _usage(turn: Turn, size: int) -> dict[str, Any]:
    """What the turn says, or four bytes of the request for a token."""
    return turn.usage if turn.usage is not None else {"prompt_tokens": size // 4, "completion_tokens": 10, "total_tokens": size // 4 + 10}


def _id(call: Call, number: int) -> str:
    return call.id or f"call_{time.monotonic_ns():x}_{number}"


def _arguments(call: Call) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // count))
    return [text[start : start + size] for start in range(0, len(text), size)]


def _data(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _error(error: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"error": error})


class OpenAIEmulator:
    """The emulator as a child process, for tests and benchmarks. Its calls block, for about a millisecond."""

    def __init__(self, *, is_strict: bool = True, keeps_bodies: bool = True) -> None:
        flags = [*([] if is_strict else ["--lenient"]), *([] if keeps_bodies else ["--no-bodies"])]
        self._command = [sys.executable, "-m", "tests.emulators.openai", "--port", "0", "--with-parent", *flags]
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The base URL, as AGENT_BASE_URL takes it."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> "OpenAIEmulator":
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> "OpenAIEmulator":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def script(self, *turns: dict[str, Any]) -> None:
        """Sets what is said next, and forgets the requests so far."""
        self._call("DELETE", "/requests")
        self._call("PUT", "/script", json.dumps(turns).encode())

    def requests(self) -> list[Record]:
        return msgspec.json.decode(self._call("GET", "/requests"), type=list[Record])

    def _call(self, method: str, path: str, body: bytes = b"") -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        assert response.status == 200, content
        return content


async def _run(arguments: argparse.Namespace) -> None:
    model = Model(is_strict=not arguments.lenient, keeps_bodies=not arguments.no_bodies)
    server = await serve(model.answer, arguments.port)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    if arguments.with_parent:
        await asyncio.to_thread(sys.stdin.read)
    else:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible model that says what it is told to.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--lenient", action="store_true", help="accept conversations that providers refuse")
    parser.add_argument("--no-bodies", action="store_true", help="do not keep what is sent, for benchmarks")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()

"""A Bot API that can fail: strict where Telegram is, and told by the test what goes wrong.

It lives in a thread of the test's process. What people write is `say`; what the bot sent is `sent`. An update is given
again and again until an offset confirms it, as Telegram does.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.emulators.http import Connection, Request, serve

TOKEN = "700:AAF-token-of-the-test-bot"
BOT = {"id": 700, "is_bot": True, "first_name": "Bot", "username": "test_bot"}
ANNA = {"id": 42, "is_bot": False, "first_name": "Anna", "username": "anna"}

LONGEST = 4096

T = TypeVar("T")


@dataclass
class Fault:
    """What the next call of a method meets: an error, a cut connection (`before` or `after` it is done), or a wait."""

    status: int = 0
    description: str = "The emulator was told to fail"
    retry_after: int | None = None
    cut: str = ""
    hold: threading.Event | None = None
    """Done, and answered only when this is set."""
    body: bytes | None = None


@dataclass
class Call:
    method: str
    parameters: dict[str, Any]
    at: float = field(default_factory=time.monotonic)


class TelegramEmulator:
    """The Bot API of one bot."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.sent: list[dict[str, Any]] = []
        self.updates: list[dict[str, Any]] = []
        self.offset = 0
        self.repeats = False
        """Gives updates again that are confirmed."""
        self._faults: dict[str, deque[Fault]] = {}
        self._number = 1
        self._is_closing = False
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._new = asyncio.Event()
        self.url = ""

    # What a test does

    def say(self, text: str = "", *, chat: dict[str, Any] | None = None, user: dict[str, Any] = ANNA, **more: Any) -> int:
        """A person writes (with `edited`: changes a message); gives the number of the update."""
        kind = "edited_message" if more.pop("edited", False) else "message"
        message = {"message_id": 1000 + self._number, "date": 1, "chat": chat or {"id": user["id"], "type": "private"}, "from": user}
        return self.push({kind: {**message, **({"text": text} if text else {}), **more}})

    def push(self, update: dict[str, Any]) -> int:
        number = self._number
        self._number += 1
        self.updates.append({"update_id": number, **update})
        self._loop.call_soon_threadsafe(self._new.set)
        return number

    def fail(self, method: str, *faults: Fault) -> None:
        """The next calls of this method meet these."""
        self._faults.setdefault(method, deque()).extend(faults)

    def forget(self) -> None:
        """Forgets what was called and sent, and what was to fail; updates keep their numbers."""
        self.calls.clear()
        self.sent.clear()
        self._faults.clear()
        self.repeats = False

    def wait(self, told: Callable[["TelegramEmulator"], T], seconds: float = 20) -> T:
        """Waits until something is true of it, and gives that."""
        with self._changed:
            found = self._changed.wait_for(lambda: told(self), seconds)
        assert found, (self.sent, [call.method for call in self.calls][-20:])
        return found

    def texts(self, chat: int = 42) -> list[str]:
        return [message["text"] for message in self.sent if message["chat_id"] == chat]

    def wait_for_texts(self, count: int, chat: int = 42) -> list[str]:
        return self.wait(lambda telegram: telegram.texts(chat) if len(telegram.texts(chat)) >= count else [])

    def called(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    @contextmanager
    def running(self) -> Iterator["TelegramEmulator"]:
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            self._is_closing = True
            self._loop.call_soon_threadsafe(self._new.set)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(10)

    # What the bot meets

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(serve(self._answer, 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0.01))  # the open polls end
        self._loop.close()

    async def _answer(self, request: Request, connection: Connection) -> None:
        _, token, method = request.path.split("/", 2)
        parameters = json.loads(request.body or b"{}")
        fault = self._next_fault(method)
        with self._changed:
            self.calls.append(Call(method, parameters))
            self._changed.notify_all()
        if token != f"bot{TOKEN}":
            await _refuse(connection, 401, "Unauthorized")
        elif fault.cut == "before":
            await connection.cut()
        elif fault.body is not None:
            await connection.answer(fault.status, fault.body, "text/html")
        elif fault.status:
            await _refuse(connection, fault.status, fault.description, fault.retry_after)
        else:
            await self._do(method, parameters, fault, connection)

    def _next_fault(self, method: str) -> Fault:
        faults = self._faults.get(method)
        return faults.popleft() if faults else Fault()

    async def _do(self, method: str, parameters: dict[str, Any], fault: Fault, connection: Connection) -> None:
        status, result = await self._result(method, parameters)
        if fault.hold is not None:
            await asyncio.to_thread(fault.hold.wait, 20)
        if fault.cut == "after":
            await connection.cut()
        elif status == 200:
            await connection.answer(200, json.dumps({"ok": True, "result": result}).encode())
        else:
            await _refuse(connection, status, result)

    async def _result(self, method: str, parameters: dict[str, Any]) -> tuple[int, Any]:
        match method:
            case "getMe":
                return 200, BOT
            case "deleteWebhook" | "sendChatAction":
                return 200, True
            case "getUpdates":
                return 200, await self._updates(parameters)
            case "sendMessage":
                return self._send(parameters)
            case _:
                return 404, "Not Found"

    async def _updates(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        offset = parameters.get("offset", 0)
        with self._changed:
            self.offset = max(self.offset, offset)
            self._changed.notify_all()
        until = time.monotonic() + parameters.get("timeout", 0)
        while not self._is_closing and not (found := [u for u in self.updates if u["update_id"] >= (0 if self.repeats else self.offset)]):
            self._new.clear()
            try:
                async with asyncio.timeout(max(0, until - time.monotonic())):
                    await self._new.wait()
            except TimeoutError:
                return []
        if self._is_closing:
            return []
        if self.repeats:
            await asyncio.sleep(0.02)
        return found[:100]

    def _send(self, parameters: dict[str, Any]) -> tuple[int, Any]:
        text = parameters["text"]
        if not text.strip():
            return 400, "Bad Request: message text is empty"
        if len(text.encode("utf-16-le")) // 2 > LONGEST:
            return 400, "Bad Request: message is too long"
        with self._changed:
            self.sent.append(parameters)
            self._changed.notify_all()
        return 200, {"message_id": 5000 + len(self.sent), "chat": {"id": parameters["chat_id"]}, "date": 1, "text": text}


async def _refuse(connection: Connection, status: int, description: str, retry_after: int | None = None) -> None:
    parameters = {"parameters": {"retry_after": retry_after}} if retry_after is not None else {}
    body = {"ok": False, "error_code": status, "description": description, **parameters}
    await connection.answer(status, json.dumps(body).encode())

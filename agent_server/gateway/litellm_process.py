"""litellm's process as the server sees it: started, spoken to by many calls at once, and ended."""

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import msgspec

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.litellm_frames import (
    CALL_LIMIT,
    FROM_CHILD,
    LINE_LIMIT,
    WINDOW,
    Began,
    Bytes,
    Call,
    Cancel,
    End,
    Failed,
    More,
    Ready,
    ToChild,
    encode,
)

logger = logging.getLogger(__name__)

PROGRAM = ("-I", "-m", "agent_server.gateway.litellm_child")
"""Isolated: nothing is imported from the folder it runs in, or from what variables name."""

SEND_TIME = 30.0
"""Seconds in which the process must take a call: it reads at once, unless it is stuck."""

SILENCE_MARGIN = 5.0
"""Seconds beyond a call's idle time in which the process itself must have said that nothing came."""

END_TIME = 5.0
"""Seconds between the end of its input and SIGKILL."""

QUEUE_SIZE = WINDOW + 2
"""Frames of one call that wait to be taken: all pieces of its window, its beginning and its end."""

LINES_LIMIT = 200
"""Lines of its standard error that go to the log for one process: a library that complains at each chunk must not fill it."""

LONGEST_LINE = 4_000
"""Characters of such a line. A longer one is left out whole: cut, it might end in half a secret that is not masked."""

Frame: TypeAlias = Began | Bytes | End | Failed


class LitellmProcess:
    """A process that runs. It is over when `is_alive` is False; `has_answered` tells whether any call came to an end in it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101  # asked for
        self.pid = process.pid
        self.is_alive = True
        self.has_answered = False
        self._process = process
        self._input = process.stdin
        self._ready = asyncio.Event()
        self._queues: dict[int, asyncio.Queue[Frame]] = {}
        self._last_id = 0
        self._heard = 0.0
        # A call is a line: it goes out whole, and only one waits in our memory for the process to read it.
        self._sending = asyncio.Lock()
        self._work = (asyncio.create_task(self._read()), asyncio.create_task(self._log()))

    @classmethod
    async def start(cls, env: Mapping[str, str], program: Sequence[str] = PROGRAM) -> "LitellmProcess":
        """Starts one; calls may be made once it is `ready`. Errors: OSError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, cwd="/", limit=LINE_LIMIT, start_new_session=True
        )
        return cls(process)

    async def ready(self, seconds: float) -> bool:
        """Waits until litellm is imported, or it ends, at most so long. Gives whether it is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        return self._ready.is_set() and self.is_alive

    async def call(self, call: Call, seconds: float) -> AsyncGenerator[bytes, None]:
        """Makes a call and gives the bytes of its answer; `seconds` bounds the whole. Errors: ModelError. Closing it ends the call."""
        if not self.is_alive:  # since it was given out; nobody would tell this call any more
            raise ModelError(Fault.NETWORK, "litellm's process ended before the call.")
        self._last_id += 1
        call = msgspec.structs.replace(call, id=self._last_id)
        queue = self._queues[call.id] = asyncio.Queue(QUEUE_SIZE)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            await self._send(call)
            taken = 0
            while True:
                match await self._next(queue, call, deadline, seconds):
                    case End():
                        return
                    case Failed() as failed:
                        raise _error(failed)
                    case Began():
                        pass
                    case Bytes() as piece:
                        yield piece.data
                        taken += 1
                        if taken % (WINDOW // 2) == 0:
                            self._post(More(call.id, WINDOW // 2))
        finally:
            if self._queues.pop(call.id, None) is not None:
                self._post(Cancel(call.id))

    async def end(self) -> None:
        """Ends it, and returns when it is gone. May be called twice."""
        self._input.close()
        await self._ended()
        await asyncio.gather(*self._work)

    async def _next(self, queue: "asyncio.Queue[Frame]", call: Call, deadline: float, seconds: float) -> Frame:
        loop = asyncio.get_running_loop()
        begun, silence = loop.time(), call.idle + SILENCE_MARGIN
        try:
            async with asyncio.timeout_at(min(begun + silence, deadline)):
                return await queue.get()
        except TimeoutError:
            pass
        if loop.time() >= deadline:
            raise ModelError(Fault.STREAM_IDLE, f"{call.target.provider} was still answering after {seconds} s.")
        if self._heard < begun:
            logger.error("litellm's process does not answer; it is killed")
            self._kill()
        raise ModelError(Fault.STREAM_IDLE, f"{call.target.provider} sent nothing for {call.idle} s.")

    async def _send(self, call: Call) -> None:
        line = encode(call)
        if len(line) >= CALL_LIMIT:
            raise ModelError(Fault.CONTEXT_OVERFLOW, f"The conversation has {len(line)} bytes; at most {CALL_LIMIT} can be sent.")
        try:
            async with asyncio.timeout(SEND_TIME), self._sending:
                self._input.write(line)
                await self._input.drain()
        except TimeoutError as error:
            self._kill()
            raise ModelError(Fault.NETWORK, f"litellm's process took no call for {SEND_TIME} s; it is started anew.") from error
        except OSError:
            pass  # it has ended: `_read` says so to every call

    def _post(self, frame: ToChild) -> None:
        if self.is_alive and not self._input.is_closing():
            self._input.write(encode(frame))

    async def _read(self) -> None:
        """Gives each frame to its call, until the process ends."""
        assert self._process.stdout is not None  # noqa: S101  # asked for
        try:
            while line := await self._process.stdout.readline():
                self._take(line)
        except (ValueError, asyncio.QueueFull):
            logger.error("litellm's process does not keep to its protocol; it is killed")
            self._kill()
        code = await self._ended()
        self.is_alive = False
        self._ready.set()
        for call_id, queue in self._queues.items():
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(Failed(call_id, Fault.NETWORK.value, f"litellm's process ended during the call ({_ending(code)})."))

    def _take(self, line: bytes) -> None:
        frame = FROM_CHILD.decode(line)
        self._heard = asyncio.get_running_loop().time()
        if isinstance(frame, Ready):
            self._ready.set()
            return
        queue = self._queues.get(frame.id)
        if isinstance(frame, End | Failed):
            self.has_answered = True
            self._queues.pop(frame.id, None)
        if queue is not None:
            queue.put_nowait(frame)

    async def _log(self) -> None:
        """Passes its standard error on to our log, which masks secrets."""
        assert self._process.stderr is not None  # noqa: S101  # asked for
        for number in range(sys.maxsize):
            try:
                line = await self._process.stderr.readline()
            except ValueError:
                line = b"(a line of it was too long)\n"
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if number < LINES_LIMIT and text:
                logger.warning("litellm: %s", text if len(text) <= LONGEST_LINE else f"(a line of {len(text)} characters)")

    async def _ended(self) -> int:
        # Killed only if it must be: subprocess's kill asks how it ended, and so takes that from asyncio.
        try:
            async with asyncio.timeout(END_TIME):
                return await self._process.wait()
        except TimeoutError:
            self._kill()
            return await self._process.wait()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


def _error(failed: Failed) -> ModelError:
    return ModelError(Fault(failed.fault), failed.message, retry_after=failed.retry_after, provider_status=failed.provider_status)


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

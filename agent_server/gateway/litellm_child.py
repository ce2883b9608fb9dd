"""The process in which litellm lives: `python -m agent_server.gateway.litellm_child`, started by `litellm_process.py`.

It takes calls as lines on its standard input and answers on its standard output (`litellm_frames.py`), many at once. It ends when its input
does: a server that was killed leaves nothing behind. Keys come over the pipe, so that they are in no arguments and in no environment that
other processes can read.
"""

import asyncio
import os
import select
import sys
import threading
from contextlib import suppress
from typing import Any

from agent_server.commands.proctree import protect_self
from agent_server.gateway import ModelError
from agent_server.gateway.faults import stream_error
from agent_server.gateway.litellm_frames import (
    CALL_LIMIT,
    PIECE,
    TO_CHILD,
    WINDOW,
    Began,
    Bytes,
    Call,
    Cancel,
    End,
    Failed,
    FromChild,
    More,
    Ready,
    encode,
)
from agent_server.gateway.litellm_translate import arguments, event, failure, usage_event
from agent_server.gateway.litellm_witness import WITNESS, Witness, install

NICENESS = 5
"""Below the server: a few seconds of imports must not slow its answers."""

CLOSE_TIME = 5.0
"""Seconds that the streams of a call get to be closed."""

SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
}
"""What litellm reads when it is imported: it must fetch nothing, read no .env file, and say only what went wrong."""

DONE = b"data: [DONE]\n\n"


class Calls:
    """The calls under way, each in a task of its own."""

    def __init__(self, output: asyncio.WriteTransport, completion: Any) -> None:
        self._output = output
        self._completion = completion
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._windows: dict[int, asyncio.Semaphore] = {}

    async def run(self, lines: asyncio.StreamReader) -> None:
        """Takes frames until there are no more."""
        self.say(Ready())
        while line := await lines.readline():
            self._take(line)

    def say(self, frame: FromChild) -> None:
        # Not waited for: what is not written yet is bounded by the windows of the calls.
        self._output.write(encode(frame))

    def _take(self, line: bytes) -> None:
        match TO_CHILD.decode(line):
            case Call() as call:
                os.environ.update(call.target.environ)
                self._windows[call.id] = asyncio.Semaphore(WINDOW)
                self._tasks[call.id] = task = asyncio.create_task(self._answer(call))
                task.add_done_callback(lambda _: self._forget(call.id))
            case More(id, pieces):
                for _ in range(pieces if id in self._windows else 0):
                    self._windows[id].release()
            case Cancel(id):
                if id in self._tasks:
                    self._tasks[id].cancel()

    def _forget(self, call_id: int) -> None:
        del self._tasks[call_id], self._windows[call_id]

    async def _answer(self, call: Call) -> None:
        try:
            await self._stream(call)
        except ModelError as error:
            status = error.details.get("providerStatus")
            self.say(Failed(call.id, error.fault.value, error.message, error.retry_after, status))
        else:
            self.say(End(call.id))

    async def _stream(self, call: Call) -> None:
        """Makes one attempt. Errors: ModelError."""

        async def send(data: bytes) -> None:
            for start in range(0, len(data), PIECE):
                await self._windows[call.id].acquire()
                self.say(Bytes(call.id, data[start : start + PIECE]))

        witness = Witness(call, lambda: self.say(Began(call.id)), send)
        WITNESS.set(witness)
        stream: Any = None
        try:
            stream = await self._completion(**arguments(call))
            await _follow(stream, witness)
        except Exception as error:  # litellm and what it stands on raise anything; here it becomes the contract's one error
            if witness.error is not None:
                raise witness.error from error
            if witness.answer is not None and (said := witness.answer.said) is not None:
                raise stream_error(witness.endpoint, said) from error
            raise failure(witness.endpoint, error, was_sent=witness.answer is not None) from error
        finally:
            await _close(stream, witness)


async def _follow(stream: Any, witness: Witness) -> None:
    """Passes an answer on: as it came where it is one of chat completions, else as litellm translates it."""
    if witness.answer is None and getattr(stream, "make_call", None) is not None:
        await stream.fetch_stream()  # some providers are only called when their stream is read
    if witness.is_chat and witness.answer is not None:
        await witness.answer.pass_on()
        return
    block, is_finished = 0, False
    async for chunk in stream:
        is_finished = bool(stream.received_finish_reason or stream.intermittent_finish_reason)
        is_finished = is_finished and (witness.answer is None or witness.answer.is_finished)
        data, block = event(chunk, is_real=is_finished, block=block)
        await witness.send(data)
    # Not litellm's last word: it counts tokens itself where the provider has not.
    from litellm.litellm_core_utils.streaming_handler import calculate_total_usage  # litellm is imported by now

    if any(getattr(chunk, "usage", None) is not None for chunk in stream.chunks):
        await witness.send(usage_event(calculate_total_usage(stream.chunks)))
    if is_finished:
        await witness.send(DONE)


async def _close(stream: Any, witness: Witness) -> None:
    with suppress(Exception):  # nobody is left to be told; what cannot be closed goes with the process
        async with asyncio.timeout(CLOSE_TIME):
            if witness.answer is not None:
                await witness.answer.aclose()
            if stream is not None:
                await stream.aclose()


def _end_with_server() -> None:
    """Ends this process when the other end of its input is closed, also in the middle of an import or a blocking call."""
    poll = select.poll()
    poll.register(0, select.POLLHUP)
    poll.poll()
    os._exit(0)


def _import() -> Any:
    """Imports litellm, which takes 5 to 7 s of processor time, and gives its function for calls."""
    os.environ.update(SETTINGS)
    # Imported here: it reads the settings when it is.
    import litellm
    from litellm.llms.vertex_ai.gemini import vertex_and_google_ai_studio_gemini as google  # it is a part of it

    litellm.suppress_debug_info = True
    litellm.disable_aiohttp_transport = True  # one HTTP client for all providers: httpx, with its witness
    litellm.drop_params = True  # not every provider knows stream_options
    litellm.modify_params = True  # Anthropic wants tools declared where the history has calls
    litellm.callbacks = []
    # It takes the marks for Anthropic's cache away where it believes in none; we only send them to who passes them on.
    litellm.OpenAIGPTConfig.remove_cache_control_flag_from_messages_and_tools = _unchanged  # type: ignore[assignment, method-assign]  # on purpose
    # For Google it takes "strict" out of tools, which we never send, and every property of that name with it.
    google.remove_strict_from_schema = _whole  # type: ignore[attr-defined]  # it is imported there from another module
    install()
    return litellm.acompletion


def _unchanged(_: Any, model: str, messages: Any, tools: Any = None) -> Any:
    return messages, tools


def _whole(schema: Any) -> Any:
    return schema


async def _serve(output: int, completion: Any) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(CALL_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(output, "wb", buffering=0))
    await Calls(transport, completion).run(lines)


def main() -> None:
    """Serves calls until the input ends."""
    protect_self()
    os.nice(NICENESS)
    threading.Thread(target=_end_with_server, daemon=True).start()
    # What libraries print must not get between the frames.
    output = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(_serve(output, _import()))


if __name__ == "__main__":
    main()

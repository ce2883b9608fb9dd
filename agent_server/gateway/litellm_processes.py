"""The one process of litellm: started by whoever wants it first, started anew when it has died, ended when nobody wants it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.litellm_process import PROGRAM, LitellmProcess

logger = logging.getLogger(__name__)

START_TIME = 120.0
"""Seconds to import litellm: 6 s of processor time, on a machine with a twentieth of a core to spare."""

IDLE_STOP = 300.0
"""Seconds without a call after which the process is ended: longer than most tools run, shorter than a coffee break."""

MAX_DEATHS = 3
"""Processes in a row that ended without ending one call, after which no other is started for COOL_DOWN."""

COOL_DOWN = 60.0
"""Seconds: what ends processes at once, such as too little memory, is not over sooner, and a start costs seconds of processor time."""

VARIABLES = frozenset(
    (
        *("PATH", "HOME", "LANG", "TZ", "TMPDIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    )
)
"""The server's variables that the process begins with. What a provider needs comes with its calls, over the pipe."""


class Processes:
    """The process, when there is one: started by whoever wants it first, ended when nobody has wanted it for `idle_stop` seconds."""

    def __init__(self, environ: Mapping[str, str], *, idle_stop: float = IDLE_STOP, program: Sequence[str] = PROGRAM) -> None:
        self._env = {name: value for name, value in environ.items() if name in VARIABLES}
        self._idle_stop = idle_stop
        self._program = program
        self._process: LitellmProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None
        self._deaths = 0
        self._refused_until = 0.0

    @property
    def pid(self) -> int | None:
        """The id of the process that runs, if one does."""
        return self._process.pid if self._process is not None and self._process.is_alive else None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[LitellmProcess]:
        """Gives a process that is ready, for as long as the context lasts. Errors: ModelError."""
        self._users += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            yield await self._ready()
        finally:
            self._users -= 1
            self._end_when_idle()

    async def close(self) -> None:
        """Ends it, and waits until it is gone."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        self._end()
        while self._ending:
            await asyncio.wait(self._ending)

    async def _ready(self) -> LitellmProcess:
        while self._process is None or not self._process.is_alive:
            self._note_death()
            if self._starting is None:
                self._starting = asyncio.create_task(self._start())
                self._starting.add_done_callback(_seen)
            # Shielded: others wait for it too, and whoever comes next will want it.
            await asyncio.shield(self._starting)
        return self._process

    def _end_when_idle(self) -> None:
        if self._users == 0 and self._process is not None:
            self._timer = asyncio.get_running_loop().call_later(self._idle_stop, self._end)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            task = asyncio.create_task(process.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _note_death(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            logger.warning("litellm's process has died; it is started anew")
            self._count(has_worked=process.has_answered)

    def _count(self, *, has_worked: bool) -> None:
        self._deaths = 0 if has_worked else self._deaths + 1
        if self._deaths >= MAX_DEATHS:
            self._refused_until = asyncio.get_running_loop().time() + COOL_DOWN

    async def _start(self) -> None:
        try:
            wait = self._refused_until - asyncio.get_running_loop().time()
            if wait > 0:
                raise ModelError(
                    Fault.OVERLOADED,
                    f"litellm's process ended {self._deaths} times without an answer; see the log. No other is started for {wait:.0f} s.",
                )
            self._process = await self._launch()
            self._end_when_idle()  # whoever wanted it may be gone
        finally:
            self._starting = None

    async def _launch(self) -> LitellmProcess:
        try:
            process = await LitellmProcess.start(self._env, self._program)
        except OSError as error:
            self._count(has_worked=False)
            raise ModelError(Fault.OVERLOADED, f"litellm's process cannot be started: {error.strerror or error}.") from error
        is_ready = False
        try:
            is_ready = await process.ready(START_TIME)
        finally:
            if not is_ready:
                what = f"was not ready after {START_TIME:.0f} s" if process.is_alive else "ended while it started"
                await process.end()
        if not is_ready:
            self._count(has_worked=False)
            raise ModelError(Fault.OVERLOADED, f"litellm's process {what}; see the log.")
        return process


def _seen(task: "asyncio.Task[None]") -> None:
    """Keeps a failed start that nobody waits for any more from being reported as an error of ours."""
    if not task.cancelled():
        task.exception()

"""The server process: one socket, one event loop, a stop that lets tasks come to a safe point."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn
from starlette.applications import Starlette

from agent_server import __version__
from agent_server.app import create_app
from agent_server.commands import proctree
from agent_server.datadir import DataDirectory
from agent_server.errors import SettingsError
from agent_server.events import LogUnavailable
from agent_server.logs import to_stderr
from agent_server.protocol import Protocol, websocket_protocol
from agent_server.redaction import Secrets
from agent_server.server import Server
from agent_server.settings import Settings, load

logger = logging.getLogger(__name__)

BACKLOG = 1024
KEEP_ALIVE = 75
"""Seconds an idle connection is kept: longer than the pools of usual clients and proxies, so that they close first."""

CLOSE_SECONDS = 5
"""Seconds that open responses get to end after the drain."""


def main() -> int:
    """Runs the server until a signal. Gives the exit code: 0 after a clean stop, 2 when it cannot start."""
    try:
        return _serve(load())
    except SettingsError as error:
        print(f"agent-server: {error}", file=sys.stderr)
    except LogUnavailable as error:
        print(f"agent-server: {error} It is in DATA_DIR; move it away to begin a new one.", file=sys.stderr)
    return 2


def _serve(settings: Settings) -> int:
    data = DataDirectory(settings)
    listener = listen(settings)
    proctree.protect_self()
    secrets = Secrets(settings.credentials())
    digest, token = data.token(settings) if settings.auth == "token" else (bytes(32), None)
    if token is not None:
        secrets.add([token])
    to_stderr(settings, secrets)
    port = listener.getsockname()[1]
    app = create_app(msgspec.structs.replace(settings, port=port), data, secrets, digest)  # PORT=0 leaves it to the kernel
    came_from = Path.cwd()
    os.chdir(settings.workspace)  # where most commands run: see spawn.py
    if token is not None:
        _show(token, port)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws=websocket_protocol,  # type: ignore[arg-type]  # called as a class would be
        lifespan="off",  # _Uvicorn's own
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        backlog=BACKLOG,
    )
    # Its warnings are of requests that are no HTTP: whoever reaches the port can send them.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # Cut off on purpose, as the proxied answer was; what fails by itself has been told by the route.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing response" not in record.getMessage())
    gc.freeze()  # what was imported lives as long as the process; no collection needs to look at it
    gc.enable()
    uvicorn_server = _Uvicorn(config, app, partial(_greet, settings, port))
    uvicorn_server.run(sockets=[listener])
    data.close()
    if uvicorn_server.is_restarting:
        os.chdir(came_from)  # the command may name us by a relative path
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # ourselves, as we were started
    return 0


def listen(settings: Settings) -> socket.socket:
    """Opens the port: on `::` for IPv6 and IPv4 alike, on IPv4 alone where a machine has no IPv6.

    Errors: SettingsError when the port or the address cannot be had.
    """
    try:
        if settings.host == "::" and not socket.has_dualstack_ipv6():
            listener = socket.create_server(("0.0.0.0", settings.port), backlog=BACKLOG)  # noqa: S104  # what HOST asks for
        else:
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            is_dual = settings.host == "::"
            listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
        # Accepted connections inherit it. asyncio sets it only on sockets made with an explicit protocol; without it replies wait 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise SettingsError(f"HOST {settings.host} with PORT {settings.port} cannot be listened on: {reason}. Choose another.") from error


def _show(token: str, port: int) -> None:
    """Prints the token that was made: on the terminal alone, this once. Only its hash is kept."""
    print(
        f"\nThis server's token, made now and shown once:\n\n    {token}\n\nTry it:\n\n"
        f"    curl -H 'Authorization: Bearer {token}' http://localhost:{port}/status\n",
        file=sys.stderr,
    )


def _greet(settings: Settings, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("agent-server %s on http://%s:%d, agent %s, workspace %s", __version__, host, port, settings.agent_type, settings.workspace)
    if settings.auth == "none":
        logger.warning("AGENT_SERVER_AUTH=none: whoever reaches this port under one of this machine's names may run commands on it")


class _Uvicorn(uvicorn.Server):
    """uvicorn, with our stop: the first signal drains while requests are still answered, a second one ends at once.

    The application's lifespan is around it, so that what fails in there ends the process, at the start and later.
    """

    def __init__(self, config: uvicorn.Config, app: Starlette, greet: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._greet = greet
        self._server: Server = app.state.server
        self._server.restart = self._restart
        self._drain: asyncio.Task[None] | None = None
        self.is_restarting = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with self._signals():
            async with self._app.router.lifespan_context(self._app):
                self._greet()
                await asyncio.sleep(0)  # the line is with the event log then
                with contextlib.suppress(LogUnavailable):  # those who need the log will say so
                    await self._server.log.flush()
                await super().serve(sockets)

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # a generator's, there
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        # Not uvicorn's own: it raises the signal again at the end, so that a clean stop looks like a kill.
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _restart(self) -> None:
        if self._drain is None:
            self.is_restarting = True
            self._stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._drain is not None:
            self.should_exit = self.force_exit = True
            return
        logger.info("stopping: tasks come to a safe point, and go on at the next start")
        self._drain = self._loop.create_task(self._end())

    async def _end(self) -> None:
        grace = self._server.settings.shutdown_grace
        self._server.snapshots.close()
        await asyncio.gather(self._server.sessions.drain(grace), self._server.mcp.drain(grace))
        with contextlib.suppress(LogUnavailable):  # a full disk must not keep the server from ending
            await self._server.log.flush()  # what was said so far is still seen by those who follow
        self._server.log.end_follows()
        self._server.watches.end()
        self.should_exit = True

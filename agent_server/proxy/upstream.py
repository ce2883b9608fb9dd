"""Connections to the ports of this machine's loopback, and what is remembered of who listens there."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from agent_server.errors import UpstreamError

HOSTS = ("127.0.0.1", "::1")
"""The only addresses that are ever connected to."""

CONNECT_SECONDS = 5.0
"""Seconds for a connect: on loopback it takes that long only where a listener's queue is full."""

CHUNK = 64 << 10
"""Bytes read at a time. A connection holds some of these in each direction, however much flows."""

MAX_REMEMBERED = 1_000
"""Ports of which is remembered what is known."""

T = TypeVar("T")
Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Upstreams:
    """Opens connections. Of each port it remembers the address that worked, and whether the application serves under the
    prefix: until somebody else listens, which `sockets` tells."""

    def __init__(self, sockets: Callable[[int], frozenset[int]]) -> None:
        self._sockets = sockets
        self._hosts: dict[int, str] = {}
        self._served: dict[int, tuple[bool, frozenset[int]]] = {}

    async def open(self, port: int) -> Streams:
        """Connects to a port.

        Errors: UpstreamError when nobody listens.
        """
        remembered = self._hosts.get(port, HOSTS[0])
        for host in sorted(HOSTS, key=lambda one: one != remembered):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    reader, writer = await asyncio.open_connection(host, port, limit=CHUNK)
                if writer.get_extra_info("sockname")[:2] == writer.get_extra_info("peername")[:2]:
                    # Nobody listens: the kernel chose this very port for our end, and joined the two.
                    writer.transport.abort()
                    continue
                self._hosts = {**_bounded(self._hosts), port: host}
                return reader, writer
        raise UpstreamError(f"Nobody listens on port {port} of this machine; start the server there first.", details={"port": port})

    def is_whole(self, port: int) -> bool | None:
        """Tells whether the application is to be asked for the whole path, prefix and all; None while that is not known."""
        is_whole, sockets = self._served.get(port, (None, frozenset()))
        return is_whole if sockets & self._sockets(port) else None

    def ways(self, port: int) -> tuple[bool, ...]:
        """Gives the values of `is_whole` to try."""
        known = self.is_whole(port)
        return (False, True) if known is None else (known,)

    def note(self, port: int, *, is_whole: bool) -> None:
        self._served = {**_bounded(self._served), port: (is_whole, self._sockets(port))}


def _bounded(remembered: dict[int, T]) -> dict[int, T]:
    return remembered if len(remembered) < MAX_REMEMBERED else {}

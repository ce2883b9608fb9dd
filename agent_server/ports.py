"""The ports that programs of this machine listen on, found without being told, and those that clients registered.

Listed is what the proxy reaches: listeners on 127.0.0.1, ::1 or all addresses; never the server's own port. The kernel
is asked every 0.75 s, in a thread. What the log says is open and is not, as after a restart, is said to be closed by
the first look; what is open still is not said again.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from agent_server.errors import Unprocessable
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.listeners import Listener, Owner, is_alive, listening, owners

logger = logging.getLogger(__name__)

PERIOD = 0.75
"""Seconds between two looks: a change is to be told of within one second."""

OWNER_TRIES = 3
"""Looks for a socket's owner until it is taken for one that cannot be seen: a process in an execve has no files for a moment."""

MAX_LISTED = 1_000
"""Listening ports that are told of, the lowest; a program may open as many as it likes."""

MAX_REGISTERED = 1_000
"""Ports that can be registered."""

REACHED = ("0.0.0.0", "127.0.0.1", "::", "::1")  # noqa: S104  # to compare with
"""Addresses that the proxy reaches, in the order in which it would."""


class Port(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of the list. `state` is `registered` while nobody listens."""

    port: int
    protocol: Literal["tcp"]
    address: Annotated[str, Meta(description="it listens on; null while nobody does")] | None
    pid: Annotated[int, Meta(description="null where it cannot be seen")] | None
    process: str | None
    state: Literal["listening", "registered"]
    url: str


class PortIndex:
    """The tables `open_ports`, those said to be open and not closed since, and `registered_ports`."""

    version = 1
    tables: Sequence[str] = ("open_ports", "registered_ports")
    schema: Sequence[str] = (
        "CREATE TABLE open_ports (port INTEGER PRIMARY KEY, data TEXT NOT NULL)",
        "CREATE TABLE registered_ports (port INTEGER PRIMARY KEY)",
    )

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if event.type == "port.opened":
                data = msgspec.json.encode(event.data).decode()
                db.execute("INSERT OR REPLACE INTO open_ports VALUES (?, ?)", (event.data["port"], data))
            elif event.type == "port.closed":
                db.execute("DELETE FROM open_ports WHERE port = ?", (event.data["port"],))
            elif event.type == "port.registered":
                db.execute("INSERT OR IGNORE INTO registered_ports VALUES (?)", (event.data["port"],))


class _Open(msgspec.Struct, frozen=True):
    """A port that is listened on, and its sockets. From the log it has none: they are the kernel's and change with it."""

    port: Port
    inodes: frozenset[int] = frozenset()

    def is_still(self, found: "_Open") -> bool:
        if self.inodes:
            return bool(self.inodes & found.inodes)
        return (self.port.address, self.port.pid) == (found.port.address, found.port.pid)


class Ports:
    """The list. `own_port` is the server's."""

    def __init__(self, log: EventLog, own_port: int) -> None:
        self._log = log
        self.own_port = own_port
        self._open: dict[int, _Open] = {}
        self._registered: set[int] = set()
        self._owners: dict[int, Owner] = {}
        self._tries: dict[int, int] = {}
        self._is_restored = False
        self._lock = asyncio.Lock()  # one look, or one registration, at a time: each compares with what the last has said

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.look()
            except LogUnavailable as error:
                logger.debug("ports are looked at again: %s", error)  # what could not be said is found by the next look

    async def look(self) -> list[Port]:
        """Looks now, says what has changed, and gives the list.

        Errors: LogUnavailable; what has changed is found again by the next look.
        """
        async with self._lock:
            await self._restore()
            found = await asyncio.to_thread(self._find)
            closed = [known.port for number, known in self._open.items() if number not in found or not known.is_still(found[number])]
            gone = {port.port for port in closed}
            opened = [one.port for number, one in found.items() if number not in self._open or number in gone]
            if closed or opened:
                await self._log.append(*(_said("port.closed", port) for port in closed), *(_said("port.opened", port) for port in opened))
            self._open = found
            return self._list()

    async def register(self, numbers: Sequence[int]) -> tuple[list[Port], list[int]]:
        """Puts ports on the list, for good, and gives their entries; and those left out, the server's own.

        Errors: Unprocessable when there are too many; LogUnavailable.
        """
        wanted = dict.fromkeys(number for number in numbers if number != self.own_port)
        async with self._lock:
            await self._restore()
            added = [number for number in wanted if number not in self._registered]
            if len(self._registered) + len(added) > MAX_REGISTERED:
                raise Unprocessable(f"At most {MAX_REGISTERED} ports can be registered; name those that are needed.")
            if added:
                await self._log.append(*(_said("port.registered", self._entry(number), sync=True) for number in added))
                self._registered.update(added)
        listed = {port.port: port for port in await self.look()}
        return [listed[number] for number in wanted], list(dict.fromkeys(n for n in numbers if n == self.own_port))

    def sockets(self, number: int) -> frozenset[int]:
        """Gives the listening sockets of a port, as of the last look: whoever listens anew has others."""
        known = self._open.get(number)
        return known.inodes if known is not None else frozenset()

    async def _restore(self) -> None:
        if self._is_restored:
            return

        def read(db: sqlite3.Connection) -> tuple[list[str], list[int]]:
            said = [data for (data,) in db.execute("SELECT data FROM open_ports")]
            return said, [port for (port,) in db.execute("SELECT port FROM registered_ports")]

        said, registered = await self._log.query(read)
        self._open = {port.port: _Open(port) for port in (msgspec.json.decode(data, type=Port) for data in said)}
        self._registered = set(registered)
        self._is_restored = True

    def _find(self) -> dict[int, _Open]:
        """Asks the kernel. In a thread."""
        by_port: dict[int, list[Listener]] = {}
        for one in listening():
            if one.address in REACHED and one.port != self.own_port:
                by_port.setdefault(one.port, []).append(one)
        listed = {number: sorted(by_port[number], key=_order) for number in sorted(by_port)[:MAX_LISTED]}
        self._find_owners({one.inode for listeners in listed.values() for one in listeners})
        return {number: self._opened(listeners) for number, listeners in listed.items()}

    def _find_owners(self, inodes: set[int]) -> None:
        self._owners = {inode: owner for inode, owner in self._owners.items() if inode in inodes and is_alive(owner.pid)}
        self._tries = {inode: tries for inode, tries in self._tries.items() if inode in inodes}
        missing = [inode for inode in inodes if inode not in self._owners and self._tries.get(inode, 0) < OWNER_TRIES]
        if missing:
            self._owners.update(owners(missing))
            for inode in missing:
                self._tries[inode] = 0 if inode in self._owners else self._tries.get(inode, 0) + 1

    def _opened(self, listeners: Sequence[Listener]) -> _Open:
        first = listeners[0]
        owner = next((self._owners[one.inode] for one in listeners if one.inode in self._owners), None)
        pid, process = (owner.pid, owner.process) if owner is not None else (None, None)
        port = Port(first.port, "tcp", first.address, pid, process, "listening", _url(first.port))
        return _Open(port, frozenset(one.inode for one in listeners))

    def _list(self) -> list[Port]:
        return [self._entry(number) for number in sorted(self._open.keys() | self._registered)]

    def _entry(self, number: int) -> Port:
        known = self._open.get(number)
        return known.port if known is not None else Port(number, "tcp", None, None, None, "registered", _url(number))


def _said(kind: str, port: Port, *, sync: bool = False) -> Draft:
    return Draft(kind, msgspec.to_builtins(port), sync=sync)


def _order(one: Listener) -> tuple[int, int]:
    return REACHED.index(one.address), one.inode


def _url(number: int) -> str:
    return f"/proxy/{number}/"

"""Which TCP ports are listened on, and by which process, as the kernel tells. Linux only.

The ports come from sock_diag(7), which looks at listening sockets alone: both dumps take 0.07 ms. /proc/net/tcp gives the
same, but walks the table of all connections, which takes 4 ms for each file on a machine with 24 GB, and is read only
where there is no sock_diag. Owners are found by reading the links in /proc/*/fd: some ms, so only for sockets not seen
before. Those of other users, and of processes that closed themselves by PR_SET_DUMPABLE, cannot be read.
"""

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator

import msgspec

DIAG_SECONDS = 1.0
"""Seconds the kernel gets for an answer; it gives one at once."""

DIAG_BYTES = 64 << 10
"""Bytes read of a dump at a time: more than a message of the kernel's has."""

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN = 10
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48x")
_SOCKET = struct.Struct("=BBBB2s2s16s16s4x8x4x4x4x4xI")  # family, state, timer, retransmissions, ports, addresses; …; inode


class Listener(msgspec.Struct, frozen=True):
    """A listening socket: several may share a port, on other addresses or by SO_REUSEPORT."""

    port: int
    address: str
    inode: int


class Owner(msgspec.Struct, frozen=True):
    """The process that has a socket open; of several the oldest, which as a rule made it."""

    pid: int
    process: str


def listening() -> list[Listener]:
    """Gives the listening TCP sockets of this network namespace."""
    try:
        return [*_dump(socket.AF_INET), *_dump(socket.AF_INET6)]
    except OSError:  # a sandbox without it
        return [*_read("/proc/net/tcp"), *_read("/proc/net/tcp6")]


def owners(inodes: Collection[int]) -> dict[int, Owner]:
    """Gives the owners of these sockets, as far as they can be seen. Blocks for some ms."""
    missing = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, Owner] = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if not missing:
            break
        with contextlib.suppress(OSError):  # it ended, or is not ours to read
            for link in _links(pid) & missing.keys():
                found[missing.pop(link)] = Owner(pid, _name(pid))
    return found


def is_alive(pid: int) -> bool:
    """Tells whether there is a process with this id."""
    return os.path.exists(f"/proc/{pid}")


def _links(pid: int) -> set[str]:
    links = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            links.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return links


def _name(pid: int) -> str:
    # Not `comm`: Node.js names its main thread MainThread there.
    return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))


def _dump(family: int) -> Iterator[Listener]:
    """Source: sock_diag(7)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4) as netlink:
        netlink.settimeout(DIAG_SECONDS)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN)
        netlink.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data = netlink.recv(DIAG_BYTES)
            at = 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", data, at + _HEADER.size)[0], "sock_diag refuses")
                _, _, _, _, port, _, source, _, inode = _SOCKET.unpack_from(data, at + _HEADER.size)
                yield Listener(int.from_bytes(port, "big"), _address(source[: 4 if family == socket.AF_INET else 16]), inode)
                at += (length + 3) & ~3


def _read(path: str) -> Iterator[Listener]:
    """Source: proc_pid_net(5)."""
    try:
        with open(path) as file:
            lines = file.read().splitlines()[1:]
    except OSError:  # no IPv6 here
        return
    for line in lines:
        _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
        if int(state, 16) == _LISTEN:
            words, _, port = local.partition(":")
            packed = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
            yield Listener(int(port, 16), _address(packed), int(inode))


def _address(packed: bytes) -> str:
    text = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return text.removeprefix("::ffff:")

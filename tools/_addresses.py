"""Which addresses of the network `webfetch` may reach: not this machine, not its link, and not what tells a cloud's machine its secrets.

Private networks are allowed: what is there was given to this machine to use (docs/decisions/0031).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import msgspec

from tools import ToolError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_REFUSED: Sequence[tuple[str, Sequence[Network]]] = tuple(
    (what, tuple(map(ip_network, networks)))
    for what, networks in (
        ("a cloud's metadata", ("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16")),
        ("a cloud's metadata", ("fd00:ec2::/32", "fd20:ce::/32", "fd00:42::42")),
        ("loopback", ("127.0.0.0/8", "::1")),
        ("link-local", ("169.254.0.0/16", "fe80::/10", "fec0::/10")),
        ("unspecified", ("0.0.0.0/8", "::")),
        ("multicast", ("224.0.0.0/4", "ff00::/8")),
        ("reserved", ("240.0.0.0/4",)),
    )
)
"""The addresses that are refused, and what each is. Source: RFC 6890, and the pages of AWS, GCP, Alibaba, Oracle, Azure, Scaleway."""

_EMBEDDING = tuple(map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")))
"""Where the last 32 bits are an IPv4 address: compatible, mapped, translated, NAT64."""

_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP = (0x00005EFE, 0x02005EFE)

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Allowed(msgspec.Struct, frozen=True):
    """What is allowed although it would be refused: hosts by their names, whatever those resolve to, and addresses."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()


def parse_allowed(entries: Iterable[str]) -> Allowed:
    """Reads host names, addresses and networks (10.0.0.0/8). Errors: ValueError that names the entry which is none of these."""
    names, networks = set(), []
    for entry in entries:
        plain = entry.lower().removeprefix("[").removesuffix("]").removesuffix(".")
        try:
            networks.append(ip_network(plain, strict=False))
        except ValueError:
            if not _NAME.fullmatch(plain):
                raise ValueError(f"{entry[:60]!r} is no host name, address or network") from None
            names.add(plain)
    return Allowed(frozenset(names), tuple(networks))


def check(host: str, addresses: Sequence[Address], allowed: Allowed) -> None:
    """Errors: ToolError when one of the addresses of a host is refused."""
    if host in allowed.names:
        return
    for address in addresses:
        for each in (address, *_embedded(address)):
            what = next((what for what, networks in _REFUSED if _is_in(each, networks)), None)
            if what is not None and not _is_in(each, allowed.networks):
                named = host if host == str(address) else f"{host} ({address})"
                raise ToolError(
                    f"{named} is not fetched: its address is {what}. Use bash (curl) for servers of this machine; "
                    "the operator can allow others with WEBFETCH_ALLOW."
                )


def parse_address(text: str) -> Address:
    """Gives an address as the resolver writes it, without its zone. Errors: ValueError."""
    return ip_address(text.partition("%")[0])


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that packets for an IPv6 address may be meant for."""
    if isinstance(address, IPv4Address):
        return
    number = int(address)
    # ::/96 holds :: and ::1 too, which are no IPv4 addresses in disguise; they are refused as what they are.
    if _is_in(address, _EMBEDDING) and number > 0xFFFF:
        yield IPv4Address(number & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        yield IPv4Address(number >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield IPv4Address(~number & 0xFFFFFFFF)
        yield IPv4Address(number >> 64 & 0xFFFFFFFF)
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        yield IPv4Address(number & 0xFFFFFFFF)

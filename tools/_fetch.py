"""One page from the web: its URL taken apart, its host looked up once and checked, and the connection made to just that address.

Each redirect is a new URL and treated like the first one. Nothing of the server goes along: no cookies, no proxies, no credentials.
"""

import asyncio
import re
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urljoin, urlsplit

import msgspec

from tools import ToolError
from tools._addresses import Address, Allowed, check, parse_address

if TYPE_CHECKING:
    import ssl

    import httpx

MAX_BODY = 5 * 1024 * 1024
"""Bytes of a page, decompressed: a hundred times what a model is shown of it."""

MAX_ERROR_BODY = 64 * 1024
"""Bytes that are read of an error's page: an excerpt of it is shown."""

MAX_REDIRECTS = 5

MAX_URL = 8_000
"""Characters of a URL: what servers commonly accept."""

MAX_HOST = 253
"""Characters of a host's name. Source: RFC 1035."""

MAX_MEMBERS = 100
"""Parts of a gzip body that are unpacked: each may be tiny, and takes its time."""

CONNECT_TIME = 10.0
"""Seconds for TCP and TLS with one address: others of the host are tried after it."""

MAX_ADDRESSES = 3
"""Addresses of a host that are tried."""

AGENT = "Mozilla/5.0 (compatible; agent-server webfetch)"

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host. Errors: OSError."""

PORTS = {"http": 80, "https": 443}
"""The usual port of each scheme that is fetched."""

_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_UNFIT = re.compile(r"[\x00-\x20\x7f\\]")


class Page(msgspec.Struct, frozen=True):
    """What a server has answered at the end of its redirects. `body` is decompressed; an error's may be cut."""

    url: str
    status: int
    reason: str
    content_type: str
    body: bytes


class Target(msgspec.Struct, frozen=True):
    """A URL taken apart. `host` is ASCII, in lower case; `path` is all behind the port."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


async def look_up(host: str, port: int) -> Sequence[str]:
    """Asks the system. It may hang for long, so it has a thread of its own that nobody waits for at an exit."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(addresses: Sequence[str], error: OSError | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(addresses)

    def ask() -> None:
        addresses: list[str] = []
        failure: OSError | None = None
        try:
            addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            failure = error
        except UnicodeError as error:  # a name with a label that is too long
            failure = OSError(str(error))
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return await found


async def fetch(url: str, *, accept: str, allowed: Allowed, resolve: Resolve = look_up) -> Page:
    """Gets a page. Errors: ToolError for what is refused, too large or not to be had. Cancellation: the connection is closed."""
    for _ in range(MAX_REDIRECTS + 1):
        target = parse_url(url)
        addresses = await _addresses(target, allowed, resolve)
        trust = await asyncio.to_thread(_load) if target.scheme == "https" else await asyncio.to_thread(_load_plain)
        async with _answer(target, addresses, accept, trust) as response:
            place = response.headers.get("location")
            if place is None or response.status_code not in (301, 302, 303, 307, 308):
                return await _page(target, response)
            url = _joined(target.url, place)
    raise ToolError(f"More than {MAX_REDIRECTS} redirects, the last one to {url[:200]}.")


def _joined(url: str, place: str) -> str:
    try:
        return urljoin(url, place)
    except ValueError as error:
        raise ToolError(f"{url[:200]} leads to {place[:200]!r}, which is no URL.") from error


def parse_url(url: str) -> Target:
    """Takes a URL apart. Errors: ToolError for one that is not fetched."""
    url = url.strip().partition("#")[0].replace(" ", "%20")
    if len(url) > MAX_URL or _UNFIT.search(url):
        raise ToolError(f"The URL has over {MAX_URL} characters, or control characters or backslashes; mend it.")
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError as error:
        raise ToolError(f"{url[:200]} is no URL: {error}.") from error
    if parts.scheme not in PORTS:
        raise ToolError(f"Only http:// and https:// URLs are fetched, not {url[:200]}.")
    if "@" in parts.netloc:
        raise ToolError("URLs with a user name or password are not fetched; leave it out.")
    host = _host(name or "")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(url, parts.scheme, host, PORTS[parts.scheme] if port is None else port, path)


def _host(name: str) -> str:
    try:
        if ":" in name:
            return str(IPv6Address(name))
        host = name if name.isascii() else name[:MAX_HOST].encode("idna").decode()
    except (ValueError, UnicodeError) as error:
        raise ToolError(f"{name[:100]!r} is no host: {error}.") from error
    host = host.lower().removesuffix(".")
    if len(host) > MAX_HOST or not _HOST.fullmatch(host):
        raise ToolError(f"{name[:100]!r} is no host; give a whole URL such as https://example.com/page.")
    return host


async def _addresses(target: Target, allowed: Allowed, resolve: Resolve) -> Sequence[Address]:
    """Looks a host up, once, and gives its addresses, which are all checked."""
    try:
        found = [parse_address(target.host)]
    except ValueError:
        try:
            found = [parse_address(text) for text in await resolve(target.host, target.port)]
        except OSError as error:
            raise ToolError(f"{target.host} cannot be found: {error.strerror or error}.") from error
    if not found:
        raise ToolError(f"{target.host} has no address.")
    check(target.host, found, allowed)
    return list(dict.fromkeys(found))[:MAX_ADDRESSES]


@cache
def _load() -> "ssl.SSLContext | bool":
    """Gives the certificates that are trusted, those of SSL_CERT_FILE where it is set. Blocks for 60 ms."""
    # Imported at the first fetch, in a thread: it takes 190 ms.
    import httpx

    return httpx.create_ssl_context(trust_env=True)


@cache
def _load_plain() -> "ssl.SSLContext | bool":
    # Imported at the first fetch, in a thread: it takes 190 ms.
    import httpx  # noqa: F401  # without TLS it is all that is needed

    return False


@asynccontextmanager
async def _answer(
    target: Target, addresses: Sequence[Address], accept: str, trust: "ssl.SSLContext | bool"
) -> "AsyncIterator[httpx.Response]":
    """Asks the addresses in turn until one can be connected to. A bare transport: no cookies, no proxies, no redirects of its own."""
    # Loaded by now, see `_load`.
    import httpx

    try:
        async with httpx.AsyncHTTPTransport(verify=trust, trust_env=False) as transport:
            response = await _ask(transport, target, addresses, accept)
            try:
                yield response
            finally:
                await response.aclose()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ToolError(f"{target.authority} did not give the page: {str(error) or type(error).__name__}.") from error


async def _ask(transport: "httpx.AsyncHTTPTransport", target: Target, addresses: Sequence[Address], accept: str) -> "httpx.Response":
    # Loaded by now, see `_load`.
    import httpx

    headers = {"Host": target.authority, "User-Agent": AGENT, "Accept": accept, "Accept-Encoding": "gzip, deflate"}
    extensions = {"timeout": {"connect": CONNECT_TIME}, "sni_hostname": target.host}  # the certificate is held against this name
    for address in addresses:
        literal = f"[{address}]" if address.version == 6 else str(address)
        url = httpx.URL(f"{target.scheme}://{literal}:{target.port}{target.path}")
        request = httpx.Request("GET", url, headers=headers, extensions=extensions)
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if address == addresses[-1]:
                raise
    raise AssertionError("there is at least one address")


async def _page(target: Target, response: "httpx.Response") -> Page:
    is_error = response.status_code >= 400
    body = await _body(response, MAX_ERROR_BODY if is_error else MAX_BODY, may_cut=is_error)
    content_type = response.headers.get("content-type", "")
    return Page(target.url, response.status_code, response.reason_phrase, content_type, body)


async def _body(response: "httpx.Response", limit: int, *, may_cut: bool) -> bytes:
    """Reads a body. Errors: ToolError for one over the limit, before more of it is in memory."""
    too_large = ToolError(f"The page has more than {limit >> 20} MB; download it with bash (curl -o) instead.")
    length = response.headers.get("content-length", "")
    if not may_cut and length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise too_large
    unpack = _Unpacking(response.headers.get("content-encoding", ""))
    body, came = bytearray(), 0
    async for chunk in response.aiter_raw():
        came += len(chunk)
        body += unpack(chunk, limit + 1 - len(body))
        if len(body) > limit or came > limit:
            if may_cut:
                break
            raise too_large
    return bytes(body[:limit])


class _Unpacking:
    """Undoes a content coding without ever giving more than asked: httpx would unpack a thousandfold of what came, at once."""

    def __init__(self, coding: str) -> None:
        self._coding = coding.strip().lower()
        if self._coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise ToolError(f"The page came in the coding {self._coding[:40]!r}, which was not asked for.")
        self._decoder = zlib.decompressobj(47) if self._coding not in ("", "identity") else None  # 47: gzip or zlib, as it comes
        self._members = 0

    def __call__(self, data: bytes, most: int) -> bytes:
        """Gives at most so many bytes; when there are that many, more may be left."""
        if self._decoder is None:
            return data[:most]
        given = b""
        while data and len(given) < most and self._members < MAX_MEMBERS:
            given += self._unpack(data, most - len(given))
            data = self._decoder.unused_data
            if data:
                self._members += 1
                self._decoder = zlib.decompressobj(47)
        return given

    def _unpack(self, data: bytes, most: int) -> bytes:
        assert self._decoder is not None  # noqa: S101  # asked before
        try:
            return self._decoder.decompress(data, most)
        except zlib.error as error:
            if self._members:
                self._members = MAX_MEMBERS  # what follows the end of a stream is left out by everybody
                return b""
            if self._coding != "deflate":
                raise ToolError(f"The page cannot be decompressed: {error}.") from error
        self._decoder = zlib.decompressobj(-15)  # some servers leave the header out
        self._coding = ""
        try:
            return self._decoder.decompress(data, most)
        except zlib.error as error:
            raise ToolError(f"The page cannot be decompressed: {error}.") from error

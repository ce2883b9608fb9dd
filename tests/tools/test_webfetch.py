"""Pages are fetched from real servers on loopback; nothing that is refused is ever connected to."""

import asyncio
import gzip
import socket
import ssl
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tools.conftest import LocalContext
from tests.tools.webserver import redirect, reply, web_server
from tools import ToolContext, ToolError, ToolResult
from tools._addresses import Allowed, check, parse_address, parse_allowed
from tools._fetch import MAX_BODY, Page, fetch, parse_url
from tools.webfetch import TOOL

LOCAL = parse_allowed(["127.0.0.1"])


@pytest.fixture
def context(workspace: Path) -> ToolContext:
    """A context that lets 127.0.0.1 be fetched: the tests' servers are there."""
    return LocalContext(workspace, workspace, {}, web_allowed=("127.0.0.1",))


async def webfetch(context: ToolContext, url: str, **more: Any) -> ToolResult:
    result: ToolResult = await TOOL.run(TOOL.arguments(url=url, **more), context)
    return result


async def get(url: str, allowed: Allowed = LOCAL, **more: Any) -> Page:
    return await fetch(url, accept="*/*", allowed=allowed, **more)


PAGE = b"<html><head><title>T</title><script>x()</script></head><body><h1>Head</h1><p>A <b>bold</b> <a href=/y>link</a>.</body></html>"


@pytest.mark.parametrize(
    ("wanted", "text"),
    [("markdown", "# Head\n\nA **bold** [link](URL/y)."), ("text", "Head\n\nA bold link."), ("html", PAGE.decode())],
)
async def test_a_page_comes_as_the_format_says(context: ToolContext, wanted: str, text: str) -> None:
    async with web_server({"/": reply(PAGE)}) as web:
        result = await webfetch(context, web.url(), format=wanted)
        assert result.content == text.replace("URL", web.url(""))
        assert result.details["status"] == 200


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("application/json; charset=utf-8", b'{"a": [1]}'),
        ("text/plain", b"<b>&amp;"),
        ("application/atom+xml", b"<a>1</a>"),
        ("", b"plain"),
    ],
)
@pytest.mark.parametrize("wanted", ["markdown", "text", "html"])
async def test_other_text_comes_unchanged(context: ToolContext, type: str, body: bytes, wanted: str) -> None:
    async with web_server({"/": reply(body, type=type)}) as web:
        assert (await webfetch(context, web.url(), format=wanted)).content == body.decode()


async def test_the_request_names_the_host_and_nothing_of_the_server(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would be refused, if it were asked
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    answers = {"/": redirect("/b").replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"), "/b": reply(b"ok", type="text/plain")}
    async with web_server(answers) as web:
        await webfetch(context, web.url("/#part"))
        assert len(web.requests) == 2
        for head in web.requests:
            names = {line.partition(":")[0].lower() for line in head.splitlines()[1:] if line}
            assert names == {"host", "user-agent", "accept", "accept-encoding"}
            assert f"Host: 127.0.0.1:{web.port}\r\n" in head


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1/", "javascript:alert(1)", "data:text/html,x", "/relative", ""),
        *("http://", "http:///x", "http://user@127.0.0.1/", "http://user:pw@127.0.0.1/", "http://@127.0.0.1/", "http://a\\@127.0.0.1/"),
        *("http://[::1/", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://a\nb/", "http://a%2eb/", "http://[fe80::1%25eth0]/"),
        *("http://" + "a" * 300, "http://127.0.0.1/" + "a" * 9_000, "http://a..b/", "http://\u202e/", "http://[v1.x]/"),
    ],
)
async def test_what_is_no_plain_web_url_is_refused(context: ToolContext, url: str) -> None:
    with pytest.raises(ToolError):
        await webfetch(context, url)


REFUSED = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.1.1", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    *("224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1"),
    *("fd00:ec2::254", "fd20:ce::254", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1"),
    *("2001:0:7f00:1::", "2001:0:1:2::80ff:fffe", "2a00::5efe:127.0.0.1"),
]


@pytest.mark.parametrize("address", REFUSED)
async def test_addresses_of_this_machine_its_link_and_metadata_are_refused(address: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["93.184.215.14", address]

    with pytest.raises(ToolError, match="its address is"):
        await get("http://somewhere.example/", Allowed(), resolve=resolve)
    if "%" not in address:
        literal = f"[{address}]" if ":" in address else address
        with pytest.raises(ToolError, match="its address is"):
            await get(f"http://{literal}:1/", Allowed())


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "10.1.2.3", "172.16.0.1", "192.168.1.1", "fc00::1", "2606:4700::1111", "2002:a00:1::"]
)
def test_public_and_private_addresses_are_not(address: str) -> None:
    check("x", [parse_address(address)], Allowed())


@pytest.mark.parametrize(
    "host", ["localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "①②⑦.⓪.⓪.①", "LOCALHOST.", "127.0.0.1."]
)
async def test_other_spellings_of_loopback_are_refused(workspace: Path, host: str) -> None:
    context = LocalContext(workspace, workspace, {})
    with pytest.raises(ToolError, match="its address is"):
        await webfetch(context, f"http://{host}/")


@pytest.mark.parametrize(
    "place",
    [
        *("http://[::1]:PORT/secret", "http://169.254.169.254/latest/meta-data", "//127.0.0.2:PORT/secret", "http://0.0.0.0:PORT/secret"),
        *("file:///etc/passwd", "http://u:p@127.0.0.1:PORT/secret", "http://[::ffff:7f00:2]:PORT/secret"),
    ],
)
@pytest.mark.parametrize("status", ["301 Moved Permanently", "303 See Other", "307 Temporary Redirect"])
async def test_each_redirect_is_checked_anew(context: ToolContext, place: str, status: str) -> None:
    async with web_server({"/secret": reply(b"secret")}, host="0.0.0.0") as web:
        web.answers["/"] = redirect("/two")
        web.answers["/two"] = redirect(place.replace("PORT", str(web.port)), status)
        with pytest.raises(ToolError):
            await webfetch(context, web.url())
        assert [head.split(" ")[1] for head in web.requests] == ["/", "/two"]


@pytest.mark.parametrize(("redirects", "comes"), [(5, True), (6, False)])
async def test_at_most_five_redirects_are_followed(context: ToolContext, redirects: int, comes: bool) -> None:
    answers = {f"/{n}": redirect(f"{n + 1}") for n in range(redirects)} | {f"/{redirects}": reply(b"there", type="text/plain")}
    async with web_server(answers) as web:
        if comes:
            result = await webfetch(context, web.url("/0"))
            assert (result.content, result.details["url"]) == ("there", web.url(f"/{redirects}"))
        else:
            with pytest.raises(ToolError, match="redirects"):
                await webfetch(context, web.url("/0"))


async def test_a_host_is_looked_up_once_and_connected_to_where_it_was_checked() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with web_server({"/": reply(b"ok"), "/again": redirect("/")}) as web:
        page = await get(web.url("/", "rebound.example"), resolve=rebinding)
        assert (page.body, asked) == (b"ok", ["rebound.example"])
        assert f"Host: rebound.example:{web.port}\r\n" in web.requests[0]
        asked.clear()
        with pytest.raises(ToolError, match=r"127\.0\.0\.2"):  # the second look-up, for the redirect, is checked too
            await get(web.url("/again", "rebound.example"), resolve=rebinding)


async def test_the_next_address_is_tried_where_one_cannot_be_connected_to() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.3", "127.0.0.1"]

    async with web_server({"/": reply(b"ok")}) as web:
        page = await get(web.url("/", "two.example"), parse_allowed(["127.0.0.0/8"]), resolve=resolve)
        assert page.body == b"ok"


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "pages.example", "PAGES.example.", "[127.0.0.1]"])
async def test_what_the_operator_allows_is_fetched(entry: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with web_server({"/": reply(b"ok")}) as web:
        assert (await get(web.url("/", "pages.example"), parse_allowed([entry]), resolve=resolve)).body == b"ok"
        with pytest.raises(ToolError):
            await get(web.url("/", "pages.example"), parse_allowed(["other.example", "10.0.0.0/8"]), resolve=resolve)


@pytest.mark.parametrize("entry", ["http://x", "10.0.0.0/99", "a b", "*", "x:80", "a/b"])
def test_an_entry_that_is_nothing_of_this_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        parse_allowed([entry])


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error", "401 Unauthorized"])
async def test_an_errors_page_is_an_error_with_an_excerpt(context: ToolContext, status: str) -> None:
    async with web_server({"/": reply(b"<p>What went <b>wrong</b>" + b"<p>more" * 50_000, status=status)}) as web:
        with pytest.raises(ToolError, match=status) as error:
            await webfetch(context, web.url())
        assert "What went wrong" in str(error.value)
        assert len(str(error.value)) < 1_500


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("image/png", b"\x89PNG\0\0"),
        ("application/pdf", b"%PDF-1.7"),
        ("application/octet-stream", b"\0\1\2"),
        ("text/plain", b"a\0b"),
        ("", b"\xff\xd8\xff"),
    ],
)
async def test_what_is_no_text_is_named_with_its_size(context: ToolContext, type: str, body: bytes) -> None:
    async with web_server({"/": reply(body, type=type)}) as web:
        with pytest.raises(ToolError, match=f"{len(body)} bytes") as error:
            await webfetch(context, web.url())
        assert (type or "unknown") in str(error.value)
        assert ("image" in str(error.value)) == type.startswith("image/")


@pytest.mark.parametrize(
    ("type", "body", "text"),
    [
        ("text/plain; charset=iso-8859-1", "café €".encode("cp1252"), "café €"),
        ("text/plain; charset=shift_jis", "日本".encode("shift_jis"), "日本"),
        ("text/plain; charset=utf-8", "café".encode("latin-1"), "caf\ufffd"),
        ("text/plain; charset=nonsense", "café".encode(), "café"),
        ("text/plain; charset=zlib", "café".encode(), "café"),
        ("text/plain; charset=punycode", "café".encode(), "café"),
        ("text/plain", "café".encode("cp1252"), "café"),
        ("text/plain", "\ufeffcafé".encode("utf-16"), "café"),
        ("text/plain; charset=latin-1", "\ufeffcafé".encode(), "café"),
        ("text/html", b'<meta charset="windows-1251"><p>' + "мир".encode("cp1251"), "мир"),
        ("text/html", b'<meta http-equiv=x content="text/html; charset=koi8-r"><p>' + "мир".encode("koi8-r"), "мир"),
        ("text/html; charset=utf-8", b'<meta charset="windows-1251"><p>' + "мир".encode(), "мир"),
        ("application/xhtml+xml", b'<?xml version="1.0" encoding="koi8-r"?><p>' + "мир".encode("koi8-r") + b"</p>", "мир"),
    ],
)
async def test_text_is_read_in_its_encoding(context: ToolContext, type: str, body: bytes, text: str) -> None:
    async with web_server({"/": reply(body, type=type)}) as web:
        assert (await webfetch(context, web.url(), format="text")).content.removeprefix("\ufeff") == text


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(b"page " * 1000, mtime=0)),
        ("gzip", gzip.compress(b"page " * 400, mtime=0) + gzip.compress(b"page " * 600, mtime=0) + b"\0\0"),
        ("deflate", zlib.compress(b"page " * 1000)),
        ("deflate", _raw_deflate(b"page " * 1000)),
        ("identity", b"page " * 1000),
    ],
)
async def test_compressed_pages_are_unpacked(coding: str, packed: bytes) -> None:
    async with web_server({"/": reply(packed, Content_Encoding=coding)}) as web:
        assert (await get(web.url())).body == b"page " * 1000


@pytest.mark.parametrize(("coding", "packed"), [("gzip", b"no gzip"), ("br", b"x"), ("gzip, gzip", b"x"), ("deflate", b"\xff\xff\xff")])
async def test_what_cannot_be_unpacked_is_an_error(coding: str, packed: bytes) -> None:
    async with web_server({"/": reply(packed, Content_Encoding=coding)}) as web:
        with pytest.raises(ToolError, match="The page c"):
            await get(web.url())


@pytest.mark.parametrize(("size", "comes"), [(MAX_BODY, True), (MAX_BODY + 1, False), (500 << 20, False)])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_bomb_stops_at_five_megabytes(size: int, comes: bool, coding: str) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    packed = b"".join(
        [*(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)), packer.compress(bytes(size % (1 << 20))), packer.flush()]
    )
    async with web_server({"/": reply(packed, Content_Encoding=coding)}) as web:
        if comes:
            assert len((await get(web.url())).body) == size
        else:
            with pytest.raises(ToolError, match="more than 5 MB"):
                await get(web.url())


async def test_a_page_without_a_length_is_bounded_too() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    async with web_server({"/": endless}) as web:
        with pytest.raises(ToolError, match="more than 5 MB"):
            await get(web.url())
    assert sent < 4 * MAX_BODY


async def _stall(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _drip_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("slow", [_stall, _drip, _drip_head])
async def test_the_deadline_is_over_the_whole_fetch(context: ToolContext, slow: Any) -> None:
    async with web_server({"/": slow, "/first": redirect("/")}) as web:
        began = asyncio.get_running_loop().time()
        with pytest.raises(ToolError, match=r"within 0\.5 s"):
            await webfetch(context, web.url("/first"), timeout=0.5)
        assert asyncio.get_running_loop().time() - began < 5


async def test_a_look_up_that_hangs_is_within_the_deadline_too() -> None:
    async def hanging(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await get("http://slow.example/", resolve=hanging)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 302 Found\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=["header", "headers", "short", "chunks", "ssh", "304", "nowhere", "bad place", "nothing"],
)
async def test_a_broken_answer_is_an_error_that_says_so(context: ToolContext, answer: bytes) -> None:
    async with web_server({"/": answer}) as web:
        with pytest.raises(ToolError):
            await webfetch(context, web.url())


async def test_a_server_that_is_not_there_is_an_error_that_names_it(context: ToolContext) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ToolError, match=f"127.0.0.1:{port}"):
            await webfetch(context, f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(("value", "is_valid"), [(1, True), (500, True), ("7", True), (None, True), (0, False), (-1, False)])
def test_timeouts(value: object, is_valid: bool) -> None:
    import json

    given = json.dumps({"url": "http://a/", "timeout": value})
    if is_valid:
        TOOL.parse(given)
    else:
        with pytest.raises(ToolError, match="timeout"):
            TOOL.parse(given)


def test_urls_are_taken_apart() -> None:
    target = parse_url(" https://Exämple.com:8443/a b?q=ü#part ")
    assert (target.scheme, target.host, target.port) == ("https", "xn--exmple-cua.com", 8443)
    assert target.authority == "xn--exmple-cua.com:8443"
    assert "#" not in target.path
    assert parse_url("http://[::1]:80").authority == "[::1]"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for the name `pages.example`, and its key, in one file."""
    file = tmp_path / "server.pem"
    key = tmp_path / "key.pem"
    names = ("-subj", "/CN=pages.example", "-addext", "subjectAltName=DNS:pages.example")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", key, "-out", file], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


async def test_certificates_are_held_against_the_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import _fetch

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    _fetch._load.cache_clear()
    asked: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"over TLS", type="text/plain"))
        await writer.drain()
        writer.close()

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        assert (await get(f"https://pages.example:{port}/", resolve=resolve)).body == b"over TLS"
        with pytest.raises(ToolError, match=r"(?i)certificate|hostname"):
            await get(f"https://other.example:{port}/", resolve=resolve)
        assert asked == ["pages.example", "other.example"]
    finally:
        server.close()
        await server.wait_closed()
        _fetch._load.cache_clear()


async def test_context_without_leave_refuses_loopback(context: ToolContext) -> None:
    assert isinstance(context, LocalContext)
    async with web_server({"/": reply(b"x")}) as web:
        with pytest.raises(ToolError, match="WEBFETCH_ALLOW"):
            await webfetch(replace(context, web_allowed=()), web.url())
        assert web.requests == []

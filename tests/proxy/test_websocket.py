"""WebSockets through /proxy/{port}/…: messages, and how each of them ends, as they are between the two ends."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from agent_server.guard import COOKIE
from agent_server.proxy.headers import PORTS_COOKIE
from agent_server.proxy.websocket import MAX_MESSAGE
from tests.serving import TOKEN, ServerProcess, serving
from tests.upstreams import answering, first_line, listening

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


class Application:
    """A WebSocket server whose handler is a function."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.closes: list[Close | None] = []
        self.ended = threading.Semaphore(0)


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextmanager
def application(handler: Callable[[ServerConnection], None] = echo, host: str = "127.0.0.1", **options: Any) -> Iterator[Application]:
    def run(connection: ServerConnection) -> None:
        assert connection.request is not None
        made.paths.append(connection.request.path)
        made.headers.append({name.lower(): value for name, value in connection.request.headers.raw_items()})
        try:
            handler(connection)
        except ConnectionClosed:
            pass
        finally:
            made.closes.append(connection.protocol.close_rcvd)
            made.ended.release()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    running = serve(run, sock=socket.create_server((host, 0), family=family), max_size=None, **options)
    made = Application(running.socket.getsockname()[1])
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        running.shutdown()
        thread.join(10)


def open_socket(server: ServerProcess, path: str, headers: dict[str, str] | None = None, **options: Any) -> ClientConnection:
    url = server.url.replace("http", "ws") + path
    made: ClientConnection = connect(
        url, additional_headers={**BEARER, **(headers or {})}, max_size=None, close_timeout=5, open_timeout=15, **options
    )
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_text_and_bytes_come_back_as_they_went(server: ServerProcess, host: str) -> None:
    with application(host=host) as app, open_socket(server, f"/proxy/{app.port}/a%2Fb?x=%20&token=t") as client:
        for message in ("", "hello 你好 \0", b"", bytes(range(256)), "x" * 1_000_000, b"\xff" * 1_000_000):
            client.send(message)
            assert client.recv(10) == message
        client.send(["a", "b", "c"])  # in fragments
        assert client.recv(10) == "abc"
        assert app.paths == ["/a%2Fb?x=%20&token=t"]


def test_the_path_without_the_last_slash_is_the_root(server: ServerProcess) -> None:
    with application() as app, open_socket(server, f"/proxy/{app.port}") as client:
        client.send("hi")
        assert (client.recv(10), app.paths) == ("hi", ["/"])


def test_messages_in_fragments_arrive_whole(server: ServerProcess) -> None:
    def handler(connection: ServerConnection) -> None:
        connection.send(["你".encode()[:1].decode("latin-1"), "好", "!"], text=True)
        connection.send([b"1", b"2", b"3"])
        connection.recv()

    with application(handler) as app, open_socket(server, f"/proxy/{app.port}/") as client:
        assert client.recv(10) == "ä好!"
        assert client.recv(10) == b"123"
        client.send("done")


def test_handshake_headers_are_those_of_a_page_of_its_own(server: ServerProcess) -> None:
    own = server.url
    headers = {"Cookie": f"a=1; {COOKIE}=x; b=2", "X-Mine": "1", "X-API-Key": "of-the-app"}
    with application() as app, open_socket(server, f"/proxy/{app.port}/", headers, origin=own, compression=None):
        pass
    seen = app.headers[0]
    assert (seen["host"], seen["origin"]) == (f"localhost:{app.port}", f"http://localhost:{app.port}")
    assert (seen["cookie"], seen["x-mine"], seen["x-api-key"]) == ("a=1; b=2", "1", "of-the-app")
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"], seen["x-forwarded-prefix"]) == ("127.0.0.1", "http", f"/proxy/{app.port}")
    assert "authorization" not in seen
    assert TOKEN not in str(seen)


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["vite-hmr"], "vite-hmr"), (["a", "vite-hmr", "c"], "vite-hmr"), (["b"], None), ([], None)]
)
def test_a_subprotocol_is_agreed_on_between_the_ends(server: ServerProcess, offered: list[str], chosen: str | None) -> None:
    def select(connection: ServerConnection, subprotocols: Any) -> Any:
        return "vite-hmr" if "vite-hmr" in subprotocols else None

    with (
        application(subprotocols=[Subprotocol("vite-hmr")], select_subprotocol=select) as app,
        open_socket(server, f"/proxy/{app.port}/", subprotocols=[Subprotocol(name) for name in offered] or None) as client,
    ):
        assert client.subprotocol == chosen


CLOSES = [(1000, ""), (1000, "bye"), (1001, "going"), (1011, "fault"), (3000, "own"), (4999, "日本" * 20)]


@pytest.mark.parametrize(("code", "reason"), CLOSES)
def test_the_clients_close_reaches_the_application(server: ServerProcess, code: int, reason: str) -> None:
    with application() as app:
        with open_socket(server, f"/proxy/{app.port}/") as client:
            client.close(code, reason)
        assert app.ended.acquire(timeout=10)
        assert app.closes == [Close(code, reason)]


@pytest.mark.parametrize(("code", "reason"), CLOSES)
def test_the_applications_close_reaches_the_client(server: ServerProcess, code: int, reason: str) -> None:
    with application(lambda connection: connection.close(code, reason)) as app, open_socket(server, f"/proxy/{app.port}/") as client:
        with pytest.raises(ConnectionClosed):
            client.recv(10)
        assert client.protocol.close_rcvd == Close(code, reason)


def test_a_close_without_a_code_is_one_on_both_sides(server: ServerProcess) -> None:
    def handler(connection: ServerConnection) -> None:
        if connection.recv() == "you":
            connection.protocol.send_close()
            for data in connection.protocol.data_to_send():
                connection.socket.sendall(data)
        connection.recv()

    with application(handler) as app:
        with open_socket(server, f"/proxy/{app.port}/") as client:
            client.send("you")
            with pytest.raises(ConnectionClosed):
                client.recv(10)
            assert client.protocol.close_rcvd == Close(1005, "")
        with open_socket(server, f"/proxy/{app.port}/") as client:
            client.send("I")
            client.protocol.send_close()
            for data in client.protocol.data_to_send():
                client.socket.sendall(data)
            assert app.ended.acquire(timeout=10)
            assert app.ended.acquire(timeout=10)
            assert app.closes[1] == Close(1005, "")


def test_an_application_that_dies_leaves_the_client_without_a_goodbye(server: ServerProcess) -> None:
    def handler(connection: ServerConnection) -> None:
        connection.recv()
        connection.socket.shutdown(socket.SHUT_RDWR)

    with application(handler) as app, open_socket(server, f"/proxy/{app.port}/") as client:
        client.send("die")
        with pytest.raises(ConnectionClosed):
            client.recv(10)
        assert client.protocol.close_rcvd is None


def test_a_client_that_dies_leaves_the_application_without_one(server: ServerProcess) -> None:
    with application() as app, open_socket(server, f"/proxy/{app.port}/") as client:
        client.send("hi")
        assert client.recv(10) == "hi"
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.shutdown(socket.SHUT_RDWR)
        assert app.ended.acquire(timeout=5)
        assert app.closes == [None]


def test_pings_are_answered_on_both_sides(server: ServerProcess) -> None:
    def handler(connection: ServerConnection) -> None:
        assert connection.ping(b"are you there").wait(10)
        connection.send("it is")
        connection.recv()

    with application(handler) as app, open_socket(server, f"/proxy/{app.port}/") as client:
        assert client.recv(10) == "it is"
        assert client.ping().wait(10)
        client.send("done")


def test_messages_may_be_large_but_not_without_end(server: ServerProcess) -> None:
    sizes = iter([MAX_MESSAGE, MAX_MESSAGE + 1])

    def handler(connection: ServerConnection) -> None:
        connection.send(bytes(next(sizes)))
        connection.recv()

    with application(handler) as app:
        with open_socket(server, f"/proxy/{app.port}/") as client:
            assert len(client.recv(20)) == MAX_MESSAGE
        with open_socket(server, f"/proxy/{app.port}/") as client:
            with pytest.raises(ConnectionClosed):
                client.recv(20)
            assert client.protocol.close_rcvd is not None
            assert client.protocol.close_rcvd.code == 1009
    with application() as app:
        with open_socket(server, f"/proxy/{app.port}/", compression=None) as client, pytest.raises(ConnectionClosed):  # noqa: PT012  # either
            client.send(bytes(MAX_MESSAGE + 1))
            client.recv(20)
        assert app.ended.acquire(timeout=5)


def test_an_application_that_sends_before_it_is_asked_loses_nothing(server: ServerProcess) -> None:
    def handler(connection: ServerConnection) -> None:
        for number in range(1_000):
            connection.send(str(number))

    with application(handler) as app, open_socket(server, f"/proxy/{app.port}/") as client:
        assert [client.recv(10) for _ in range(1_000)] == [str(number) for number in range(1_000)]
        with pytest.raises(ConnectionClosed):
            client.recv(10)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Why: no\r\n\r\nno", 403),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Why: no\r\n\r\nno", 200),
        (b"nonsense\r\n\r\n", 502),
        (b"", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n", 502),
    ],
    ids=["refused", "http", "nonsense", "nothing", "wrong"],
)
def test_a_refused_handshake_is_refused_the_same_way(server: ServerProcess, answer: bytes, status: int) -> None:
    with listening(answering(answer)) as upstream, pytest.raises(InvalidStatus) as refused:
        open_socket(server, f"/proxy/{upstream.port}/").__enter__()
    assert refused.value.response.status_code == status
    if status != 502:
        assert (refused.value.response.body, refused.value.response.headers["x-why"]) == (b"no", "no")


def test_nobody_listening_is_an_upstream_error(server: ServerProcess) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(InvalidStatus) as refused:
            open_socket(server, f"/proxy/{closed.getsockname()[1]}/").__enter__()
    assert refused.value.response.status_code == 502
    assert b"UPSTREAM_ERROR" in (refused.value.response.body or b"")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {**BEARER, "Origin": "https://evil.example"}])
def test_strangers_and_other_origins_are_refused(server: ServerProcess, headers: dict[str, str]) -> None:
    with application() as app:
        for path in (f"/proxy/{app.port}/", "/"):
            given = {**headers, "Cookie": f"{PORTS_COOKIE}={app.port}"}
            with pytest.raises(InvalidStatus) as refused:
                connect(server.url.replace("http", "ws") + path, additional_headers=given).__enter__()
            assert refused.value.response.status_code in (401, 403)
        assert app.paths == []


def test_the_own_port_and_what_is_no_port_are_refused(server: ServerProcess) -> None:
    own = server.url.rpartition(":")[2]
    for port, status in ((own, 403), ("0" + own, 400), (f"%3{own[0]}{own[1:]}", 400), ("x", 400), ("70000", 400)):
        with pytest.raises(InvalidStatus) as refused:
            open_socket(server, f"/proxy/{port}/").__enter__()
        assert refused.value.response.status_code == status


# Pages that know nothing of the prefix


def test_a_socket_without_the_prefix_goes_where_the_browser_has_a_page(server: ServerProcess) -> None:
    with application() as app, open_socket(server, "/socket?a=%20", {"Cookie": f"{PORTS_COOKIE}={app.port}"}) as client:
        client.send("hi")
        assert (client.recv(10), app.paths) == ("hi", ["/socket?a=%20"])


def test_of_several_pages_the_first_that_takes_it_has_it(server: ServerProcess) -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    own = server.url.rpartition(":")[2]
    with socket.socket() as closed, listening(answering(refusal)) as other, application() as app:
        closed.bind(("127.0.0.1", 0))
        cookie = f"{PORTS_COOKIE}={own}.{closed.getsockname()[1]}.{other.port}.{app.port}"
        with open_socket(server, "/", {"Cookie": cookie}) as client:
            client.send("hi")
            assert client.recv(10) == "hi"
        assert {first_line(head).split()[1] for head in other.heads} == {b"/", b"/proxy/%d/" % other.port}


@pytest.mark.parametrize("cookie", ["", "x", "0", "99999", "80.x", "-1", "1" * 1000, "."])
def test_without_a_page_there_is_nothing(server: ServerProcess, cookie: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_socket(server, "/socket", {"Cookie": f"{PORTS_COOKIE}={cookie}"}).__enter__()
    assert refused.value.response.status_code in (404, 502)


def test_a_socket_of_an_application_under_the_prefix_finds_it(server: ServerProcess) -> None:
    def only_under_prefix(connection: ServerConnection, request: Any) -> Any:
        return None if request.path.startswith("/proxy/") else connection.respond(400, "")

    with application(process_request=only_under_prefix) as app:
        server.get("/ports")
        for _ in range(2):
            with open_socket(server, f"/proxy/{app.port}/a") as client:
                client.send("hi")
                assert client.recv(10) == "hi"
        assert app.paths == [f"/proxy/{app.port}/a"] * 2

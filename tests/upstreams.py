"""Programs that listen on loopback, for the tests of the proxy: each connection is a function's, in a thread."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Conversation = Callable[[socket.socket, bytes], None]
"""Gets a connection and the head of the first request on it. What it leaves open is closed after it."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """A listener. `heads` are the request heads it got."""

    def __init__(self, converse: Conversation, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.heads: list[bytes] = []
        self.ended = threading.Semaphore(0)  # one for each connection that is over
        self._converse = converse
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(30)
            head = read_head(connection)
            self.heads.append(head)
            self._converse(connection, head)
        self.ended.release()


@contextlib.contextmanager
def listening(converse: Conversation, host: str = "127.0.0.1", port: int = 0) -> Iterator[Upstream]:
    upstream = Upstream(converse, host, port)
    try:
        yield upstream
    finally:
        upstream.close()


def answering(response: bytes = OK) -> Conversation:
    """Answers each request with these bytes."""
    return lambda connection, head: connection.sendall(response)


def read_head(connection: socket.socket) -> bytes:
    """The request's head, byte by byte, so that nothing of the body is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            break
        head += byte
    return head


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(min(size - len(data), 1 << 20))):
        data += more
    return data


def first_line(head: bytes) -> bytes:
    return head.partition(b"\r\n")[0]


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

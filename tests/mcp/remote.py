"""An MCP server over HTTP in this process, written out, so that a test can break it: streamable HTTP with sessions, or the older SSE."""

import contextlib
import json
import queue
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.mcp.authority import Authority

TOOLS = ("echo", "drop", "look", "expire", "grow", "huge")


class Remote:
    """The server. `calls` counts what reached it; `expire` makes it forget its sessions, as a restart does, and answer `unknown` to
    them; `authority` guards it."""

    def __init__(self, *, is_sse: bool = False, port: int = 0) -> None:
        self.is_sse = is_sse
        self.refusal: int | None = None
        self.unknown = (404, -32001, "Session not found")
        self.is_stubborn = False
        self.left = threading.Event()
        self.authority: Authority | None = None
        self.calls: Counter[str] = Counter()
        self.sessions: dict[str, queue.Queue[str | None]] = {}
        self.dropped: set[str] = set()
        self.tools = list(TOOLS)
        self._server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"remote": self}))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/mcp")

    def open_session(self) -> str:
        session = f"session-{self.calls['initialize']}"
        self.sessions[session] = queue.Queue()
        return session

    def expire(self) -> None:
        for waiting in self.sessions.values():
            waiting.put(None)
        self.sessions.clear()

    def say(self, session: str, message: dict[str, Any]) -> None:
        self.sessions[session].put(json.dumps({"jsonrpc": "2.0", **message}))

    def close(self) -> None:
        self.expire()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, session: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What it says to a request. Errors: ConnectionError for one that it drops."""
        method, given = asked["method"], asked.get("params") or {}
        if method == "initialize":
            info = {"name": "remote", "version": "1"}
            return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}, "serverInfo": info}
        if method == "tools/list":
            hints = {"look": {"readOnlyHint": True}}
            return {"tools": [{"name": n, "inputSchema": {"type": "object"}, "annotations": hints.get(n, {})} for n in self.tools]}
        name = given["name"]
        self.calls[name] += 1
        if name in ("drop", "look") and name not in self.dropped:
            self.dropped.add(name)
            raise ConnectionError
        if name == "grow":
            self.tools.append("grown")
            self.say(session, {"method": "notifications/tools/list_changed"})
        if name == "huge":
            return {"content": [{"type": "text", "text": "x" * (40 << 20)}]}
        return {"content": [{"type": "text", "text": f"{name} done"}]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *given: Any) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(*given)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address


class _Handler(BaseHTTPRequestHandler):
    remote: Remote
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # its name in the base class
        pass

    def do_GET(self) -> None:
        if self._is_kept_out(b""):
            return
        if self.remote.refusal is not None or self.path != "/mcp":
            self._reply(self.remote.refusal or 404)
            return
        session = self.remote.open_session() if self.remote.is_sse else self.headers.get("mcp-session-id", "")
        if session not in self.remote.sessions:
            self.send_error(404)
            return
        waiting = self.remote.sessions[session]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.remote.is_sse:
            self.wfile.write(f"event: endpoint\ndata: /messages?session_id={session}\n\n".encode())
        while (message := waiting.get()) is not None:
            self.wfile.write(f"event: message\ndata: {message}\n\n".encode())
        self.close_connection = True

    def do_DELETE(self) -> None:
        self.remote.calls["delete"] += 1
        if not self.remote.is_stubborn:
            self._reply(200)
            return
        self.connection.settimeout(5)
        with contextlib.suppress(TimeoutError):
            if self.rfile.read(1) == b"":  # the client has gone
                self.remote.left.set()
        self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_kept_out(body):
            return
        asked = json.loads(body)
        self.remote.calls[asked.get("method", "response")] += 1
        if self.remote.refusal is not None:
            self._reply(self.remote.refusal)
        elif self.remote.is_sse:
            self._post_to_sse(asked)
        else:
            self._post(asked)

    def _is_kept_out(self, body: bytes) -> bool:
        authority = self.remote.authority
        said = None if authority is None else authority.answer(self.path, self.headers.get("Authorization", ""), body)
        if said is not None:
            self._reply(said[0], said[1], **said[2])
        return said is not None

    def _post(self, asked: dict[str, Any]) -> None:
        session = self.headers.get("mcp-session-id", "")
        if asked["method"] == "initialize":
            session = self.remote.open_session()
        if session not in self.remote.sessions:
            status, code, message = self.remote.unknown
            self._reply(status, json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}).encode())
        elif "id" not in asked:
            self._reply(202)
        else:
            self._answer(session, asked)

    def _answer(self, session: str, asked: dict[str, Any]) -> None:
        try:
            result = self.remote.answer(session, asked)
        except ConnectionError:
            self.close_connection = True
            return
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode()
        self._reply(200, body, **({"mcp-session-id": session} if asked["method"] == "initialize" else {}))

    def _post_to_sse(self, asked: dict[str, Any]) -> None:
        session = self.path.partition("session_id=")[2]
        if not self.path.startswith("/messages"):
            self._reply(405)
        elif session not in self.remote.sessions:
            self._reply(404)
        else:
            self._reply(202)
            try:
                if "id" in asked:
                    self.remote.say(session, {"id": asked["id"], "result": self.remote.answer(session, asked)})
            except ConnectionError:
                self.remote.expire()

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

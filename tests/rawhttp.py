"""Requests written byte by byte, for what no client library sends."""

import json
import socket
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.serving import TOKEN

AUTHORIZED = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"


def connect(url: str, host: str | None = None) -> socket.socket:
    parts = urlsplit(url)
    assert parts.port is not None
    return socket.create_connection((host or parts.hostname or "", parts.port), timeout=20)


def answer(connection: socket.socket, method: str = "GET") -> tuple[HTTPResponse, Any]:
    """Gives the next response on a connection, and its JSON body if it has one."""
    response = HTTPResponse(connection, method=method)
    response.begin()
    body = response.read()
    return response, json.loads(body) if body else None


def exchange(url: str, request: str) -> tuple[HTTPResponse, Any]:
    """Sends these lines and gives the response."""
    with connect(url) as connection:
        connection.sendall(request.encode())
        return answer(connection, request.partition(" ")[0])


def exchange_raw(url: str, request: str) -> tuple[HTTPResponse, bytes]:
    """Sends these lines and gives the response, and its body."""
    with connect(url) as connection:
        connection.sendall(request.encode())
        response = HTTPResponse(connection, method=request.partition(" ")[0])
        response.begin()
        return response, response.read()

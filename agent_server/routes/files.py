"""/files and /files/stat: the contents of one file, and what there is at a path."""

import asyncio
import mimetypes
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from typing import Annotated
from urllib.parse import parse_qsl, quote

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.changes.changes import shown
from agent_server.errors import InvalidRequest
from agent_server.files import ranges
from agent_server.files.files import CHUNK_BYTES, Condition, Info, etag_of, names
from agent_server.files.transfer import Sending, pieces
from agent_server.http import Endpoint, failure, reply
from agent_server.server import server_of

BYTES = "application/octet-stream"

_TYPES = mimetypes.MimeTypes(filenames=())  # not the machine's: the same everywhere

_APART = {
    # A file that is HTML must not act as a page of this server: it is saved, not shown, and has no origin where it is shown after all.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "no-cache",
}

Path = Annotated[str, Meta(min_length=1, description="relative to the workspace, or absolute; bytes that are not UTF-8 as %XX")]


class FileQuery(msgspec.Struct, frozen=True):
    path: Path


class StatQuery(msgspec.Struct, frozen=True):
    path: Path
    follow_links: bool = False


class FileReply(msgspec.Struct, frozen=True):
    path: str
    size: int
    etag: str


class RemovedReply(msgspec.Struct, frozen=True):
    path: str


def named(request: Request, path: str) -> str:
    """Gives a path of the query with the bytes it was written in: those that are not UTF-8 are lost in the text."""
    if "\ufffd" not in path:
        return path
    query: str = request.scope["query_string"].decode("latin-1")
    return next(value for name, value in reversed(parse_qsl(query, errors="surrogateescape")) if name == "path")


def kept_apart(name: str, kind: str) -> dict[str, str]:
    """Gives the headers of contents that are not ours."""
    disposition = f"attachment; filename*=UTF-8''{quote(os.fsencode(name))}"
    return {**_APART, "Content-Type": kind, "Content-Disposition": disposition}


async def get(request: Request, query: FileQuery) -> Response:
    files = server_of(request).files
    path = named(request, query.path)
    with ExitStack() as stack:
        stack.enter_context(files.transfer())
        file, info = await asyncio.to_thread(files.open, path)
        stack.callback(os.close, file)
        etag = etag_of(info)
        headers = {
            **kept_apart(os.path.basename(path.rstrip("/")), _type(path)),
            "ETag": etag,
            "Last-Modified": formatdate(info.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if names(request.headers.get("if-none-match", '""'), etag):
            return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Last-Modified", "Cache-Control")})
        try:
            begin, end, status = _range(request, etag, info.st_size, headers)
        except ranges.Unsatisfiable:
            return _unsatisfiable(request, info.st_size)
        headers["Content-Length"] = str(end - begin)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return Sending(_read(file, begin, end), stack.pop_all().close, status, headers)


def _type(path: str) -> str:
    kind, encoding = _TYPES.guess_type(path, strict=False)
    return (kind or BYTES) if encoding is None else BYTES


def _range(request: Request, etag: str, size: int, headers: dict[str, str]) -> tuple[int, int, int]:
    """Gives the first byte to send, the one after the last, and the status. Errors: Unsatisfiable."""
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", etag) != etag:
        return 0, size, 200
    place = ranges.parse(wanted, size)
    if place is None:
        return 0, size, 200
    headers["Content-Range"] = f"bytes {place[0]}-{place[1] - 1}/{size}"
    return *place, 206


def _unsatisfiable(request: Request, size: int) -> Response:
    error = InvalidRequest(f"Range: the file has {size} bytes; ask for some of these.", path="Range")
    error.status = 416
    response = failure(request, error)
    response.headers["Content-Range"] = f"bytes */{size}"
    return response


async def _read(file: int, begin: int, end: int) -> AsyncIterator[bytes]:
    # A file that was cut short meanwhile ends early: the client sees that something is missing.
    while begin < end and (data := await asyncio.to_thread(os.pread, file, min(CHUNK_BYTES, end - begin), begin)):
        begin += len(data)
        yield data


def _condition(request: Request) -> Condition:
    return Condition(request.headers.get("if-match"), request.headers.get("if-none-match"))


async def put(request: Request, query: FileQuery) -> Response:
    server = server_of(request)
    await server.checkpoints.ready()
    with ExitStack() as stack:
        stack.enter_context(server.files.transfer())
        upload = await asyncio.to_thread(server.files.upload, named(request, query.path), _condition(request))
        stack.callback(upload.close)
        length = request.headers.get("content-length", "")
        if length.isdigit():
            upload.expect(int(length))
        async for data in pieces(request):
            await asyncio.to_thread(upload.write, data)
        size, etag, is_made = await asyncio.to_thread(upload.finish)
    path = shown(os.fsencode(server.workspace.relative(upload.real)))
    return reply(request, FileReply(path, size, etag), 201 if is_made else 200, {"ETag": etag})


async def delete(request: Request, query: FileQuery) -> Response:
    server = server_of(request)
    await server.checkpoints.ready()
    path = named(request, query.path)
    await asyncio.to_thread(server.files.remove, path, _condition(request))
    return reply(request, RemovedReply(shown(os.fsencode(server.workspace.relative(server.workspace.place(path))))))


async def stat(request: Request, query: StatQuery) -> Response:
    look = partial(server_of(request).files.stat, follow_links=query.follow_links)
    return reply(request, await asyncio.to_thread(look, named(request, query.path)))


_CHANGING = (404, 409, 422, 429)

ROUTES = (
    Endpoint(
        *("GET", "/files", get, "Read a file: If-None-Match, and Range for one range of bytes (several give the whole file)"),
        query=FileQuery,
        replies={200: "*/*", 206: "*/*", 304: ""},
        errors=(404, 409, 416, 429),
    ),
    Endpoint(
        *("PUT", "/files", put, "Write a file whole, through a link to its target; makes folders; If-Match, If-None-Match: *"),
        query=FileQuery,
        replies={200: FileReply, 201: FileReply},
        errors=_CHANGING,
        streamed=BYTES,
    ),
    Endpoint(
        *("DELETE", "/files", delete, "Remove a file, a link, or a folder with all that is in it"),
        query=FileQuery,
        replies={200: RemovedReply},
        errors=_CHANGING,
    ),
    Endpoint("GET", "/files/stat", stat, "Tell what there is at a path", query=StatQuery, replies={200: Info}),
    Endpoint("GET", "/stat", stat, "Tell what there is at a path", query=StatQuery, replies={200: Info}),
)

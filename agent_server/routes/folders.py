"""/files/tree, /files/search, /files/watch and /files/archive: what is in a folder."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.changes.changes import shown
from agent_server.files.folders import telling
from agent_server.files.listing import TreeEntry, encoded, list_tree
from agent_server.files.pack import pack
from agent_server.files.search import Match, Query, search
from agent_server.files.transfer import Live, Pull, Sending, pieces
from agent_server.files.tree import LEVELS
from agent_server.files.unpack import add, spool, unpack
from agent_server.files.watch import Change, Watch
from agent_server.http import Endpoint, reply
from agent_server.redaction import Secrets
from agent_server.routes.files import kept_apart, named
from agent_server.server import Server, server_of
from agent_server.streams import RETRY
from agent_server.wire import as_data, timestamp

GZIP = "application/gzip"
EVENTS = "text/event-stream"

Folder = Annotated[str, Meta(min_length=1, description="a folder, relative to the workspace or absolute")]


class FolderQuery(msgspec.Struct, frozen=True):
    path: Folder = "."


class TreeQuery(msgspec.Struct, frozen=True):
    path: Folder = "."
    depth: Annotated[int, Meta(ge=1, le=LEVELS, description="levels; all when left out")] | None = None
    limit: Annotated[int, Meta(ge=1, le=50_000)] = 10_000
    ignored: Annotated[bool, Meta(description="show what .gitignore leaves out, too")] = False
    cursor: Annotated[str, Meta(description="nextCursor of the page before")] | None = None


class TreeReply(msgspec.Struct, frozen=True, rename="camel"):
    root: Annotated[str, Meta(description="the workspace, which the paths are relative to")]
    entries: list[TreeEntry]
    truncated: bool
    next_cursor: str | None


class SearchQuery(msgspec.Struct, frozen=True):
    query: Annotated[str, Meta(min_length=1, max_length=4096)]
    glob: Annotated[str, Meta(min_length=1, max_length=1024, description="files to search, such as *.py")] | None = None
    regex: Annotated[bool, Meta(description="the query is a regular expression, in Rust's syntax")] = False
    path: Folder = "."
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class SearchReply(msgspec.Struct, frozen=True):
    matches: list[Match]
    truncated: bool


class UnpackedReply(msgspec.Struct, frozen=True):
    path: str
    entries: int
    size: int


async def _existing(request: Request, path: str) -> tuple[Server, Path]:
    server = server_of(request)
    return server, await asyncio.to_thread(server.files.existing_folder, named(request, path))


async def tree(request: Request, query: TreeQuery) -> Response:
    server, folder = await _existing(request, query.path)
    wanted = partial(list_tree, depth=query.depth, limit=query.limit, ignored=query.ignored, cursor=query.cursor)
    async with server.files.listings:
        page = await asyncio.to_thread(wanted, server.files, server.ignores, folder)
    answer = TreeReply(str(server.workspace.root), page.entries, page.next_cursor is not None, page.next_cursor)
    return await asyncio.to_thread(reply, request, answer)


async def find(request: Request, query: SearchQuery) -> Response:
    server, folder = await _existing(request, query.path)
    wanted = Query(query.query, query.regex, query.glob, query.limit)
    async with server.files.listings:
        matches, is_cut = await asyncio.to_thread(search, folder, wanted, server.reaper.popen)
    prefix = "" if folder == server.workspace.root else shown(os.fsencode(server.workspace.relative(folder))) + "/"
    found = [msgspec.structs.replace(match, path=prefix + match.path) for match in matches]
    return await asyncio.to_thread(reply, request, SearchReply(found, is_cut))


async def watch(request: Request, query: FolderQuery) -> Response:
    server, folder = await _existing(request, query.path)
    if request.method == "HEAD":
        return Response(headers={"Content-Type": EVENTS})
    with telling(query.path), ExitStack() as stack:
        watching = server.watches.watch(partial(server.files.folder, folder))
        stack.callback(watching.close)
        await asyncio.to_thread(watching.begin)
        prefix = b"" if folder == server.workspace.root else os.fsencode(server.workspace.relative(folder)) + b"/"
        return Live(_told(watching, prefix, request.app.state.secrets), stack.pop_all().close)


async def _told(watching: Watch, prefix: bytes, secrets: Secrets) -> AsyncIterator[bytes]:
    yield RETRY
    async for change in watching.follow():
        data, _ = secrets.encode(_event(change, prefix))
        yield as_data(data)


def _event(change: Change, prefix: bytes) -> dict[str, Any]:
    now = timestamp(time.time_ns() // 1_000_000)
    if change.path is None:
        return {"type": "overflow", "message": "Some changes were not seen; read the tree again.", "timestamp": now}
    path = prefix + change.path
    event = {"type": "file.changed", "path": shown(path), "change": change.change, "timestamp": now}
    return event if (name := encoded(path)) is None else {**event, "encodedPath": name}


async def get_archive(request: Request, query: FolderQuery) -> Response:
    server, folder = await _existing(request, query.path)
    headers = kept_apart(f"{folder.name or 'workspace'}.tar.gz", GZIP)
    if request.method == "HEAD":
        return Response(headers=headers)
    with ExitStack() as stack:
        stack.enter_context(server.files.transfer())
        made = Pull(pack(server.files, query.path, folder))
        stack.callback(made.close)
        return Sending(made.pieces(), stack.pop_all().close, 200, headers)


async def put_archive(request: Request, query: FolderQuery) -> Response:
    server = server_of(request)
    path = named(request, query.path)
    folder = server.workspace.resolve(path)
    await server.checkpoints.ready()
    with server.files.transfer():
        spooled = await asyncio.to_thread(spool, server.files, folder)
        with spooled:
            async for data in pieces(request):
                await asyncio.to_thread(add, data, spooled)
            spooled.seek(0)
            async with server.files.unpackings:
                unpacked = await asyncio.to_thread(unpack, spooled, server.files, path, folder)
    where = shown(os.fsencode(server.workspace.relative(folder)))
    return reply(request, UnpackedReply(where, unpacked.entries, unpacked.size))


ROUTES = (
    Endpoint(
        *("GET", "/files/tree", tree, "List a folder, all levels, a page at a time"),
        query=TreeQuery,
        replies={200: TreeReply},
        errors=(404, 409),
    ),
    Endpoint(
        *("GET", "/files/search", find, "Find lines that contain a text or match a regular expression"),
        query=SearchQuery,
        replies={200: SearchReply},
        errors=(404,),
    ),
    Endpoint(
        *("GET", "/files/watch", watch, "Follow the changes in a folder, live: file.changed, and overflow where some were not seen"),
        query=FolderQuery,
        replies={200: EVENTS},
        errors=(404, 409, 422, 429),
    ),
    Endpoint(
        *("GET", "/files/archive", get_archive, "Take a folder as tar.gz"),
        query=FolderQuery,
        replies={200: GZIP},
        errors=(404, 409, 429),
    ),
    Endpoint(
        *("PUT", "/files/archive", put_archive, "Unpack a tar or tar.gz into a folder: all of it or, where an entry may not be, nothing"),
        query=FolderQuery,
        replies={200: UnpackedReply},
        errors=(404, 409, 422, 429),
        streamed=GZIP,
    ),
)

"""The `read` tool: a part of a text file with line numbers, an image, or a folder's entries. A large file is never in memory as a whole."""

import asyncio
import base64
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec

from tools import MAX_BYTES, MAX_LINES, Picture, Tool, ToolContext, ToolError, ToolResult
from tools._files import HIDDEN, file_errors, lock_of, name_of, not_found, read_whole, showable, size_of, stamp
from tools._text import decode, numbered_by

MAX_LINE = 2_000
"""Characters shown of one line."""

MAX_SHOWN = MAX_BYTES - 1024
"""Bytes of lines shown: what is told of them has room in the result, too."""

MIN_LINES, MIN_SHOWN = 100, 10 * 1024
"""Lines and bytes of them that are shown however long the instructions are that come with them."""

MAX_ENTRIES = 100_000
"""Entries of a folder that are sorted."""

SAMPLE = 8 * 1024
"""Bytes at the beginning of a file that decide whether it is text."""

PIECE = 64 * 1024
"""Bytes taken of a line at a time: more than MAX_LINE characters have."""

MAX_IMAGE = 5 << 20
"""Bytes of an image: what the strictest of the large providers takes."""

_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF87a": "image/gif", b"GIF89a": "image/gif"}

_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"

T = TypeVar("T")


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    file_path: Annotated[str, msgspec.Meta(description="File or folder, absolute or relative to the workspace.")]
    offset: Annotated[Annotated[int, msgspec.Meta(ge=0)] | None, msgspec.Meta(description="First line to show, counted from 1.")] = None
    limit: Annotated[Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="Lines to show at most (default 2000).")] = None


class _Part(msgspec.Struct, frozen=True):
    """What is to be shown: items from `first`, counted from 1, at most `limit` of them and `room` bytes."""

    first: int
    limit: int
    room: int

    def beside(self, told: str) -> "_Part":
        """The part that has room in a result with another text, but never less than MIN_SHOWN."""
        limit = min(self.limit, max(MIN_LINES, MAX_LINES - told.count("\n")))
        return _Part(self.first, limit, max(MIN_SHOWN, self.room - len(told.encode("utf-8", "replace"))))


class _Page(msgspec.Struct, frozen=True):
    """The items shown; `last` is the number of the last item looked at: of all of them, unless there is `more`."""

    lines: list[str]
    last: int
    more: bool


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    path = context.resolve(arguments.file_path)
    name = name_of(path, context.workspace)
    part = _Part(max(1, arguments.offset or 1), min(arguments.limit or MAX_LINES, MAX_LINES), MAX_SHOWN)
    content, *pictures = await asyncio.to_thread(_read, path, name, part, context)
    details: dict[str, Any] = {"path": name}
    instructions = context.nested_instructions(path)
    if instructions:
        details["instructions"] = list(instructions)
        texts = (f'\n\n<instructions file="{file}">\n{text}\n</instructions>' for file, text in instructions.items())
        told = "\n\nThe project's instructions for this folder:" + "".join(texts)
        content, *pictures = await asyncio.to_thread(_read, path, name, part.beside(told), context)
        content += told
    return ToolResult(content, details, pictures=tuple(pictures))


def _read(path: Path, name: str, part: _Part, context: ToolContext) -> tuple[str] | tuple[str, Picture]:
    """What is shown. A file is noted as seen also when it cannot be shown: then the model knows that, and may replace it."""
    with file_errors("read", name):
        try:
            state = path.stat()
        except FileNotFoundError as error:
            raise not_found(path, name) from error
        if stat.S_ISDIR(state.st_mode):
            return (_read_folder(path, name, part),)
        if not stat.S_ISREG(state.st_mode):
            raise ToolError(f"{name} is not a regular file.")
        with lock_of(path):
            state = path.stat()
            data = read_whole(path, state)
            context.saw(path, stamp(data, path))
        if data is not None:
            return _show(data, name, part)
        with path.open("rb") as file:
            sample = file.read(SAMPLE)
            _check_is_text(sample, state.st_size, name)
            file.seek(0)
            return (_read_file(file, name, part),)


def _show(data: bytes, name: str, part: _Part) -> tuple[str] | tuple[str, Picture]:
    kind = _image(data)
    if kind is not None and len(data) <= MAX_IMAGE:
        return f"{name} is an image ({kind}, {size_of(len(data))}); it is attached.", Picture(kind, base64.b64encode(data).decode())
    text = decode(data)
    plain = data if text.encoding == "utf-8" else text.body.encode("utf-8", "surrogatepass")
    _check_is_text((plain if text.mark else data)[:SAMPLE], len(data), name)
    if numbered_by(text.body) == "\r":
        plain = plain.replace(b"\r", b"\n")
    shown = _read_file(io.BytesIO(plain), name, part)
    return (shown if text.encoding == "utf-8" else f"{shown} (The file is in {text.encoding}, and stays so.)",)


def _image(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _IMAGES.items() if data.startswith(magic)), None)


def _check_is_text(sample: bytes, size: int, name: str) -> None:
    if (kind := _image(sample)) is not None:
        raise ToolError(f"{name} is an image ({kind}) of {size} bytes; at most {MAX_IMAGE} can be shown. Make a smaller one of it first.")
    if _is_binary(sample):
        raise ToolError(f"{name} is a binary file, not a text file. Look at it with bash (file, xxd, strings).")


def _is_binary(sample: bytes) -> bool:
    return b"\0" in sample or sample.startswith(b"%PDF-") or (len(sample) - len(sample.translate(None, _CONTROL))) * 10 > len(sample) * 3


def _read_file(file: BinaryIO, name: str, part: _Part) -> str:
    page = _page(_pieces(file), part, _numbered)
    if not page.last:
        return f"({name} is empty.)"
    note = _note(page, name, part.first, "lines")
    lines = [showable(line) for line in page.lines]
    if lines != page.lines:
        note += " (Bytes that are not UTF-8 are shown as \ufffd.)"
    return "\n".join([*lines, "", note])


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The lines with their ends; of a long one only the first piece."""
    while line := file.readline(PIECE):
        piece = line
        while len(piece) == PIECE and not piece.endswith(b"\n"):
            piece = file.readline(PIECE)
        yield line


def _numbered(number: int, line: bytes) -> str:
    text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
    if number == 1:
        text = text.removeprefix("\ufeff")
    return f"{number}: {text if len(text) <= MAX_LINE else f'{text[:MAX_LINE]}... (cut at {MAX_LINE} characters)'}"


def _read_folder(path: Path, name: str, part: _Part) -> str:
    with os.scandir(path) as entries:
        names = sorted(map(_entry, (entry for entry in islice(entries, MAX_ENTRIES) if not entry.name.startswith(HIDDEN))))
    if not names:
        return f"({name} is an empty folder.)"
    page = _page(names, part, lambda _, entry: entry)
    return "\n".join([*page.lines, "", _note(page, name, part.first, "entries")])


def _entry(entry: os.DirEntry[str]) -> str:
    is_folder = False
    with suppress(OSError):  # a loop of links, or one into a folder that is closed
        is_folder = entry.is_dir()
    return showable(entry.name) + "/" * is_folder


def _page(items: Iterable[T], part: _Part, show: Callable[[int, T], str]) -> _Page:
    lines: list[str] = []
    number = size = 0
    for number, item in enumerate(items, 1):
        if number < part.first:
            continue
        line = show(number, item)
        size += len(line.encode("utf-8", "surrogatepass")) + 1
        if len(lines) == part.limit or size > part.room:
            return _Page(lines, number, more=True)
        lines.append(line)
    return _Page(lines, number, more=False)


def _note(page: _Page, name: str, first: int, what: str) -> str:
    if page.more:
        return f"({what.capitalize()} {first} to {page.last - 1}. There is more: go on with offset={page.last}.)"
    if first > page.last:
        raise ToolError(f"offset {first} is past the end: {name} has {page.last} {what}.")
    return f"(End of {'file' if what == 'lines' else 'folder'}: {page.last} {what}.)"


TOOL = Tool(
    name="read",
    description=(
        "Shows a text file with line numbers (`12: text`; the number is not part of the file), an image, or a folder's entries. "
        "Shows at most 2000 lines or 50 KB, and says which offset goes on. To find the right part of a long file, grep first."
    ),
    arguments=Arguments,
    run=run,
    read_only=True,
)

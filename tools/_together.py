"""Several files replaced and removed, all of them or none.

What can fail is done first, beside the files: new contents are written to drafts, so a full disk or a missing permission is
found before anything has changed. Then only names change, and each change that was made is taken back when one fails.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec

from tools._files import beside, replace_file, write_draft


class NewFile(msgspec.Struct, frozen=True):
    """What a file is to be; `like` is the state of the file whose owner and mode it has."""

    data: bytes
    like: os.stat_result | None = None


class NotTakenBack(OSError):
    """A change failed, and so did taking back those before it."""


def replace_together(files: Mapping[Path, NewFile | None]) -> None:
    """Writes the files, and removes those that are None.

    Errors: OSError; then everything is as before, unless it is a NotTakenBack.
    """
    with ExitStack() as kept, _taken_back() as undo:
        drafts = {}
        for path, new in files.items():
            if new is not None:
                _make_folder(path.parent, undo)
                drafts[path] = write_draft(path, new.data, new.like)
                undo.append(partial(_forget, drafts[path]))
        for path in files:
            put_back = _keep(path, kept)
            if path in drafts:
                drafts[path].replace(path)
            else:
                path.unlink(missing_ok=True)
            undo.append(put_back)


@contextmanager
def _taken_back() -> Iterator[list[Callable[[], object]]]:
    """Calls what is put into the list, the last first, when the block fails."""
    undo: list[Callable[[], object]] = []
    try:
        yield undo
    except BaseException as error:
        failures = []
        for step in reversed(undo):
            try:
                step()
            except OSError as failure:  # the others are put back all the same
                failures.append(failure)
        if failures:
            raise NotTakenBack(f"{error}; and then {failures[0]}") from error
        raise


def _make_folder(folder: Path, undo: list[Callable[[], object]]) -> None:
    missing = [folder, *folder.parents]
    for path in reversed(missing[: next((n for n, path in enumerate(missing) if path.exists()), len(missing))]):
        path.mkdir()
        undo.append(path.rmdir)


def _keep(path: Path, kept: ExitStack) -> Callable[[], object]:
    """Gives what puts a file back. It is kept under a second name: so putting it back needs no room on the disk."""
    if path.is_symlink():
        target = os.readlink(path)
        return lambda: path.symlink_to(target)
    try:
        state = path.stat()
    except FileNotFoundError:
        return lambda: path.unlink(missing_ok=True)
    name = beside(path)
    try:
        os.link(path, name)
    except OSError:  # a file system without hard links, or a file of somebody else
        data = path.read_bytes()
        return lambda: replace_file(path, data, state)
    kept.callback(_forget, name)
    return lambda: os.replace(name, path)


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)

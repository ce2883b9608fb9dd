"""Several files replaced and removed, all of them or none, also when the server is killed in between; and a single one.

First a note says what is to be done. Then new contents are written to drafts beside their places, so that a full disk or a missing
permission is found before anything has changed, and old files are kept under a second name. Only then names change. What fails is
taken back; what a kill broke off is taken back by the next start, from the note.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from tools._files import beside, write_draft

logger = logging.getLogger(__name__)

_NOTE, _DONE, _DRAFT = ".note", ".done", ".draft"
"""How notes end: of changes that are taken back, of those that are made but for the clearing up, and of what is no note yet."""


class NewFile(msgspec.Struct, frozen=True):
    """What a file is to be; `like` is the state of the file whose owner and mode it has."""

    data: bytes
    like: os.stat_result | None = None


class NotTakenBack(OSError):
    """A change failed, and so did taking back those before it."""


class _Step(msgspec.Struct, frozen=True):
    """What is done to one file. `made` is the hash and the size of what it becomes, None when it is removed; `kept` is None when
    nothing was there."""

    path: bytes
    draft: bytes
    kept: bytes | None
    made: tuple[bytes, int] | None


class _Note(msgspec.Struct, frozen=True):
    """A whole change. Paths are bytes: not every one is text."""

    folders: Sequence[bytes]
    steps: Sequence[_Step]


def replace_together(files: Mapping[Path, NewFile | None], notes: Path) -> None:
    """Writes the files, and removes those that are None. The note is in the folder `notes`.

    Errors: OSError; then everything is as before, unless it is a NotTakenBack.
    """
    files = {path: new for path, new in files.items() if new is not None or os.path.lexists(path)}
    note = _Note(list(_missing_folders(files)), [_step(path, new) for path, new in files.items()])
    place = notes / f"{uuid.uuid4().hex}{_NOTE}"
    _write(place, msgspec.msgpack.encode(note))
    try:
        _make(note, files)
    except BaseException as error:
        failures = _take_back(note)
        place.unlink(missing_ok=True)
        if failures:
            raise NotTakenBack(f"{error}; and then {failures[0]}") from error
        raise
    done = place.replace(place.with_suffix(_DONE))
    _clear(note)
    done.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, state: os.stat_result | None, notes: Path) -> None:
    """Writes one file so that readers see the old or the new one, with the owner and mode of `state`, the old one's.

    That takes one step, which is never taken back; the note is for the draft. Errors: OSError; then the file is as before.
    """
    draft = beside(path)
    place = notes / f"{uuid.uuid4().hex}{_DONE}"
    _write(place, msgspec.msgpack.encode(_Note([], [_Step(os.fsencode(path), os.fsencode(draft), None, None)])))
    try:
        write_draft(draft, data, state)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        place.unlink(missing_ok=True)


def take_back_unfinished(notes: Path) -> None:
    """Takes back what a killed server had not finished; a file that somebody has changed since is left alone. Blocks.

    Errors: none; they are logged, and what cannot be taken back is tried at the next start.
    """
    for place in sorted(notes.iterdir()):
        try:
            if place.suffix != _DRAFT:
                note = msgspec.msgpack.decode(place.read_bytes(), type=_Note)
                failures = _take_back(note) if place.suffix == _NOTE else _clear(note)
                if failures:
                    raise failures[0]
            place.unlink()
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("an unfinished patch could not be taken back: %s", error)


def _missing_folders(files: Mapping[Path, NewFile | None]) -> Iterable[bytes]:
    """The folders to be made, each after the one it is in."""
    folders = {parent for path, new in files.items() if new is not None for parent in path.parents if not os.path.lexists(parent)}
    return map(os.fsencode, sorted(folders))


def _step(path: Path, new: NewFile | None) -> _Step:
    kept = os.fsencode(beside(path)) if os.path.lexists(path) else None
    made = (hashlib.blake2b(new.data).digest(), len(new.data)) if new is not None else None
    return _Step(os.fsencode(path), os.fsencode(beside(path)), kept, made)


def _write(place: Path, data: bytes) -> None:
    draft = place.with_suffix(_DRAFT)
    try:
        draft.write_bytes(data)
        draft.replace(place)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _make(note: _Note, files: Mapping[Path, NewFile | None]) -> None:
    for folder in note.folders:
        os.mkdir(folder)
    for step, new in zip(note.steps, files.values(), strict=True):
        if new is not None:
            write_draft(Path(os.fsdecode(step.draft)), new.data, new.like)
    for step in note.steps:
        if step.kept is not None:
            _keep(step.path, step.kept)
    for step in note.steps:
        if step.made is None:
            os.unlink(step.path)
        else:
            os.replace(step.draft, step.path)


def _keep(path: bytes, kept: bytes) -> None:
    """Gives a file a second name: so putting it back needs no room on the disk."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links, or a file of somebody else
        if os.path.islink(path):
            os.symlink(os.readlink(path), kept)
        else:
            file = Path(os.fsdecode(path))
            write_draft(Path(os.fsdecode(kept)), file.read_bytes(), file.stat())


def _take_back(note: _Note) -> list[OSError]:
    """Undoes what was done of a change, the last first; what cannot be undone stays under the name it was kept by."""
    failures = []
    for step in reversed(note.steps):
        try:
            if _is_made(step):
                if step.kept is None:
                    os.unlink(step.path)
                elif os.path.lexists(step.kept):
                    os.replace(step.kept, step.path)
            _forget(step)
        except OSError as failure:  # the others are put back all the same
            failures.append(failure)
    for folder in reversed(note.folders):
        with suppress(OSError):  # it was not made, or somebody has put something there
            os.rmdir(folder)
    return failures


def _is_made(step: _Step) -> bool:
    """Whether a file is as the change makes it. Where its draft is there, that was not its doing."""
    if step.made is None:
        return not os.path.lexists(step.path)
    digest, size = step.made
    if os.path.lexists(step.draft) or not os.path.isfile(step.path) or os.path.getsize(step.path) != size:
        return False
    with open(step.path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest() == digest


def _clear(note: _Note) -> list[OSError]:
    """Removes what a change has left beside its files."""
    failures = []
    for step in note.steps:
        try:
            _forget(step)
        except OSError as failure:  # the change is made all the same
            failures.append(failure)
    return failures


def _forget(step: _Step) -> None:
    for name in (step.draft, step.kept):
        with suppress(FileNotFoundError, NotADirectoryError):
            if name is not None:
                os.unlink(name)

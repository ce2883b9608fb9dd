"""The files that a session has seen: their stamps when they were last read or written, by their names in events."""

from collections.abc import Mapping

MAX_FILES = 10_000
"""Files whose stamps are kept: of more, those that were read or written last."""


def remember(files: dict[str, str], seen: Mapping[str, str | None]) -> None:
    """Takes the newest stamps in; a file without one is gone."""
    for name, stamp in seen.items():
        files.pop(name, None)
        if stamp is not None:
            files[name] = stamp
    if len(files) > MAX_FILES:
        for name in list(files)[:-MAX_FILES]:  # a copy: calls side by side do this in threads
            files.pop(name, None)

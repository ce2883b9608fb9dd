"""JSON Schemas that clients bring: of their tools' arguments, and of a task's answer.

Validation is jsonschema-rs: it fetches no reference from anywhere, and bounds what a regular expression may take, which Python's
own `re` does not, and which would stop the whole server.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator

MAX_SCHEMA_BYTES = 64 << 10
"""Bytes of one schema: hundreds of times what models can follow, and compiled in some ms."""

BACKTRACK_LIMIT = 100_000
"""Steps that a regular expression may go back over one string; a real one takes a few."""

MAX_COMPLAINTS = 5
"""Faults that are told of one value, and
COMPLAINT_LENGTH the characters of each: a model mends one after another."""
COMPLAINT_LENGTH = 300


class Schema:
    """A compiled schema. Made by `compile_schema`, in a thread."""

    def __init__(self, validator: "Draft202012Validator") -> None:
        self._validator = validator

    def complaint(self, value: Any) -> str | None:
        """Says what is wrong with a value; None when it is valid."""
        found = []
        try:
            for error in self._validator.iter_errors(value):
                place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
                found.append(f"{place.lstrip('.') or 'the value'}: {_cut(error.message)}")
                if len(found) == MAX_COMPLAINTS:
                    break
        except ValueError as error:  # deeper than any schema needs
            found.append(_cut(str(error)))
        return "; ".join(found) or None


async def compile_schema(schema: Mapping[str, Any]) -> Schema:
    """Compiles a JSON Schema (draft 2020-12).

    Errors: ValueError with a sentence, when it is none, is too large, or refers to something outside of itself.
    """
    return await asyncio.to_thread(_compile, schema)


def _compile(schema: Mapping[str, Any]) -> Schema:
    # Imported at the first schema: it takes 60 ms and 13 MB.
    from jsonschema_rs import Draft202012Validator, FancyRegexOptions

    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise ValueError(f"it has more than {MAX_SCHEMA_BYTES} bytes")
    options = FancyRegexOptions(backtrack_limit=BACKTRACK_LIMIT)
    try:
        return Schema(Draft202012Validator(dict(schema), pattern_options=options, offline=True))
    except ValueError as error:
        raise ValueError(f"it is no JSON Schema that can be used: {_cut(str(error).partition(chr(10))[0])}") from error


def _cut(text: str) -> str:
    return text if len(text) <= COMPLAINT_LENGTH else text[: COMPLAINT_LENGTH - 1] + "…"

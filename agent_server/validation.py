"""From what a client sends to a typed body or query: both spellings of names, and errors that name the field.

Unknown fields are ignored, and given back by name. Nested objects are treated like the outermost one.
"""

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from agent_server.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)
Item = TypeVar("Item")

SHOWN = 64
"""Characters of a client's own words that a message repeats."""

ONE_LINE = r"(?!\n)"
"""How patterns end, since `$` alone matches before a last line end too; nothing that a client needs to be told."""


def parse_body(data: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """Gives the body as `kind`, and the places of the fields it does not have. No body is an empty object.

    Errors: InvalidRequest.
    """
    given = _decode(data)
    if not isinstance(given, dict):
        raise InvalidRequest("The body must be a JSON object.", path="$")
    if given.keys() <= _plain(kind):
        return _convert(given, kind, strict=True), []
    unknown: list[str] = []
    fields = _rename(given, kind, "", unknown)
    return _convert(fields, kind, strict=True), unknown


def parse_list(data: bytes, kind: type[list[Item]]) -> tuple[list[Item], list[str]]:
    """Gives a body that is an array as `kind`, such as `list[str]`; it has no fields to ignore.

    Errors: InvalidRequest.
    """
    try:
        return msgspec.convert(_decode(data), kind), []
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        path = place.rstrip("`")
        raise InvalidRequest(f"{path or 'The body'}: {text}.", path=path or "$") from error


def parse_query(parameters: Mapping[str, str], kind: type[T]) -> tuple[T, list[str]]:
    """Gives the query parameters as `kind`, and the names of those it does not have; of a repeated one the last counts.

    Errors: InvalidRequest.
    """
    unknown: list[str] = []
    fields = _rename(parameters, kind, "", unknown)
    return _convert(fields, kind, strict=False), unknown


def _decode(data: bytes) -> Any:
    if not data.strip():
        return {}
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except msgspec.DecodeError as error:
        reason = str(error).partition(" - at ")[0].removeprefix("JSON is malformed: ")
    raise InvalidRequest(f"The body is not valid JSON: {reason}.", path="$")


def _rename(given: Mapping[str, Any], kind: type[msgspec.Struct], place: str, unknown: list[str]) -> dict[str, Any]:
    """Gives the known fields by their own names, whichever spelling came, and adds the unknown ones to `unknown`."""
    names = _spellings(kind)
    known: dict[str, Any] = {}
    for name, value in given.items():
        own = names.get(name)
        if own is None:
            unknown.append(place + name)
        elif name == own or own not in given:
            known[own] = value
    for name, kinds in _nested(kind).items():
        if name in known:
            known[name] = _rename_nested(known[name], kinds, place + name, unknown)
    return known


def _rename_nested(value: Any, kinds: Mapping[Any, type[msgspec.Struct]], place: str, unknown: list[str]) -> Any:
    if isinstance(value, list):
        return [_rename_nested(item, kinds, f"{place}[{number}]", unknown) for number, item in enumerate(value)]
    if isinstance(value, dict):
        tag = value.get("type")
        kind = kinds.get(tag if isinstance(tag, str) else None)
        return _rename(value, kind, f"{place}.", unknown) if kind is not None else value
    return value


@cache
def _plain(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The fields of a type that are not nested, in their own spelling: there is nothing to rename where no other is given."""
    return frozenset(member.encode_name for member in msgspec.structs.fields(kind)) - _nested(kind).keys()


@cache
def _spellings(kind: type[msgspec.Struct]) -> dict[str, str]:
    own = [member.encode_name for member in msgspec.structs.fields(kind)]
    if kind.__struct_config__.tag_field is not None:
        own.append(kind.__struct_config__.tag_field)
    snake = {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name): name for name in own}
    camel = {re.sub("_([a-z])", lambda m: m[1].upper(), name): name for name in own}
    return {**snake, **camel, **{name: name for name in own}}


@cache
def _nested(kind: type[msgspec.Struct]) -> dict[str, dict[Any, type[msgspec.Struct]]]:
    """The fields that hold objects of known types, or lists of them: each with its types, by their tags."""
    found = {}
    for member in inspect.type_info(kind).fields:  # type: ignore[attr-defined]  # a struct's has them
        alternatives = [inner for one in _alternatives(member.type) for inner in (_alternatives(_item(one)) or [one])]
        kinds = {one.tag: one.cls for one in alternatives if isinstance(one, inspect.StructType)}
        if kinds:
            found[member.encode_name] = kinds
    return found


def _convert(fields: dict[str, Any], kind: type[T], *, strict: bool) -> T:
    try:
        return msgspec.convert(fields, kind, strict=strict)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        path = place.rstrip("`").lstrip(".")
    if missing := re.fullmatch("Object missing required field `(.+)`", text):
        path = f"{path}.{missing[1]}".lstrip(".")
        raise InvalidRequest(f"{path} is required.", path=path)
    if "[...]" in path:
        path = _entry(fields, kind, path)
    got = fields.get(path) if not strict else None
    raise InvalidRequest(f"{path or 'The body'}: {_sentence(text, kind, path, got)}.", path=path or "$")


def _sentence(text: str, kind: type[msgspec.Struct], path: str, got: str | None) -> str:
    if re.fullmatch("Expected `(str|array)` of length >= 1", text):
        return "it must not be empty"
    if text.startswith("Invalid ") and (allowed := _allowed(kind, path)):
        return f"{_short(text)}; it must be one of {', '.join(allowed)}"
    if pattern := re.fullmatch("Expected `str` matching regex (.+)", text):
        return f"it must match {ast.literal_eval(pattern[1]).removesuffix(ONE_LINE)}"
    if got is not None:  # all of a query is text; what counts is what it says
        text = text.replace("got `str`", f"got {got[:SHOWN]!r}").replace("`bool`", "true or false").replace(" | null", "")
    return text


def _short(text: str) -> str:
    return text if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}…"


def _entry(fields: dict[str, Any], kind: type[msgspec.Struct], path: str) -> str:
    """Gives the place of the entry of an object with free names that is wrong: msgspec says only `[...]`."""
    name = path.partition("[")[0]
    entries = fields.get(name)
    for key, value in entries.items() if isinstance(entries, dict) else ():
        try:
            msgspec.convert({**fields, name: {key: value}}, kind)
        except msgspec.ValidationError:
            return f"{name}.{key[:SHOWN]}"
    return path


def _allowed(kind: type[msgspec.Struct], path: str) -> list[str]:
    """The values of the enumeration, or of the tag, at a place."""
    types = [inspect.type_info(kind)]
    for step in re.findall(r"\[[^\]]*\]|[^.\[\]]+", path):
        if step.startswith("["):
            types = [inner for one in types for inner in _alternatives(_item(one))]
            continue
        structs = [one for one in types if isinstance(one, inspect.StructType)]
        if tags := [str(one.tag) for one in structs if one.tag_field == step]:
            return tags
        types = [inner for one in structs for member in one.fields if member.encode_name == step for inner in _alternatives(member.type)]
    return [str(value) for one in types if isinstance(one, inspect.LiteralType) for value in one.values]


def _alternatives(kind: inspect.Type | None) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [inner for one in kind.types for inner in _alternatives(one)]
    return [kind] if kind is not None else []


def _item(kind: inspect.Type) -> inspect.Type | None:
    return kind.item_type if isinstance(kind, inspect.ListType) else None

"""The JSON Schemas of tools in the words that Google and Bedrock have.

litellm translates a plain schema by itself. What it breaks off at, or makes something else of, is made plain here: references, `true`,
constants, alternatives, and lists of what an array holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

NODES_LIMIT = 10_000
"""Values of a schema after which no further reference is followed: ten that name each other twice are a thousand."""

OBJECT: Schema = {"type": "object"}
"""What stands for a reference that leads back to itself, or nowhere."""

ANYTHING: Schema = {"anyOf": [{"type": name} for name in ("string", "number", "boolean", "object")]}

TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def inlined(schema: Schema) -> dict[str, Any]:
    """A schema with what is referred to in the place of each reference."""
    whole: dict[str, Any] = _Inliner(schema).inline(schema, ())
    return {name: value for name, value in whole.items() if name not in ("$defs", "definitions")}


def googles(schema: Any) -> dict[str, Any]:
    """An inlined schema without what Google has no words for. Source: https://ai.google.dev/api/caching#Schema"""
    if not isinstance(schema, dict) or not schema:
        return dict(ANYTHING)
    plain = _merged(schema)
    values = [plain.pop("const")] if "const" in plain else _list(plain.pop("enum", None))
    choices = [*_list(plain.pop("anyOf", None)), *_list(plain.pop("oneOf", None))]
    items = plain.pop("items", None)
    held = [*_list(plain.pop("prefixItems", None)), *(items if isinstance(items, list) else [items] if items else [])]
    properties = _dict(plain.pop("properties", None))
    wanted = _list(plain.pop("required", None))
    told = {
        "anyOf": [googles(choice) for choice in choices],
        "items": _held([googles(item) for item in held]),
        "properties": {name: googles(value) for name, value in properties.items()},
        "required": [name for name in properties if name in wanted],
        **(_enumerated(values, plain.get("type")) if values else {}),
    }
    return plain | {name: value for name, value in told.items() if value}


class _Inliner:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._left = NODES_LIMIT

    def inline(self, value: Any, within: tuple[str, ...]) -> Any:
        """`within` are the references that have led here."""
        self._left -= 1
        if isinstance(value, list):
            return [self.inline(item, within) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if not isinstance(reference, str):  # a property may have that name
            return {name: self.inline(item, within) for name, item in value.items()}
        named = self._named(reference) if reference not in within and self._left > 0 else OBJECT
        rest = {name: item for name, item in value.items() if name != "$ref"}
        return {**self.inline(named, (*within, reference)), **self.inline(rest, within)}

    def _named(self, reference: str) -> Schema:
        """What a pointer into the schema leads to. Source: RFC 6901"""
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found if isinstance(found, dict) and reference.startswith("#") else OBJECT


def _merged(schema: Schema) -> dict[str, Any]:
    """A schema and all that it must be besides, as one: the properties of all, and of the rest what is said first."""
    merged = {name: value for name, value in schema.items() if name != "allOf"}
    for part in _list(schema.get("allOf")):
        other = _merged(_dict(part))
        properties = {**_dict(other.get("properties")), **_dict(merged.get("properties"))}
        required = [*_list(merged.get("required")), *_list(other.get("required"))]
        merged = {**other, **merged, "properties": properties, "required": required}
    return merged


def _enumerated(values: Sequence[Any], kind: Any) -> dict[str, Any]:
    """Google lists only texts, and no empty one; what is null may be so besides."""
    given = [value for value in values if value is not None]
    may_be_null = {"nullable": True} if len(given) < len(values) else {}
    if given and all(isinstance(value, str) and value for value in given):
        return {"type": "string", "enum": given, **may_be_null}
    kinds = {TYPES[type(value)] for value in given}
    return {"type": kind or (kinds.pop() if len(kinds) == 1 else "string"), **may_be_null}


def _held(items: Sequence[Schema]) -> Schema | None:
    """What an array holds, whatever the place in it."""
    return {"anyOf": items} if len(items) > 1 else next(iter(items), None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

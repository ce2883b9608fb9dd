"""A tool's arguments: their JSON Schema, as it is sent to models, and what models send for them.

Not in `tools/__init__.py`: there `list` is the tool.
"""

from typing import Any

import msgspec

UPPER_BOUNDS = {"string": "maxLength", "array": "maxItems"}
"""Left out, as llama.cpp makes a grammar of the schemas, in which a bound is that many rules: it refuses every request whose tools have
one of 2,000 characters (MAX_REPETITION_THRESHOLD in its src/llama-grammar.cpp). What comes is held to them all the same."""


def schema_of(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """Gives the schema of a struct: an object without references, titles and upper bounds, which not every provider follows."""
    _, components = msgspec.json.schema_components([arguments])
    schema: dict[str, Any] = _inlined(components[arguments.__name__], components)
    return schema


def without_nulls(value: Any) -> Any:
    """Gives a JSON value without the members that are null."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(each, components) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(components[schema["$ref"].rpartition("/")[2]], components)
    is_struct = schema.get("type") == "object" and "properties" in schema
    left_out = "title" if is_struct else UPPER_BOUNDS.get(str(schema.get("type")))
    return {name: _inlined(each, components) for name, each in schema.items() if name != left_out}

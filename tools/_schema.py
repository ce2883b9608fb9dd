"""The JSON Schema of a tool's arguments, as it is sent to models. Not in `tools/__init__.py`: there `list` is the tool."""

from typing import Any

import msgspec


def schema_of(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """Gives the schema of a struct: an object without references and titles, which not every provider follows."""
    _, components = msgspec.json.schema_components([arguments])
    schema: dict[str, Any] = _inlined(components[arguments.__name__], components)
    return schema


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(each, components) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(components[schema["$ref"].rpartition("/")[2]], components)
    is_struct = schema.get("type") == "object" and "properties" in schema
    return {name: _inlined(each, components) for name, each in schema.items() if not (is_struct and name == "title")}

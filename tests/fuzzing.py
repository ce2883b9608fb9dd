"""What schemathesis loads before it makes up requests: commands that do nothing, and streams that end."""

import shlex
from typing import Any

import schemathesis


@schemathesis.serializer("application/gzip")
def archive(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Gives what is sent for an archive: whatever was made up, which is none."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]) -> None:
    if isinstance(case.query, dict) and "follow" in case.query:
        case.query["follow"] = "false"
    if isinstance(case.body, dict) and isinstance(command := case.body.get("command"), str):
        case.body["command"] = f"printf %s {shlex.quote(command)}"

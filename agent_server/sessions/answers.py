"""What a task's final answer must be: with an `outputSchema`, one JSON value that fits it.

The model is told so with the prompt, at its end, so that the session's requests keep their common beginning. An answer that
does not fit goes back with what is wrong, as a message of ours.
"""

import re
from typing import Any

import msgspec

from agent_server.calling.schema import Schema
from agent_server.gateway import Fault, ModelError
from agent_server.ids import new_id
from agent_server.sessions.run import Run

MAX_CORRECTIONS = 2
"""Answers that do not fit which are sent back: a model that fails three times does not learn from a fourth."""

_FENCE = re.compile(r"\s*```[a-zA-Z]*\n(.*)\n\s*```\s*", re.DOTALL)


def accept(run: Run) -> dict[str, Any] | None:
    """Gives the final answer of a task that has one; None when it does not fit, and was sent back.

    Errors: ModelError with details.reason `invalid_output` when it has been sent back too often.
    """
    text = run.conversation.entries[-1].message.text
    if run.output is None:
        return {"response": text}
    value, complaint = _read(text, run.output)
    if complaint is None:
        return {"response": text, "output": value}
    if run.conversation.corrections >= MAX_CORRECTIONS:
        error = ModelError(Fault.BAD_RESPONSE, f"The answer did not fit outputSchema in {MAX_CORRECTIONS + 1} tries: {complaint}.")
        error.details |= {"reason": "invalid_output", "tries": MAX_CORRECTIONS + 1}
        raise error
    prompt = f"Your answer does not fit the JSON Schema it must fit: {complaint}. Answer again with the JSON value alone."
    run.post(run.draft("message.added", {"messageId": new_id("msg"), "prompt": prompt, "reason": "output"}))
    return None


def _read(text: str, schema: Schema) -> tuple[Any, str | None]:
    """Gives the value, and what is wrong with it. A code fence around it, which models love, is forgiven."""
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        return None, f"it is not one JSON value ({error})"
    return value, schema.complaint(value)

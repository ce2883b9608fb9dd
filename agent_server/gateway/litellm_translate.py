"""Between chat completions and litellm: a request's body as arguments of `acompletion`, and its chunks as events of a stream.

litellm is typed `Any` here: its own types are looser than what is read of them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.chunks import ErrorPart, joined
from agent_server.gateway.faults import stream_error
from agent_server.gateway.litellm_frames import Call
from agent_server.gateway.litellm_schemas import googles, inlined
from agent_server.gateway.providers import Endpoint

TRANSLATED = ("anthropic/", "bedrock/", "vertex_ai/", "azure_ai/", "databricks/", "gemini/", "ollama_chat/")
"""Models whose own form of a message has no place for the reasoning of chat completions, but for signed thoughts."""

GOOGLES = ("gemini/", "vertex_ai/gemini", "vertex_ai/google/")
"""Models of Google's, which read less of a tool's JSON Schema than others."""

SIGNATURE = "google-gemini-v1"
"""The format of Google's signatures among reasoning details: https://openrouter.ai/docs/use-cases/reasoning-tokens"""

BEFORE_SIGNATURE = "__thought__"
"""What litellm puts between the id of a call and the signature of the thought that led to it."""

PREFIXES = re.compile(r"^(?:litellm\.\w+: |\w+(?:Error|Exception): |\w+(?:Error|Exception) - )+")
"""What litellm puts before a provider's words."""

AFTER = re.compile(r" Handle with `litellm\.|Traceback \(")
"""How begins what it puts after them: advice, the chunk that it could not read, and where in its code."""


def arguments(call: Call) -> dict[str, Any]:
    """The arguments of `litellm.acompletion`. It must not repeat anything by itself, nor wait longer than we do."""
    body: dict[str, Any] = msgspec.json.decode(call.body)
    target = call.target
    messages = body.pop("messages")
    if target.model.startswith(TRANSLATED):
        messages = [_with_mark_outside(_with_thoughts(message)) for message in messages]
    if "tools" in body:
        body["tools"] = [_with_plain_schema(tool, target.model) for tool in body["tools"]]
    given = {"api_key": target.api_key, "api_base": target.api_base, "extra_headers": dict(target.headers)}
    return {
        **body,
        **{name: value for name, value in given.items() if value},
        "model": target.model,
        "messages": messages,
        "timeout": call.idle,
        "num_retries": 0,
        "max_retries": 0,
    }


def event(chunk: Any, *, is_real: bool, block: int) -> tuple[bytes, int]:
    """A chunk as an event of a chat completions stream, and the number of the next piece's block of thought.

    A finish reason counts only where the provider has given one (`is_real`): at the end of a broken stream litellm makes one up.
    """
    if not chunk.choices:
        return b"", block
    choice = chunk.choices[0].model_dump(exclude_none=True)
    delta = choice.get("delta") or {}
    kept = {name: delta[name] for name in ("content", "refusal", "reasoning_content", "tool_calls") if delta.get(name)}
    details = []
    for thought in delta.get("thinking_blocks") or ():
        details.append(_detail(thought, block))
        # Nothing else tells where one block ends: its signature is its last piece.
        block += bool(thought.get("signature") or thought.get("data"))
    details += _signatures(delta)
    if details:
        kept["reasoning_details"] = details
    finish_reason = choice.get("finish_reason") if is_real else None
    if not kept and not finish_reason:
        return b"", block
    return _data({"choices": [{"delta": kept, "finish_reason": finish_reason}]}), block


def usage_event(usage: Any) -> bytes:
    """litellm's sum of what the provider has said of its usage, as an event."""
    return _data({"choices": [], "usage": usage.model_dump(exclude_none=True)})


def failure(endpoint: Endpoint, error: Exception, *, was_sent: bool) -> ModelError:
    """What an exception of litellm's means of which nothing was seen on the wire: in an answer that it could not read, or before any."""
    while (inner := getattr(error, "original_exception", None)) is not None:
        error = inner
    said = " ".join(AFTER.split(PREFIXES.sub("", joined(str(error))))[0].split()) or type(error).__name__
    status = getattr(error, "status_code", None)
    if was_sent and (type(error).__name__ == "APIConnectionError" or not isinstance(status, int)):
        return ModelError(Fault.BAD_RESPONSE, f"{endpoint.provider} sent what litellm cannot read: {said}"[:1000])
    if not was_sent and "credentials" in said.lower():
        return ModelError(Fault.AUTHENTICATION, f"{endpoint.provider}: {said}"[:1000])
    if not isinstance(status, int) or (not was_sent and _is_ours(error)):
        return ModelError(Fault.BAD_REQUEST, f"litellm cannot call {endpoint.provider}: {said}"[:1000])
    if not was_sent and status >= 500:
        return ModelError(Fault.NETWORK, f"{endpoint.provider} was not reached: {said}"[:1000])
    return stream_error(endpoint, ErrorPart(said, status))


def _is_ours(error: BaseException | None) -> bool:
    """Whether an exception comes from what was asked for, and not from a connection: it would come again."""
    while error is not None and not isinstance(error, OSError):
        if isinstance(error, (ValueError, TypeError, LookupError, AttributeError)):
            return True
        error = error.__cause__ or error.__context__
    return isinstance(error, (FileNotFoundError, PermissionError))


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning is as litellm takes it back: Anthropic refuses a tool call without the signed thought before it, and
    so does Google."""
    details = message.get("reasoning_details") or ()
    blocks = list(_blocks(details))
    rest = {name: value for name, value in message.items() if name not in ("reasoning_details", "reasoning_content")}
    signatures = {detail.get("id"): detail["data"] for detail in details if detail.get("format") == SIGNATURE}
    if None in signatures:
        rest["provider_specific_fields"] = {"thought_signatures": [signatures[None]]}
    for call in rest.get("tool_calls") or ():
        if call["id"] in signatures:
            call["provider_specific_fields"] = {"thought_signature": signatures[call["id"]]}
    return {**rest, "thinking_blocks": blocks} if blocks else rest


def _with_mark_outside(message: dict[str, Any]) -> dict[str, Any]:
    """A tool's result with the mark for Anthropic's cache on the whole of it: its parts cannot have one."""
    content = message["content"]
    if message["role"] != "tool" or isinstance(content, str):
        return message
    return {**message, "content": content[-1]["text"], "cache_control": content[-1]["cache_control"]}


def _blocks(details: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for detail in details:
        if detail.get("format") == SIGNATURE:
            continue
        if detail.get("type") == "reasoning.encrypted":
            yield {"type": "redacted_thinking", "data": detail.get("data", "")}
        elif detail.get("signature"):
            yield {"type": "thinking", "thinking": detail.get("text") or "", "signature": detail["signature"]}


def _signatures(delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Google's signatures of a piece: of its calls, taken out of their ids, which go to all providers, and of its text."""
    seen = set()
    for call in delta.get("tool_calls") or ():
        call["id"], _, signature = (call.get("id") or "").partition(BEFORE_SIGNATURE)
        if signature:
            seen.add(signature)
            yield {"type": "reasoning.encrypted", "id": call["id"], "data": signature, "format": SIGNATURE}
    for signature in (delta.get("provider_specific_fields") or {}).get("thought_signatures") or ():
        if signature not in seen:
            yield {"type": "reasoning.encrypted", "data": signature, "format": SIGNATURE}


def _with_plain_schema(tool: dict[str, Any], model: str) -> dict[str, Any]:
    """A tool whose schema its provider can read."""
    function = tool["function"]
    if model.startswith(("bedrock/", *GOOGLES)):
        function = {**function, "parameters": inlined(function["parameters"])}
    if model.startswith(GOOGLES):
        function = {**function, "parameters": googles(function["parameters"])}
    return {**tool, "function": function}


def _detail(thought: Mapping[str, Any], block: int) -> dict[str, Any]:
    if thought.get("type") == "redacted_thinking":
        return {"type": "reasoning.encrypted", "data": thought.get("data"), "index": block}
    signature = thought.get("signature") or None
    return {"type": "reasoning.text", "text": thought.get("thinking") or "", "signature": signature, "index": block}


def _data(value: Any) -> bytes:
    # Not msgspec's, which writes no halves of characters.
    return f"data: {json.dumps(value)}\n\n".encode()

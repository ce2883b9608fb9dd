"""A model that plays a recorded conversation: the whole server, its tools and a real workspace, without any key.

What is recorded is only the model's side. The tools really run, and what they give is not looked at.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent_server.gateway import Completion, Delta, Fault, ModelError, ModelOptions, TextDelta
from agent_server.gateway.calls import call_ids, unique_id
from agent_server.messages import Message, Text, ToolCall, ToolSpec, Usage

RECORDINGS = Path(__file__).parent / "recordings"

DELTA_SIZE = 12
"""Characters of one delta: about what models stream."""


class RecordedCall(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any]


class Turn(msgspec.Struct, frozen=True, rename="camel"):
    """What the model says once: text, tool calls, or both."""

    text: str = ""
    tool_calls: list[RecordedCall] = []


class Recording(msgspec.Struct, frozen=True):
    """A conversation of one task. `prompt` is what was asked, for whoever wants to ask it again."""

    description: str
    turns: list[Turn]
    prompt: str = ""


OVER = Turn(text="The recording is over: it holds no more turns.")


class ReplayGateway:
    """The model's name is that of a packaged recording, or the path of a .json file."""

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: ModelOptions) -> AsyncGenerator[Delta, None]:
        """Plays the turn after those that the conversation holds since the last user's message. Errors: ModelError."""
        recording = await asyncio.to_thread(load, options.model)
        number = turns_played(messages)
        turn = recording.turns[number] if number < len(recording.turns) else OVER
        for start in range(0, len(turn.text), DELTA_SIZE):
            yield TextDelta(turn.text[start : start + DELTA_SIZE])
            await asyncio.sleep(0)
        message = Message("assistant", (Text(turn.text),) if turn.text else (), _calls(turn, messages))
        yield Completion(message, Usage(cost=0.0), "tool_calls" if turn.tool_calls else "stop")

    async def close(self) -> None:
        """Has nothing to let go."""


def load(model: str) -> Recording:
    """Reads a recording. Blocks. Errors: ModelError with Fault.BAD_REQUEST when there is none, or it is none."""
    packaged = recordings()
    path = packaged.get(model) or (Path(model) if model.endswith(".json") else None)
    if path is None:
        raise ModelError(Fault.BAD_REQUEST, f'There is no recording "{model}": name one of {", ".join(packaged)}, or a .json file.')
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recording)
    except (OSError, ValueError) as error:
        raise ModelError(Fault.BAD_REQUEST, f'"{model}" is no recording: {error}') from error


def recordings() -> dict[str, Path]:
    """The packaged recordings by name, sorted."""
    return {path.stem: path for path in sorted(RECORDINGS.glob("*.json"))}


def turns_played(messages: Sequence[Message]) -> int:
    """How many assistant's messages follow the last user's."""
    played = 0
    for message in reversed(messages):
        if message.role == "user":
            break
        played += message.role == "assistant"
    return played


def _calls(turn: Turn, messages: Sequence[Message]) -> tuple[ToolCall, ...]:
    calls, taken = [], call_ids(messages)
    for recorded in turn.tool_calls:
        call = ToolCall(unique_id("", taken), recorded.name, msgspec.json.encode(recorded.arguments).decode())
        calls.append(call)
        taken.add(call.id)
    return tuple(calls)

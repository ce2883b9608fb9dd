"""Other forms of a conversation that a provider has refused: what is left out of it, or written as text, so that it is taken.

A history that one provider took can be wrong for the next one: reasoning whose signature it does not know, images it does not
see, calls of tools that are no longer offered, roles that must alternate; or it is too long, and no summary of it can be had. Nothing
is changed until the provider has taken a form: a complaint about something else, such as the model's name, costs some refused
requests and no history.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from agent_server.messages import Image, Message, Part, Text
from agent_server.sessions.tokens import message_tokens

Form: TypeAlias = Literal["plain", "transcript", "recent", "prompt"]

FORMS: tuple[Form, ...] = ("plain", "transcript", "prompt")
"""In the order in which they are tried: without reasoning and images; as one message that tells what was said and done; without
anything but what the user has said for this task, which is what a session without history would send."""

SHORT_FORMS: tuple[Form, ...] = ("recent", "prompt")
"""Those of a conversation that is too long, and stays so: with the newest turns alone, and without any."""

RECENT_TOKENS = 20_000
"""Tokens of the newest turns that stay in `recent`, besides what the user has said for this task."""

MAX_REPAIRS = 20
"""Forms that are taken in one task: one that needs another form for each of its steps costs several requests a step."""

IMAGE = "[An image was here. The provider did not take it.]"

TRANSCRIPT = "The conversation so far, as a transcript, because its provider did not take it in another form.\n\n"

GO_ON = "\n\nThat was the transcript. Go on with what the user has asked for last."

LEFT_OUT = (
    "What was said and done before this is left out: the provider refused to take it. "
    "Look at the workspace before you do anything that may be done already.\n\n"
)

Said: TypeAlias = tuple[Message, bool]
"""A message, and whether it is what the user has said for the present task: that stays as it is."""


def reformed(said: Sequence[Said], form: Form) -> list[Message]:
    """Gives a conversation in another form. Messages that stay as they are are the same objects."""
    if form == "plain":
        return [message if is_own else _plain(message) for message, is_own in said]
    cut = _recent(said) if form == "recent" else len(said)
    parts = _told(said) if form == "transcript" else _prompted(said[:cut])
    return [Message("user", tuple(parts)), *(message for message, _ in said[cut:])]


def forms(said: Sequence[Said], *, is_too_long: bool = False) -> list[Form]:
    """Gives the forms that make a difference: none where the user's words for this task are all there is."""
    if _is_own(said):
        return []
    if is_too_long:
        old, recent = said[: (cut := _recent(said))], said[cut:]
        return [form for form in SHORT_FORMS if form != "recent" or not (_is_own(old) or _is_own(recent))]
    is_plain = all(is_own or _plain(message) is message for message, is_own in said)
    return [form for form in FORMS if form != "plain" or not is_plain]


def _is_own(said: Sequence[Said]) -> bool:
    return all(is_own for _, is_own in said)


def _recent(said: Sequence[Said]) -> int:
    """Where the newest turns begin that stay in `recent`: no call is parted from its result."""
    cut, left = len(said), RECENT_TOKENS
    for at, (message, is_own) in reversed(list(enumerate(said))):
        left -= 0 if is_own else message_tokens(message)
        if left < 0:
            break
        cut = at if message.role != "tool" else cut
    return cut


def _plain(message: Message) -> Message:
    has_images = any(isinstance(part, Image) for part in message.content)
    if message.reasoning is None and not has_images:
        return message
    content = tuple(Text(IMAGE) if isinstance(part, Image) else part for part in message.content)
    return msgspec.structs.replace(message, reasoning=None, content=content)


def _prompted(said: Sequence[Said]) -> list[Part]:
    parts: list[Part] = [Text(LEFT_OUT)]
    for message, is_own in said:
        if is_own:
            parts += [*(part for part in message.content if part != Text(LEFT_OUT)), Text("\n\n")]
    return parts[:-1] if len(parts) > 1 else parts


def _told(said: Sequence[Said]) -> list[Part]:
    parts: list[Part] = [Text(TRANSCRIPT)]
    for message, is_own in said:
        if message.content[:1] == (Text(TRANSCRIPT),) and message.content[-1] == Text(GO_ON):  # which goes on
            parts += [*(message if is_own else _plain(message)).content[1:-1], Text("\n\n")]
            continue
        parts += [Text("[user]\n"), *message.content, Text("\n\n")] if is_own else [Text(f"{_line(message)}\n\n")]
    return [*parts[:-1], Text(GO_ON)]


def _line(message: Message) -> str:
    text = _plain(message).text
    if message.role == "tool":
        return f"[result of {message.tool_call_id}]\n{text}"
    said = [f"[{message.role}]\n{text}"] if text or not message.tool_calls else []
    return "\n\n".join([*said, *(f"[call {call.id} of {call.name}]\n{call.arguments}" for call in message.tool_calls)])

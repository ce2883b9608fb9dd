"""Whether a task goes round in circles: the same calls with the same results, over and over.

What counts is a call's outcome: its tool, its arguments, and how it ended. It repeats itself where the newest calls are cycles of
outcomes (one call, two that alternate, more), or where each of the newest messages holds it. Calls that were interrupted or skipped
do not count, and a message that comes meanwhile begins the count anew. After NUDGE_AT times the model is told so in the call's
result; after STUCK_AT cycles in which nothing new was seen the task ends.
"""

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

NUDGE_AT = 3
STUCK_AT = 5
"""Times that one outcome, or one cycle of them, has come. The model must have seen a nudge before the task ends."""

WINDOW = 64
"""Calls that are looked back on: five cycles of a dozen calls."""

NUDGE = (
    "(You repeat yourself: this call has come {times} times with these arguments and has ended the same way each time. "
    "Calling it again will not help: use what you know, try another way, or say what stops you. "
    f"If the same goes on, the task is ended at {STUCK_AT} times.)"
)

# Patterns are compiled where they are first used: a start has no use for them, and they take 2 ms.
_OURS = r"\b[a-z]+[-_](?:[0-9a-hjkmnp-tv-z]{26}|[0-9a-f]{12})\b"
"""Ids and names of files that the server makes, anew for each call."""

_MEASURED = r"\d+\.\d+ ?(?:s|secs?|seconds?|m|mins?|minutes?)\b|\d+(?:\.\d+)? ?(?:ms|us|µs|ns|milliseconds?)\b"
"""How long something took. Whole seconds and more may be the progress that is waited for."""

_INCIDENTAL = r"""(?ix)\d{4}-\d\d-\d\d | \d{1,2}:\d\d(?::\d\d)?(?:[.,]\d+)? | \d+[ ]?(?:s|secs?|seconds?|m|mins?|minutes?)\b
    | 0x[0-9a-f]+ | \b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b | \b(?=\w*\d)[0-9a-f]{8,}\b | \d{5,}"""
"""What differs from one failure of a command to the next without meaning: times, addresses, process numbers."""


class Ended(msgspec.Struct, frozen=True, dict=True):
    """One call that has ended. `turn` is the number of the message that made it."""

    turn: int
    tool: str
    arguments: str
    data: Mapping[str, Any]

    @cached_property
    def call(self) -> tuple[str, str]:
        return self.tool, canonical(self.arguments)

    @cached_property
    def outcome(self) -> tuple[tuple[str, str], str]:
        return self.call, _ending(self.data)

    @property
    def is_nudged(self) -> bool:
        return "nudge" in self.data


class Repetition:
    """The newest calls of one task, folded from its events."""

    def __init__(self) -> None:
        self._ended: deque[Ended] = deque(maxlen=WINDOW)
        self._turn = 0

    def begin_turn(self) -> None:
        """The model has said something: what ends from here on is of another message."""
        self._turn += 1

    def add(self, tool: str, arguments: str, data: Mapping[str, Any]) -> None:
        """Takes in what tool.finished says of a call."""
        if not (data.get("interrupted") or data.get("skipped")):
            self._ended.append(Ended(self._turn, tool, arguments, data))

    def has(self, tool: str, arguments: str) -> bool:
        """Whether this call is one of the newest."""
        call = (tool, canonical(arguments))
        return any(ended.tool == tool and ended.call == call for ended in self._ended)

    def nudge(self, tool: str, arguments: str, data: Mapping[str, Any]) -> str | None:
        """Gives what the model is to be told with the result of a call that is about to end so."""
        newest = Ended(self._turn, tool, arguments, data)
        all_ended = [*self._ended, newest]
        times = max(_cycles(all_ended)[0], _in_each_turn(all_ended))
        return NUDGE.format(times=times) if times >= NUDGE_AT else None

    def stuck(self) -> dict[str, Any] | None:
        """Gives how often the newest calls have repeated themselves, and their tools, where that is often enough to end the task."""
        if not self._ended or not self._ended[-1].is_nudged:
            return None
        if not any(ended.is_nudged and ended.turn < self._turn for ended in self._ended):
            return None  # they were all made at once: the model has not been told
        times, size = _cycles(self._ended)
        if times < STUCK_AT:
            return None
        tools = {ended.tool for ended in list(self._ended)[-size:]}
        return {"reason": "stuck", "limit": STUCK_AT, "reached": times, "tools": sorted(tools)}


def canonical(arguments: str) -> str:
    """Gives a call's arguments in the one form that all spellings of the same JSON have."""
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments or "{}"), order="sorted").decode()
    except (ValueError, RecursionError):
        return arguments.strip()


def plain_output(data: Mapping[str, Any]) -> str:
    """Gives a call's result without what we have added to it."""
    output: str = data["output"]
    return output.removesuffix(f"\n\n{data['nudge']}") if "nudge" in data else output


def _ending(data: Mapping[str, Any]) -> str:
    if data.get("isError"):
        return "error"  # whatever it says: a call that fails each time with the same arguments will fail again
    text = re.sub(_MEASURED, "…", re.sub(_OURS, "…", plain_output(data)))
    details = data.get("details") or {}
    if details.get("exitCode") or details.get("signal"):
        return f"failed\n{re.sub(_INCIDENTAL, '…', text)}"
    return f"ended\n{text}"


def _cycles(ended: Sequence[Ended]) -> tuple[int, int]:
    """How often each outcome of the newest calls has come among them, for that number of calls for which it is most, and this number."""
    counts = Counter[Any]()
    most = size = 0
    for number, each in enumerate(reversed(ended), start=1):
        counts[each.outcome] += 1
        if (times := min(counts.values())) >= most:
            most, size = times, number
    return most, size


def _in_each_turn(ended: Sequence[Ended]) -> int:
    """How often the newest outcome has come in the newest turns, as long as each of them has it."""
    newest = ended[-1]
    turn, times = newest.turn, 0
    for each in reversed(ended):
        if each.turn < turn - 1:
            break
        if each.outcome == newest.outcome:
            turn = each.turn
            times += 1
    return times

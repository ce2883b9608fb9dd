from typing import Any

import msgspec
import pytest

from agent_server.gateway.calls import OpenCalls, distinct, unique_id
from agent_server.gateway.chunks import CallPart
from agent_server.messages import ToolCall


def assemble(*parts: dict[str, Any], taken: frozenset[str] = frozenset()) -> list[ToolCall]:
    calls = OpenCalls()
    for part in parts:
        calls.add(msgspec.convert(part, CallPart))
    return list(calls.finish(taken))


def piece(name: str | None, arguments: str | dict[str, Any] | None, **rest: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **rest}


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ([piece("a", "", index=0, id="x"), piece(None, '{"n"', index=0), piece(None, ":1}", index=0)], [("x", "a", '{"n":1}')]),
        ([piece("a", '{"n"', index=0, id="x"), piece("a", ":1}", index=0, id="x")], [("x", "a", '{"n":1}')]),
        (
            [piece("a", '{"n"', index=1, id="y"), piece("b", "{}", index=0, id="x"), piece(None, ":1}", index=1)],
            [("y", "a", '{"n":1}'), ("x", "b", "{}")],
        ),
        ([piece("a", "{}", index=0, id="x"), piece("a", "{}", index=0, id="y")], [("x", "a", "{}"), ("y", "a", "{}")]),
        ([piece("a", '{"n"', id="x"), piece(None, ":1}")], [("x", "a", '{"n":1}')]),
        ([piece("a", '{"n"', id="x"), piece("a", ":1}", id="x")], [("x", "a", '{"n":1}')]),
        ([piece("a", "{}", id="x"), piece("b", None, id="y"), piece(None, "{}", id="x")], [("x", "a", "{}{}"), ("y", "b", "{}")]),
        ([piece("a", '{"n"'), piece("a", ":1}"), piece("a", "{}")], [("call_0", "a", '{"n":1}'), ("call_1", "a", "{}")]),
        ([piece("a", None), piece("b", None)], [("call_0", "a", "{}"), ("call_1", "b", "{}")]),
        ([piece("a", {"n": 1}, index=0)], [("call_0", "a", '{"n":1}')]),
        ([piece("a", " \n", index=0, id="x")], [("x", "a", "{}")]),
        ([piece("a", "{oops", index=0, id="x")], [("x", "a", "{oops")]),
        ([piece("a", "{}", index=0, id="x"), piece("b", "{}", index=1, id="x")], [("x", "a", "{}"), ("x_1", "b", "{}")]),
        ([piece("a", "{}", index=0, id="x"), {"index": 1}, piece(None, "", index=2)], [("x", "a", "{}")]),
        ([piece("a", '{"n":1}', id="x"), piece("a", '{"n":2}', id="x")], [("x", "a", '{"n":1}'), ("x_1", "a", '{"n":2}')]),
        ([piece("a", "{}", index=0, id="x"), piece("b", "{}", index=0, id="x")], [("x", "a", "{}"), ("x_1", "b", "{}")]),
        ([piece("a", '{"n":1}', index=0, id="x"), piece("a", "", index=0, id="x")], [("x", "a", '{"n":1}')]),
    ],
)
def test_pieces_become_calls(parts: list[dict[str, Any]], calls: list[tuple[str, str, str]]) -> None:
    assert assemble(*parts) == [ToolCall(*call) for call in calls]


def test_ids_of_the_conversation_are_not_given_again() -> None:
    taken = frozenset({"call_0", "call_1", "x"})
    parts = [piece("a", "{}", index=0), piece("a", "{}", index=1, id="x"), piece("a", "{}", index=2)]
    ids = [call.id for call in assemble(*parts, taken=taken)]
    assert ids == ["call_3", "x_4", "call_5"]
    assert not taken & set(ids)


def test_a_made_up_id_is_deterministic_and_free() -> None:
    assert unique_id("", set()) == "call_0"
    assert unique_id("", {"call_1"}) == "call_2"
    assert unique_id("wanted", {"other"}) == "wanted"


def test_whole_calls_of_any_server_get_ids_of_their_own() -> None:
    taken = {"call_0", "call_1"}
    calls = [ToolCall("", "a", "{}"), ToolCall("call_0", "a", "{}"), ToolCall("x", "a", "{}"), ToolCall("x", "b", "{}")]
    told = list(distinct(calls, taken))
    assert [(call.name, call.arguments) for call in told] == [("a", "{}"), ("a", "{}"), ("a", "{}"), ("b", "{}")]
    ids = [call.id for call in told]
    assert len({*ids, *taken}) == len(ids) + len(taken)
    assert ids[2] == "x"
    assert list(distinct(calls, taken)) == told

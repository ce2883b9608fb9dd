"""What MCP servers' tools are called."""

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.mcp.naming import labels, names

X64 = "x" * 64


@pytest.mark.parametrize(
    ("offered", "taken", "expected"),
    [
        ({"a": ["add"]}, set(), {"a.add": "add"}),
        ({"a": ["a.b c"]}, set(), {"a.a.b c": "a_b_c"}),
        ({"a": [""]}, set(), {"a.": "_"}),
        ({"a": ["bash"]}, {"bash"}, {"a.bash": "a_bash"}),
        ({"b": ["add"], "a": ["add", "sub"]}, set(), {"a.add": "a_add", "a.sub": "sub", "b.add": "b_add"}),
        ({"a": ["bash"]}, {"bash", "a_bash"}, {"a.bash": "a_bash_228d7c"}),
        ({"a": ["b.c", "b c"]}, set(), {"a.b c": "a_b_c_fa1e0a", "a.b.c": "a_b_c_ad8a94"}),
        ({"a": [X64]}, set(), {f"a.{X64}": X64}),
    ],
)
def test_a_tool_keeps_its_name_unless_it_collides(offered: Mapping[str, list[str]], taken: set[str], expected: dict[str, str]) -> None:
    found = {f"{label}.{tool}": name for (label, tool), name in names(offered, taken).items()}
    assert list(found) == sorted(found)
    assert found == expected


def test_servers_whose_names_come_out_alike_are_told_apart() -> None:
    assert labels(["a.b", "a_b", "a b", "c"]) == ["a_b", "a_b2", "a_b3", "c"]


@given(
    st.dictionaries(st.from_regex("[A-Za-z0-9_-]{1,64}", fullmatch=True), st.lists(st.text(max_size=80), max_size=6), max_size=5),
    st.sets(st.from_regex("[a-z_]{1,8}", fullmatch=True)),
)
def test_names_fit_providers_are_unique_and_the_same_in_any_order(offered: dict[str, list[str]], taken: set[str]) -> None:
    found = names(offered, taken)
    assert set(found) == {(label, tool) for label, tools in offered.items() for tool in tools}
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in found.values())
    assert len({*found.values(), *taken}) == len(found) + len(taken)
    again = {label: tools[::-1] for label, tools in reversed(offered.items())}
    assert list(names(again, taken).items()) == list(found.items())

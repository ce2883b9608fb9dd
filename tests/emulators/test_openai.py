import json
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.emulators.history import anthropic_complaint, complaint
from tests.emulators.openai import OpenAIEmulator

USER = {"role": "user", "content": "Hi"}


def calls(*ids: str, arguments: str = "{}", name: str = "bash") -> dict[str, Any]:
    made = [{"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}} for id_ in ids]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": "done"}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([USER], None),
        ([USER, calls("a", "b"), result("b"), result("a")], None),
        ([], "must not be empty"),
        ([USER, {"role": "assistant", "content": "Hi"}], "the last message"),
        ([USER, calls("a"), USER], "without a result: a"),
        ([USER, calls("a", "b"), result("a")], "without a result: b"),
        ([USER, result("a")], "answers no tool call"),
        ([USER, calls("a"), result("a"), result("a")], "answers no tool call"),
        ([USER, calls("a", "a"), result("a"), result("a")], "come twice: a"),
        ([USER, calls("a"), result("a"), calls("a"), result("a")], "come twice: a"),
        ([USER, calls("a", arguments="{oops"), result("a")], "must be a JSON object"),
        ([USER, calls("a", arguments="[]"), result("a")], "must be a JSON object"),
        ([USER, calls("a", name="a b"), result("a")], "must match"),
        ([USER, {"role": "assistant", "content": ""}, USER], "must have content or tool_calls"),
        ([{"role": "user", "content": None}], "must have content"),
        ([USER, calls("a"), {**result("a"), "content": [{"type": "text", "text": "x"}]}], "must be a string"),
    ],
)
def test_it_refuses_what_providers_refuse(messages: list[dict[str, Any]], text: str | None) -> None:
    found = complaint({"messages": messages})
    assert found is None if text is None else text in (found or "")


def post(emulator: OpenAIEmulator, messages: list[dict[str, Any]]) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", emulator.port, timeout=5)
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": messages}))
    response = connection.getresponse()
    content = response.read().decode()
    connection.close()
    return response.status, content


def uses(*ids: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": id_, "name": "bash", "input": {}} for id_ in ids]}


def results(*ids: str, first: str = "") -> dict[str, Any]:
    before = [{"type": "text", "text": first}] if first else []
    return {"role": "user", "content": [*before, *({"type": "tool_result", "tool_use_id": id_, "content": "done"} for id_ in ids)]}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([USER, uses("a", "b"), results("b", "a")], None),
        ([USER, uses("a")], "must end with a user"),
        ([USER, uses("a"), results("a"), uses("a"), results("a")], "must be unique"),
        ([USER, uses("a", "a"), results("a", "a")], "must be unique"),
        ([USER, uses("a.b"), results("a.b")], "must be unique, and match"),
        ([USER, uses("a"), USER], "must have one"),
        ([USER, uses("a"), results("a", "a")], "must have one"),
        ([USER, uses("a"), results("a", first="Hi")], "at the beginning"),
        ([USER, USER], "must alternate"),
        ([{"role": "user", "content": " "}], "non-whitespace"),
        ([{"role": "user", "content": []}], "non-empty"),
    ],
)
def test_it_refuses_what_anthropic_refuses(messages: list[dict[str, Any]], text: str | None) -> None:
    said = anthropic_complaint({"messages": messages})
    assert said is None if text is None else text in (said or "")


def test_a_turn_is_spent_only_on_a_valid_request() -> None:
    with OpenAIEmulator() as emulator:
        emulator.script({"text": "Hello", "whole": True})
        assert post(emulator, [])[0] == 400
        assert post(emulator, [USER])[0] == 200
        assert post(emulator, [USER]) == (401, '{"error":{"message":"The emulator\'s script is over."}}')
        assert [bool(record.body) for record in emulator.requests()] == [True, True, True]


def test_it_may_be_lenient_and_keep_no_bodies() -> None:
    with OpenAIEmulator(is_strict=False, keeps_bodies=False) as emulator:
        emulator.script({"script": "bash-true", "steps": 1, "command": "echo {step}", "whole": True})
        assert "echo 0" in post(emulator, [])[1]
        assert "Done after 1 steps." in post(emulator, [result("a")])[1]
        assert [record.body for record in emulator.requests()] == ["", ""]

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from agent_server.gateway import Completion, Delta, Fault, ModelError, ReasoningDelta, TextDelta
from agent_server.gateway.assemble import MESSAGE_LIMIT, Answer, merge_detail
from agent_server.gateway.providers import Endpoint
from agent_server.messages import ToolCall, Usage

RECORDED = Path(__file__).parent / "recorded"
ENDPOINT = Endpoint("http://127.0.0.1/v1/chat/completions", None, {}, "m", "p")


def read(*chunks: bytes, taken: frozenset[str] = frozenset()) -> tuple[list[Delta], Completion]:
    answer = Answer(ENDPOINT, taken)
    deltas = [delta for chunk in chunks for delta in answer.feed(chunk)]
    last, completion = answer.end()
    return deltas + last, completion


def fault_of(stream: bytes) -> Fault:
    with pytest.raises(ModelError) as caught:
        read(stream)
    return caught.value.fault


def comparable(completion: Completion) -> tuple[Any, ...]:
    """Messages are compared by identity; this is their content."""
    message = completion.message
    return message.content, message.tool_calls, message.reasoning, astuple(completion.usage), completion.finish_reason


SAMPLES: list[tuple[str, str, list[ToolCall], Usage, str]] = [
    (
        "openrouter_claude",
        "Ich sehe nach – einen Moment ☕.",
        [ToolCall("toolu_01A", "bash", '{"command": "ls -la"}')],
        Usage(412, 96, 384, 31, 0.002676),
        "tool_calls",
    ),
    ("openrouter_gpt5", "The sum is 5.", [], Usage(20, 80, 0, 64, 0.0008), "stop"),
    (
        "openai_parallel_calls",
        "",
        [ToolCall("call_a1", "read", '{"filePath":"a.py"}'), ToolCall("call_b2", "bash", '{"command":"true"}')],
        Usage(1117, 46, 1024),
        "tool_calls",
    ),
    ("vllm_reasoning", "", [ToolCall("chatcmpl-tool-1a", "grep", '{"pattern": "TODO"}')], Usage(210, 41), "tool_calls"),
    (
        "llamacpp_repeated_name",
        "",
        [ToolCall("h4Xk", "write", '{"filePath":"ä.txt","content":"1\\n2"}')],
        Usage(100, 30),
        "tool_calls",
    ),
    (
        "ollama_calls",
        "",
        [ToolCall("call_x1", "read", '{"filePath":"a"}'), ToolCall("call_x2", "read", '{"filePath":"b"}')],
        Usage(),
        "tool_calls",
    ),
    (
        "bare_calls",
        "",
        [ToolCall("call_0", "list", "{}"), ToolCall("call_1", "list", '{"path":"src"}'), ToolCall("call_2", "todo", "{}")],
        Usage(),
        "tool_calls",
    ),
    ("deepseek_thinking", "9.9 is larger.", [], Usage(40, 25, 32, 18), "stop"),
    ("mistral_parts", "Forty-two.", [], Usage(9, 7), "stop"),
    ("xai_usage", "Yes.", [], Usage(32, 103, 6, 94), "stop"),
]


@pytest.mark.parametrize(("name", "text", "calls", "usage", "finish_reason"), SAMPLES, ids=[sample[0] for sample in SAMPLES])
def test_recorded_streams_are_understood(name: str, text: str, calls: list[ToolCall], usage: Usage, finish_reason: str) -> None:
    deltas, completion = read((RECORDED / f"{name}.sse").read_bytes())
    assert completion.message.text == text == "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    assert list(completion.message.tool_calls) == calls
    assert (completion.usage, completion.finish_reason) == (usage, finish_reason)


def said(**delta: Any) -> bytes:
    """An event as a server in JavaScript writes it: what is no ASCII in escapes, also half a character."""
    return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode()


STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


def test_a_character_that_is_cut_in_two_comes_whole() -> None:
    argument = [
        said(tool_calls=[{"index": 0, "id": "a", "function": {"name": "bash", "arguments": text}}]) for text in ('{"a":"\ud83d', '\ude00"}')
    ]
    thought = {"type": "reasoning.text", "index": 0}
    details = [said(reasoning_details=[{**thought, "text": text}]) for text in ("\ud83d", "\ude00")]
    texts = [said(content="Hi \ud83d"), said(content="\ude00!"), said(reasoning="\ud83d"), said(reasoning="\ude00")]
    deltas, completion = read(*texts, *argument, *details, STOP)
    assert deltas == [TextDelta("Hi "), TextDelta("😀!"), ReasoningDelta("😀")]
    assert completion.message.text == "Hi 😀!"
    assert completion.message.tool_calls == (ToolCall("a", "bash", '{"a":"😀"}'),)
    assert completion.message.reasoning is not None
    assert completion.message.reasoning["details"] == [{**thought, "text": "😀"}]


def test_half_a_character_that_stays_alone_is_replaced() -> None:
    _, completion = read(said(content="a\ud83d"), said(content="b\ude00"), STOP)
    assert completion.message.text == "a\ufffdb\ufffd"


def test_an_error_with_half_a_character_can_be_told() -> None:
    with pytest.raises(ModelError, match="Broken \ufffd"):
        read(rb'data: {"error":"Broken \ud83d"}' + b"\n\n")


def test_numbers_may_be_strings() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":"9","completion_tokens":4.0,"cost":"0.5"}}\n\n'
    call = said(tool_calls=[{"index": "0", "id": "a", "function": {"name": "null", "arguments": "null"}}])
    _, completion = read(call, STOP, usage)
    assert completion.message.tool_calls == (ToolCall("a", "null", "null"),)
    assert completion.usage == Usage(9, 4, 0, 0, 0.5)


def test_every_recorded_stream_is_expected() -> None:
    assert {path.stem for path in RECORDED.glob("*.sse")} == {sample[0] for sample in SAMPLES}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (
            "openrouter_claude",
            {
                "text": "The user wants a listing.",
                "details": [
                    {
                        "type": "reasoning.text",
                        "text": "The user wants a listing.",
                        "format": "anthropic-claude-v1",
                        "index": 0,
                        "signature": "EuYBCkQYAiJA",
                    }
                ],
                "field": "reasoning",
            },
        ),
        (
            "openrouter_gpt5",
            {
                "text": "**Adding up**",
                "details": [
                    {"type": "reasoning.summary", "summary": "**Adding up**", "format": "openai-responses-v1", "index": 0},
                    {"type": "reasoning.encrypted", "data": "gAAAAABo9==", "id": "rs_0a1", "format": "openai-responses-v1", "index": 0},
                ],
                "field": "reasoning",
            },
        ),
        ("vllm_reasoning", {"text": "Let me look.", "field": "reasoning_content"}),
        ("ollama_calls", {"text": "Two files.", "field": "reasoning"}),
        ("deepseek_thinking", {"text": "9.11 < 9.9", "field": "reasoning_content"}),
    ],
)
def test_reasoning_is_streamed_and_kept(name: str, kept: dict[str, Any]) -> None:
    deltas, completion = read((RECORDED / f"{name}.sse").read_bytes())
    assert completion.message.reasoning == kept | {"provider": "p", "model": "m"}
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == kept["text"]


@settings(deadline=None)
@given(name=st.sampled_from([sample[0] for sample in SAMPLES]), data=st.data())
def test_cuts_change_nothing(name: str, data: st.DataObject) -> None:
    stream = (RECORDED / f"{name}.sse").read_bytes()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=40))
    edges = [0, *sorted(cuts), len(stream)]
    deltas, completion = read(*(stream[start:end] for start, end in itertools.pairwise(edges)))
    whole_deltas, whole = read(stream)
    assert (deltas, comparable(completion)) == (whole_deltas, comparable(whole))


@settings(deadline=None)
@given(name=st.sampled_from([sample[0] for sample in SAMPLES]), data=st.data())
def test_a_stream_that_is_cut_is_never_taken_for_a_whole_one(name: str, data: st.DataObject) -> None:
    stream = (RECORDED / f"{name}.sse").read_bytes()
    finish = stream.index(b'"finish_reason":"' + read(stream)[1].finish_reason.encode())
    assert fault_of(stream[: data.draw(st.integers(0, finish))]) is Fault.STREAM_CUT


TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"", Fault.STREAM_CUT),
        (TEXT, Fault.STREAM_CUT),
        (b"data: [DONE]\n\n", Fault.EMPTY),
        (b'data: {"choices":[{"delta":{"content":" \\n"},"finish_reason":"stop"}]}\n\n', Fault.EMPTY),
        (b'data: {"choices":[{"delta":{"reasoning":"I think"},"finish_reason":"length"}]}\n\n', Fault.EMPTY),
        (b'data: {"choices":[{"delta":{},"finish_reason":"content_filter"}]}\n\n', Fault.BAD_REQUEST),
        (b'data: {"choices":[{"delta":{},"finish_reason":"refusal"}]}\n\n', Fault.BAD_REQUEST),
        (b'data: {"choices":[{"delta":{},"finish_reason":"model_context_window_exceeded"}]}\n\n', Fault.CONTEXT_OVERFLOW),
        (b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n', Fault.OVERLOADED),
        (TEXT + b"data: {oops\n\n", Fault.BAD_RESPONSE),
        (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', Fault.BAD_RESPONSE),
        (b'data: {"choices":[{"delta":{"content":7}}]}\n\n', Fault.BAD_RESPONSE),
        (b'data: {"choices":[{"delta":{"reasoning_details":[{"a":' + b"[" * 10_000 + b"\n\n", Fault.BAD_RESPONSE),
        (
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x"}]},"finish_reason":"tool_calls"}]}\n\n',
            Fault.BAD_RESPONSE,
        ),
        (TEXT + b'data: {"error":{"code":502,"message":"Upstream"}}\n\n', Fault.OVERLOADED),
        (b'data: {"choices":[{"delta":{},"finish_reason":"error","error":{"code":429,"message":"Slow"}}]}\n\n', Fault.RATE_LIMIT),
        (TEXT + b'data: {"error":{"code":429,"message":"Slow"}}', Fault.RATE_LIMIT),
        (b"data: " + b"x" * (17 * 2**20), Fault.BAD_RESPONSE),
    ],
)
def test_what_is_no_answer_is_a_fault(stream: bytes, fault: Fault) -> None:
    assert fault_of(stream) is fault


def test_done_without_a_finish_reason_ends_an_answer() -> None:
    assert read(TEXT, b"data: [DONE]")[1].finish_reason == "stop"


def test_a_last_event_without_its_blank_line_counts() -> None:
    deltas, completion = read(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}')
    assert deltas == [TextDelta("Hi")]
    assert completion.message.text == "Hi"


def test_a_refusal_is_what_the_model_says() -> None:
    _, completion = read(b'data: {"choices":[{"delta":{"content":null,"refusal":"I will not."},"finish_reason":"stop"}]}\n\n')
    assert completion.message.text == "I will not."


def test_arguments_that_the_length_cut_off_are_kept_as_they_are() -> None:
    call = b'{"index":0,"id":"x","function":{"name":"write","arguments":"{\\"content\\": \\"abc"}}'
    _, completion = read(b'data: {"choices":[{"delta":{"tool_calls":[' + call + b']},"finish_reason":"length"}]}\n\n')
    assert completion.message.tool_calls == (ToolCall("x", "write", '{"content": "abc'),)
    assert completion.finish_reason == "length"


def test_reasoning_that_is_sent_under_two_names_is_taken_once() -> None:
    piece = b'{"reasoning":"Hm","reasoning_content":"Hm","content":"Yes"}'
    deltas, _ = read(b'data: {"choices":[{"delta":' + piece + b',"finish_reason":"stop"}]}\n\n')
    assert deltas == [ReasoningDelta("Hm"), TextDelta("Yes")]


def test_a_message_is_bounded() -> None:
    answer = Answer(ENDPOINT, frozenset())
    event = b'data: {"choices":[{"delta":{"content":"' + b"x" * 2**20 + b'"}}]}\n\n'
    for _ in range(MESSAGE_LIMIT // 2**20):
        answer.feed(event)
    with pytest.raises(ModelError) as caught:
        answer.feed(event)
    assert caught.value.fault is Fault.BAD_RESPONSE


def test_a_whole_answer_keeps_its_details_apart() -> None:
    answer = Answer(ENDPOINT, frozenset())
    details = '[{"type":"reasoning.text","text":"a"},{"type":"reasoning.text","text":"b"}]'
    answer.feed(('{"choices":[{"message":{"content":"Hi","reasoning_details":' + details + "}}]}").encode())
    reasoning = answer.end()[1].message.reasoning
    assert reasoning is not None
    assert [detail["text"] for detail in reasoning["details"]] == ["a", "b"]


def test_encrypted_details_are_never_merged_into_another() -> None:
    details = [{"type": "reasoning.encrypted", "data": "a", "index": 0}]
    assert not merge_detail(details, {"type": "reasoning.encrypted", "data": "b", "index": 0})
    assert merge_detail(details, {"type": "reasoning.encrypted", "id": "r1", "index": 0})
    assert details == [{"type": "reasoning.encrypted", "data": "a", "id": "r1", "index": 0}]

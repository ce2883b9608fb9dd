import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from agent_server.gateway import Fault
from agent_server.gateway.chunks import ErrorPart
from agent_server.gateway.faults import answer_error, retry_after, stream_error
from agent_server.gateway.providers import Endpoint

ENDPOINT = Endpoint("https://openrouter.ai/api/v1/chat/completions", "sk-1", {}, "m", "openrouter")


def answered(status: int, **error: Any) -> Fault:
    return answer_error(ENDPOINT, status, {}, json.dumps({"error": error}).encode()).fault


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (301, Fault.BAD_REQUEST),
        (400, Fault.BAD_REQUEST),
        (401, Fault.AUTHENTICATION),
        (402, Fault.AUTHENTICATION),
        (403, Fault.AUTHENTICATION),
        (404, Fault.BAD_REQUEST),
        (405, Fault.BAD_REQUEST),
        (408, Fault.OVERLOADED),
        (424, Fault.OVERLOADED),
        (409, Fault.OVERLOADED),
        (413, Fault.CONTEXT_OVERFLOW),
        (422, Fault.BAD_REQUEST),
        (425, Fault.OVERLOADED),
        (429, Fault.RATE_LIMIT),
        (500, Fault.OVERLOADED),
        (502, Fault.OVERLOADED),
        (503, Fault.OVERLOADED),
        (504, Fault.OVERLOADED),
        (520, Fault.OVERLOADED),
        (529, Fault.OVERLOADED),
    ],
)
def test_a_status_has_its_fault(status: int, fault: Fault) -> None:
    assert answered(status, message="No.") is fault


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens.",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "prompt is too long: 213462 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "The input token count (1050000) exceeds the maximum number of tokens allowed (1048576).",
        "Input is too long for requested model.",
        "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
        "Please reduce the length of the messages or completion.",
        "the request exceeds the available context size. try increasing the context size or enable context shift",
        "Invalid request: Your request exceeded model token limit: 262144",
        "The decoder prompt (length 40000) is longer than the maximum model length of 32768.",
        "`inputs` tokens + `max_new_tokens` must be <= 32769",
        "prompt too long; exceeded max context length by 12 tokens",
        "prompt token count of 70000 exceeds the limit of 64000",
        "Prompt exceeds max length",
        "too many tokens: total number of tokens in the prompt cannot exceed 128000",
        "finish reason model_context_window_exceeded",
        "Token limit exceeded: 131072",
        "Input tokens exceed the configured limit of 272000 tokens.",
        "Too many input tokens. Max input tokens: 8192, request input token count: 9000",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]",
        "Input length 40000 exceeds the maximum allowed token size 32768",
        "Requested input length 40000 exceeds maximum input length 32768",
        "Current length is 9000 while limit is 8192",
        "400 status code (no body)",
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_every_provider_says_overflow_in_its_own_words(status: int, message: str) -> None:
    assert answered(status, message=message) is Fault.CONTEXT_OVERFLOW


@pytest.mark.parametrize(("status", "fault"), [(400, Fault.CONTEXT_OVERFLOW), (413, Fault.CONTEXT_OVERFLOW), (422, Fault.BAD_REQUEST)])
@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_a_refusal_without_a_body_may_be_of_the_length(body: bytes, status: int, fault: Fault) -> None:
    assert answer_error(ENDPOINT, status, {}, body).fault is fault


@pytest.mark.parametrize(
    ("status", "error", "fault"),
    [
        (400, {"message": "Too long", "code": "context_length_exceeded"}, Fault.CONTEXT_OVERFLOW),
        (400, {"message": "Too long", "type": "exceed_context_size_error"}, Fault.CONTEXT_OVERFLOW),
        (400, {"message": "Provider returned error", "metadata": {"raw": "prompt is too long"}}, Fault.CONTEXT_OVERFLOW),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, Fault.AUTHENTICATION),
        (429, {"message": "Too many tokens for the context window"}, Fault.RATE_LIMIT),
        (429, {"message": "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 45000."}, Fault.CONTEXT_OVERFLOW),
        (403, {"message": "Input was flagged", "metadata": {"reasons": ["violence"]}}, Fault.BAD_REQUEST),
        (403, {"message": "Requires moderation"}, Fault.BAD_REQUEST),
        (400, {"message": "API key not valid. Please pass a valid API key.", "code": 400}, Fault.AUTHENTICATION),
        (400, {"message": None, "code": None}, Fault.BAD_REQUEST),
        (500, {"message": "Jinja Exception: Conversation roles must alternate user/assistant/...", "code": 500}, Fault.BAD_REQUEST),
        (500, {"message": "Failed to apply chat template", "type": "server_error"}, Fault.BAD_REQUEST),
    ],
)
def test_what_an_error_says_counts_beside_its_status(status: int, error: dict[str, Any], fault: Fault) -> None:
    assert answered(status, **error) is fault


@pytest.mark.parametrize(
    ("details", "headers", "seconds"),
    [
        ([{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}, {"retryDelay": "34.5s"}], {}, 34.5),
        ([{"retryDelay": "34s"}], {"retry-after": "0"}, 0),
        ([{"retryDelay": "soon"}], {}, None),
        ([{"retryDelay": 34}], {}, None),
        (["34s"], {}, None),
        ({"retryDelay": "34s"}, {}, None),
        (None, {}, None),
    ],
)
def test_google_says_in_the_body_how_long_to_wait(details: Any, headers: dict[str, str], seconds: float | None) -> None:
    body = json.dumps({"error": {"code": 429, "message": "Quota", "details": details}}).encode()
    assert answer_error(ENDPOINT, 429, headers, body).retry_after == seconds


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ErrorPart("Slow", 429), Fault.RATE_LIMIT),
        (ErrorPart("Slow", "429"), Fault.RATE_LIMIT),
        (ErrorPart("Slow", "rate_limit_exceeded"), Fault.RATE_LIMIT),
        (ErrorPart("Gone", "insufficient_quota"), Fault.AUTHENTICATION),
        (ErrorPart("Bad", 400), Fault.BAD_REQUEST),
        (ErrorPart("Bad", None, "invalid_request_error"), Fault.BAD_REQUEST),
        (ErrorPart("Full", "context_length_exceeded"), Fault.CONTEXT_OVERFLOW),
        (ErrorPart("Broke", "server_error"), Fault.OVERLOADED),
        (ErrorPart("Broke", 1), Fault.OVERLOADED),
        (ErrorPart("Broke"), Fault.OVERLOADED),
        ("Broke", Fault.OVERLOADED),
    ],
)
def test_errors_inside_a_stream_are_told_apart_by_their_code(error: ErrorPart | str, fault: Fault) -> None:
    assert stream_error(ENDPOINT, error).fault is fault


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error":{"message":"No\\n  such model"}}', "openrouter 400: No such model"),
        (400, b'{"error":"No such model"}', "openrouter 400: No such model"),
        (400, b'[{"error":{"code":400,"message":"No such model","status":"INVALID_ARGUMENT"}}]', "openrouter 400: No such model"),
        (400, b"[]", "openrouter 400: Bad Request"),
        (400, b'{"object":"error","message":"No such model","code":400}', "openrouter 400: No such model"),
        (422, b'{"detail":[{"msg":"extra"}]}', 'openrouter 422: [{"msg":"extra"}]'),
        (502, b"<html>Bad\xff", "openrouter 502: <html>Bad\ufffd"),
        (502, b"[" * 60_000, "openrouter 502: " + "[" * 984),
        (502, b"", "openrouter 502: Bad Gateway"),
        (520, b"", "openrouter 520: no message"),
        (402, b'{"error":{"message":"Add credits"}}', "openrouter 402 (out of credit): Add credits"),
        (401, b'{"error":{"message":"Not sk-1"}}', "openrouter 401: Not [key]"),
        (
            502,
            b'{"error":{"message":"Provider returned error","metadata":{"raw":"boom"}}}',
            "openrouter 502: Provider returned error: boom",
        ),
        (502, b'{"error":{"message":"boom","metadata":{"raw":"boom"}}}', "openrouter 502: boom"),
    ],
)
def test_what_the_provider_said_is_in_the_message(status: int, body: bytes, message: str) -> None:
    assert answer_error(ENDPOINT, status, {}, body).message == message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "-5"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(90, abs=5)

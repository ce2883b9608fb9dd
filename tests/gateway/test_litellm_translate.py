import itertools

import pytest

from agent_server.gateway import Fault
from agent_server.gateway.litellm_translate import failure
from agent_server.gateway.providers import Endpoint

ENDPOINT = Endpoint("", "sk-secret", {}, "m", "anthropic")


class APIConnectionError(Exception):
    status_code = 500


class APIError(Exception):
    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class MidStream(Exception):
    def __init__(self, original: Exception) -> None:
        super().__init__("wrapped")
        self.original_exception = original


def caused(error: Exception, *causes: Exception) -> Exception:
    """An error as litellm raises it, and what it stands for, in a chain."""
    for effect, cause in itertools.pairwise((error, *causes)):
        effect.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("causes", "fault"),
    [
        ([AttributeError("'bool' object has no attribute 'get'")], Fault.BAD_REQUEST),
        ([Exception("no"), ValueError("Invalid IPv6 URL")], Fault.BAD_REQUEST),
        ([FileNotFoundError("/nowhere")], Fault.BAD_REQUEST),
        ([ConnectionRefusedError("refused"), KeyError("pool")], Fault.NETWORK),
        ([Exception("no")], Fault.NETWORK),
    ],
)
def test_what_comes_from_the_request_itself_is_not_tried_again(causes: list[Exception], fault: Fault) -> None:
    assert failure(ENDPOINT, caused(APIConnectionError("said"), *causes), was_sent=False).fault is fault


@pytest.mark.parametrize(
    ("error", "was_sent", "fault", "message"),
    [
        (APIError("litellm.BadRequestError: AnthropicException - No", 400), False, Fault.BAD_REQUEST, "anthropic 400: No"),
        (MidStream(APIError("Overloaded", 529)), True, Fault.OVERLOADED, "anthropic 529: Overloaded"),
        (MidStream(MidStream(APIError("Slow down", 429))), True, Fault.RATE_LIMIT, "anthropic 429: Slow down"),
        (APIError("Not sk-secret", 401), False, Fault.AUTHENTICATION, "anthropic 401: Not [key]"),
        (APIError("prompt is too long", 400), True, Fault.CONTEXT_OVERFLOW, "anthropic 400: prompt is too long"),
        (APIConnectionError("litellm.APIConnectionError: Expecting value"), True, Fault.BAD_RESPONSE, "Expecting value"),
        (ValueError("oops\nTraceback (most recent call last):\n  File"), True, Fault.BAD_RESPONSE, "cannot read: oops"),
        (APIConnectionError("Name or service not known"), False, Fault.NETWORK, "anthropic was not reached: Name or service not known"),
        (APIConnectionError("Unable to locate credentials"), False, Fault.AUTHENTICATION, "anthropic: Unable to locate credentials"),
        (APIError("AnthropicError - Slow. Handle with `litellm.RateLimitError`.", 429), True, Fault.RATE_LIMIT, "anthropic 429: Slow."),
        (KeyError("x"), False, Fault.BAD_REQUEST, "litellm cannot call anthropic"),
    ],
)
def test_an_exception_of_litellms_has_its_fault(error: Exception, was_sent: bool, fault: Fault, message: str) -> None:
    failed = failure(ENDPOINT, error, was_sent=was_sent)
    assert failed.fault is fault
    assert message in failed.message
    assert "Traceback" not in failed.message

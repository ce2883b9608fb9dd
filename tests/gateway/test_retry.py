import pytest

from agent_server.gateway import Completion, Delta, Fault, ModelError, TextDelta
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.retry import MAX_DELAY, MAX_RETRY_AFTER, MAX_TRIES, stream_with_retries, wait_before
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import OPTIONS, user


class Told:
    """What on_retry was told."""

    def __init__(self) -> None:
        self.retries: list[tuple[Fault, int]] = []
        self.deltas: list[Delta] = []

    async def on_retry(self, error: ModelError, tries: int, delay: float) -> None:
        assert 0 <= delay < 1
        self.retries.append((error.fault, tries))
        self.deltas.clear()

    async def ask(self, gateway: ChatGateway) -> None:
        deltas = stream_with_retries(gateway, [user("Hi")], [], OPTIONS, on_retry=self.on_retry, base_delay=0.001)
        async for delta in deltas:
            self.deltas.append(delta)


async def test_the_deltas_of_the_attempt_that_succeeds_follow_the_retries(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"status": 500}, {"text": "Hello", "cut_after": 2}, {"text": "Again", "pieces": 1})
    told = Told()
    await told.ask(gateway)
    assert told.retries == [(Fault.OVERLOADED, 1), (Fault.STREAM_CUT, 2)]
    assert told.deltas[0] == TextDelta("Again")
    assert isinstance(told.deltas[-1], Completion)


async def test_after_four_tries_the_last_error_is_raised(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"repeat": {"status": 429}, "times": 9})
    told = Told()
    with pytest.raises(ModelError) as caught:
        await told.ask(gateway)
    assert caught.value.details == {"reason": "rate_limit", "providerStatus": 429, "tries": MAX_TRIES}
    assert [tries for _, tries in told.retries] == [1, 2, 3]
    assert len(emulator.requests()) == MAX_TRIES


@pytest.mark.parametrize("status", [400, 401, 402, 403, 413])
async def test_what_cannot_succeed_later_is_tried_once(emulator: OpenAIEmulator, gateway: ChatGateway, status: int) -> None:
    emulator.script({"status": status})
    told = Told()
    with pytest.raises(ModelError) as caught:
        await told.ask(gateway)
    assert caught.value.details["tries"] == 1
    assert told.retries == []


@pytest.mark.parametrize(("tries", "most"), [(1, 1.0), (2, 2.0), (3, 4.0), (10, MAX_DELAY)])
def test_waits_grow_with_jitter_up_to_their_cap(tries: int, most: float) -> None:
    waits = {wait_before(tries, None) for _ in range(50)}
    assert len(waits) > 1
    assert all(most / 2 <= wait <= most for wait in waits)


@pytest.mark.parametrize(("wish", "wait"), [(20.0, 20.0), (9999.0, MAX_RETRY_AFTER)])
def test_the_wish_of_a_provider_is_granted_up_to_a_minute(wish: float, wait: float) -> None:
    assert wait_before(1, wish) == wait
    assert wait_before(1, 0.0) >= 0.5

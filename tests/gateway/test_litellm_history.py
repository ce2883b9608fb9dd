"""Every request of every life of a session is one that Anthropic takes, as litellm translates it."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.gateway.litellm import LitellmGateway
from agent_server.messages import Message
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import BASH, collect
from tests.gateway.test_litellm_providers import CLAUDE, anthropic, begin, claude, end, said
from tests.test_history import SYSTEM, Life

pytestmark = pytest.mark.asyncio(loop_scope="session")

__all__ = ["claude"]

LIVES = 25


class Sent(Life):
    """A session that remembers what it has sent."""

    conversations: list[Sequence[Message]]

    def request(self) -> None:
        super().request()
        state = self._state
        forms = [*state.forms(), *state.forms(is_too_long=True)]
        self.conversations += [state.messages, *(state.in_form(form) for form in forms)]


def conversations() -> list[Sequence[Message]]:
    found: list[Sequence[Message]] = []

    @given(st.data())
    @settings(max_examples=LIVES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def live(data: st.DataObject) -> None:
        life = Sent(data)
        life.conversations = found
        for _ in range(data.draw(st.integers(1, 3))):
            life.task()
            life.between()

    live()
    return found


async def test_anthropic_takes_every_conversation(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    found = conversations()
    emulator.script({"repeat": anthropic(begin(), *said("Hi"), *end("end_turn")), "times": len(found)})
    for messages in found:
        _, completion = await collect(claude, [SYSTEM, *messages], [BASH], CLAUDE)
        assert completion.message.text == "Hi"
    assert len(emulator.requests()) == len(found) > 100

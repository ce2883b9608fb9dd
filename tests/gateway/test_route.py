import pytest

from agent_server.gateway import ModelOptions
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.providers import ProviderSettings
from agent_server.gateway.replay import ReplayGateway, load
from agent_server.gateway.route import Choice, Gateways
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import collect


@pytest.mark.parametrize(
    ("choice", "base_url", "provider", "expected"),
    [
        ("auto", None, "replay", "replay"),
        ("auto", None, "openrouter", "chat"),
        ("auto", None, "ollama", "chat"),
        ("auto", None, "anthropic", "litellm"),
        ("auto", None, "nobody", "litellm"),
        ("auto", "http://127.0.0.1/v1", "anthropic", "chat"),
        ("litellm", None, "openrouter", "litellm"),
        ("litellm", "http://127.0.0.1/v1", "openai", "litellm"),
        ("litellm", None, "replay", "replay"),
    ],
)
def test_a_call_takes_the_way_of_its_provider(choice: Choice, base_url: str | None, provider: str, expected: str) -> None:
    ways = {name: ReplayGateway() for name in ("chat", "litellm", "replay")}
    gateways = Gateways(ProviderSettings(base_url), ways["chat"], ways["litellm"], ways["replay"], choice)
    assert gateways.gateway(provider) is ways[expected]


async def test_recordings_are_played_and_all_else_is_asked(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"text": "From the model"})
    gateways = Gateways(ProviderSettings(emulator.url), gateway, ReplayGateway(), ReplayGateway())
    _, played = await collect(gateways, options=ModelOptions("replay", "demo"))
    _, asked = await collect(gateways, options=ModelOptions("openai", "gpt-4o"))
    assert (played.message.text, asked.message.text) == (load("demo").turns[0].text, "From the model")
    await gateways.close()

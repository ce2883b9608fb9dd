from agent_server.gateway import ModelOptions
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.replay import ReplayGateway, load
from agent_server.gateway.route import Gateways
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import collect


async def test_recordings_are_played_and_all_else_is_asked(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"text": "From the model"})
    gateways = Gateways(gateway, ReplayGateway())
    _, played = await collect(gateways, options=ModelOptions("replay", "demo"))
    _, asked = await collect(gateways, options=ModelOptions("openai", "gpt-4o"))
    assert (played.message.text, asked.message.text) == (load("demo").turns[0].text, "From the model")
    await gateways.close()

"""A bot whose machine is quiesced: nothing that people write is lost, and nothing is answered meanwhile."""

from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import TelegramEmulator
from tests.integrations.conftest import Since, state
from tests.serving import ServerProcess


def test_what_comes_while_it_is_quiesced_is_answered_after_the_resume(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Before."}, {"text": "After."})
    telegram.say("one")
    telegram.wait_for_texts(1)
    since.wait_for("integration.sent")
    assert bot.post("/lifecycle/quiesce").status_code == 200
    assert state(bot)["status"] == "disabled"
    telegram.say("two")
    assert bot.post("/lifecycle/resume").status_code == 200
    assert telegram.wait_for_texts(2) == ["Before.", "After."]
    assert state(bot)["status"] == "connected"


def test_it_connects_anew_when_nobody_resumes_it(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Here."})
    assert bot.post("/lifecycle/quiesce", {"timeout": 100}).status_code == 200
    telegram.say("anyone?")
    assert telegram.wait_for_texts(1) == ["Here."]


def test_a_stopped_instance_takes_what_was_written_when_it_starts(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Here again."})
    bot.post("/lifecycle/stop")
    telegram.say("hello?")
    since.wait_for("integration.disconnected")
    assert telegram.texts() == []
    bot.post("/lifecycle/start")
    assert telegram.wait_for_texts(1) == ["Here again."]

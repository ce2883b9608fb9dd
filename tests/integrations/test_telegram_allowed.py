"""Who may write to a Telegram bot: those that are listed, by number or by name, and nobody else."""

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import TelegramEmulator
from tests.integrations.conftest import Since
from tests.serving import ServerProcess

GROUP = {"id": -100500, "type": "supergroup", "title": "The team"}
STRANGER = {"id": 99, "is_bot": False, "first_name": "Mallory", "username": "mallory"}


@pytest.mark.parametrize(
    ("variables", "may"),
    [
        ({"TELEGRAM_ALLOWED_USERS": None}, False),
        ({"TELEGRAM_ALLOWED_USERS": "@Anna"}, True),
        ({"TELEGRAM_ALLOWED_USERS": "anna"}, False),
        ({"TELEGRAM_ALLOWED_USERS": "4, 420 @annabel"}, False),
        ({"TELEGRAM_ALLOWED_USERS": "7 42"}, True),
        ({"TELEGRAM_ALLOWED_USERS": "*"}, True),
        ({"TELEGRAM_ALLOWED_USERS": None, "TELEGRAM_ALLOWED_CHATS": "42"}, True),
    ],
    ids=str,
)
def test_who_may_write(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator, variables: dict[str, str | None], may: bool
) -> None:
    model.script({"text": "For you."})
    with bot.client() as client:
        assert client.put("/integrations", json={"integrationEnv": variables}).status_code == 200
    telegram.say("hello")
    assert (telegram.wait_for_texts(1) == ["For you."]) is may


def test_a_chat_that_is_allowed_is_open_to_those_in_it(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    with bot.client() as client:
        client.put("/integrations", json={"integrationEnv": {"TELEGRAM_ALLOWED_CHATS": "-100500"}})
    telegram.say("@test_bot hello", user=STRANGER, chat=GROUP)
    assert telegram.wait_for_texts(1, chat=-100500) == ["Yes."]


def test_many_strangers_are_not_all_answered(since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "For Anna."})
    with bot.client() as client:
        client.put("/integrations", json={"integrationEnv": {"TELEGRAM_ALLOWED_USERS": "42,43"}})
    for number in range(100, 150):
        telegram.say("let me in", user={"id": number, "first_name": "x"})
    telegram.say("hello")
    telegram.wait_for_texts(1)
    telegram.wait(lambda t: len(t.sent) == 31)
    assert len(since.told("integration.received")) == 31

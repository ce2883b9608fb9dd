"""Telegram over restarts: whenever the server is killed, a message makes one task, and its reply comes once or with a word on it."""

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_server.adapters.courier import NOTICE
from agent_server.adapters.deliveries import DeliveryIndex
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import TOKEN, Fault, TelegramEmulator
from tests.integrations.conftest import Since, environ
from tests.serving import ServerProcess, serving


@pytest.fixture
def telegram() -> Iterator[TelegramEmulator]:
    with TelegramEmulator().running() as running:
        yield running


@pytest.fixture
def bot(tmp_path: Path, model: OpenAIEmulator, telegram: TelegramEmulator) -> Iterator[ServerProcess]:
    with serving(tmp_path, **environ(model, telegram)) as running:
        yield running


def kill_after(bot: ServerProcess, since: Since, kind: str) -> None:
    since.wait_for(kind)
    bot.kill()


def count(bot: ServerProcess, table: str, where: str = "1") -> int:
    """Rows of the log of a server that was stopped."""
    db = sqlite3.connect(bot.data / "events.db")
    found: int = db.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0]
    db.close()
    return found


@pytest.mark.parametrize("kind", ["integration.received", "task.created", "task.started", "step.started", "message.delta"])
def test_killed_before_the_answer_there_is_one_task_and_one_reply(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator, kind: str
) -> None:
    model.script({"text": "Half an answer.", "cut_after": 3, "stall": 30}, {"repeat": {"text": "Yes."}, "times": 3})
    telegram.say("hello")
    kill_after(bot, since, kind)
    bot.start()
    if kind != "message.delta":  # it may have been killed before the model was asked at all
        model.script({"repeat": {"text": "Yes."}, "times": 3})
    assert telegram.wait_for_texts(1) == ["Yes."]
    telegram.say("/start")
    assert len(telegram.wait_for_texts(2)) == 2
    assert len(since.tasks()) == 1


def test_killed_after_the_end_of_the_task_the_reply_is_sent_by_the_next_start(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    telegram.fail("sendMessage", Fault(429, "Too Many Requests", retry_after=60))
    telegram.say("hello")
    kill_after(bot, since, "integration.held")
    assert telegram.texts() == []
    bot.start()
    assert telegram.wait_for_texts(1) == ["Yes."]


def test_killed_while_the_reply_was_sent_it_is_not_sent_again_and_that_is_said(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."}, {"text": "As I said: yes."})
    hold = threading.Event()
    telegram.fail("sendMessage", Fault(hold=hold))
    telegram.say("hello")
    telegram.wait_for_texts(1)
    bot.kill()
    hold.set()
    bot.start()
    assert telegram.wait_for_texts(2) == ["Yes.", NOTICE]
    error = since.wait_for("integration.error")
    assert "not known whether message 1 of 1" in error["error"]
    bot.kill()
    bot.start()
    telegram.say("say it again")
    assert telegram.wait_for_texts(3) == ["Yes.", NOTICE, "As I said: yes."]


def test_killed_while_the_notice_was_sent_there_is_no_other(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    hold = threading.Event()
    telegram.fail("sendMessage", Fault(hold=hold), Fault(hold=hold))
    telegram.say("hello")
    telegram.wait_for_texts(1)
    bot.kill()
    bot.start()
    telegram.wait_for_texts(2)
    bot.kill()
    hold.set()
    bot.start()
    telegram.say("/start")
    texts = telegram.wait_for_texts(3)
    assert texts[:2] == ["Yes.", NOTICE]
    assert texts[2].startswith("Hello")
    bot.stop()
    assert count(bot, "deliveries", "is_done = 0") == 0


def test_killed_in_the_midst_of_a_long_reply_the_rest_follows(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "\n".join(f"{number} {'x' * 3000}" for number in range(4))})
    hold = threading.Event()
    telegram.fail("sendMessage", Fault(), Fault(hold=hold))
    telegram.say("hello")
    telegram.wait_for_texts(2)
    bot.kill()
    hold.set()
    bot.start()
    assert [text[:2] for text in telegram.wait_for_texts(5)] == ["0 ", "1 ", NOTICE[:2], "2 ", "3 "]


def test_a_stop_lets_a_message_arrive_that_is_on_its_way(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    hold = threading.Event()
    telegram.fail("sendMessage", Fault(hold=hold))
    telegram.say("hello")
    telegram.wait_for_texts(1)
    threading.Timer(1, hold.set).start()
    assert bot.stop() == 0
    assert len(bot.stored("type = 'integration.sent'")) == 1
    bot.start()
    telegram.say("/start")
    assert len(telegram.wait_for_texts(2)) == 2


def test_the_network_may_be_away_for_as_long_as_it_likes(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    telegram.say("hello")
    telegram.fail("sendMessage", *[Fault(429, "Slow down", retry_after=1)])
    telegram.fail("getUpdates", *[Fault(cut="before")] * 2)
    telegram.fail("getMe", *[Fault(cut="before")] * 2)
    bot.kill()
    bot.start()
    assert telegram.wait_for_texts(1) == ["Yes."]
    assert len(telegram.called("getMe")) <= 5


def test_killed_at_any_time_each_message_makes_one_task_and_no_reply_comes_twice(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"script": "plan", "text": "Yes."})
    chance = random.Random(1)
    words = [f"message {number}" for number in range(12)]
    for number, word in enumerate(words):
        telegram.say(word)
        if number % 3 == 2:
            time.sleep(chance.uniform(0, 0.12))
            bot.kill()
            bot.start()
    answered = telegram.wait(lambda t: t.sent if len(t.sent) >= len(words) else [])
    bot.stop()
    texts = Counter(telegram.texts())
    assert set(texts) <= {"Yes.", NOTICE}
    replies = Counter(message["reply_parameters"]["message_id"] for message in answered if message["text"] == "Yes.")
    assert max(replies.values()) == 1
    assert len(bot.stored("type = 'task.created'")) == len(bot.stored("type = 'task.completed'")) == len(words)
    assert len(bot.stored("type = 'integration.received'")) == len(words)
    assert count(bot, "deliveries", "is_done = 0") == 0


def test_the_index_of_deliveries_is_built_again_from_the_log(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."}, {"text": "No."}, {"text": "Never said.", "stall": 60})
    telegram.say("hello")
    telegram.wait_for_texts(1)
    telegram.fail("sendMessage", Fault(403, "Forbidden"))
    telegram.say("and now?")
    since.wait_for("integration.error")
    telegram.say("/start")
    telegram.wait_for_texts(2)
    telegram.say("the last")
    telegram.wait(lambda t: len(model.requests()) == 3)
    bot.kill()
    bot.start(TELEGRAM_BOT_TOKEN="")  # what was in the journal is in the database then
    bot.stop()
    db = sqlite3.connect(bot.data / "events.db")
    rows = db.execute("SELECT * FROM deliveries ORDER BY key").fetchall()
    assert len(rows) == 4
    db.execute("UPDATE meta SET value = 0 WHERE name = 'index DeliveryIndex'")
    db.execute("DELETE FROM deliveries")
    db.commit()
    db.close()
    bot.start(TELEGRAM_BOT_TOKEN="")
    bot.stop()
    db = sqlite3.connect(bot.data / "events.db")
    assert db.execute("SELECT * FROM deliveries ORDER BY key").fetchall() == rows
    assert DeliveryIndex.version == 1
    db.close()


def test_an_old_reply_is_not_sent_out_of_the_blue(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    telegram.fail("sendMessage", Fault(429, "Too Many Requests", retry_after=60))
    telegram.say("hello")
    kill_after(bot, since, "integration.held")
    db = sqlite3.connect(bot.data / "events.db")
    db.execute("UPDATE deliveries SET due = due - 25 * 3600 * 1000")
    db.commit()
    db.close()
    bot.start()
    assert "for too long" in since.wait_for("integration.error")["error"]
    assert telegram.texts() == []


def test_the_token_is_seen_nowhere(since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": f"Your token is {TOKEN}."})
    telegram.fail("getUpdates", Fault(500, f"Error of bot{TOKEN}"))
    telegram.say("hello")
    seen = telegram.wait_for_texts(1)
    since.wait_for("integration.error")
    seen += [bot.log(), *(bot.get(path).text for path in ("/integrations", "/status", "/logs?lines=1000&level=DEBUG"))]
    seen += [str(since.told("integration.error", "task.completed", "log")), bot.execute("env")["stdout"]]
    assert all(TOKEN not in one for one in seen)
    bot.stop()
    assert not [path for path in bot.data.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]

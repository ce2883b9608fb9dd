"""Telegram: what people write becomes tasks, once, and they get their answers, once."""

from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import ANNA, BOT, TOKEN, Fault, TelegramEmulator
from tests.integrations.conftest import Since, state
from tests.serving import ServerProcess

GROUP = {"id": -100500, "type": "supergroup", "title": "The team"}
ASKED = {"message_id": 1, "chat": GROUP, "from": BOT, "text": "Shall I?"}
STRANGER = {"id": 99, "is_bot": False, "first_name": "Mallory", "username": "mallory"}


def prompts(model: OpenAIEmulator) -> list[str]:
    """The last prompt of each request."""
    return [record.json["messages"][-1]["content"] for record in model.requests()]


def test_a_message_becomes_a_task_and_its_response_the_reply(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "It is Tuesday."}, {"text": "And then Wednesday."})
    number = telegram.say("What day is it?")
    assert telegram.wait_for_texts(1) == ["It is Tuesday."]
    telegram.say("And then?")
    assert telegram.wait_for_texts(2) == ["It is Tuesday.", "And then Wednesday."]
    assert [message["reply_parameters"]["message_id"] for message in telegram.sent] == [1000 + number, 1001 + number]
    tasks = since.tasks()
    assert [(task["prompt"], task["sessionId"], task["status"]) for task in tasks] == [
        ("And then?", "telegram:42", "completed"),
        ("What day is it?", "telegram:42", "completed"),
    ]
    conversation = [message["content"] for message in model.requests()[-1].json["messages"][-3:]]
    assert conversation == ["What day is it?", "It is Tuesday.", "And then?"]


def test_the_log_tells_what_came_and_what_was_sent(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Yes."})
    number = telegram.say("Are you there?")
    since.wait_for("integration.sent")
    kinds = ("received", "sending", "sent")
    found = since.told("task.created", "task.completed", *(f"integration.{kind}" for kind in kinds))
    assert [event["type"].partition(".")[2] for event in found] == ["received", "created", "completed", "sending", "sent"]
    received, created, _, sending, sent = found
    assert received["key"] == f"telegram:{BOT['id']}:{number}" == created["idempotencyKey"] == sending["key"] == sent["key"]
    assert received["sender"] == "Anna (42)"
    assert received["source"] == "integration"
    assert received["taskId"] == created["taskId"] == sent["taskId"]
    assert (sent["part"], sent["parts"], sent["messageId"]) == (1, 1, "5001")


def test_each_chat_is_a_session_and_topics_are_sessions_too(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "Yes."}, "times": 3})
    telegram.say("one")
    telegram.say("@test_bot two", chat=GROUP)
    telegram.say("@test_bot three", chat=GROUP, message_thread_id=7, is_topic_message=True)
    telegram.wait(lambda t: len(t.sent) == 3)
    sessions = {task["prompt"]: task["sessionId"] for task in since.tasks()}
    assert sessions == {"one": "telegram:42", "Anna: two": "telegram:-100500", "Anna: three": "telegram:-100500:7"}
    assert {(m["chat_id"], m.get("message_thread_id")) for m in telegram.sent} == {(42, None), (-100500, None), (-100500, 7)}


def test_an_update_that_comes_again_and_again_is_taken_once(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "Once."}, "times": 5})
    telegram.repeats = True
    telegram.say("hello")
    telegram.say("/start")
    telegram.wait_for_texts(2)
    polls = len(telegram.called("getUpdates"))
    telegram.wait(lambda t: len(t.called("getUpdates")) > polls + 5)
    assert sorted(telegram.texts())[1] == "Once."
    assert len(telegram.sent) == 2
    assert len(since.tasks()) == 1
    assert len(since.told("integration.received")) == 2


def test_it_is_shown_that_an_answer_is_being_made(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "Slowly.", "stall": 5})
    telegram.say("hello")
    actions = telegram.wait(lambda t: t.called("sendChatAction") if len(t.called("sendChatAction")) == 2 else [])
    assert actions[0].parameters == {"chat_id": 42, "action": "typing"}
    assert 4 < actions[1].at - actions[0].at < 5.5
    assert telegram.wait_for_texts(1) == ["Slowly."]


def test_a_long_reply_comes_in_messages_that_fit(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    text = "".join(f"Line {number} 😀😀😀😀\n" for number in range(600))
    model.script({"text": text})
    telegram.say("tell me all")
    parts = telegram.wait_for_texts(3)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_a_reply_without_end_is_cut(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "word " * 30_000})
    telegram.say("tell me all")
    parts = telegram.wait_for_texts(20)
    assert parts[-1].startswith("[cut:")
    since.wait(lambda event: event["type"] == "integration.sent" and event["part"] == 20)


def test_only_the_answer_to_the_message_is_sent_and_not_that_of_a_subagent(
    since: Since, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    look = {"name": "task", "arguments": {"description": "d", "prompt": "look", "subagent_type": "explore"}}
    by_prompt = {"go": {"script": "plan", "plan": [[look]], "text": "For Anna."}, "look": {"text": "For the other agent."}}
    model.script({"script": "prompts", "by_prompt": by_prompt})
    telegram.say("go")
    assert telegram.wait_for_texts(1) == ["For Anna."]
    since.wait_for("integration.sent")
    telegram.say("go")
    assert telegram.wait_for_texts(2) == ["For Anna.", "For Anna."]
    assert sorted(one["prompt"] for one in since.tasks()) == ["go", "go", "look", "look"]


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_a_response_without_words_still_gets_an_answer(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator, text: str) -> None:
    model.script({"text": text, "finish_reason": "stop"})
    telegram.say("do it quietly")
    assert telegram.wait_for_texts(1)[0].strip()


def test_a_failure_is_told_in_one_sentence(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"status": 401, "error": {"message": "Incorrect API key provided"}})
    telegram.say("hello")
    text = telegram.wait_for_texts(1)[0]
    assert text.startswith("I could not finish this: ")
    assert "\n" not in text


# Who may write


def test_a_stranger_is_told_their_id_once_and_makes_no_task(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "For Anna."})
    for _ in range(5):
        telegram.say("let me in", user=STRANGER)
    telegram.say("/stop", user=STRANGER)
    telegram.say("@test_bot let me in", user=STRANGER, chat=GROUP)
    telegram.say("hello")
    assert telegram.wait_for_texts(1) == ["For Anna."]
    refusals = telegram.wait_for_texts(1, chat=99)
    assert len(refusals) == 1
    assert "99" in refusals[0]
    assert "TELEGRAM_ALLOWED_USERS" in refusals[0]
    assert telegram.texts(GROUP["id"]) == []  # type: ignore[arg-type]  # the values of GROUP differ in type
    assert [task["prompt"] for task in since.tasks()] == ["hello"]


# Groups


@pytest.mark.parametrize(
    ("message", "prompt"),
    [
        ({"text": "what do you think?"}, None),
        ({"text": "mail me@test_bot now"}, None),
        ({"text": "@test_bot2 hello"}, None),
        ({"text": "@Test_Bot what do you think?"}, "Anna: what do you think?"),
        (
            {"text": "yes", "reply_to_message": ASKED},
            "In answer to:\n> Shall I?\n\nAnna: yes",
        ),
        ({"text": "you there", "entities": [{"type": "text_mention", "offset": 0, "length": 3, "user": BOT}]}, "Anna: you there"),
        ({"text": "/report@test_bot now"}, "Anna: /report@test_bot now"),
        ({"text": "/report now"}, None),
        ({"text": "/report@other_bot now"}, None),
        ({"caption": "@test_bot see", "photo": [{}]}, "Anna: see\n[A photo came with this, which you cannot see.]"),
        ({"text": "@test_bot hi", "from": {**BOT, "id": 701, "username": "other_bot"}}, None),
    ],
    ids=str,
)
def test_in_a_group_it_listens_only_when_it_is_addressed(
    since: Since, telegram: TelegramEmulator, model: OpenAIEmulator, message: dict[str, Any], prompt: str | None
) -> None:
    model.script({"repeat": {"text": "Yes."}, "times": 2})
    telegram.say(chat=GROUP, **message)
    telegram.say("the last")
    telegram.wait_for_texts(1)
    found = {task["prompt"] for task in since.tasks()} - {"the last"}
    assert found == ({prompt} if prompt is not None else set())


# What is no plain message


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"text": "/start"}, "Hello"),
        ({"text": "/help@test_bot"}, "Hello"),
        ({"text": "/stop"}, "There is nothing to stop."),
        ({"text": "/cancel"}, "There is nothing to stop."),
        ({"photo": [{"file_id": "x"}]}, "I can read text only. I have not seen the photo"),
        ({"document": {"file_id": "x"}}, "I can read text only. I have not seen the document"),
        ({"voice": {"file_id": "x"}}, "I can read text only. I have not seen the voice"),
        ({"sticker": {}}, "I can read text only. I have not seen the sticker"),
        ({"text": "hello again", "edited": True}, "I do not see changes"),
    ],
    ids=str,
)
def test_what_is_answered_without_a_task(since: Since, telegram: TelegramEmulator, message: dict[str, Any], answer: str) -> None:
    telegram.say(**message)
    assert telegram.wait_for_texts(1)[0].startswith(answer)
    assert since.tasks() == []


def test_a_caption_is_passed_on_with_a_word_on_what_it_came_with(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "Nice."})
    telegram.say(caption="my cat", photo=[{"file_id": "x"}])
    assert telegram.wait_for_texts(1) == ["Nice."]
    assert prompts(model) == ["my cat\n[A photo came with this, which you cannot see.]"]


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"message": None},
        {"message": "no object"},
        {"message": {"message_id": "x", "chat": {}}},
        {"message": {"message_id": 1, "chat": {"id": 42}, "text": "from nobody"}},
        {"message": {"message_id": 1, "chat": {"id": 42}, "from": ANNA, "new_chat_members": [ANNA]}},
        {"message": {"message_id": 1, "chat": {"id": 42}, "from": ANNA, "text": " \n "}},
        {"message": {"message_id": 1, "chat": {"id": 42}, "from": ANNA, "photo": [], "media_group_id": "7"}},
        {"edited_message": {"message_id": 1, "chat": {"id": 42}, "from": ANNA, "location": {"latitude": 1}}},
        {"channel_post": {"message_id": 1, "chat": {"id": -1}, "text": "news"}},
        {"something_of_next_year": {"a": [1, {"b": None}]}},
    ],
    ids=str,
)
def test_what_says_nothing_to_it_is_passed_over(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator, update: dict[str, Any]
) -> None:
    model.script({"text": "Yes."})
    telegram.push(update)
    telegram.say("hello")
    assert telegram.wait_for_texts(1) == ["Yes."]
    assert len(telegram.sent) == 1
    assert state(bot)["status"] == "connected"


def test_stop_ends_what_is_running_and_what_waits(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "Never said.", "stall": 60})
    telegram.say("do it")
    telegram.say("and this")
    since.wait_for("step.started")
    telegram.say("/stop")
    assert telegram.wait_for_texts(2) == ["Stopped.", "Stopped."]
    assert {task["phase"] for task in since.tasks()} == {"cancelled"}
    model.script({"text": "Back."})
    telegram.say("hello")
    assert telegram.wait_for_texts(3)[-1] == "Back."


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(409, "Conflict: terminated by other getUpdates request"), "Another program"),
        (Fault(500, "Internal Server Error"), "fails at present"),
        (Fault(502, "Bad Gateway"), "did not say"),
        (Fault(429, "Too Many Requests", retry_after=1), "less often"),
        (Fault(503, body=b"<html>no</html>"), "no JSON"),
        (Fault(cut="before"), "broke the connection"),
    ],
    ids=str,
)
def test_a_poll_that_fails_is_an_error_until_one_succeeds(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator, fault: Fault, words: str
) -> None:
    model.script({"text": "Back."})
    telegram.fail("getUpdates", fault)
    telegram.push({})  # ends the poll that is open
    error = since.wait_for("integration.error")
    assert words in error["error"]
    assert bot.get("/health").status_code == 200
    telegram.say("hello")
    assert telegram.wait_for_texts(1) == ["Back."]
    assert state(bot)["status"] == "connected"
    polls = [call.at for call in telegram.called("getUpdates")]
    assert len(polls) < 10
    assert len(since.told("integration.error")) == 1
    assert len(since.told("integration.connected")) == 1


def test_a_revoked_token_is_an_error_and_not_asked_with_again(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator
) -> None:
    model.script({"text": "Back."})
    telegram.fail("getUpdates", Fault(401, "Unauthorized"))
    telegram.push({})  # ends the poll that is open
    since.wait_for("integration.error")
    assert "refuses TELEGRAM_BOT_TOKEN" in state(bot)["error"]
    calls = len(telegram.calls)
    telegram.say("hello")
    bot.execute("sleep 2")
    assert len(telegram.calls) == calls
    with bot.client() as client:  # the same again, by somebody who has seen to it
        after = client.put("/integrations", json={"integrationEnv": {"TELEGRAM_BOT_TOKEN": TOKEN}}).json()
    assert [one["status"] for one in after["integrations"] if one["name"] == "Telegram"] == ["connected"]
    assert telegram.wait_for_texts(1) == ["Back."]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, "Too Many Requests", retry_after=2),
        Fault(500, "Internal Server Error"),
    ],
    ids=str,
)
def test_a_message_that_was_not_sent_is_sent_again_in_time(
    since: Since, telegram: TelegramEmulator, model: OpenAIEmulator, fault: Fault
) -> None:
    model.script({"text": "Yes."})
    telegram.fail("sendMessage", fault)
    telegram.say("hello")
    assert telegram.wait_for_texts(1) == ["Yes."]
    first, second = telegram.called("sendMessage")
    assert second.at - first.at >= (fault.retry_after or 1)


@pytest.mark.parametrize("fault", [Fault(cut="after"), Fault(cut="before"), Fault(502, "Bad Gateway"), Fault(200, body=b"<html>")], ids=str)
def test_a_message_that_may_have_been_sent_is_not_sent_again_and_that_is_said(
    since: Since, telegram: TelegramEmulator, model: OpenAIEmulator, fault: Fault
) -> None:
    model.script({"text": "Yes."}, {"text": "And yes."})
    telegram.fail("sendMessage", fault)
    telegram.say("hello")
    telegram.say("more")
    telegram.wait(lambda t: len(t.called("sendMessage")) == 3)
    texts = [call.parameters["text"] for call in telegram.called("sendMessage")]
    assert texts[0] == "Yes."
    assert "interrupted" in texts[1]
    assert texts[2] == "And yes."
    error = since.wait_for("integration.error")
    assert "not known whether message 1 of 1" in error["error"]


@pytest.mark.parametrize("status", [400, 403])
def test_a_reply_that_nobody_can_get_is_given_up(
    since: Since, bot: ServerProcess, telegram: TelegramEmulator, model: OpenAIEmulator, status: int
) -> None:
    model.script({"text": "Yes."}, {"text": "And yes."})
    telegram.fail("sendMessage", Fault(status, "Forbidden: bot was blocked by the user"))
    telegram.say("hello")
    error = since.wait_for("integration.error")
    assert "blocked" in error["error"]
    telegram.say("more")
    assert telegram.wait_for_texts(1) == ["And yes."]
    assert state(bot)["status"] == "connected"


def test_one_chat_that_must_wait_does_not_hold_up_another(since: Since, telegram: TelegramEmulator, model: OpenAIEmulator) -> None:
    model.script({"text": "Slow."}, {"text": "Quick."})
    telegram.fail("sendMessage", Fault(429, "Too Many Requests", retry_after=60))
    telegram.say("hello")
    telegram.wait(lambda t: t.called("sendMessage"))
    telegram.say("@test_bot hello", chat=GROUP)
    assert telegram.wait_for_texts(1, chat=-100500) == ["Quick."]
    assert telegram.texts() == []

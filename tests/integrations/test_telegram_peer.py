"""Telegram against a Bot API that is not ours: telegram-test-api of npm, which knows neither typing nor long polls."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import TOKEN
from tests.integrations.conftest import KEY, state
from tests.nodejs import FOLDER, MODULES, NODE
from tests.serving import serving

pytestmark = pytest.mark.skipif(not MODULES.exists(), reason="make test installs it")


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([NODE, "telegram.mjs", str(port)], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def say(api: str, text: str, user: int = 42) -> None:
    person = {"id": user, "first_name": "Anna", "username": "anna", "is_bot": False}
    message = {"botToken": TOKEN, "date": 1, "from": person, "chat": {"id": user, "type": "private"}, "text": text}
    assert httpx.post(f"{api}/sendMessage", json=message).json()["ok"]


def heard(api: str, count: int, user: int = 42) -> list[str]:
    """What the bot says, when it has said so much."""
    found: list[dict[str, Any]] = []
    until = time.monotonic() + 20
    while len(found) < count and time.monotonic() < until:
        found += httpx.post(f"{api}/getUpdates", json={"token": TOKEN, "chatId": user}).json()["result"]
        time.sleep(0.05)
    return [one["message"]["text"] for one in found]


def test_a_conversation(api: str, tmp_path: Path, model: OpenAIEmulator) -> None:
    variables = {"AGENT_TYPE": "moltbot", "AGENT_BASE_URL": model.url, "AGENT_API_KEY": KEY}
    telegram = {"TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_API_URL": api, "TELEGRAM_ALLOWED_USERS": "42"}
    with serving(tmp_path, **variables, **telegram) as server:
        model.script({"text": "It is Tuesday."}, {"text": "x" * 5000, "stall": 1})
        say(api, "What day is it?")
        assert heard(api, 1) == ["It is Tuesday."]
        say(api, "Tell me more.")
        assert "".join(heard(api, 2)) == "x" * 5000
        say(api, "Let me in.", user=7)
        assert "7" in heard(api, 1, user=7)[0]
        assert state(server)["status"] == "connected"
        assert {task["sessionId"] for task in server.get("/tasks").json()["tasks"]} == {"telegram:42"}

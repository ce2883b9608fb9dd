"""A server whose bot is the emulator's, and whose model is scripted."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import TOKEN, TelegramEmulator
from tests.serving import ServerProcess, events, serving

KEY = "sk-test-key-of-the-model"


def environ(model: OpenAIEmulator, telegram: TelegramEmulator) -> dict[str, str]:
    """What a server needs to be the bot, whom Anna may write to."""
    return {
        "AGENT_TYPE": "moltbot",
        "AGENT_BASE_URL": model.url,
        "AGENT_API_KEY": KEY,
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "TELEGRAM_API_URL": telegram.url,
        "TELEGRAM_ALLOWED_USERS": "42",
    }


@pytest.fixture(scope="module")
def telegram() -> Iterator[TelegramEmulator]:
    with TelegramEmulator().running() as running:
        yield running


@pytest.fixture(scope="module")
def bot(tmp_path_factory: pytest.TempPathFactory, model: OpenAIEmulator, telegram: TelegramEmulator) -> Iterator[ServerProcess]:
    """A server that is the bot, for all tests of a module."""
    with serving(tmp_path_factory.mktemp("bot"), **environ(model, telegram)) as running:
        yield running


def state(server: ServerProcess, name: str = "Telegram") -> dict[str, Any]:
    """How an integration is."""
    found: dict[str, Any] = next(one for one in server.get("/integrations").json()["integrations"] if one["name"] == name)
    return found


class Since:
    """What has happened in a server since this was made."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.begin = server.newest()
        self._known = {task["taskId"] for task in self._all_tasks()}

    def _all_tasks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._server.get("/tasks").json()["tasks"]
        return found

    def tasks(self) -> list[dict[str, Any]]:
        """The tasks, newest first."""
        return [task for task in self._all_tasks() if task["taskId"] not in self._known]

    def told(self, *kinds: str) -> list[dict[str, Any]]:
        """The log's events of these types, oldest first."""
        newest = self._server.newest()
        found = []
        with self._server.client() as client, client.stream("GET", f"/events?after={self.begin}") as response:
            for event in events(response) if newest > self.begin else ():
                if event["type"] in kinds:
                    found.append(event)
                if event["seq"] >= newest:
                    break
        return found

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Waits for an event, and gives it."""
        with self._server.client() as client, client.stream("GET", f"/events?after={self.begin}") as response:
            for event in events(response):
                if wanted(event):
                    return event
        raise AssertionError("the stream ended")

    def wait_for(self, kind: str) -> dict[str, Any]:
        return self.wait(lambda event: event["type"] == kind)


@pytest.fixture
def since(bot: ServerProcess, telegram: TelegramEmulator) -> Since:
    """What happens in one test."""
    telegram.forget()
    return Since(bot)

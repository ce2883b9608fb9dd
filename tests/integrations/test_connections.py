"""Which integrations are on: from the environment, by PUT /integrations, over restarts; and what is shown of them."""

import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_server.adapters.courier import NOTICE
from integrations import load
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.telegram import TOKEN, TelegramEmulator
from tests.imports import ROOT
from tests.integrations.conftest import KEY, Since, environ, state
from tests.serving import ServerProcess, serving
from tools import MASK

REQUIRED = {
    "Discord": ["DISCORD_BOT_TOKEN", "DISCORD_GUILD_ID", "DISCORD_CHANNEL_ID"],
    "GitHub": ["GITHUB_TOKEN"],
    "Jira": ["JIRA_BASE_URL", "JIRA_EMAIL", "JIRA_API_TOKEN"],
    "Notion": ["NOTION_API_TOKEN"],
    "Slack": ["SLACK_BOT_TOKEN"],
    "Telegram": ["TELEGRAM_BOT_TOKEN"],
    "Voice": ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM_NUMBER"],
}


@pytest.fixture
def telegram() -> Iterator[TelegramEmulator]:
    with TelegramEmulator().running() as running:
        yield running


def put(server: ServerProcess, body: Mapping[str, Any]) -> Any:
    with server.client() as client:
        response = client.put("/integrations", json=body)
        assert response.status_code == 200, response.text
        return response.json()


def refused(server: ServerProcess, body: Mapping[str, Any]) -> str:
    """What is said of a body that is refused."""
    before = server.get("/integrations").json()
    with server.client() as client:
        response = client.put("/integrations", json=body)
    assert response.status_code == 400, response.text
    assert server.get("/integrations").json() == before
    message: str = response.json()["error"]["message"]
    return message


def test_every_integration_is_known_with_what_it_requires() -> None:
    assert {name: list(integration.required_env) for name, integration in load().items()} == REQUIRED
    assert load()["Voice"].optional_env == ("ELEVENLABS_API_KEY", "ELEVENLABS_VOICE_ID")
    assert [name for name, integration in load().items() if integration.start is not None] == ["Telegram"]


def test_without_variables_all_are_listed_and_none_is_on(server: ServerProcess) -> None:
    shown = server.get("/integrations").json()
    assert shown == {
        "integrations": [
            {"name": name, "enabled": False, "status": "disabled", "missing": missing, "error": None} for name, missing in REQUIRED.items()
        ],
        "integrationEnv": {},
    }
    assert server.get("/status").json()["integrations"] == []


def test_one_that_is_not_in_this_version_says_so_when_it_is_wanted(tmp_path: Path) -> None:
    with serving(tmp_path, GITHUB_TOKEN="ghp_0123456789abcdef") as server:
        found = state(server, "GitHub")
        assert (found["enabled"], found["status"], found["missing"]) == (True, "disabled", [])
        assert found["error"] == "GitHub is not available in this version of agent-server."
        assert server.get("/integrations").json()["integrationEnv"] == {"GITHUB_TOKEN": MASK}


@pytest.mark.parametrize(("allowed", "is_on"), [("telegram, GITHUB", True), ("Slack", False), ("", False)])
def test_integrations_is_a_list_of_those_that_may_be_on(
    tmp_path: Path, model: OpenAIEmulator, telegram: TelegramEmulator, allowed: str, is_on: bool
) -> None:
    with serving(tmp_path, **environ(model, telegram), INTEGRATIONS=allowed) as server:
        assert state(server)["enabled"] is is_on
        if is_on:
            telegram.wait(lambda t: t.called("getMe"))
        else:
            server.execute("sleep 0.5")  # what would connect has done so by then
            assert telegram.calls == []


def test_integrations_with_an_unknown_name_ends_the_start(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, INTEGRATIONS="Telegram,Telegraph")
    with pytest.raises(AssertionError, match="Telegraph"):
        server.start()
    assert server.process is not None
    assert server.process.wait(10) == 2


def test_one_is_switched_on_and_off_while_the_server_runs(tmp_path: Path, model: OpenAIEmulator, telegram: TelegramEmulator) -> None:
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        since = Since(server)
        shown = put(server, {"integrations": ["TELEGRAM"]})
        found = next(one for one in shown["integrations"] if one["name"] == "Telegram")
        assert (found["enabled"], found["status"]) == (True, "disabled")
        assert found["error"] == "Set TELEGRAM_BOT_TOKEN; then it connects."
        variables = {"TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_API_URL": telegram.url, "TELEGRAM_ALLOWED_USERS": "42"}
        shown = put(server, {"integrationEnv": variables})
        assert next(one for one in shown["integrations"] if one["name"] == "Telegram")["status"] == "connected"
        assert shown["integrationEnv"] == dict.fromkeys(sorted(variables), MASK)
        assert server.get("/status").json()["integrations"] == ["Telegram"]
        model.script({"text": "Yes."}, {"text": "Still here."})
        telegram.say("hello")
        telegram.wait_for_texts(1)
        assert state(server)["status"] == "connected"
        put(server, {"integrations": []})
        assert state(server) == {"name": "Telegram", "enabled": False, "status": "disabled", "missing": [], "error": None}
        calls = len(telegram.calls)
        telegram.say("anybody?")
        assert len(telegram.calls) == calls
        put(server, {"integrations": ["Telegram"]})
        assert telegram.wait_for_texts(2) == ["Yes.", "Still here."]
        assert [e["type"].partition(".")[2] for e in since.told("integration.connected", "integration.disconnected")] == [
            *("connected", "disconnected", "connected"),
        ]


def test_what_was_set_is_kept_in_a_file_that_only_the_server_reads(
    tmp_path: Path, model: OpenAIEmulator, telegram: TelegramEmulator
) -> None:
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        put(server, {"integrations": ["Telegram"], "integrationEnv": {"TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_API_URL": telegram.url}})
        path = server.data / "integrations.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert telegram.wait(lambda t: t.called("getMe"))
        server.kill()
        server.start()
        put(server, {})
        assert telegram.wait(lambda t: t.called("getMe")[1:])
        assert TOKEN not in server.get("/integrations").text + server.get("/status").text
        assert server.execute("echo " + TOKEN)["stdout"] == f"{MASK}\n"  # known as a secret from the start on
        put(server, {"integrationEnv": {"TELEGRAM_BOT_TOKEN": None}})
        assert state(server)["missing"] == ["TELEGRAM_BOT_TOKEN"]
        assert TOKEN not in path.read_text()


def test_a_variable_of_the_environment_can_be_replaced_and_taken_away(tmp_path: Path) -> None:
    with serving(tmp_path, SLACK_BOT_TOKEN="xoxb-of-the-environment") as server:
        put(server, {"integrationEnv": {"SLACK_BOT_TOKEN": "xoxb-of-the-client"}})
        assert server.execute("echo xoxb-of-the-client xoxb-of-the-environment")["stdout"] == f"{MASK} {MASK}\n"
        put(server, {"integrationEnv": {"SLACK_BOT_TOKEN": MASK}})  # as it was shown
        assert json.loads((server.data / "integrations.json").read_text())["environ"] == {"SLACK_BOT_TOKEN": "xoxb-of-the-client"}
        put(server, {"integrationEnv": {"SLACK_BOT_TOKEN": None}})
        assert state(server, "Slack")["missing"] == ["SLACK_BOT_TOKEN"]


def test_another_token_is_taken_without_a_restart(tmp_path: Path, model: OpenAIEmulator, telegram: TelegramEmulator) -> None:
    variables = {**environ(model, telegram), "TELEGRAM_BOT_TOKEN": "700:a-token-that-was-revoked"}
    with serving(tmp_path, **variables) as server:
        put(server, {"integrationEnv": {"TELEGRAM_ALLOWED_USERS": "42,43"}})
        assert state(server)["status"] == "error"
        assert "refuses TELEGRAM_BOT_TOKEN" in state(server)["error"]
        put(server, {"integrationEnv": {"TELEGRAM_BOT_TOKEN": TOKEN}})
        assert state(server)["status"] == "connected"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"integrations": ["Telegraph"]}, ["Telegraph", "Discord"]),
        ({"integrations": ["GitHub", ""]}, ["no integration ''"]),
        ({"integrations": "GitHub"}, ["integrations"]),
        ({"integrationEnv": {"PATH": "/tmp"}}, ["PATH"]),
        ({"integrationEnv": {"github_token": "x"}}, ["github_token"]),
        ({"integrationEnv": {"GITHUB_TOKEN": 7}}, ["GITHUB_TOKEN"]),
        ({"integrationEnv": {"GITHUB_TOKEN": "a\nb"}}, ["GITHUB_TOKEN", "one line"]),
        ({"integrationEnv": {"GITHUB_TOKEN": "a\0b"}}, ["GITHUB_TOKEN"]),
        ({"integrationEnv": {"GITHUB_TOKEN": "x" * 5000}}, ["GITHUB_TOKEN", "4096"]),
        ({"integrations": ["GitHub"], "integrationEnv": {"GITHUB_TOKEN": "ghp_0123", "OTHER": "x"}}, ["OTHER"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_known_is_refused_whole(shared: ServerProcess, body: dict[str, Any], words: list[str]) -> None:
    message = refused(shared, body)
    assert all(word in message for word in words), message


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("body", [{"snake_case": 1}, {"integration_env": {}}, {}])
def test_an_empty_change_changes_nothing(shared: ServerProcess, body: dict[str, Any]) -> None:
    assert put(shared, body) == shared.get("/integrations").json()


def test_a_damaged_file_ends_the_start(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    server.data.mkdir()
    (server.data / "integrations.json").write_text("{")
    with pytest.raises(AssertionError, match=r"integrations\.json in DATA_DIR is damaged"):
        server.start()


@pytest.mark.parametrize("name", ["github", "telegram", "nothing", "Voice", "%2e%2e"])
def test_a_callback_that_nobody_takes_is_refused(shared: ServerProcess, name: str) -> None:
    assert httpx.post(f"{shared.url}/integrations/{name}/webhook", content=b"{}").status_code == 401
    assert shared.post(f"/integrations/{name}/webhook").status_code == 404


def test_telegram_takes_no_callbacks(tmp_path: Path, model: OpenAIEmulator, telegram: TelegramEmulator) -> None:
    with serving(tmp_path, **environ(model, telegram)) as server:
        put(server, {"integrationEnv": {"TELEGRAM_ALLOWED_USERS": "42,43"}})
        assert server.post("/integrations/telegram/webhook").status_code == 404


@pytest.mark.parametrize("url", ["http://example.com", "ftp://127.0.0.1", "api.telegram.org"])
def test_the_token_is_not_sent_in_the_clear(shared: ServerProcess, url: str) -> None:
    put(shared, {"integrations": ["Telegram"], "integrationEnv": {"TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_API_URL": url}})
    assert state(shared)["status"] == "error"
    assert "https" in state(shared)["error"]
    put(shared, {"integrations": []})


def test_the_documentation_lists_every_integration_and_its_variables() -> None:
    text = (ROOT / "docs" / "integrations.md").read_text()
    rows = {}
    for name, required, optional, is_here in re.findall(r"^\| (\w+) \| (`.*?) \| (.*?) ?\| (yes|no) \|$", text, re.M):
        rows[name] = (tuple(re.findall("`(.+?)`", required)), tuple(re.findall("`(.+?)`", optional)), is_here == "yes")
    assert rows == {name: (one.required_env, one.optional_env, one.start is not None) for name, one in load().items()}
    assert NOTICE in " ".join(text.split())


# Which agents they reach

DISCORD = {name: f"value-of-{name}" for name in REQUIRED["Discord"]}


def test_discord_is_refused_for_opencode(tmp_path: Path) -> None:
    with serving(tmp_path, AGENT_TYPE="opencode") as server:
        for body in ({"integrations": ["GitHub", "discord"]}, {"integrations": ["Discord"], "integrationEnv": DISCORD}):
            message = refused(server, body)
            assert "Discord does not reach an agent of the type opencode; start the server with AGENT_TYPE=moltbot." in message
        put(server, {"integrationEnv": DISCORD})
        shown = state(server, "Discord")
        assert (shown["enabled"], shown["status"]) == (False, "disabled")
        assert "AGENT_TYPE=moltbot" in shown["error"]


def test_variables_of_discord_in_the_environment_do_not_enable_it_for_opencode(tmp_path: Path) -> None:
    with serving(tmp_path, AGENT_TYPE="opencode", INTEGRATIONS="Discord,GitHub", **DISCORD) as server:
        assert state(server, "Discord")["enabled"] is False
        assert "AGENT_TYPE=moltbot" in state(server, "Discord")["error"]


def test_discord_is_not_refused_for_moltbot_and_its_choice_does_not_hold_for_opencode(tmp_path: Path) -> None:
    with serving(tmp_path, AGENT_TYPE="moltbot") as server:
        put(server, {"integrations": ["Discord"], "integrationEnv": DISCORD})
        assert state(server, "Discord")["enabled"] is True
        assert "not available in this version" in state(server, "Discord")["error"]
        server.stop()
        server.start(AGENT_TYPE="opencode")
        assert state(server, "Discord")["enabled"] is False
        assert "AGENT_TYPE=moltbot" in state(server, "Discord")["error"]

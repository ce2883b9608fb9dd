"""The demo: on which model it runs, and that it ends well."""

import os
import subprocess
import sys
from typing import Any

import pytest

from agent_server.demo import MODELS, chosen
from tests.emulators.aimock import Aimock


@pytest.mark.parametrize(
    ("environ", "provider", "model"),
    [
        ({}, "replay", "demo"),
        ({"ANTHROPIC_API_KEY": " "}, "replay", "demo"),
        ({"AGENT_MODEL": "gpt-5"}, "replay", "demo"),
        ({"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t", "GITHUB_TOKEN": "t"}, "replay", "demo"),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic", MODELS["anthropic"]),
        ({"GOOGLE_API_KEY": "k"}, "gemini", MODELS["gemini"]),
        ({"GROQ_API_KEY": "k", "AGENT_MODEL": "llama"}, "groq", "llama"),
        ({"OPENAI_API_KEY": "k", "OPENROUTER_API_KEY": "k"}, "openrouter", MODELS["openrouter"]),
        ({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "AGENT_PROVIDER": "openai"}, "openai", MODELS["openai"]),
        ({"AGENT_PROVIDER": "bedrock", "AGENT_MODEL": "us.amazon.nova-pro-v1:0"}, "bedrock", "us.amazon.nova-pro-v1:0"),
        ({"AGENT_BASE_URL": "http://127.0.0.1:8000/v1", "AGENT_MODEL": "mine"}, "openrouter", "mine"),
        ({"AGENT_PROVIDER": "replay", "AGENT_MODEL": "own.json", "OPENAI_API_KEY": "k"}, "replay", "own.json"),
    ],
)
def test_it_runs_on_what_is_named_or_has_a_key(environ: dict[str, str], provider: str, model: str) -> None:
    assert chosen(environ) == {"AGENT_PROVIDER": provider, "AGENT_MODEL": model}


def demo(**environ: str) -> "subprocess.CompletedProcess[str]":
    variables = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", **environ}
    return subprocess.run([sys.executable, "-m", "agent_server", "demo"], env=variables, capture_output=True, text=True, timeout=110)


def test_a_provider_without_a_model_here_needs_one_that_is_named() -> None:
    with pytest.raises(SystemExit, match="Set AGENT_MODEL to the name of a model of bedrock"):
        chosen({"AGENT_PROVIDER": "bedrock"})


def test_without_a_key_it_plays_a_recording_and_says_so() -> None:
    ended = demo()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Playing a recorded conversation: no key of a provider is set." in ended.stdout
    assert "completed" in ended.stdout


def test_with_a_key_it_runs_on_that_providers_model() -> None:
    fixtures: list[dict[str, Any]] = [{"match": {"userMessage": "wordcount"}, "response": {"content": "It is written."}}]
    with Aimock(fixtures) as aimock:
        ended = demo(ANTHROPIC_API_KEY="sk-ant-0123456789", ANTHROPIC_BASE_URL=aimock.url)
        (asked,) = aimock.requests()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "On claude-sonnet-4-5 by way of anthropic." in ended.stdout
    assert "It is written." in ended.stdout
    assert asked["path"] == "/v1/messages"

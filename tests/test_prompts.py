"""What a model is told before the first message: by the agent's type, the workspace's files and its skills."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_server.agents import AGENTS
from agent_server.prompts import PART_MAX, PARTS_MAX
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests
from tests.imports import ROOT
from tests.serving import ServerProcess, serving
from tools import load

KEY = "sk-test-key-of-the-model"
PARTS = ("AGENTS.md", "SOUL.md", "IDENTITY.md", "USER.md")

PROMPT_BYTES = 16 * 1024
"""Of an agent's own texts and all tools, as they go to a model."""


@pytest.fixture(scope="module", params=["opencode", "moltbot"])
def either(request: pytest.FixtureRequest, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_TYPE=request.param, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def lasting_bot(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_TYPE="moltbot", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as running:
        yield running


@pytest.fixture
def bot(lasting_bot: ServerProcess) -> ServerProcess:
    """A server whose agent is moltbot, with an empty workspace."""
    return emptied(lasting_bot)


@pytest.fixture
def coder(anew: ServerProcess) -> ServerProcess:
    """A server whose agent is opencode, with an empty workspace."""
    return emptied(anew)


def emptied(server: ServerProcess) -> ServerProcess:
    subprocess.run(["find", server.workspace, "-mindepth", "1", "-delete"], check=True)
    with server.client() as client:
        client.delete("/sessions/sess_main")
    return server


def system(server: ServerProcess, model: OpenAIEmulator, **more: Any) -> str:
    """The system prompt that the model gets in a task."""
    model.script({"text": "ok"})
    assert server.post("/run", {"prompt": "hello", **more}).status_code == 200
    (record,) = model.requests()
    message = record.json["messages"][0]
    assert message["role"] == "system"
    return str(message["content"])


def parts(prompt: str) -> dict[str, str]:
    """What a prompt has of the workspace's files, by name, in its order."""
    _, *found = re.split(r"\n\nInstructions of this workspace, from ([A-Z]+\.md):\n\n", prompt)
    return dict(zip(found[::2], found[1::2], strict=True))


# The workspace's files


def test_moltbot_is_told_its_files_in_their_order(bot: ServerProcess, model: OpenAIEmulator) -> None:
    for name in (*reversed(PARTS), "CLAUDE.md", "MEMORY.md"):
        (bot.workspace / name).write_text(f"\ufeffThis is {name}.\n")
    prompt = system(bot, model)
    assert list(parts(prompt).items()) == [(name, f"This is {name}.") for name in PARTS]
    assert prompt.startswith("You are an assistant")
    assert prompt.index("Environment:") < prompt.index("This is AGENTS.md.")
    assert bot.get("/health").json()["agentType"] == "moltbot"
    assert bot.get("/sessions/sess_main").json()["agentType"] == "moltbot"


def test_moltbot_runs_tools_on_the_same_loop(bot: ServerProcess, model: OpenAIEmulator) -> None:
    (bot.workspace / "SOUL.md").write_text("Kind.")
    model.script({"tool_calls": [{"name": "read", "arguments": {"filePath": "SOUL.md"}}]}, {"text": "I am kind."})
    assert bot.post("/run", {"prompt": "Who are you?"}).json()["response"] == "I am kind."
    assert_requests(model.requests())
    assert "Kind." in model.requests()[1].json["messages"][-1]["content"]


@pytest.mark.parametrize("there", [(), ("USER.md",), ("SOUL.md", "USER.md"), ("AGENTS.md", "IDENTITY.md")])
def test_files_that_are_missing_or_empty_are_passed_over(bot: ServerProcess, model: OpenAIEmulator, there: tuple[str, ...]) -> None:
    (bot.workspace / "IDENTITY.md").write_text("  \n")
    for name in there:
        (bot.workspace / name).write_text(f"This is {name}.")
    assert parts(system(bot, model)) == {name: f"This is {name}." for name in there}


def test_a_file_and_all_together_are_bounded(bot: ServerProcess, model: OpenAIEmulator) -> None:
    for name, letter, size in zip(PARTS, "αßγ😀", (PART_MAX + 1, PART_MAX, PART_MAX - 100, PART_MAX), strict=True):
        (bot.workspace / name).write_text(letter * size)
    found = parts(system(bot, model))
    sizes = [found[name].count(letter) for name, letter in zip(PARTS, "αßγ😀", strict=True)]
    assert sizes == [PART_MAX, PART_MAX, PART_MAX - 100, 100]
    assert sum(sizes) == PARTS_MAX == 60_000
    cut = {name: "[cut: the file is longer; read" in text for name, text in found.items()}
    assert cut == {"AGENTS.md": True, "SOUL.md": False, "IDENTITY.md": False, "USER.md": True}


def test_a_cut_is_told_and_leaves_no_part_of_a_character(bot: ServerProcess, model: OpenAIEmulator) -> None:
    (bot.workspace / "AGENTS.md").write_text("\n" * 5 + "😀" * 25_000)
    (bot.workspace / "SOUL.md").write_text("soul" + " " * 10**6 + "mate")
    found = parts(system(bot, model))
    note = "\n[cut: the file is longer; read {} for the rest]"
    assert found["SOUL.md"] == "soul" + note.format("SOUL.md")
    assert set(found["AGENTS.md"].removesuffix(note.format("AGENTS.md"))) == {"😀"}


def test_a_file_for_which_there_is_no_room_is_named(bot: ServerProcess, model: OpenAIEmulator) -> None:
    for name in PARTS:
        (bot.workspace / name).write_text("z" * 10**6)
    found = parts(system(bot, model))
    assert [text.count("z") for text in found.values()][:3] == [PART_MAX] * 3
    assert found["USER.md"].strip() == "[cut: the file is longer; read USER.md for the rest]"


def test_what_cannot_be_read_is_left_out_and_that_is_logged(bot: ServerProcess, model: OpenAIEmulator, tmp_path: Path) -> None:
    (bot.workspace / "AGENTS.md").write_bytes(b"\x7fELF\0\0\1")
    os.mkfifo(bot.workspace / "SOUL.md")
    (tmp_path / "secrets").write_text("of somebody else")
    (bot.workspace / "IDENTITY.md").symlink_to(tmp_path / "secrets")
    (bot.workspace / "USER.md").write_bytes(b"caf\xe9")
    assert parts(system(bot, model)) == {"USER.md": "caf\ufffd"}
    logged = [entry["message"] for entry in bot.get("/logs?lines=100").json()["logs"] if "left out of the prompt" in entry["message"]]
    assert logged[-3:] == [
        "AGENTS.md is left out of the prompt: it is no text",
        "SOUL.md is left out of the prompt: it is no regular file",
        "IDENTITY.md is left out of the prompt: it leads out of the workspace",
    ]


def test_folders_and_loops_of_links_are_left_out(bot: ServerProcess, model: OpenAIEmulator) -> None:
    (bot.workspace / "AGENTS.md").mkdir()
    (bot.workspace / "SOUL.md").symlink_to("SOUL.md")
    (bot.workspace / "IDENTITY.md").symlink_to("nowhere")
    (bot.workspace / "me.md").write_text("Linked.")
    (bot.workspace / "USER.md").symlink_to("me.md")
    assert parts(system(bot, model)) == {"USER.md": "Linked."}


def test_opencode_is_told_the_first_instructions_alone(coder: ServerProcess, model: OpenAIEmulator) -> None:
    for name in (*PARTS, "CLAUDE.md"):
        (coder.workspace / name).write_text(f"This is {name}.")
    assert parts(system(coder, model)) == {"AGENTS.md": "This is AGENTS.md."}
    (coder.workspace / "AGENTS.md").unlink()
    assert parts(system(coder, model, sessionId="without")) == {"CLAUDE.md": "This is CLAUDE.md."}


def test_the_prompt_of_a_session_stays_what_it_was(bot: ServerProcess, model: OpenAIEmulator) -> None:
    (bot.workspace / "SOUL.md").write_text("Kind.")
    first = system(bot, model)
    (bot.workspace / "SOUL.md").write_text("Cross.")
    write_skill(bot.workspace, "late")
    assert system(bot, model) == first
    bot.kill()
    bot.start()
    assert system(bot, model) == first
    assert "Cross." in system(bot, model, sessionId="later")


def test_no_code_asks_which_agent_it_is() -> None:
    sources = [path for package in ("agent_server", "integrations", "tools") for path in (ROOT / package).rglob("*.py")]
    asking = re.compile(r"(agent\.name|agent_type|agentType)\s*(==|!=|in\b|is\b)|==\s*[\"'](opencode|moltbot)[\"']")
    assert [str(path) for path in sources if asking.search(path.read_text())] == []


# Skills


def write_skill(workspace: Path, name: str) -> None:
    file = workspace / ".claude/skills" / name / "SKILL.md"
    file.parent.mkdir(parents=True)
    file.write_text(f"---\nname: {name}\ndescription: >\n  What {name}\n  is for.\n---\nHow {name} is done.")


def test_skills_are_named_in_the_prompt_and_given_by_the_tool(either: ServerProcess, model: OpenAIEmulator) -> None:
    emptied(either)
    assert "Skills" not in system(either, model)
    emptied(either)
    write_skill(either.workspace, "pdf")
    write_skill(either.workspace, "bad")
    (either.workspace / ".claude/skills/bad/SKILL.md").write_text("no front matter")
    told = "Skills of this workspace; call `skill` with a name before you do what one is for:\n- pdf: What pdf is for."
    assert system(either, model).endswith(told)
    model.script(
        {"tool_calls": [{"name": "skill", "arguments": {"name": "pdf"}}, {"name": "skill", "arguments": {"name": "bad"}}]}, {"text": "ok"}
    )
    assert either.post("/run", {"prompt": "use it"}).status_code == 200
    unknown, known = sorted(message["content"] for message in model.requests()[-1].json["messages"][-2:])
    assert known.endswith("\n\nHow pdf is done.")
    assert unknown == "Error: There is no skill 'bad'; there are pdf."
    logged = [entry["message"] for entry in either.get("/logs?lines=100").json()["logs"]]
    assert any(line.startswith("the skill .claude/skills/bad/SKILL.md is left out: it does not begin") for line in logged)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_an_agents_own_texts_and_the_tools_are_short(name: str, model: OpenAIEmulator, tmp_path: Path) -> None:
    with serving(tmp_path, AGENT_TYPE=name, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        system(server, model)
        (record,) = model.requests()
    assert len(record.json["tools"]) == len(load())
    assert len(record.body.encode()) < PROMPT_BYTES

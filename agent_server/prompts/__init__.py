"""The system prompt: stable parts first, no clock, so that a provider's cache holds it."""

import os
import platform
from collections.abc import Collection
from datetime import date
from pathlib import Path

from agent_server.agents import Agent

INSTRUCTION_FILES = ("AGENTS.md", "CLAUDE.md")
"""The first of these in a folder holds its instructions."""

INSTRUCTIONS_MAX = 20_000
"""Characters of one instruction file that are shown."""


def system_prompt(agent: Agent, workspace: Path, day: date) -> str:
    """Gives the agent's own text, the environment, and the workspace's instructions. Reads files: blocks for some ms."""
    texts = [Path(__file__).with_name(name).read_text("utf-8").strip() for name in agent.prompts]
    texts.append(_environment(workspace, day))
    if (found := instructions(workspace)) is not None:
        texts.append(f"Instructions of this workspace, from {found[0].name}:\n\n{found[1]}")
    return "\n\n".join(texts)


def _environment(workspace: Path, day: date) -> str:
    facts = {
        "Workspace": f"{workspace} (relative paths are relative to it)",
        "Git repository": "yes" if (workspace / ".git").exists() else "no",
        "Platform": f"{platform.system().lower()} {platform.machine()}",
        "User": "root" if os.geteuid() == 0 else "unprivileged",
        "Date": day.isoformat(),
    }
    return "Environment:\n" + "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def instructions(folder: Path) -> tuple[Path, str] | None:
    """Gives a folder's instruction file and its text, cut at INSTRUCTIONS_MAX; None when it has none that can be read."""
    for name in INSTRUCTION_FILES:
        path = folder / name
        try:
            text = path.read_text("utf-8", "replace").strip()
        except OSError:
            continue
        if len(text) > INSTRUCTIONS_MAX:
            text = f"{text[:INSTRUCTIONS_MAX]}\n[cut: the file is longer; read {path.name} for the rest]"
        return path, text
    return None


def nested_instructions(workspace: Path, path: Path, seen: Collection[str]) -> dict[str, str]:
    """Gives the instructions of the folders between the workspace and `path`, by path relative to it, save those `seen`."""
    found: dict[str, str] = {}
    if path.is_relative_to(workspace):
        for folder in reversed(path.parents):
            if folder != workspace and folder.is_relative_to(workspace) and (file := instructions(folder)) is not None:
                name = str(file[0].relative_to(workspace))
                if name not in seen:
                    found[name] = file[1]
    return found

"""The system prompt: stable parts first, no clock, so that a provider's cache holds it."""

import codecs
import logging
import os
import platform
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from pathlib import Path

from agent_server.agents import INSTRUCTIONS, Agent
from tools._contents import first_bytes
from tools._skills import catalogue, find
from tools.skill import TOOL as SKILL

PART_MAX = 20_000
PARTS_MAX = 60_000
"""Characters of one file of the workspace that are shown in a prompt, and of all together."""

CHARACTER_BYTES = 4
"""Bytes of a character in UTF-8 at the most: so much is read of a file for each that may be shown."""

logger = logging.getLogger(__name__)


def system_prompt(agent: Agent, workspace: Path, day: date) -> str:
    """Gives the agent's own text, the environment, and what the workspace adds. Reads files: blocks for some ms."""
    texts = [Path(__file__).with_name(name).read_text("utf-8").strip() for name in agent.prompts]
    texts.append(_environment(workspace, day))
    texts += _parts(agent.parts, workspace)
    if agent.may_use(SKILL) and (skills := catalogue(find(workspace))) is not None:
        texts.append(skills)
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


def _parts(wanted: Sequence[Collection[str]], workspace: Path) -> Iterator[str]:
    left = PARTS_MAX
    for names in wanted:
        if (found := _first(workspace, names, workspace)) is not None:
            path, text, is_more = found
            shown = text[: min(PART_MAX, left)]
            left -= len(shown)
            yield f"Instructions of this workspace, from {path.name}:\n\n{shown}{_cut(path, is_cut=is_more or len(text) > len(shown))}"


def instructions(folder: Path, workspace: Path) -> tuple[Path, str] | None:
    """Gives a folder's instruction file and its text, cut at PART_MAX; None when it has none that can be read."""
    if (found := _first(folder, INSTRUCTIONS, workspace)) is None:
        return None
    path, text, is_more = found
    return path, text[:PART_MAX] + _cut(path, is_cut=is_more or len(text) > PART_MAX)


def _cut(path: Path, *, is_cut: bool) -> str:
    return f"\n[cut: the file is longer; read {path.name} for the rest]" if is_cut else ""


def _first(folder: Path, names: Collection[str], workspace: Path) -> tuple[Path, str, bool] | None:
    """Gives the first of these files that has a text, and that; of a very long one its beginning, and that there is more."""
    for name in names:
        try:
            text, is_more = _text(folder / name, workspace)
            if text:
                return folder / name, text, is_more
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
            logger.warning("%s is left out of the prompt: %s", name, error)
    return None


def _text(path: Path, workspace: Path) -> tuple[str, bool]:
    """Gives the text of a regular file of the workspace, or its beginning, and whether there is more. What a link leads to
    elsewhere is not the workspace's to tell.

    Errors: OSError, ValueError.
    """
    if not path.resolve().is_relative_to(workspace):
        raise ValueError("it leads out of the workspace")
    limit = (PART_MAX + 1) * CHARACTER_BYTES
    data = first_bytes(path, limit + 1)
    if b"\0" in data:
        raise ValueError("it is no text")
    is_more = len(data) > limit
    # Of a character that is there in part nothing is shown.
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(data[:limit], final=not is_more)
    return text.removeprefix("\ufeff").strip(), is_more


def nested_instructions(workspace: Path, path: Path, seen: Collection[str]) -> dict[str, str]:
    """Gives the instructions of the folders between the workspace and `path`, by path relative to it, save those `seen`."""
    found: dict[str, str] = {}
    if path.is_relative_to(workspace):
        for folder in reversed(path.parents):
            if folder != workspace and folder.is_relative_to(workspace) and (file := instructions(folder, workspace)) is not None:
                name = str(file[0].relative_to(workspace))
                if name not in seen:
                    found[name] = file[1]
    return found

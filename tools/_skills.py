"""Skills: folders of the workspace with a SKILL.md, which says in its front matter what it is for, and below what to do.

What is in a workspace may come from anywhere: nothing is followed out of it, nothing but regular files is opened, and all that is
read and listed is bounded. A skill that cannot be used is left out, with its reason in the log.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec

from tools._contents import first_bytes
from tools._frontmatter import parse

FOLDERS = (".opencode/skill", ".opencode/skills", ".claude/skills", ".agents/skills")
"""Where skills are, relative to the workspace. Of two with the same name the first one counts."""

FILE = "SKILL.md"

MOST_SKILLS = 100
MOST_FOLDERS = 1_000
MOST_ENTRIES = 10_000
DEPTH = 3
"""Skills that are known; folders that are looked into for them, entries of each, and how deep they may be below FOLDERS."""

MAX_FILE = 256 << 10
"""Bytes of a SKILL.md: a longer one is left out, no model could use it."""

LONGEST_NAME, LONGEST_DESCRIPTION = 64, 1_024
"""Characters; longer descriptions are cut."""

CATALOGUE_BYTES = 12_000
"""Bytes of what the system prompt says of skills: every request has it."""

MOST_FILES = 100
"""Files of a skill that are named."""

logger = logging.getLogger(__name__)


class Skill(msgspec.Struct, frozen=True):
    """One skill. `folder` and `file` are real paths; a SKILL.md may be a link."""

    name: str
    description: str
    folder: Path
    file: Path


class SkillInvalid(ValueError):
    """A SKILL.md that cannot be used; the message says why."""


def find(workspace: Path) -> dict[str, Skill]:
    """Gives the skills of a workspace (its real path) by name, in the order of FOLDERS and of their paths. Blocks."""
    found: dict[str, Skill] = {}
    for file in _files(workspace):
        name = str(file.relative_to(workspace))
        try:
            skill = _read(file, workspace)
        except (ValueError, OSError) as error:
            logger.warning("the skill %s is left out: %s", name, error)
            continue
        known = found.get(skill.name)
        if known is None and len(found) < MOST_SKILLS:
            found[skill.name] = skill
        elif known is None:
            logger.warning("the skill %s is left out: there are %d before it, which is the most", name, MOST_SKILLS)
        elif known.folder != skill.folder:  # else a link leads to the same one
            logger.warning("the skill %s is left out: its name %r is that of %s", name, skill.name, known.folder)
    return found


def catalogue(skills: Mapping[str, Skill]) -> str | None:
    """Gives what a model is told of skills before it asks for one, within CATALOGUE_BYTES; None where there are none."""
    lines: list[str] = []
    size = 0
    for skill in skills.values():
        line = f"- {skill.name}: {skill.description}"
        size += len(line.encode("utf-8", "replace")) + 1
        if size > CATALOGUE_BYTES:
            lines.append(f"({len(skills) - len(lines)} more are not shown.)")
            break
        lines.append(line)
    if not lines:
        return None
    return "Skills of this workspace; call `skill` with a name before you do what one is for:\n" + "\n".join(lines)


def text_of(skill: Skill) -> str:
    """Gives what stands below the front matter. Blocks. Errors: ValueError, OSError: it was changed meanwhile."""
    return parse(_text(skill.file))[1]


def files_of(skill: Skill) -> tuple[list[str], bool]:
    """Gives the paths of a skill's other files, relative to its folder and sorted, and whether there are more. Blocks."""
    found: list[str] = []
    waiting = [skill.folder]
    looked = 0
    while waiting and len(found) <= MOST_FILES and looked < MOST_FOLDERS:
        folder = waiting.pop()
        looked += 1
        folders, files = _entries(folder, follow=False)
        found += [str((folder / name).relative_to(skill.folder)) for name in files if name != FILE or folder != skill.folder]
        waiting += [folder / name for name in reversed(folders)]
    return found[:MOST_FILES], bool(waiting) or len(found) > MOST_FILES


def _files(workspace: Path) -> Iterator[Path]:
    """Gives the SKILL.md files. In the folder of a skill no others are looked for."""
    looked = 0
    waiting = [(workspace / folder, 0) for folder in reversed(FOLDERS)]
    while waiting and looked < MOST_FOLDERS:
        folder, depth = waiting.pop()
        looked += 1
        if not _is_inside(folder, workspace):
            logger.warning("the skills in %s are left out: it leads out of the workspace", folder.relative_to(workspace))
            continue
        folders, files = _entries(folder, follow=True)
        if depth and FILE in files:
            yield folder / FILE
        elif depth < DEPTH:
            waiting += [(folder / name, depth + 1) for name in reversed(folders)]


def _entries(folder: Path, *, follow: bool) -> tuple[list[str], list[str]]:
    """Gives the names of the folders and of all else in a folder, sorted; none of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, _is_folder(entry, follow=follow)) for entry in islice(entries, MOST_ENTRIES)]
    except OSError:  # most workspaces have no skills
        return [], []
    return sorted(name for name, is_folder in found if is_folder), sorted(name for name, is_folder in found if not is_folder)


def _is_folder(entry: "os.DirEntry[str]", *, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:  # a loop of links, or one into a closed folder: it must not hide the others
        return False


def _is_inside(path: Path, workspace: Path) -> bool:
    try:
        return path.resolve().is_relative_to(workspace)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _read(file: Path, workspace: Path) -> Skill:
    if not _is_inside(file, workspace):
        raise SkillInvalid("it leads out of the workspace")
    real = file.resolve()
    fields, _ = parse(_text(real))
    name, description = fields.get("name", ""), "".join(filter(str.isprintable, fields.get("description", "")))
    if not name or not description:
        raise SkillInvalid(f"its front matter has no {'name' if not name else 'description'}")
    if len(name) > LONGEST_NAME or ".." in name or not name.isprintable() or any(each in "/\\`" for each in name):
        raise SkillInvalid(
            f"its name {name[:LONGEST_NAME]!r} is none: at most {LONGEST_NAME} characters without slashes, dots in a row and backquotes"
        )
    if len(description) > LONGEST_DESCRIPTION:
        description = description[: LONGEST_DESCRIPTION - 1] + "…"
    return Skill(name, description, file.parent.resolve(), real)


def _text(path: Path) -> str:
    data = first_bytes(path, MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise SkillInvalid(f"it has more than {MAX_FILE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SkillInvalid("it is no text in UTF-8") from error

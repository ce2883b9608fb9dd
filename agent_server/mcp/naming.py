"""Names of MCP servers' tools as the model sees them: what providers take, and no two alike.

A name depends on what there is, not on who came first, so that the same tools have the same names in every task.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

LONGEST = 64
"""Characters that providers take in a tool's name."""

DIGITS = 6
"""Digits of a hash that tell apart what else would have one name."""


def labels(servers: Sequence[str]) -> list[str]:
    """Gives a name for each server, in their order, that can begin a tool's: of those that come out alike, later ones get a number."""
    found: list[str] = []
    for server in servers:
        label, number = plain(server), 2
        while label in found:
            label = f"{plain(server)[: LONGEST - 4]}{number}"
            number += 1
        found.append(label)
    return found


def names(offered: Mapping[str, Sequence[str]], taken: Collection[str]) -> dict[tuple[str, str], str]:
    """Gives a name for each tool, by its server's label and its own name.

    It is the tool's own where that is neither `taken` nor another server's tool; else the server's label goes before it, and where
    that is too long or taken as well, a hash of both behind.
    """
    tools = [(label, tool) for label in sorted(offered) for tool in sorted(set(offered[label]))]
    wanted = Counter(plain(tool) for _, tool in tools)
    short = {(label, tool): plain(tool) for label, tool in tools}
    found = {key: name for key, name in short.items() if wanted[name] == 1 and name not in taken and len(key[1]) <= LONGEST}
    used = {*taken, *found.values()}
    prefixed = {(label, tool): plain(f"{label}_{tool}") for label, tool in tools if (label, tool) not in found}
    wanted = Counter(prefixed.values())
    for (label, tool), name in prefixed.items():
        is_free = wanted[name] == 1 and name not in used and len(label) + 1 + len(tool) <= LONGEST
        found[label, tool] = chosen = name if is_free else _hashed(name, label, tool, used)
        used.add(chosen)
    return {key: found[key] for key in tools}


def _hashed(name: str, label: str, tool: str, used: Collection[str]) -> str:
    digest = hashlib.sha256(f"{label}\0{tool}".encode("utf-8", "replace")).hexdigest()
    digits = DIGITS
    while (chosen := f"{name[: LONGEST - digits - 1]}_{digest[:digits]}") in used:
        digits += 1
    return chosen


def plain(name: str) -> str:
    """Gives the name in characters, and of a length, that providers take."""
    return re.sub("[^A-Za-z0-9_-]", "_", name)[:LONGEST] or "_"

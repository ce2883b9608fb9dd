"""The rules of permissions in the workspace's opencode.json: how they are written, in all the forms that OpenCode's files have.

What they say of a call is `permissions.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from agent_server.calling.programs import UNKNOWN
from agent_server.errors import InvalidRequest
from agent_server.workspace_config import ConfigInvalid, read

Verdict: TypeAlias = Literal["allow", "ask", "deny"]

MAX_RULES = 500
"""Rules of one file: each is held against every command of a call."""

MAX_PATTERN = 1_000
"""Characters of a tool's name or a pattern."""

EDITING = frozenset({"edit", "write", "apply_patch", "patch", "multiedit"})
"""The tools that the key `edit` covers."""

_ACTIONS: Mapping[str, str] = {"shell": "bash", "subagent": "task"}
"""The tools that OpenCode 2 calls otherwise."""

_AGENT_KEYS = ("mode", "agent", "agents")
"""Where agents have rules of their own: in older files, in OpenCode 1 and in OpenCode 2."""

_AGENTS = ("build", "plan", "explore", "general")
"""OpenCode's agents that there are here: a task's own, one in plan mode, and the two kinds of subagents."""


class Rule(msgspec.Struct, frozen=True):
    """One rule: of which tools, for which of their calls, and what it says."""

    tool: str
    pattern: str
    verdict: Verdict


Rules: TypeAlias = Sequence[Rule]


class Found(msgspec.Struct, frozen=True):
    """What opencode.json says of permissions, as it stands there: `given` for `rules_of`; and in words what has no effect here."""

    given: Mapping[str, Any]
    complaints: Sequence[str]


def read_rules(root: Path) -> Found:
    """Gives what the workspace's opencode.json says of permissions, checked. Blocks.

    Errors: InvalidRequest that names what cannot be understood: nothing is allowed by a mistake.
    """
    try:
        settings = read(root)
    except ConfigInvalid as error:
        raise InvalidRequest(f"The permissions of this workspace cannot be read: {error} Mend the file.", path="permission") from error
    given = _parts(settings)
    complaints: list[str] = []
    for key in _AGENT_KEYS:
        sections = {name: part for name, section in _object(settings, key).items() if (part := _parts(_object(settings[key], name, key)))}
        complaints += [f"{key}.{name} has rules, and no agent of that name runs here." for name in sections if name not in _AGENTS]
        if known := {name: part for name, part in sections.items() if name in _AGENTS}:
            given[key] = known
    if any(rule.tool == "doom_loop" and rule.verdict != "allow" for rule in rules_of(given, _AGENTS)):
        complaints.append("doom_loop is not asked about: a call that repeats itself is told so, and then ends the task (stuck).")
    return Found(given, [f"opencode.json: {complaint}" for complaint in complaints])


def _parts(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: section[key] for key in ("tools", "permission", "permissions") if section.get(key) is not None}


def _object(section: Mapping[str, Any], key: str, place: str = "") -> Mapping[str, Any]:
    found = section.get(key)
    if found is not None and not isinstance(found, dict):
        raise _bad(f"{place}.{key}" if place else key, f"expected an object, got {_shortened(found)}")
    return found or {}


def rules_of(given: Mapping[str, Any], agents: Sequence[str] = ()) -> Rules:
    """Gives the rules in their order: those of the file, then its own for each of these agents.

    Shape: `tools` (a word for each, the older form), `permission`, `permissions` (a list, OpenCode 2). Errors: InvalidRequest with the
    key that cannot be understood.
    """
    rules = _rules(given, "")
    for name in agents:
        for key in _AGENT_KEYS:
            rules += _rules(given.get(key, {}).get(name, {}), f"{key}.{name}.")
    if len(rules) > MAX_RULES:
        raise _bad("permission", f"it has {len(rules)} rules; {MAX_RULES} are the most")
    return tuple(rules)


def _rules(section: Mapping[str, Any], place: str) -> list[Rule]:
    switches = [_switch(name, is_on, f"{place}tools") for name, is_on in _object(section, "tools", place.rstrip(".")).items()]
    rules = _by_tool(section.get("permission"), f"{place}permission")
    listed = section.get("permissions", [])
    if not isinstance(listed, list):
        raise _bad(f"{place}permissions", f"expected a list of rules, got {_shortened(listed)}")
    return [*switches, *rules, *(_listed(each, f"{place}permissions[{number}]") for number, each in enumerate(listed))]


def _switch(name: str, is_on: Any, place: str) -> Rule:
    if not isinstance(is_on, bool):
        raise _bad(f"{place}.{name[:40]}", f"expected true or false, got {_shortened(is_on)}")
    return Rule(permission_of(_name(name, place)), "*", "allow" if is_on else "deny")


def _by_tool(value: Any, place: str) -> list[Rule]:
    if value is None:
        return []
    if not isinstance(value, dict):
        return [Rule("*", "*", _verdict(value, place))]
    rules: list[Rule] = []
    for tool, said in value.items():
        within = f"{place}.{_name(tool, place)}"
        if isinstance(said, dict):
            rules += [Rule(tool, _name(pattern, within), _verdict(verdict, f"{within}.{pattern}")) for pattern, verdict in said.items()]
        else:
            rules.append(Rule(tool, "*", _verdict(said, within)))
    return rules


def _listed(value: Any, place: str) -> Rule:
    fields = value if isinstance(value, dict) else {}
    action, resource = fields.get("action"), fields.get("resource")
    if not isinstance(action, str) or not isinstance(resource, str):
        raise _bad(place, f"expected action, resource and effect, got {_shortened(value)}")
    effect = _verdict(fields.get("effect"), f"{place}.effect")
    return Rule(_ACTIONS.get(action, _name(action, place)), _name(resource, place), effect)


def _name(text: str, place: str) -> str:
    if not text or len(text) > MAX_PATTERN or UNKNOWN in text:
        raise _bad(f"{place}.{text[:40]}", f"a name or pattern has 1 to {MAX_PATTERN} characters")
    if "{env:" in text or "{file:" in text:
        raise _bad(f"{place}.{text[:40]}", "variables and files are not filled in here; write it out")
    return text


def _verdict(value: Any, place: str) -> Verdict:
    if value == "allow" or value == "ask" or value == "deny":
        return value  # type: ignore[no-any-return]  # it is one of the three
    raise _bad(place, f"expected allow, ask or deny, got {_shortened(value)}")


def _shortened(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:60]


def _bad(place: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"opencode.json: {place}: {what}. No task runs in this workspace until the file is mended.", path=place)


def permission_of(tool: str) -> str:
    """Gives the key that covers a tool."""
    return "edit" if tool in EDITING else tool

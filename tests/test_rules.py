"""What the rules of opencode.json say of a call."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent_server.calling.permissions import Called, Judgement, Places, judge
from agent_server.calling.rules import read_rules, rules_of
from agent_server.errors import InvalidRequest


@pytest.fixture
def places(tmp_path: Path) -> Places:
    root = tmp_path.resolve() / "workspace"
    outputs = tmp_path.resolve() / "outputs"
    for folder in (root / "src", outputs):
        folder.mkdir(parents=True)
    return Places(str(root), str(outputs))


def verdict(places: Places, rules: Any, tool: str, *, is_own: bool = True, **arguments: Any) -> str:
    return said(places, rules, tool, is_own=is_own, **arguments).verdict


def said(places: Places, rules: Any, tool: str, *, is_own: bool = True, **arguments: Any) -> Judgement:
    return judge(rules_of({"permission": rules}), (), Called(tool, arguments, is_own), places)


def patch(lines: str) -> dict[str, str]:
    return {"patchText": f"*** Begin Patch\n{lines}\n*** End Patch"}


def within(folder: str, lines: str) -> dict[str, str]:
    """A patch as models pass it to a shell."""
    return {"patchText": f"cd {folder} && apply_patch <<'EOF'\n{patch(lines)['patchText']}\nEOF"}


HOME = os.path.expanduser("~")

DENY_RM = {"*": "allow", "rm *": "deny", "git push*": "ask"}
ONLY_STATUS = {"*": "ask", "git status*": "allow"}


@pytest.mark.parametrize(
    ("rules", "command", "wanted"),
    [
        (DENY_RM, "ls", "allow"),
        (DENY_RM, "rm", "deny"),
        (DENY_RM, "rm x", "deny"),
        (DENY_RM, "rmdir x", "allow"),
        (DENY_RM, "git status; rm -rf x", "deny"),
        (DENY_RM, "git push && rm x", "deny"),
        (DENY_RM, "git push && ls", "ask"),
        (DENY_RM, "/bin/rm x", "deny"),
        (DENY_RM, "../../bin/rm x", "deny"),
        (DENY_RM, "$X y", "deny"),
        (DENY_RM, "echo x | sh", "deny"),
        (DENY_RM, "git $X", "ask"),
        (DENY_RM, "git pu$X", "ask"),
        (DENY_RM, "git pull $X", "allow"),
        (DENY_RM, 'git commit -m "$X"', "allow"),
        (DENY_RM, "case a in b) ls;; esac", "deny"),
        (DENY_RM, "xargs rm < list", "deny"),
        (DENY_RM, "A=1", "allow"),
        (DENY_RM, "git pus?", "ask"),
        (DENY_RM, "git add *.py", "allow"),
        (DENY_RM, "find . -name *.py", "allow"),
        ({"cat .env*": "deny"}, "cat .e*", "deny"),
        ({"cat .env*": "deny"}, "cat .[e]nv", "deny"),
        ({"cat .env*": "deny"}, "cat '.e*'", "allow"),
        ({"cat .env": "deny"}, "cat .[e]nv", "deny"),
        ({"cat .env": "deny"}, "cat .?nv", "deny"),
        ({"cat .env": "deny"}, "cat .??nv", "allow"),
        ({"curl *evil*": "deny"}, "curl http://a.example/?b=1", "allow"),
        ({"curl *evil*": "deny"}, "curl http://?vil.example/", "deny"),
        ({"*": "ask", "cat ?.md": "allow"}, "cat ?.md", "allow"),
        ({"cat .env*": "deny"}, "cat src/*.py", "allow"),
        ({"*": "ask", "ls *.py": "allow"}, "ls *.py", "allow"),
        ({"*": "ask", "ls a.py": "allow"}, "ls ?.py", "ask"),
        (ONLY_STATUS, "git status", "allow"),
        (ONLY_STATUS, "git status -s && git status", "allow"),
        (ONLY_STATUS, "git status | cat", "ask"),
        (ONLY_STATUS, "git status $(ls)", "ask"),
        (ONLY_STATUS, "git status $A", "allow"),
        (ONLY_STATUS, "./git status", "ask"),
        (ONLY_STATUS, "PATH=. git status", "ask"),
        (ONLY_STATUS, "A=1", "ask"),
        (ONLY_STATUS, "", "ask"),
        ({"rm *": "deny", "*": "allow"}, "rm x", "allow"),
        ({"git push": "deny"}, "git push origin", "allow"),
        ({"git push": "deny"}, "git push", "deny"),
        ({"git p??h": "deny"}, "git push", "deny"),
        ({"*push*": "deny"}, "git -C a push", "deny"),
        ("deny", "ls", "deny"),
    ],
)
def test_commands(places: Places, rules: Any, command: str, wanted: str) -> None:
    assert verdict(places, {"bash": rules}, "bash", command=command) == wanted


@pytest.mark.parametrize(
    ("rules", "tool", "arguments", "wanted"),
    [
        (None, "write", {"filePath": "a"}, "allow"),
        ({}, "write", {"filePath": "a"}, "allow"),
        ("ask", "write", {"filePath": "a"}, "ask"),
        ("deny", "anything", {}, "deny"),
        ({"edit": "ask"}, "edit", {"filePath": "a"}, "ask"),
        ({"edit": "ask"}, "write", {"filePath": "a"}, "ask"),
        ({"edit": "ask"}, "apply_patch", {"patchText": "*** Begin Patch\n*** Add File: a\n+b\n*** End Patch"}, "ask"),
        ({"edit": "ask"}, "read", {"filePath": "a"}, "allow"),
        ({"write": "deny"}, "write", {"filePath": "a"}, "deny"),
        ({"write": "deny"}, "edit", {"filePath": "a"}, "allow"),
        ({"*": "deny", "read": "allow"}, "read", {"filePath": "a"}, "allow"),
        ({"*": "deny", "read": "allow"}, "write", {"filePath": "a"}, "deny"),
        ({"read": "allow", "*": "deny"}, "read", {"filePath": "a"}, "deny"),
        ({"edit": {"*": "allow", "*.env": "deny"}}, "write", {"filePath": "src/../.env"}, "deny"),
        ({"edit": {"*": "allow", "*.env": "deny"}}, "write", {"filePath": "{root}/.env"}, "deny"),
        ({"edit": {"*": "allow", "{root}/src/*": "deny"}}, "write", {"filePath": "src/a"}, "deny"),
        ({"edit": {"*": "deny", "src/*": "allow"}}, "write", {"filePath": "{root}/src/a"}, "allow"),
        ({"edit": {"*": "deny", "src/*": "allow"}}, "write", {"filePath": "src/../a"}, "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Add File: a\n+x\n*** Update File: b\n@@\n+x"), "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Add File: a\n+x\n*** Delete File: ./c/../b"), "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Update File: a\n*** Move to: b"), "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Update File: b\n*** Move to: a"), "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Update File: a\n*** Move to: c"), "allow"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Add File: a\n+*** Add File: b"), "allow"),
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": "no patch"}, "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", patch("*** Update File: a\n*** Rename: b"), "deny"),
        ({"edit": {"src/b": "deny"}}, "apply_patch", within("src", "*** Add File: b\n+x"), "deny"),
        ({"edit": {"src/b": "deny"}}, "apply_patch", within("src/..", "*** Add File: b\n+x"), "allow"),
        ({"external_directory": "deny"}, "apply_patch", within("/etc", "*** Add File: b\n+x"), "deny"),
        ({"external_directory": "ask"}, "read", {"filePath": "/etc/passwd"}, "ask"),
        ({"external_directory": "ask"}, "read", {"filePath": "src"}, "allow"),
        ({"external_directory": "ask"}, "bash", {"command": "ls", "workdir": "/etc"}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "cat /etc/passwd"}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "git status && cd .. && ls"}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "cp ~/.ssh/id_rsa ."}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "sudo cat '/etc/shadow'"}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "rm /etc/*.conf"}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "rm s*/../../x"}, "ask"),
        ({"external_directory": "ask"}, "bash", {"command": "touch ../a", "workdir": "src"}, "allow"),
        ({"external_directory": "ask"}, "bash", {"command": "rm -rf src/x {root}/src *.py $A a{b,c}"}, "allow"),
        ({"external_directory": "ask"}, "bash", {"command": "cat {outputs}/a"}, "allow"),
        ({"external_directory": "ask"}, "bash", {"command": "python3 /opt/x.py"}, "allow"),
        ({"external_directory": {"*": "deny", "/etc/*": "allow"}}, "bash", {"command": "ls /etc/apt"}, "allow"),
        ({"external_directory": {"*": "deny", "~/notes/*": "allow"}}, "bash", {"command": "cat ~/notes/a"}, "allow"),
        ({"*": "deny", "bash": "allow"}, "bash", {"command": "ls && touch a"}, "allow"),
        ({"bash": {"cat ~/.ssh/*": "deny"}}, "bash", {"command": f"cat {HOME}/.ssh/id"}, "deny"),
        ({"bash": {f"cat {HOME}/.ssh/*": "deny"}}, "bash", {"command": "cat ~/.ssh/id"}, "deny"),
        ({"bash": {"*": "ask", f"cat {HOME}/*": "allow"}}, "bash", {"command": "cat '~/a'"}, "ask"),
        ({"external_directory": "ask"}, "grep", {"pattern": "a", "path": "../.."}, "ask"),
        ({"external_directory": "ask"}, "glob", {"pattern": "/etc/*.conf"}, "ask"),
        ({"external_directory": "ask"}, "glob", {"pattern": "../*", "path": "."}, "ask"),
        ({"external_directory": "ask"}, "glob", {"pattern": "../*", "path": "src"}, "allow"),
        ({"external_directory": "ask"}, "list", {"path": "/etc"}, "ask"),
        ({"external_directory": "deny"}, "write", {"filePath": "../a"}, "deny"),
        ({"task": {"*": "allow", "general": "deny"}}, "task", {"subagent_type": "general"}, "deny"),
        ({"task": {"*": "allow", "general": "deny"}}, "task", {"subagent_type": "explore"}, "allow"),
        ({"skill": {"*": "allow", "deploy*": "ask"}}, "skill", {"name": "deploy-all"}, "ask"),
        ({"bash": {"rm *": "deny"}}, "bash", {"command": "rm x", "background": True}, "deny"),
        ({"bash_kill": "ask"}, "bash_kill", {"process_id": "proc_1"}, "ask"),
        ({"webfetch": {"https://evil.example/*": "deny"}}, "webfetch", {"url": "HTTPS://EVIL.example.:443/a#b"}, "deny"),
        ({"webfetch": {"https://evil.example/*": "deny"}}, "webfetch", {"url": "https://evil.example:444/a"}, "allow"),
        ({"webfetch": {"https://evil.example/*": "deny"}}, "webfetch", {"url": "https://me:pw@evil.example/a"}, "deny"),
        ({"webfetch": {"https://evil.example/*": "deny"}}, "webfetch", {"url": "https://evil.example"}, "deny"),
        ({"webfetch": {"*/private/*": "deny"}}, "webfetch", {"url": "https://a.example/x/../%70rivate/y"}, "deny"),
        ({"webfetch": {"*": "deny", "https://a.example/*": "allow"}}, "webfetch", {"url": "https://b@a.example/"}, "deny"),
        ({"webfetch": {"https://evil.example/*": "ask"}}, "webfetch", {"url": "https://[evil"}, "ask"),
        ({"*": "deny", "read": "allow"}, "read", {"filePath": "{outputs}/a"}, "allow"),
        ({"webfetch": {"*": "deny", "https://docs.example/*": "allow"}}, "webfetch", {"url": "https://docs.example/a"}, "allow"),
        ({"webfetch": {"*": "deny", "https://docs.example/*": "allow"}}, "webfetch", {"url": "https://evil.example/a"}, "deny"),
        ({"grep": {"*secret*": "deny"}}, "grep", {"pattern": "my secret"}, "deny"),
        ({"list": {"src": "deny"}}, "list", {"path": "./src/"}, "deny"),
        ({"list": {"src": "deny"}}, "list", {}, "allow"),
    ],
)
def test_tools(places: Places, rules: Any, tool: str, arguments: dict[str, str], wanted: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(name): filled(each) for name, each in value.items()}
        return value.replace("{root}", places.root).replace("{outputs}", places.outputs) if isinstance(value, str) else value

    assert verdict(places, filled(rules), tool, **filled(arguments)) == wanted


@pytest.mark.parametrize(
    ("rules", "tool", "arguments", "wanted"),
    [
        ({"github_*": "ask"}, "github_create_issue", {"a": 1}, "ask"),
        ({"github_*": "ask", "github_list_?": "allow"}, "github_list_1", {}, "allow"),
        ({"mine": {"*prod*": "deny"}}, "mine", {"where": "prod"}, "deny"),
        ({"mine": {"*prod*": "deny"}}, "mine", {"where": "test"}, "allow"),
        ({"bash": {"rm *": "deny"}}, "bash", {"command": "ls"}, "deny"),
    ],
)
def test_tools_of_others(places: Places, rules: Any, tool: str, arguments: dict[str, Any], wanted: str) -> None:
    assert verdict(places, rules, tool, is_own=False, **arguments) == wanted


def test_a_link_goes_by_both_of_its_names(places: Places) -> None:
    link = Path(places.root, "notes")
    link.symlink_to(".env")
    assert verdict(places, {"edit": {"*": "allow", "*.env": "deny"}}, "write", filePath="notes") == "deny"
    assert verdict(places, {"edit": {"*": "allow", "notes": "deny"}}, "write", filePath="notes") == "deny"
    Path(places.root, "up").symlink_to("/etc")
    assert verdict(places, {"external_directory": "deny"}, "read", filePath="up/passwd") == "deny"


@pytest.mark.parametrize(
    ("rules", "command", "wanted"),
    [
        ("ask", "rm -rf build", ["rm *"]),
        ("ask", "git push origin main", ["git push *"]),
        ("ask", "git -C a push", ["git *"]),
        ("ask", "ls && cat a", ["ls *", "cat *"]),
        ("ask", "$X y", []),
        ({"git push*": "ask"}, "git push origin", ["git push*"]),
        ({"git push*": "ask"}, "git $X", []),
        ({"rm *": "ask"}, "ls | xargs rm", ["rm *"]),
    ],
)
def test_always_allows_the_pattern_and_never_everything(places: Places, rules: Any, command: str, wanted: list[str]) -> None:
    asked = said(places, {"bash": rules}, "bash", command=command)
    assert asked.verdict == "ask"
    assert [pattern for _, pattern in asked.always] == wanted
    if wanted:
        again = judge(rules_of({"permission": {"bash": rules}}), asked.always, Called("bash", {"command": command}), places)
        assert again.verdict == "allow"
        stricter = judge(rules_of({"permission": {"bash": {"*": "deny"}}}), asked.always, Called("bash", {"command": command}), places)
        assert stricter.verdict == "deny"


LAYERED = {
    "tools": {"write": False, "webfetch": False, "bash": True},
    "permission": {"webfetch": "ask"},
    "permissions": [{"action": "shell", "resource": "rm *", "effect": "deny"}, {"action": "subagent", "resource": "*", "effect": "ask"}],
    "agent": {"build": {"permission": {"bash": {"rm a": "allow"}}}, "plan": {"tools": {"webfetch": False}}},
    "agents": {"general": {"permissions": [{"action": "edit", "resource": "*.md", "effect": "allow"}]}},
    "mode": {"explore": {"permission": "deny"}},
}


@pytest.mark.parametrize(
    ("agents", "tool", "arguments", "wanted"),
    [
        ((), "edit", {"filePath": "a"}, "deny"),
        ((), "webfetch", {"url": "https://a.example"}, "ask"),
        ((), "bash", {"command": "ls"}, "allow"),
        ((), "bash", {"command": "rm a"}, "deny"),
        ((), "task", {"subagent_type": "general"}, "ask"),
        (("build",), "bash", {"command": "rm a"}, "allow"),
        (("build",), "bash", {"command": "rm b"}, "deny"),
        (("plan",), "bash", {"command": "rm a"}, "deny"),
        (("plan",), "webfetch", {"url": "https://a.example"}, "deny"),
        (("build", "general"), "write", {"filePath": "a.md"}, "allow"),
        (("build", "general"), "bash", {"command": "rm a"}, "allow"),
        (("plan", "explore"), "read", {"filePath": "a"}, "deny"),
    ],
)
def test_older_and_later_forms_and_those_of_agents(
    places: Places, agents: tuple[str, ...], tool: str, arguments: dict[str, Any], wanted: str
) -> None:
    assert judge(rules_of(LAYERED, agents), (), Called(tool, arguments), places).verdict == wanted


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({"github_*": "deny"}, "deny"),
        ({"*": "ask", "github_*": "allow"}, "allow"),
        ({"*": "ask", "github_create_issue": "allow"}, "allow"),
        ({"create_issue": "deny"}, "deny"),
        ({"*": "ask", "create_issue": "allow"}, "ask"),
        ({"*": "ask", "hub_create_issue": "allow"}, "allow"),
        ({"github_*": {"*prod*": "deny"}}, "deny"),
        ({"github_*": {"*test*": "deny"}}, "allow"),
    ],
)
def test_a_tool_of_an_mcp_server_goes_by_all_of_its_names(places: Places, rules: Any, wanted: str) -> None:
    call = Called("hub_create_issue", {"in": "prod"}, is_own=False, names=("github_create_issue",), likely=("create_issue",))
    assert judge(rules_of({"permission": rules}), (), call, places).verdict == wanted


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    given = {"permission": {"doom_loop": "ask"}, "agent": {"review": {"permission": {"edit": "deny"}}, "plan": {"model": "x"}}}
    (tmp_path / "opencode.json").write_text(json.dumps(given))
    found = read_rules(tmp_path)
    assert found.given == {"permission": {"doom_loop": "ask"}}
    assert [complaint.split()[1] for complaint in found.complaints] == ["agent.review", "doom_loop"]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"tools": []}, "tools"),
        ({"tools": {"bash": "off"}}, "tools.bash"),
        ({"permissions": {"bash": "deny"}}, "permissions"),
        ({"permissions": ["deny"]}, "permissions[0]"),
        ({"permissions": [{"action": "a", "resource": "*"}]}, "permissions[0].effect"),
        ({"permissions": [{"resource": "*", "effect": "deny"}]}, "permissions[0]"),
        ({"agent": "x"}, "agent"),
        ({"agent": {"build": "x"}}, "agent.build"),
        ({"agent": {"build": {"permission": {"bash": "no"}}}}, "agent.build.permission.bash"),
        ({"agents": {"plan": {"permissions": [1]}}}, "agents.plan.permissions[0]"),
        ({"agent": {"general": {"tools": {"bash": 1}}}}, "agent.general.tools.bash"),
    ],
)
def test_in_a_file_what_cannot_be_understood_is_named(tmp_path: Path, given: Any, place: str) -> None:
    (tmp_path / "opencode.json").write_text(json.dumps(given))
    with pytest.raises(InvalidRequest) as refused:
        read_rules(tmp_path)
    assert refused.value.details["path"] == place


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("maybe", "permission"),
        (True, "permission"),
        ([], "permission"),
        ({"bash": "Allow"}, "permission.bash"),
        ({"bash": None}, "permission.bash"),
        ({"edit": ["deny"]}, "permission.edit"),
        ({"bash": {"rm *": "no"}}, "permission.bash.rm *"),
        ({"bash": {"rm *": {"x": "deny"}}}, "permission.bash.rm *"),
        ({"": "deny"}, "permission."),
        ({"bash": {"": "deny"}}, "permission.bash."),
        ({"read": {"{env:HOME}/*": "deny"}}, "permission.read.{env:HOME}/*"),
        ({"bash": {str(number): "deny" for number in range(501)}}, "permission"),
    ],
)
def test_what_cannot_be_understood_is_named(value: Any, place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        rules_of({"permission": value})
    assert refused.value.details["path"] == place
    assert place in refused.value.message


def test_a_hostile_pattern_takes_no_time(places: Places) -> None:
    rules = {"bash": {"*a" * 400 + "b": "deny"}}
    assert verdict(places, rules, "bash", command="a" * 30_000) == "allow"

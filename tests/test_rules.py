"""What the rules of opencode.json say of a call."""

from pathlib import Path
from typing import Any

import pytest

from agent_server.calling.permissions import Called, Judgement, Places, judge, parse_rules
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
    return judge(parse_rules(rules), (), Called(tool, arguments, is_own), places)


DENY_RM = {"*": "allow", "rm *": "deny", "git push*": "ask"}
ONLY_STATUS = {"*": "ask", "git status*": "allow"}


def patch(*lines: str) -> str:
    return "\n".join(["*** Begin Patch", *lines, "*** End Patch"])


IN_FOLDER = f"cd c && apply_patch <<'EOF'\n{patch('*** Update File: b', '-x')}\nEOF"


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
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": patch("*** Add File: a", "+x", "*** Update File: b", "-x")}, "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": patch("*** Update File: a", "*** Move to: b")}, "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": patch("*** Update File: a", "-x")}, "allow"),
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": patch("*** Update File: a", " *** Delete File: b", "-x")}, "allow"),
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": "no patch"}, "deny"),
        ({"edit": {"b": "deny"}}, "apply_patch", {"patchText": patch("*** Update File: a", "*** Rename: b")}, "deny"),
        ({"edit": {"c/b": "deny"}}, "apply_patch", {"patchText": IN_FOLDER}, "deny"),
        ({"edit": {"*": "deny", "b": "allow"}}, "apply_patch", {"patchText": IN_FOLDER}, "deny"),
        ({"edit": {"*": "deny", "c/b": "allow"}}, "apply_patch", {"patchText": IN_FOLDER}, "allow"),
        ({"external_directory": "ask"}, "read", {"filePath": "/etc/passwd"}, "ask"),
        ({"external_directory": "ask"}, "read", {"filePath": "src"}, "allow"),
        ({"external_directory": "ask"}, "bash", {"command": "ls", "workdir": "/etc"}, "ask"),
        ({"external_directory": "ask"}, "grep", {"pattern": "a", "path": "../.."}, "ask"),
        ({"external_directory": "ask"}, "glob", {"pattern": "/etc/*"}, "ask"),
        ({"external_directory": "ask"}, "glob", {"pattern": "../*.py", "path": "src"}, "allow"),
        ({"external_directory": "ask"}, "glob", {"pattern": "../../*.py", "path": "src"}, "ask"),
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
        again = judge(parse_rules({"bash": rules}), asked.always, Called("bash", {"command": command}), places)
        assert again.verdict == "allow"
        stricter = judge(parse_rules({"bash": {"*": "deny"}}), asked.always, Called("bash", {"command": command}), places)
        assert stricter.verdict == "deny"


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
        ({"bash": {str(number): "deny" for number in range(501)}}, "permission"),
    ],
)
def test_what_cannot_be_understood_is_named(value: Any, place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_rules(value)
    assert refused.value.details["path"] == place
    assert place in refused.value.message


def test_a_hostile_pattern_takes_no_time(places: Places) -> None:
    rules = {"bash": {"*a" * 400 + "b": "deny"}}
    assert verdict(places, rules, "bash", command="a" * 30_000) == "allow"

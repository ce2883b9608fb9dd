"""After a change the workspace's own checkers are asked, and what they find is the end of the result.

All are the real ones: ruff, and TypeScript, ESLint and Pyright from npm. Scripts stand in only for what those cannot be made to do, or
did in other versions (TypeScript 5.9, ESLint 9): floods, faults, forms of output.
"""

import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent_server.calling.checkers import CHECKERS, Finding
from agent_server.calling.diagnostics import diagnosed
from agent_server.messages import ToolCall
from agent_server.sessions.run import Caller
from tests.emulators.openai import OpenAIEmulator
from tests.ended import of_type
from tests.nodejs import MODULES, NODE
from tests.serving import ServerProcess, is_alive, serving
from tools import ToolResult

RUFF = Path(sys.executable).with_name("ruff")

BAD = "import os\nx = y\n"


@pytest.fixture(scope="module")
def lasting(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server whose commands find Node.js."""
    path = f"{Path(NODE).parent}:{os.environ['PATH']}"
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", PATH=path) as running:
        yield running


@pytest.fixture
def workspace(anew: ServerProcess) -> Path:
    return anew.workspace


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(path: Path, script: str) -> None:
    """Puts a stand-in of a checker into a folder."""
    write(path, f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def install_ruff(workspace: Path) -> None:
    (workspace / ".venv" / "bin").mkdir(parents=True)
    (workspace / ".venv" / "bin" / "ruff").symlink_to(RUFF)


def install_node(workspace: Path) -> None:
    (workspace / "node_modules").symlink_to(MODULES)


def changed(agent: ServerProcess, model: OpenAIEmulator, name: str, arguments: Mapping[str, object]) -> str:
    """Has a tool called by a task, and gives its result as the model saw it."""
    model.script({"tool_calls": [{"name": name, "arguments": dict(arguments)}]}, {"text": "done"})
    reply = agent.post("/run", {"prompt": "go"})
    assert reply.status_code == 200, reply.text
    return str(next(m["content"] for m in reversed(model.requests()[-1].json["messages"]) if m["role"] == "tool"))


def written(agent: ServerProcess, model: OpenAIEmulator, path: str, content: str = BAD) -> str:
    return changed(agent, model, "write", {"filePath": path, "content": content})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("ruff.toml", 'lint.select = ["F"]\n'),
        (".ruff.toml", 'lint.select = ["F"]\n'),
        ("pyproject.toml", '[project]\nname = "x"\n[tool.ruff.lint]\nselect = ["F"]\n'),
    ],
)
def test_ruffs_errors_come_with_the_result(anew: ServerProcess, model: OpenAIEmulator, workspace: Path, config: str, text: str) -> None:
    install_ruff(workspace)
    write(workspace / config, text)
    result = written(anew, model, "src/a.py")
    assert result == (
        "Created src/a.py (16 bytes).\n\nruff found 2 errors in the changed files:\n"
        "src/a.py:1:8: F401 `os` imported but unused\nsrc/a.py:2:5: F821 Undefined name `y`"
    )
    assert not (workspace / ".ruff_cache").exists()
    assert (workspace / "src/a.py").read_text() == BAD


def test_ruff_on_the_path_is_found_and_an_edit_is_checked(tmp_path: Path, model: OpenAIEmulator) -> None:
    path = f"{RUFF.parent}:{os.environ['PATH']}"
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-a-key-of-the-model", PATH=path) as agent:
        write(agent.workspace / "ruff.toml", "fix = true\n")
        assert written(agent, model, "a.py", "x = 1\n") == "Created a.py (6 bytes)."
        result = changed(agent, model, "edit", {"filePath": "a.py", "oldString": "1", "newString": "(1"})
        assert "ruff found" in result
        assert "a.py:" in result
        assert "invalid-syntax" in result


@pytest.mark.parametrize("config", [None, "[tool.black]\n", "# [tool.ruff]\n"])
def test_nothing_is_said_where_nothing_is_configured(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path, config: str | None
) -> None:
    install_ruff(workspace)
    if config is not None:
        write(workspace / "pyproject.toml", config)
    assert written(anew, model, "a.py") == "Created a.py (16 bytes)."
    assert not [event for event in anew.task_events(anew.get("/tasks").json()["tasks"][0]["taskId"]) if event["type"] == "process.started"]


def test_nothing_is_said_where_all_is_fine_or_the_checker_is_for_others_or_not_there(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path
) -> None:
    install_ruff(workspace)
    for config in ("ruff.toml", "tsconfig.json", "pyrightconfig.json", "eslint.config.js"):
        write(workspace / config, "")
    assert written(anew, model, "a.py", "x = 1\n") == "Created a.py (6 bytes)."
    assert written(anew, model, "a.txt") == "Created a.txt (16 bytes)."


def test_a_failed_edit_is_not_checked(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_ruff(workspace)
    write(workspace / "ruff.toml", "")
    write(workspace / "a.py", BAD)
    assert "ruff" not in changed(anew, model, "edit", {"filePath": "a.py", "oldString": "nothing like it", "newString": "b"})


def test_a_checker_that_fails_is_a_line_in_the_log(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_ruff(workspace)
    write(workspace / "ruff.toml", "nonsense = [\n")
    assert written(anew, model, "a.py") == "Created a.py (16 bytes)."
    assert "ruff could not check a changed file (exit code 2)" in anew.log()


TSC = """src/a.ts(4,3): error TS2345: Argument of type '{ a: number; }' is not assignable to parameter of type '{ a: number; b: string; }'.
  Property 'b' is missing in type '{ a: number; }' but required in type '{ a: number; b: string; }'.
src/other.ts(9,1): error TS2304: Cannot find name 'gone'.
src/a.ts(1,7): error TS2322: Type 'string' is not assignable to type 'number'."""

ESLINT = """
ROOT/src/a.ts
  1:1  error    'foo' is not defined         no-undef
  2:5  warning  'a' is assigned a value but  no-unused-vars
  3:5  error    Parsing error: Unexpected token ;

✖ 3 problems (2 errors, 1 warning)
"""

PYRIGHT = """ROOT/a.py
  ROOT/a.py:1:10 - error: Type "Literal['a']" is not assignable to declared type "int"
    "Literal['a']" is not assignable to "int" (reportAssignmentType)
  ROOT/a.py:3:1 - warning: Import "x" is not accessed
    more of the warning
2 errors, 1 warning, 0 informations"""


def say(workspace: Path, name: str, output: str, code: int) -> None:
    said = output.replace("ROOT", str(workspace))
    script = f"printf '%s\\n' \"$PWD\" \"$@\" > {workspace}/{name}.called; cat <<'END'\n{said}\nEND\nexit {code}"
    install(workspace / "node_modules" / ".bin" / name, script)


def test_errors_of_typescript_and_eslint_are_told_sorted_those_of_the_changed_file_first(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path
) -> None:
    write(workspace / "tsconfig.json", "{}")
    write(workspace / "package.json", '{"eslintConfig": {}}')
    say(workspace, "tsc", TSC, 2)
    say(workspace, "eslint", ESLINT, 1)
    result = written(anew, model, "src/a.ts", "x\n")
    assert result.partition("\n\n")[2] == (
        "eslint found 2 errors in the changed files:\n"
        "src/a.ts:1:1: 'foo' is not defined no-undef\n"
        "src/a.ts:3:5: Parsing error: Unexpected token ;\n\n"
        "tsc found 2 errors in the changed files:\n"
        "src/a.ts:1:7: TS2322: Type 'string' is not assignable to type 'number'.\n"
        "src/a.ts:4:3: TS2345: Argument of type '{ a: number; }' is not assignable to parameter of type '{ a: number; b: string; }'."
        " Property 'b' is missing in type '{ a: number; }' but required in type '{ a: number; b: string; }'.\n\n"
        "tsc found 1 error in other files:\n"
        "src/other.ts:9:1: TS2304: Cannot find name 'gone'."
    )
    assert "--noEmit" in (workspace / "tsc.called").read_text().split()
    assert str(workspace / "src/a.ts") in (workspace / "eslint.called").read_text().split()


def test_errors_of_pyright_are_told_in_whole(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    write(workspace / "pyproject.toml", "[tool.pyright]\n")
    install(workspace / ".venv" / "bin" / "python", "")
    say(workspace, "pyright", PYRIGHT, 1)
    assert written(anew, model, "a.py").partition("\n\n")[2] == (
        "pyright found 1 error in the changed files:\n"
        'a.py:1:10: Type "Literal[\'a\']" is not assignable to declared type "int"'
        ' "Literal[\'a\']" is not assignable to "int" (reportAssignmentType)'
    )
    called = (workspace / "pyright.called").read_text().split()
    assert called == [str(workspace), "--pythonpath", str(workspace / ".venv/bin/python"), str(workspace / "a.py")]


def test_the_nearest_configuration_and_program_count(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    write(workspace / "tsconfig.json", "{}")
    say(workspace, "tsc", "of the root", 0)
    app = workspace / "packages" / "app"
    write(app / "tsconfig.json", '{"files": [], "references": [{"path": "./tsconfig.app.json"}, {"path": "./lib"}]}')
    install(app / "node_modules" / ".bin" / "tsc", 'echo "$PWD $2" >> called; echo "src/b.ts(2,1): error TS1: No."; exit 1')
    result = written(anew, model, "packages/app/src/b.ts", "x\n")
    assert result.endswith("tsc found 1 error in the changed files:\npackages/app/src/b.ts:2:1: TS1: No.")
    assert sorted((app / "called").read_text().splitlines()) == [f"{app} {app}/lib", f"{app} {app}/tsconfig.app.json"]
    assert not (workspace / "tsc.called").exists()


def test_at_most_twenty_errors_and_a_few_of_other_files_are_shown(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    write(workspace / "tsconfig.json", "{}")
    own = [f"a.ts({n},1): error TS1: {'long ' * 100}" for n in range(100, 0, -1)]
    say(workspace, "tsc", "\n".join([*(f"z{n}.ts(1,1): error TS2: x" for n in range(30)), *own]), 2)
    lines = written(anew, model, "a.ts", "x\n").splitlines()
    assert [line.split(":")[1] for line in lines if line.startswith("a.ts")] == [str(n) for n in range(1, 21)]
    assert sum(line.startswith("z") for line in lines) == 5
    assert [line for line in lines if line.startswith("...")] == ["... and 80 more", "... and 25 more"]
    assert max(map(len, lines)) < 350


TYPESCRIPT = {"compilerOptions": {"strict": True, "composite": True, "types": []}, "include": ["src"]}
LINTED = """export default [{files: ["**/*.js"], rules: {"no-undef": "error", "no-unused-vars": "warn"}}];\n"""


def test_typescript_tells_of_the_changed_file_and_of_what_it_broke(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_node(workspace)
    write(workspace / "tsconfig.json", json.dumps(TYPESCRIPT))
    write(workspace / "src" / "user.ts", 'import { size } from "./size";\nexport const twice: number = 2 * size;\n')
    bad = changed(
        anew, model, "write", {"filePath": "src/size.ts", "content": 'export const size: string = 4;\nexport const other = "";\n'}
    )
    assert bad.partition("\n\n")[2] == (
        "tsc found 1 error in the changed files:\n"
        "src/size.ts:1:14: TS2322: Type 'number' is not assignable to type 'string'.\n\n"
        "tsc found 1 error in other files:\n"
        "src/user.ts:2:34: TS2363: The right-hand side of an arithmetic operation must be of type"
        " 'any', 'number', 'bigint' or an enum type."
    )
    mended = changed(anew, model, "edit", {"filePath": "src/size.ts", "oldString": "string", "newString": "number"})
    assert "tsc" not in mended
    assert {path.name for path in workspace.iterdir()} == {"node_modules", "src", "tsconfig.json"}
    assert {path.name for path in (workspace / "src").iterdir()} == {"size.ts", "user.ts"}


def test_eslint_tells_of_errors_and_not_of_warnings(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_node(workspace)
    write(workspace / "eslint.config.mjs", LINTED)
    bad = written(anew, model, "src/a.js", "let unused = 1;\nlaunch();\n")
    assert bad.partition("\n\n")[2] == ("eslint found 1 error in the changed files:\nsrc/a.js:2:1: 'launch' is not defined no-undef")
    broken = changed(anew, model, "edit", {"filePath": "src/a.js", "oldString": "launch();", "newString": "launch("})
    assert "src/a.js:3:1: Parsing error: Unexpected token" in broken
    mended = changed(anew, model, "edit", {"filePath": "src/a.js", "oldString": "launch(", "newString": "unused = 2;"})
    assert "eslint" not in mended
    assert {path.name for path in workspace.iterdir()} == {"eslint.config.mjs", "node_modules", "src"}


def test_pyright_tells_what_an_error_is_in_whole(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_node(workspace)
    write(workspace / "pyproject.toml", "[tool.pyright]\n")
    bad = written(anew, model, "a.py", 'def f(n: int) -> None: ...\n\n\nf("é")\n')
    assert bad.partition("\n\n")[2] == (
        "pyright found 1 error in the changed files:\n"
        'a.py:4:3: Argument of type "Literal[\'é\']" cannot be assigned to parameter "n" of type "int" in function "f"'
        ' "Literal[\'é\']" is not assignable to "int" (reportArgumentType)'
    )
    mended = changed(anew, model, "edit", {"filePath": "a.py", "oldString": '"é"', "newString": "1"})
    assert "pyright" not in mended
    assert {path.name for path in workspace.iterdir()} == {"a.py", "node_modules", "pyproject.toml"}


@pytest.mark.parametrize(
    ("config", "text", "path"),
    [
        ("eslint.config.mjs", "export default [;", "a.js"),
        ("eslint.config.mjs", 'import "not-there";', "a.js"),
        ("pyrightconfig.json", '{"include": [', "a.py"),
        ("tsconfig.json", '{"files": ["gone.ts"]}', "a.ts"),
    ],
)
def test_a_broken_configuration_fails_no_edit(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path, config: str, text: str, path: str
) -> None:
    install_node(workspace)
    write(workspace / config, text)
    assert written(anew, model, path, "x\n") == f"Created {path} (2 bytes)."


def test_what_typescript_says_of_its_configuration_is_told(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_node(workspace)
    write(workspace / "tsconfig.json", '{"compilerOptions": {"strict": "very"}}')
    told = "tsc found 1 error in other files:\ntsconfig.json:1:32: TS5024:"
    assert told in written(anew, model, "a.ts", "export {};\n")


HANGING = """import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
const child = spawn("setsid", ["sleep", "600"]);
writeFileSync("pids", `${process.pid} ${child.pid}`);
await new Promise(() => {});
"""


def test_checkers_that_hang_are_killed_with_all_they_began_and_given_up_after_three_times(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path
) -> None:
    install_node(workspace)
    install_ruff(workspace)
    write(workspace / "app" / "eslint.config.mjs", HANGING)
    write(workspace / "app" / "tsconfig.json", '{"files": ["pipe.ts"]}')
    os.mkfifo(workspace / "app" / "pipe.ts")  # whoever opens it waits for ever
    write(workspace / "app" / "pyrightconfig.json", "{}")
    install(workspace / "app" / ".venv" / "bin" / "python", "echo $$ > python.pid; sleep 600")
    write(workspace / "pyproject.toml", "[tool.ruff]\n")
    texts = []
    for number in range(4):
        lines = "".join(f"*** Add File: app/{number}.{suffix}\n+{BAD.splitlines()[0]}\n" for suffix in ("ts", "js", "py"))
        began = time.monotonic()
        texts.append(changed(anew, model, "apply_patch", {"patchText": f"*** Begin Patch\n{lines}*** End Patch"}))
        assert time.monotonic() - began < 15
        assert "ruff found 1 error" in texts[-1]
        pids = [pid for name in ("pids", "python.pid") for pid in (workspace / "app" / name).read_text().split()]
        assert not any(is_alive(int(pid)) for pid in pids)
    late = "was not done within 5 s: what it would find is not known."
    over = f"{late} It is not run after changes in app any more in this conversation; run it by yourself when you need to know."
    for text in texts[:2]:
        assert text.endswith(f"\n\neslint {late}\n\npyright {late}\n\ntsc {late}")
    assert texts[2].endswith(f"\n\neslint {over}\n\npyright {over}\n\ntsc {over}")
    assert "within" not in texts[3]
    task_id = anew.get("/tasks").json()["tasks"][0]["taskId"]
    assert len(of_type(anew.task_events(task_id), "process.started")) == 1  # ruff


def test_a_flood_is_cut_off_and_the_rest_told(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_ruff(workspace)
    write(workspace / "pyproject.toml", "[tool.ruff]\n[tool.pyright]\n")
    install(workspace / "node_modules" / ".bin" / "pyright", "echo $$ > pid; while true; do echo x; done")
    result = written(anew, model, "a.py")
    assert "ruff found" in result
    assert result.endswith("\n\npyright was not done within 5 s: what it would find is not known.")
    assert not any(is_alive(int(pid)) for pid in (workspace / "pid").read_text().split())


def test_of_ten_thousand_errors_the_first_are_counted_and_few_are_shown(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path
) -> None:
    install_node(workspace)
    write(workspace / "eslint.config.mjs", LINTED)
    text = written(anew, model, "a.js", "".join(f"launch{number}();\n" for number in range(10_000)))
    found = re.search(r"eslint found at least (\d+) errors in the changed files:", text)
    assert found is not None
    assert int(found[1]) > 1_000
    assert "other files" not in text
    assert len(text) < 4_000


async def test_without_bash_no_program_of_the_workspace_is_run() -> None:
    editor = cast(Caller, SimpleNamespace(tools={"write": None}))  # whatever else it has is not even looked at
    result = ToolResult("Created a.py.", {"path": "a.py"})
    assert await diagnosed(editor, ToolCall("call_1", "write", "{}"), result) is result


@pytest.mark.parametrize(
    ("config", "is_checked"),
    [
        ({"permission": "allow"}, True),
        ({"permission": {"bash": {"*": "allow", "rm *": "deny"}}}, True),
        ({"permission": {"bash": {"*": "ask", "ruff *": "allow"}}}, True),
        ({"permission": {"webfetch": "deny"}}, True),
        ({"permission": {"bash": "deny"}}, False),
        ({"permission": {"bash": {"*": "ask", "git *": "allow"}}}, False),
        ({"permission": {"*": "deny", "write": "allow", "edit": "allow"}}, False),
        ({"permission": {"bash": {"*": "allow", "ruff *": "ask"}}}, False),
        ({"lsp": False}, False),
        ({"lsp": True}, True),
        ({"lsp": {"pyright": {"disabled": True}, "ruff": {"disabled": False}, "gopls": 1}}, True),
        ({"lsp": {"ruff": {"disabled": True}}}, False),
    ],
)
def test_the_workspaces_rules_hold_for_checkers(
    anew: ServerProcess, model: OpenAIEmulator, workspace: Path, config: object, is_checked: bool
) -> None:
    install_ruff(workspace)
    write(workspace / "ruff.toml", "")
    write(workspace / "opencode.json", json.dumps(config))
    assert ("ruff found" in written(anew, model, "a.py")) == is_checked


def test_typescript_is_turned_off_by_the_name_that_opencode_gives_it(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_node(workspace)
    write(workspace / "tsconfig.json", "{}")
    write(workspace / "opencode.json", '{"lsp": {"typescript": {"disabled": true}}}')
    assert "tsc" not in written(anew, model, "a.ts", "const a: number = '';\n")
    write(workspace / "opencode.json", "{}")
    assert "tsc found 1 error" in written(anew, model, "b.ts", "const b: number = '';\n")


def test_every_file_of_a_patch_is_checked(anew: ServerProcess, model: OpenAIEmulator, workspace: Path) -> None:
    install_ruff(workspace)
    write(workspace / "ruff.toml", "")
    write(workspace / "gone.py", BAD)
    patch = "*** Begin Patch\n*** Add File: a.py\n+import os\n*** Add File: lib/b.py\n+import re\n*** Delete File: gone.py\n*** End Patch"
    patched = changed(anew, model, "apply_patch", {"patchText": patch})
    assert len(of_type(anew.task_events(anew.get("/tasks").json()["tasks"][0]["taskId"]), "process.started")) == 1
    assert "a.py:1:8: F401" in patched
    assert "lib/b.py:1:8: F401" in patched
    assert "gone.py:" not in patched


def test_hostile_files_and_output_take_no_time(tmp_path: Path) -> None:
    known = {checker.name: checker for checker in CHECKERS}
    write(tmp_path / "pyproject.toml", "\n" * 1_000_000)
    assert not known["ruff"].configured(tmp_path)
    write(tmp_path / "tsconfig.json", '{"files":[],' + '"references":[' * 70_000)
    assert len(known["tsc"].commands(tmp_path, [])) == 1
    (found,) = known["tsc"].read("a.ts(1,1): error TS1: x\n" + " x\n" * 500_000, tmp_path)
    assert len(found.text) < 2_000


@pytest.mark.parametrize("checker", CHECKERS, ids=[checker.name for checker in CHECKERS])
def test_output_of_any_kind_is_read(checker: object) -> None:
    (known,) = [one for one in CHECKERS if one is checker]
    for output in (
        "",
        "\n\n",
        "   \n  x",
        "a:b:c: d\n",
        "Segmentation fault",
        "a(1,x): error",
        "\x1b[31ma.py:1:2: \x1b[0mF1 x",
        "é" * 1000,
    ):
        for finding in known.read(output, Path("/w")):
            assert finding == Finding("/w/a.py", 1, 2, "F1 x")

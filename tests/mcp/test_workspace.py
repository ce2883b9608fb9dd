"""MCP servers that a workspace configures: shared by tasks, reached again when lost, missing when they do not come up."""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent_server.commands.execution import Owner
from agent_server.commands.processes import Processes
from agent_server.events.log import EventLog
from agent_server.mcp.client import McpServers
from agent_server.redaction import Secrets
from agent_server.workspace import Workspace
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.serving import ServerProcess, is_alive

NUMBERS = itertools.count()
PROGRAM = str(Path(__file__).with_name("talkative.py"))


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def server(mode: str = "", tools: str = "echo", **more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": ["-S", PROGRAM, mode, tools], **more}


def configure(agent: ServerProcess, **servers: Mapping[str, Any]) -> None:
    (agent.workspace / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))


def call(name: str, text: str = "") -> dict[str, Any]:
    return {"name": name, "arguments": {"text": text}}


def offered(model: OpenAIEmulator, request: int = -1) -> list[str]:
    return [tool["function"]["name"] for tool in model.requests()[request].json["tools"]]


def results(model: OpenAIEmulator) -> list[str]:
    return [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]


def notes(agent: ServerProcess) -> list[list[str]]:
    return [line.split() for line in (agent.workspace / "notes").read_text().splitlines()]


def pids(agent: ServerProcess) -> list[int]:
    return [int(words[-1]) for words in notes(agent) if words[-2:-1] in (["begin"], ["child"])]


def count(agent: ServerProcess, *words: str) -> int:
    return sum(all(word in noted for word in words) for noted in notes(agent))


def warnings(agent: ServerProcess, task_id: str) -> list[str]:
    return [event["message"] for event in of_type(agent.task_events(task_id), "log") if event["level"] == "WARNING"]


def run(agent: ServerProcess, model: OpenAIEmulator, *steps: list[dict[str, Any]], is_stable: bool = True, **more: Any) -> str:
    """Has a task make these calls, step by step, and gives its id; it must complete."""
    model.script(*({"tool_calls": calls} for calls in steps), {"text": "Done."})
    task_id = agent.submit("go", sessionId=f"session-{next(NUMBERS)}", **more)
    assert agent.finish(task_id)["response"] == "Done.", agent.log()
    if is_stable:
        assert_requests(model.requests()[-len(steps) - 1 :])
    return task_id


def test_rules_know_a_tool_by_its_server_whatever_it_is_offered_as(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, ant=server("ant", "echo,delete"), zoo=server("zoo", "echo,shout"))
    rules = {"*": "deny", "ant_*": "allow", "delete": "deny", "zoo_echo": "allow"}
    (agent.workspace / "opencode.json").write_text(json.dumps({"permission": rules}))
    run(agent, model, [call("ant_echo", "1"), call("delete", "2"), call("zoo_echo", "3"), call("shout", "4")])
    assert ["forbids" in result for result in results(model)] == [False, True, False, True]
    (agent.workspace / "opencode.json").write_text(json.dumps({"permission": {"echo": "deny", "zoo_*": "deny", "shout": "allow"}}))
    run(agent, model, [call("ant_echo", "1"), call("delete", "2"), call("zoo_echo", "3"), call("shout", "4")])
    assert ["forbids" in result for result in results(model)] == [True, False, True, False]


def test_servers_of_both_files_are_shared_by_tasks(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, zoo=server("zoo", "z,echo,b"), off={**server("off"), "disabled": True})
    local = {"type": "local", "command": [sys.executable, "-S", PROGRAM, "ant", "echo,bash"], "environment": {"X": "1"}}
    (agent.workspace / "opencode.json").write_text(json.dumps({"mcp": {"ant": local, "no": {**local, "enabled": False}, "zoo": local}}))
    task_id = run(agent, model, [call("ant_echo", "1"), call("zoo_echo", "2"), call("ant_bash", "3")])
    assert results(model) == ["ant:1", "zoo:2", "ant:3"]
    run(agent, model, [call("b", "4")])
    assert results(model) == ["zoo:4"]
    # After the agent's own tools, in an order of their own, and the same in every request.
    assert offered(model)[-5:] == ["ant_bash", "ant_echo", "b", "zoo_echo", "z"]
    assert warnings(agent, task_id) == []
    assert (count(agent, "begin"), count(agent, "tools/list")) == (2, 2)
    listed = [tool for tool in agent.get("/tools").json()["tools"] if tool["source"].startswith("mcp:")]
    assert [(tool["name"], tool["source"]) for tool in listed] == [
        ("ant_bash", "mcp:ant"),
        ("ant_echo", "mcp:ant"),
        ("b", "mcp:zoo"),
        ("zoo_echo", "mcp:zoo"),
        ("z", "mcp:zoo"),
    ]
    states = agent.get("/status").json()["mcpServers"]
    assert [(one["name"], one["isUp"], one["tools"]) for one in states] == [("ant", True, 2), ("zoo", True, 3)]
    assert all(map(is_alive, pids(agent)))
    run(agent, model, autoTools=False)
    assert not agent_has_tools(model)
    agent.stop()
    assert not any(map(is_alive, pids(agent)))
    agent.start()


def agent_has_tools(model: OpenAIEmulator) -> bool:
    return bool(model.requests()[-1].json.get("tools"))


def test_variables_are_those_of_commands_never_the_servers_own(agent: ServerProcess, model: OpenAIEmulator) -> None:
    with agent.client() as client:
        assert client.patch("/env", json={"env": {"MY_OWN": "value-of-mine"}}).status_code == 200
    configure(
        agent,
        a=server("${MY_OWN}", "echo,secret,variables", env={"MY_TOKEN": "${MISSING:-tell-nobody-of-this}"}),
        b=server("${AGENT_API_KEY}", "stolen"),
        c=server("${AGENT_SERVER_TOKEN:-}", "empty"),
    )
    task_id = run(agent, model, [call("echo"), call("secret"), call("variables"), call("empty")])
    own, secret, variables, empty = results(model)
    assert (own, secret, empty) == ("value-of-mine:", "***REDACTED***", ":")
    assert {"PATH", "MY_TOKEN", "MY_OWN", "AGENT_SERVER_PROCESS"} <= set(variables.split())
    assert not {"AGENT_API_KEY", "AGENT_SERVER_TOKEN", "DATA_DIR"} & set(variables.split())
    assert [text for text in warnings(agent, task_id) if "AGENT_API_KEY" in text] == warnings(agent, task_id)
    assert "stolen" not in offered(model)
    assert "tell-nobody-of-this" not in str(agent.task_events(task_id))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (".mcp.json", "{", "no JSON object"),
        (".mcp.json", "[]", "no JSON object"),
        (".mcp.json", '{"mcpServers": 5}', "must be an object"),
        (".mcp.json", '{"mcpServers": {"x": {"command": 5}}}', "'x'"),
        (".mcp.json", '{"mcpServers": {"x": {}}}', "either a command or a url"),
        (".mcp.json", '{"mcpServers": {"x": {"url": "file:///etc/passwd"}}}', "http or https"),
        (".mcp.json", '{"mcpServers": {"x": {"command": "a\\u0000b"}}}', "NUL"),
        (".mcp.json", '{"mcpServers": {"x": {"command": "x", "timeout": -1}}}', "timeout"),
        ("opencode.json", '{"mcp": []}', "must be an object"),
        ("opencode.json", '{"mcp": {"x": {"type": "local", "command": []}}}', "needs a command"),
        ("opencode.json", '{"mcp": {"x": {"type": "remote"}}}', "URL"),
    ],
)
def test_what_cannot_be_used_is_one_warning(agent: ServerProcess, model: OpenAIEmulator, file: str, content: str, said: str) -> None:
    (agent.workspace / file).write_text(content)
    task_id = run(agent, model)
    (warning,) = warnings(agent, task_id)
    assert said in warning
    assert "bash" in offered(model)


def test_a_pipe_in_place_of_the_file_is_not_waited_for(agent: ServerProcess, model: OpenAIEmulator) -> None:
    agent.execute("mkfifo .mcp.json")
    assert len(warnings(agent, run(agent, model))) == 1


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("exits", "the reason is on stderr"),
        ("hangs", "within 1.5 s"),
        ("hangs-listing", "within 1.5 s"),
        ("endless", "bytes of its output are no messages"),
        ("one-line", "a message of it has over 33554432 bytes"),
        ("daemon", ""),
    ],
)
def test_a_server_that_does_not_come_up_costs_one_warning_and_leaves_nothing(
    agent: ServerProcess, model: OpenAIEmulator, mode: str, said: str
) -> None:
    configure(agent, lame=server(mode, timeout=1500 if said.startswith("within") else 20_000), good=server("good"))
    task_id = run(agent, model, [call("echo", "on")])
    assert results(model) == ["good:on"]
    (warning,) = warnings(agent, task_id)
    assert "lame" in warning
    assert said in warning
    lame = [int(words[-1]) for words in notes(agent) if words[0] == mode and words[1] in ("begin", "child")]
    assert not any(map(is_alive, lame))
    began = count(agent, "begin")
    assert len(warnings(agent, run(agent, model))) == 1
    is_waited_for = said.startswith("within")
    assert count(agent, "begin") == began + (not is_waited_for)  # one that answers nothing is not waited for again at once


@pytest.mark.parametrize("mode", ["floods-stderr", "garbage"])
def test_noise_does_no_harm(agent: ServerProcess, model: OpenAIEmulator, mode: str) -> None:
    configure(agent, noisy=server(mode))
    task_id = run(agent, model, [call("echo", "on")], [call("echo", "and on")])
    assert results(model) == [f"{mode}:on", f"{mode}:and on"]
    assert warnings(agent, task_id) == []
    assert agent.get("/health").status_code == 200


def test_a_server_that_has_ended_is_started_again_for_the_next_call(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "echo,leave"))
    run(agent, model, [call("leave")], [call("echo", "again")])
    assert results(model) == ["bye", "one:again"]
    assert count(agent, "begin") == 2
    for pid in pids(agent):
        agent.execute(f"kill -9 {pid} || true")
    run(agent, model, [call("echo", "and again")])
    assert results(model) == ["one:and again"]
    assert count(agent, "begin") == 3


def test_a_call_that_may_have_run_is_not_repeated(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "die,again,look,die-always"))
    run(agent, model, [call("die")], [call("die", "x")], [call("again", "y")], [call("look", "z")], [call("die-always")])
    died, second, again, look, always = results(model)
    assert "may have run" in died
    assert (second, again, look) == ("one:x", "one:y", "one:z")
    assert "may have run" in always
    assert {name: count(agent, "call", name) for name in ("die", "again", "look", "die-always")} == {
        "die": 2,
        "again": 2,
        "look": 2,
        "die-always": 1,
    }


def test_a_changed_list_counts_from_the_next_model_call_on(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "grow,echo"), two=server("two", "fixed"))
    run(agent, model, [call("grow", "added")], [call("added", "here"), call("grow", "echo.x")], [call("echo_x", "!")], is_stable=False)
    assert results(model) == ["one:added", "one:here", "one:echo.x", "one:!"]
    assert "added" not in offered(model, 0)
    assert offered(model, 1)[-4:] == ["added", "echo", "grow", "fixed"]
    assert (count(agent, "one", "tools/list"), count(agent, "two", "tools/list")) == (3, 1)


def test_a_call_that_takes_too_long_is_cancelled_and_told(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "slow,echo", timeout=1000))
    run(agent, model, [call("slow")], [call("echo", "on")])
    slow, _ = results(model)
    assert "within 1 s" in slow
    assert count(agent, "notifications/cancelled") >= 1
    assert count(agent, "begin") == 1


def test_a_server_that_is_stuck_in_a_call_is_started_again_for_the_next(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "stick,echo", timeout=1000))
    run(agent, model, [call("stick")], [call("echo", "on"), call("echo", "and on")])
    stick, *others = results(model)
    assert "within 1 s" in stick
    assert others == ["one:on", "one:and on"]
    assert (count(agent, "begin"), count(agent, "call", "stick")) == (2, 1)
    assert not is_alive(pids(agent)[0])


def test_a_server_that_is_stuck_in_a_call_that_was_cancelled_does_not_hold_up_others(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "stick,echo"))
    model.script({"tool_calls": [call("stick")]})
    task_id = agent.submit("go", sessionId="stuck")
    agent.wait_for(task_id, "tool.started")
    while not count(agent, "call", "stick"):
        time.sleep(0.01)
    agent.post(f"/tasks/{task_id}/cancel")
    run(agent, model, [call("echo", "on")])
    assert results(model) == ["one:on"]
    assert count(agent, "begin") == 2


def test_results_are_text_within_the_limits_of_any_tool(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "long,picture,structure"))
    run(agent, model, [call("long"), call("picture"), call("structure")])
    long, picture, structure = results(model)
    assert len(long) < 60_000
    assert "the whole is in" in long
    assert picture == "[image image/png, 3 bytes; not shown]\nseen"
    assert structure == '{"a":1}'


def test_a_bad_tool_costs_no_other_and_what_a_provider_would_refuse_is_not_sent(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, odd=server("odd-list"))
    task_id = run(agent, model, [call("fields", "x")])
    assert results(model) == ["odd-list:x"]
    assert warnings(agent, task_id) == []
    functions = [tool["function"] for tool in model.requests()[-1].json["tools"]]
    nothing = {"type": "object", "properties": {}}
    assert {one["name"]: one["parameters"] for one in functions[-8:]} == {
        "array": nothing,
        "bare": nothing,
        "draft": nothing,
        "fields": nothing,
        "ours": {**nothing, "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}},
        "pattern": nothing,
        "theirs": nothing,
        "untyped": {**nothing, "properties": {"a": {"type": "string"}}},
    }


def test_a_pattern_for_results_does_not_stop_the_server(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, odd=server("odd-list"))
    run(agent, model, [call("pattern")])
    assert results(model) == [f'{{"a":"{"x" * 60}"}}']


def test_an_answer_that_is_no_result_is_told_at_once(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "cut,null,echo"))
    run(agent, model, [call("cut"), call("null"), call("echo", "on")])
    cut, null, echo = results(model)
    assert cut == "half a \ufffd"
    assert null.startswith("Error: null has run, but what it gave is no result of a tool")
    assert echo == "one:on"
    assert count(agent, "begin") == 1


def test_an_error_of_the_server_is_no_loss_of_it_whatever_its_code(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "refuse,echo"))
    run(agent, model, [call("refuse")], [call("echo", "on")])
    assert results(model) == ["Error: refuse failed: Not today.", "one:on"]
    assert (count(agent, "begin"), count(agent, "call", "refuse")) == (1, 1)


def test_a_result_that_is_too_large_says_so(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "over,echo"))
    run(agent, model, [call("over")], [call("echo", "on")])
    over, echo = results(model)
    assert "a message of it has over 33554432 bytes" in over
    assert "may have run" in over
    assert echo == "one:on"


def test_a_server_without_tools_is_up(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("no-tools"))
    assert warnings(agent, run(agent, model)) == []
    (state,) = agent.get("/status").json()["mcpServers"]
    assert (state["isUp"], state["tools"]) == (True, 0)


def test_more_tools_than_a_model_takes_are_one_warning(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", ",".join(f"tool-{number}" for number in range(1000))))
    (warning,) = warnings(agent, run(agent, model))
    assert "have more tools than a model takes" in warning
    assert len(offered(model)) == 128


def test_a_changed_configuration_is_another_server(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("before"))
    run(agent, model, [call("echo")])
    (old,) = pids(agent)
    configure(agent, one=server("after"))
    run(agent, model, [call("echo")])
    assert results(model) == ["after:"]
    assert not is_alive(old)
    (agent.workspace / ".mcp.json").unlink()
    run(agent, model)
    assert "echo" not in offered(model)
    assert not any(map(is_alive, pids(agent)))


def test_a_servers_name_is_the_tasks_own_where_both_have_it(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("theirs"), two=server("other", "echo"))
    run(agent, model, [call("one_echo"), call("two_echo")], tools=[{"mcp": {"name": "one", **server("mine")}}])
    assert results(model) == ["mine:", "other:"]
    assert count(agent, "theirs") == 0


def test_a_stubborn_server_does_not_outlive_a_killed_one(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("stubborn"))
    run(agent, model, [call("echo")])
    (old,) = pids(agent)
    agent.kill()
    agent.start()
    run(agent, model, [call("echo", "back")])
    assert results(model) == ["stubborn:back"]
    assert not is_alive(old)


def test_a_stubborn_server_and_its_children_end_with_a_killed_one_that_is_not_started_again(
    agent: ServerProcess, model: OpenAIEmulator
) -> None:
    configure(agent, one=server("stubborn", "spawn"))
    run(agent, model, [call("spawn")])
    old = pids(agent)
    assert len(old) == 2
    agent.kill()
    while any(map(is_alive, old)):
        time.sleep(0.02)


def test_a_task_that_is_cancelled_while_its_servers_come_up_leaves_nothing(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, theirs=server("hangs"))
    task_id = agent.submit("go", tools=[{"mcp": {"name": "own", **server("hangs-listing")}}])
    while not (agent.workspace / "notes").exists() or count(agent, "begin") < 2:
        assert agent.get(f"/tasks/{task_id}").json()["status"] == "processing"
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert not any(map(is_alive, pids(agent)))


def test_servers_come_up_side_by_side(agent: ServerProcess, model: OpenAIEmulator) -> None:
    servers = [{"mcp": {"name": f"slow{number}", **server("hangs", timeout=1500)}} for number in range(3)]
    task_id = run(agent, model, tools=servers)
    assert len(warnings(agent, task_id)) == 3
    kinds = [event["type"] for event in agent.task_events(task_id) if event["type"].startswith("process.")]
    assert kinds == ["process.started"] * 3 + ["process.exited"] * 3


def test_tasks_side_by_side_wait_once_for_a_server_that_does_not_answer(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, lame=server("hangs", timeout=1500))
    model.script({"text": "One."}, {"text": "Two."}, {"text": "Three."})
    task_ids = [agent.submit("go", sessionId=f"session-{next(NUMBERS)}") for _ in range(3)]
    assert {agent.finish(task_id)["response"] for task_id in task_ids} == {"One.", "Two.", "Three."}
    assert [len(warnings(agent, task_id)) for task_id in task_ids] == [1, 1, 1]
    assert count(agent, "begin") == 1


@contextlib.asynccontextmanager
async def own_servers(tmp_path: Path, entry: Mapping[str, Any], **times: float) -> AsyncIterator[tuple[McpServers, Path]]:
    """The servers of a workspace that has one, without a server around them; and the workspace."""
    secrets = Secrets()
    log = EventLog(tmp_path / "events.db", secrets)
    log.open()
    workspace = Workspace(tmp_path / "workspace")
    (workspace.root / ".mcp.json").write_text(json.dumps({"mcpServers": {"one": entry}}))
    servers = McpServers(Processes(log, secrets, os.environ, tmp_path, "own"), workspace, secrets, **times)
    running = asyncio.create_task(servers.run())
    yield servers, workspace.root
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await log.close()
    assert not any(map(is_alive, began(workspace.root)))


def began(workspace: Path) -> list[int]:
    noted = [line.split() for line in (workspace / "notes").read_text().splitlines()]
    return [int(words[-1]) for words in noted if words[1] == "begin"]


async def test_an_idle_server_is_let_go_and_started_again(tmp_path: Path) -> None:
    async with own_servers(tmp_path, server("one"), idle=0.05) as (servers, workspace):

        async def use() -> None:
            async with servers.offered([], {}, Owner(), lambda text: None, has_workspace=True) as toolset:
                await asyncio.sleep(0.2)  # longer than it may be idle
                assert [*toolset.tools] == ["echo"]
                assert servers.shared["one"].is_up

        await use()
        while servers.shared["one"].is_up:  # noqa: ASYNC110  # nothing tells it
            await asyncio.sleep(0.01)
        await use()
    assert len(began(workspace)) == 2


async def test_a_server_that_did_not_answer_is_tried_again_while_nobody_waits(tmp_path: Path) -> None:
    async with own_servers(tmp_path, server("late", timeout=3000), retry=0.0) as (servers, workspace):

        async def use() -> tuple[list[str], int]:
            warned: list[str] = []
            async with servers.offered([], {}, Owner(), warned.append, has_workspace=True) as toolset:
                return [*toolset.tools], len(warned)

        assert await use() == ([], 1)
        assert await use() == ([], 1)
        while len(began(workspace)) < 2:  # noqa: ASYNC110  # it does not answer this time either
            await asyncio.sleep(0.01)
        assert await use() == ([], 1)
        (workspace / "ready").touch()
        while await use() != (["echo"], 0):  # noqa: ASYNC110  # nothing tells it
            await asyncio.sleep(0.01)
        assert len(began(workspace)) == 3


def test_a_secret_for_an_authorization_server_is_never_shown(agent: ServerProcess, model: OpenAIEmulator) -> None:
    oauth = {"clientId": "me", "clientSecret": "tell-nobody-of-this"}
    task_id = run(agent, model, tools=[{"mcp": {"url": "http://127.0.0.1:1/mcp", "oauth": oauth}}])
    told = agent.task_events(task_id)
    assert told[0]["tools"][0]["mcp"]["oauth"] == {"clientId": "me", "clientSecret": "***REDACTED***"}
    assert "tell-nobody-of-this" not in str(told)
    assert len(warnings(agent, task_id)) == 1


def test_a_cancelled_task_cancels_its_call_and_leaves_the_shared_server(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, one=server("one", "slow,echo"))
    model.script({"tool_calls": [call("slow")]})
    task_id = agent.submit("go", sessionId="cancelled")
    agent.wait_for(task_id, "tool.started")
    while not count(agent, "call", "slow"):
        assert agent.get(f"/tasks/{task_id}").json()["status"] == "processing"
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    run(agent, model, [call("echo", "on")])
    assert results(model) == ["one:on"]
    assert (count(agent, "notifications/cancelled"), count(agent, "begin")) == (1, 1)


def test_a_plan_may_use_the_tools_that_say_they_only_read(agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, first=server("first", "echo,glance"))
    run(agent, model, [call("glance", "a"), call("echo", "b")], mode="plan")
    assert results(model)[0] == "first:a"
    assert "plan mode" in results(model)[1]
    assert count(agent, "call") == 1


@pytest.mark.parametrize("restarts", [False, True])
def test_a_compaction_offers_the_same_tools_as_the_task_before_it(restarts: bool, agent: ServerProcess, model: OpenAIEmulator) -> None:
    configure(agent, a=server())
    model.script({"tool_calls": [call("echo", "hi")]}, {"text": "Done."}, {"text": "A summary."})
    session_id = f"session-{next(NUMBERS)}"
    assert agent.finish(agent.submit("go", sessionId=session_id))["response"] == "Done."
    if restarts:
        agent.kill()
        agent.start()
    assert agent.post(f"/sessions/{session_id}/compact").json()["compacted"]
    before, asked = (record.body for record in model.requests()[-2:])
    assert asked.startswith(before.removesuffix("]}"))

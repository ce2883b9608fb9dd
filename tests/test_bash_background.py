"""Commands that the agent leaves in the background: started by bash, read by bash_output, ended by bash_kill, on a real server."""

import itertools
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent_server.calling.background import MOST
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.serving import ServerProcess, is_alive, serving
from tools import MAX_BYTES, MAX_LINES

KEY = "sk-test-key-of-the-model"
NUMBERS = itertools.count()

TREE = "(setsid sleep 300 & echo $! > child; wait) & echo $$ > parent; echo up; wait"
"""Has a child in a session of its own; both pids are in files."""


class Agent:
    """One session of a server, whose agent makes the calls it is told to."""

    def __init__(self, server: ServerProcess, model: OpenAIEmulator) -> None:
        self.server, self.model = server, model
        self.session = f"session-{next(NUMBERS)}"
        self.folder = server.workspace / self.session
        self.folder.mkdir()
        self.task_id = ""

    def submit(self, *calls: tuple[str, Mapping[str, Any]], **more: Any) -> str:
        turns = [{"tool_calls": [{"name": name, "arguments": dict(arguments)}]} for name, arguments in calls]
        self.model.script(*turns, {"text": "Done."})
        self.task_id = self.server.submit(sessionId=self.session, **more)
        return self.task_id

    def calls(self, *calls: tuple[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Gives the ends of these calls, made one after the other in one task."""
        task_id = self.submit(*calls)
        task = self.server.finish(task_id)
        assert task["status"] == "completed", (task["error"], self.server.log())
        return [dict(event) for event in of_type(self.server.task_events(task_id), "tool.finished")]

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        (end,) = self.calls((name, arguments))
        return end

    def start(self, command: str, **more: Any) -> str:
        """Starts a command in the background, in the session's own folder, and gives its process id."""
        end = self.call("bash", command=command, background=True, workdir=self.session, **more)
        assert not end["isError"], end["output"]
        return str(end["details"]["processId"])

    def output(self, process_id: str, **more: Any) -> dict[str, Any]:
        end = self.call("bash_output", processId=process_id, **more)
        assert not end["isError"], end["output"]
        return end

    def text(self, process_id: str, **more: Any) -> str:
        """What was new, without what is told of how it stands."""
        return str(self.output(process_id, **more)["output"]).rpartition("\n(")[0]

    def shown(self, process_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get(f"/processes/{process_id}").json()
        return found

    def pid(self, name: str) -> int:
        """The process id that a command has written into this file."""
        return int(self.wait_for_file(name))

    def wait_for_file(self, name: str) -> str:
        file = self.folder / name
        until = time.monotonic() + 20
        while not (file.exists() and file.read_text().endswith("\n")):
            assert time.monotonic() < until, f"{name} was not written"
            time.sleep(0.01)
        return file.read_text()


@pytest.fixture(scope="module")
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as running:
        yield running


@pytest.fixture
def agent(server: ServerProcess, model: OpenAIEmulator) -> Agent:
    if not server.is_running:
        server.start()
    return Agent(server, model)


# Start


def test_a_command_in_the_background_is_a_process_of_the_session_and_outlives_its_task(agent: Agent) -> None:
    end = agent.call("bash", command="echo $PWD; exec sleep 300", background=True, workdir=agent.session)
    process_id = end["details"]["processId"]
    assert end["output"] == f"Started in the background: {process_id}. bash_output gives its output, bash_kill ends it."
    shown = agent.shown(process_id)
    assert (shown["status"], shown["background"], shown["cwd"]) == ("running", True, str(agent.folder))
    assert (shown["sessionId"], shown["taskId"], shown["toolCallId"]) == (agent.session, agent.task_id, end["toolCallId"])
    assert process_id in [one["processId"] for one in agent.server.get("/processes").json()["processes"]]
    assert is_alive(shown["pid"])
    told = agent.output(process_id, wait=5000)
    assert told["output"].splitlines()[0] == str(agent.folder)
    assert (told["details"]["status"], told["details"]["exitCode"]) == ("running", None)


def test_a_folder_that_is_none_and_a_command_that_is_none_are_refused(agent: Agent) -> None:
    assert "is not a folder" in agent.call("bash", command="true", background=True, workdir="missing")["output"]
    assert "outside the workspace" in agent.call("bash", command="true", background=True, workdir="..")["output"]
    assert agent.call("bash", command="echo \0", background=True)["isError"]


def test_a_timeout_ends_it_when_one_is_given(agent: Agent) -> None:
    process_id = agent.start("echo begun; sleep 300", timeout=300)
    agent.output(process_id)
    told = agent.output(process_id, wait=20_000)
    while told["details"]["status"] == "running":
        told = agent.output(process_id, wait=20_000)
    assert told["details"]["reason"] == "timeout"
    assert "(Ended by SIGTERM: timeout." in told["output"]


def test_a_session_has_a_bounded_number_of_them(agent: Agent) -> None:
    ends = agent.calls(*(("bash", {"command": f"exec sleep {300 + number}", "background": True}) for number in range(MOST + 1)))
    ids = [end["details"]["processId"] for end in ends[:MOST]]
    assert ends[-1]["isError"]
    assert ends[-1]["output"].startswith(f"Error: {MOST} commands of this session run in the background")
    assert all(process_id in ends[-1]["output"] for process_id in ids)
    agent.call("bash_kill", processId=ids[0])
    agent.start("true")
    other = Agent(agent.server, agent.model)
    other.start("true")
    with agent.server.client() as client:
        assert client.delete(f"/sessions/{agent.session}").status_code == 200
    assert {agent.shown(process_id)["status"] for process_id in ids} == {"exited"}


# Read


def test_each_reading_gives_what_is_new_over_tasks_and_streams_in_their_order(agent: Agent) -> None:
    process_id = agent.start("for n in 1 2 3; do echo out $n; echo err $n >&2; until [ -e go$n ]; do sleep 0.02; done; done")
    assert agent.text(process_id, wait=5000) == "out 1\nerr 1"
    assert agent.text(process_id) == "(nothing new)"
    assert agent.output(process_id, offset=10**9)["details"]["nextOffset"] == 12  # a model that guesses passes over nothing
    (agent.folder / "go1").touch()
    assert agent.text(process_id, wait=20_000) == "out 2\nerr 2"
    assert agent.text(process_id, offset=6) == "err 1\nout 2\nerr 2"
    assert agent.text(process_id) == "(nothing new)"
    (agent.folder / "go2").touch()
    (agent.folder / "go3").touch()
    texts = [agent.text(process_id, wait=20_000)]
    told = agent.output(process_id, wait=20_000)
    while told["details"]["status"] == "running":
        told = agent.output(process_id, wait=20_000)
    assert texts == ["out 3\nerr 3"]
    assert told["details"] == {
        "processId": process_id,
        "status": "exited",
        "exitCode": 0,
        "signal": None,
        "reason": None,
        "offset": 36,
        "nextOffset": 36,
        "dropped": 0,
        "truncated": False,
        "outputFile": told["details"]["outputFile"],
    }
    assert told["output"] == "(nothing new)\n(Ended with exit code 0. Next offset: 36.)"
    assert agent.text(process_id, offset=0) == "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3"
    assert agent.text(process_id, offset=1_000) == "(nothing new)"
    assert_requests(agent.model.requests())


def test_a_failing_command_is_told_with_its_exit_code(agent: Agent) -> None:
    process_id = agent.start("echo bad; exit 3")
    told = agent.output(process_id, wait=20_000)
    while told["details"]["status"] == "running":
        told = agent.output(process_id, offset=0, wait=20_000)
    assert told["output"] == "bad\n(Ended with exit code 3. Next offset: 4.)"


def test_a_wait_is_bounded_and_ends_with_a_cancelled_task(agent: Agent) -> None:
    process_id = agent.start("exec sleep 300")
    before = time.monotonic()
    assert agent.text(process_id, wait=300) == "(nothing new)"
    assert 0.3 <= time.monotonic() - before < 20
    task_id = agent.submit(("bash_output", {"processId": process_id, "wait": 600_000}))
    agent.server.wait_for(task_id, "tool.started")
    assert agent.server.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert agent.shown(process_id)["status"] == "running"  # another task has started it


def test_who_waits_for_a_silent_command_is_told_for_how_long_it_runs(agent: Agent) -> None:
    process_id = agent.start("exec sleep 300")
    told = [agent.output(process_id, wait=1100)["output"] for _ in range(2)]
    first, second = (int(re.sub(r"\(nothing new\)\n\(Running for (\d+) s\. Next offset: 0\.\)", r"\1", text)) for text in told)
    assert 1 <= first < second < 60


@pytest.mark.parametrize("count", [200_000, 3_000])
def test_long_output_keeps_head_and_tail_and_the_whole_in_a_file(agent: Agent, count: int) -> None:
    process_id = agent.start(f"seq {count}; touch done; exec sleep 300")
    whole = "".join(f"{n}\n" for n in range(1, count + 1))
    told = agent.output(process_id, wait=20_000)
    while told["details"]["nextOffset"] < len(whole):
        told = agent.output(process_id, offset=0, wait=20_000)
    text = agent.output(process_id, offset=0)["output"]
    lines = text.splitlines()
    assert (lines[0], lines[-3]) == ("1", str(count))
    assert len(text.encode()) <= MAX_BYTES
    assert len(lines) <= MAX_LINES
    file = told["details"]["outputFile"]
    assert lines[-2] == f"(The output was too long, its middle is left out; the whole is in {file} (read or grep it).)"
    assert told["details"]["truncated"]
    assert Path(file).read_text() == whole
    middle = whole.index("\n1500\n") + 1
    assert agent.output(process_id, offset=middle)["output"].startswith("1500\n1501\n")
    assert agent.call("grep", pattern="^1234$", path=told["details"]["outputFile"])["output"].endswith("1234: 1234")


def test_output_that_is_kept_nowhere_is_told_as_dropped(agent: Agent) -> None:
    process_id = agent.start("seq 200000; until [ -e go ]; do sleep 0.02; done")
    size = sum(len(f"{n}\n") for n in range(1, 200_001))
    told = agent.output(process_id, wait=20_000)
    while told["details"]["nextOffset"] < size:
        told = agent.output(process_id, wait=20_000)
    Path(told["details"]["outputFile"]).unlink()
    told = agent.output(process_id, offset=0)
    assert told["details"]["dropped"] > 0
    assert f"({told['details']['dropped']} bytes of output were dropped, and are kept nowhere.)" in told["output"]
    assert "the whole is not kept" in told["output"]
    assert "\n200000\n" in told["output"]
    assert agent.text(process_id, offset=size - 7) == "200000"
    (agent.folder / "go").touch()
    while (told := agent.output(process_id, offset=0, wait=20_000))["details"]["status"] == "running":
        time.sleep(0.01)
    assert (told["details"]["dropped"], told["details"]["nextOffset"]) == (size, size)
    assert told["output"].startswith(f"(nothing new)\n({size} bytes of output were dropped")


def test_a_character_is_given_once_it_is_whole(agent: Agent) -> None:
    process_id = agent.start(r"printf 'caf\xc3'; touch half; until [ -e go ]; do sleep 0.02; done; printf '\xa9 \xff'; exec sleep 300")
    while not (agent.folder / "half").exists():
        time.sleep(0.01)
    assert agent.text(process_id, wait=5000) == "caf"
    (agent.folder / "go").touch()
    text = ""
    while len(text) < 3:
        text += agent.text(process_id, wait=300).replace("(nothing new)", "")
    assert text == "é \ufffd"


def test_secrets_are_masked(agent: Agent) -> None:
    process_id = agent.start(f"echo {KEY}; exec sleep 300")
    told = agent.output(process_id, wait=20_000)
    assert told["output"].splitlines()[0] == "***REDACTED***"
    assert KEY not in Path(told["details"]["outputFile"]).read_text()


@pytest.mark.parametrize("arguments", [{"wait": -1}, {"wait": 600_001}, {"offset": -1}])
def test_arguments_out_of_range_are_refused(agent: Agent, arguments: dict[str, int]) -> None:
    end = agent.call("bash_output", processId="proc_x", **arguments)
    assert end["isError"]
    assert "Invalid arguments for bash_output" in end["output"]


# End


def test_a_kill_ends_the_whole_tree_and_says_how(agent: Agent) -> None:
    process_id = agent.start(TREE)
    parent, child = agent.pid("parent"), agent.pid("child")
    end = agent.call("bash_kill", processId=process_id)
    assert end["output"] == "Ended by SIGTERM: killed."
    assert (end["details"]["signal"], end["details"]["reason"], end["isError"]) == ("SIGTERM", "killed", False)
    assert not is_alive(parent)
    assert not is_alive(child)
    assert agent.text(process_id) == "up"
    assert agent.call("bash_kill", processId=process_id)["output"] == "Ended by SIGTERM: killed."
    assert agent.shown(process_id)["signal"] == "SIGTERM"


def test_a_kill_of_what_has_ended_ends_what_it_left(agent: Agent) -> None:
    process_id = agent.start("setsid sleep 300 > /dev/null 2>&1 & echo $! > child")
    child = agent.pid("child")
    while agent.output(process_id, wait=20_000)["details"]["status"] == "running":
        pass
    assert is_alive(child)
    assert agent.call("bash_kill", processId=process_id)["output"] == "Ended with exit code 0."
    assert not is_alive(child)


def test_a_cancelled_task_takes_what_it_started_along_and_nothing_else(agent: Agent) -> None:
    earlier = agent.start("exec sleep 300")
    own = ("bash", {"command": TREE, "background": True, "workdir": agent.session})
    task_id = agent.submit(own, ("bash", {"command": "echo waiting; sleep 300"}))
    agent.server.wait_for(task_id, "tool.output")
    parent, child = agent.pid("parent"), agent.pid("child")
    assert agent.server.post(f"/tasks/{task_id}/cancel").status_code == 200
    assert not is_alive(parent)
    assert not is_alive(child)
    (started,) = (e for e in of_type(agent.server.task_events(task_id), "process.started") if e.get("background"))
    assert agent.shown(started["processId"])["reason"] == "cancelled"
    assert agent.shown(earlier)["status"] == "running"


def test_a_task_at_its_timeout_takes_what_it_started_along(agent: Agent) -> None:
    own = ("bash", {"command": TREE, "background": True, "workdir": agent.session})
    task_id = agent.submit(own, ("bash", {"command": "sleep 300"}), timeout=4000)
    child = agent.pid("child")
    assert agent.server.finish(task_id)["error"]["code"] == "TASK_TIMEOUT"
    assert not is_alive(child)


def test_a_task_that_fails_leaves_it_running(agent: Agent) -> None:
    task_id = agent.submit(("bash", {"command": "exec sleep 300", "background": True}), maxSteps=1)
    assert agent.server.finish(task_id)["status"] == "failed"
    (started,) = of_type(agent.server.task_events(task_id), "process.started")
    assert agent.shown(started["processId"])["status"] == "running"


# Whose it is


def test_only_those_of_the_session_are_read_and_ended(agent: Agent) -> None:
    other = Agent(agent.server, agent.model)
    theirs = other.start("echo secret of theirs; exec sleep 300")
    clients = agent.server.post("/execute", {"command": "exec sleep 300", "background": True}).json()["processId"]
    agent.call("bash", command="true")
    foreground = of_type(agent.server.task_events(agent.task_id), "process.started")[0]["processId"]
    for name in ("bash_output", "bash_kill"):
        refused = [agent.call(name, processId=one) for one in (theirs, clients, foreground, "proc_none", "../x", "\x00", "")]
        assert all(end["isError"] for end in refused)
        assert "belongs to another session; only those of this session can be read or ended." in refused[0]["output"]
        assert "belongs to another session" in refused[1]["output"]
        for end in refused[2:]:
            assert "in the background. This session has started none" in end["output"]
    own = agent.start("exec sleep 300")
    assert f"This session has {own} (runs)." in agent.call("bash_output", processId="proc_none")["output"]
    assert other.shown(theirs)["status"] == agent.shown(clients)["status"] == "running"
    agent.call("bash_kill", processId=own)
    assert f"{own} (has ended)" in agent.call("bash_kill", processId="proc_none")["output"]


def test_a_fork_has_none_of_them(agent: Agent) -> None:
    process_id = agent.start("exec sleep 300")
    fork = Agent(agent.server, agent.model)
    fork.session = agent.server.post(f"/sessions/{agent.session}/fork").json()["sessionId"]
    assert "belongs to another session" in fork.call("bash_output", processId=process_id)["output"]


def test_a_reverted_reading_has_read_nothing(agent: Agent) -> None:
    process_id = agent.start("echo once; exec sleep 300")
    assert agent.text(process_id, wait=20_000) == "once"
    reading = agent.task_id
    assert agent.text(process_id) == "(nothing new)"
    assert agent.server.post(f"/sessions/{agent.session}/revert", {"taskId": reading}).status_code == 200
    assert agent.text(process_id) == "once"


# Restarts


def test_after_a_kill_of_the_server_its_end_and_its_output_are_told_as_far_as_they_are_known(agent: Agent) -> None:
    process_id = agent.start(f"echo one; until [ -e go ]; do sleep 0.02; done; echo two; {TREE}")
    assert agent.text(process_id, wait=20_000) == "one"
    (agent.folder / "go").touch()
    child = agent.pid("child")
    server = agent.server
    while not (server.data / "outputs" / f"{process_id}.txt").read_text().endswith("up\n"):
        time.sleep(0.01)
    server.kill()
    server.start()
    told = agent.output(process_id, wait=20_000)
    assert not is_alive(child)
    assert told["output"].splitlines()[:2] == ["two", "up"]
    assert told["output"].splitlines()[2] == (
        "(Ended, nobody saw how: the server ended before it; what it left running was killed, and the end of its output may be missing. "
        "Next offset: 11.)"
    )
    assert (told["details"]["status"], told["details"]["exitCode"], told["details"]["signal"]) == ("exited", None, None)
    assert agent.text(process_id, offset=0) == "one\ntwo\nup"
    assert agent.call("bash_kill", processId=process_id)["output"].startswith("Ended, nobody saw how: the server ended before it")
    assert_requests(agent.model.requests())


def test_a_stop_of_the_server_ends_it_and_is_told(agent: Agent) -> None:
    process_id = agent.start("echo one; exec sleep 300")
    assert agent.text(process_id, wait=20_000) == "one"
    assert agent.server.stop() == 0
    agent.server.start()
    assert agent.output(process_id)["output"] == "(nothing new)\n(Ended by SIGTERM: the server was stopped. Next offset: 4.)"


def test_a_task_that_goes_on_after_a_kill_learns_that_its_process_is_gone(agent: Agent) -> None:
    own = ("bash", {"command": TREE, "background": True, "workdir": agent.session})
    task_id = agent.submit(own, ("bash", {"command": f"cd {agent.session}; echo waiting; sleep 300"}))
    agent.server.wait_for(task_id, "tool.output")
    child = agent.pid("child")
    (started,) = (e for e in agent.server.get("/processes").json()["processes"] if e["background"] and e["taskId"] == task_id)
    agent.server.kill()
    call = {"name": "bash_output", "arguments": {"processId": started["processId"]}}
    agent.model.script({"tool_calls": [call]}, {"text": "Done."})
    agent.server.start()
    assert agent.server.finish(task_id)["status"] == "completed"
    ends = of_type(agent.server.task_events(task_id), "tool.finished")
    assert [end["interrupted"] for end in ends] == [False, True, False]
    assert "the server ended before it" in ends[-1]["output"]
    assert not is_alive(child)


@pytest.mark.parametrize("kind", ["process.started", "tool.finished"])
def test_a_kill_as_it_starts_leaves_nothing_and_starts_nothing_twice(agent: Agent, kind: str) -> None:
    command = f"echo begun >> {agent.folder}/log; exec sleep 300"
    task_id = agent.submit(("bash", {"command": command, "background": True}))
    agent.server.kill_at(task_id, kind)
    agent.model.script({"text": "Done."})
    agent.server.start()
    assert agent.server.finish(task_id)["status"] == "completed"
    told = agent.server.task_events(task_id)
    (started,) = of_type(told, "process.started")
    (end,) = of_type(told, "tool.finished")
    assert end["interrupted"] or end["details"]["processId"] == started["processId"]
    shown = agent.shown(started["processId"])
    assert (shown["status"], shown["reason"]) == ("exited", "the server ended before it")
    assert "the server ended before it" in agent.call("bash_output", processId=started["processId"])["output"]
    assert not (agent.folder / "log").exists() or (agent.folder / "log").read_text() == "begun\n"

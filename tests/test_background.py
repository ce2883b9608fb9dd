"""Commands in the background on a real server: started, listed, followed, written to, signalled and ended."""

import itertools
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_server.commands import proctree
from agent_server.commands.process import INPUT_MAX
from agent_server.commands.processes import BACKGROUND
from tests.serving import ServerProcess, events, is_alive, serving

LISTENS = "while read line; do echo got $line; done; echo end"
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "", None),
    ("DELETE", "", None),
    ("GET", "/output", None),
    ("POST", "/stdin", {"input": "x"}),
    ("POST", "/signal", {"signal": "TERM"}),
    ("POST", "/resize", {"cols": 80, "rows": 24}),
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


def start(server: ServerProcess, command: str | list[str], **more: Any) -> str:
    """Starts a command in the background and gives its id."""
    response = server.post("/execute", {"command": command, "background": True, **more})
    assert response.status_code == 202, response.text
    return str(response.json()["processId"])


def show(server: ServerProcess, process_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/processes/{process_id}").json()
    return found


def end(server: ServerProcess, process_id: str) -> httpx.Response:
    with server.client() as client:
        return client.delete(f"/processes/{process_id}")


def follow(server: ServerProcess, process_id: str, query: str = "", **headers: str) -> list[dict[str, Any]]:
    """The events of a process, to its end."""
    with server.client(**headers) as client, client.stream("GET", f"/processes/{process_id}/output{query}") as response:
        assert response.status_code == 200, response.read()
        return list(events(response))


def printed(told: list[dict[str, Any]]) -> str:
    return "".join(event["chunk"] for event in told if event["type"] == "process.output")


def wait_for_output(server: ServerProcess, process_id: str, text: str) -> None:
    with server.client() as client, client.stream("GET", f"/processes/{process_id}/output") as response:
        seen = ""
        for event in events(response):
            seen += event.get("chunk", "")
            if text in seen:
                return
    raise AssertionError(f"it ended with {seen!r}")


def marked(server: ServerProcess, process_id: str = "") -> set[int]:
    """What lives of a process, or of all."""
    mark = json.loads((server.data / "identity.json").read_bytes())["mark"]
    return proctree.find(f"{mark}/{process_id}")


# From the start to the end


def test_it_is_there_at_once_and_its_end_is_told(server: ServerProcess) -> None:
    response = server.post("/execute", {"command": "read line; echo $line; exit 3", "background": True, "env": {"A": "b"}})
    assert response.status_code == 202
    accepted = response.json()
    assert (accepted["status"], accepted["background"], accepted["pty"], accepted["exitCode"]) == ("running", True, None, None)
    assert is_alive(accepted["pid"])
    assert accepted in server.get("/processes").json()["processes"]
    server.post(f"/processes/{accepted['processId']}/stdin", {"input": "hello\n"})
    told = follow(server, accepted["processId"])
    assert printed(told) == "hello\n"
    assert told[-1]["type"] == "process.exited"
    shown = show(server, accepted["processId"])
    assert (shown["status"], shown["exitCode"], shown["signal"], shown["reason"], shown["pid"]) == ("exited", 3, None, None, None)
    assert shown["duration_ms"] == told[-1]["duration_ms"]
    assert shown["endedAt"] >= shown["startedAt"] == accepted["startedAt"]


def test_the_newest_is_listed_first_whether_it_runs_or_not(server: ServerProcess) -> None:
    running = start(server, "sleep 60")
    foreground = server.execute("true")["processId"]
    listed = [process["processId"] for process in server.get("/processes").json()["processes"]]
    assert listed[:2] == [foreground, running]
    end(server, running)


def test_a_timeout_holds_only_where_it_is_asked_for(server: ServerProcess) -> None:
    process_id = start(server, "sleep 60", timeout=100)
    assert follow(server, process_id)[-1]["reason"] == "timeout"
    assert show(server, process_id)["signal"] == "SIGTERM"


def test_a_signal_of_its_own_is_told_as_such(server: ServerProcess) -> None:
    process_id = start(server, "kill -9 $$")
    ended = follow(server, process_id)[-1]
    assert (ended["signal"], ended.get("exitCode"), ended.get("reason")) == ("SIGKILL", None, None)


def test_what_cannot_be_started_is_refused(server: ServerProcess) -> None:
    response = server.post("/execute", {"command": ["no-such-program"], "background": True})
    assert response.status_code == 400
    assert server.get("/processes").json()["processes"][0]["reason"].startswith("could not be started")


def test_a_long_output_names_the_file_that_has_it(server: ServerProcess) -> None:
    process_id = start(server, "head -c 2000000 /dev/zero | tr '\\0' x")
    follow(server, process_id)
    assert Path(show(server, process_id)["outputFile"]).stat().st_size == 2_000_000


def test_ending_one_ends_its_tree_and_says_how(server: ServerProcess) -> None:
    process_id = start(server, "setsid sleep 60 & (setsid setsid sleep 61 &) ; sleep 62 & echo ready; sleep 63")
    wait_for_output(server, process_id, "ready")
    shown = end(server, process_id).json()
    assert (shown["status"], shown["signal"], shown["reason"]) == ("exited", "SIGTERM", "killed")
    assert marked(server, process_id) == set()
    assert end(server, process_id).json() == shown


HIDDEN = "echo ready; exec env -i sleep 60"
"""A command without its mark: as each looks for a moment, in the middle of an execve."""


def test_one_without_its_mark_is_ended_all_the_same(server: ServerProcess) -> None:
    process_id = start(server, HIDDEN)
    wait_for_output(server, process_id, "ready")
    pid = show(server, process_id)["pid"]
    shown = end(server, process_id).json()
    assert (shown["signal"], shown["reason"]) == ("SIGTERM", "killed")
    assert not is_alive(pid)
    done = server.execute(HIDDEN, timeout=300)
    assert (done["signal"], done["reason"]) == ("SIGTERM", "timeout")


def test_ending_one_that_does_not_heed_takes_sigkill(server: ServerProcess) -> None:
    process_id = start(server, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    wait_for_output(server, process_id, "ready")
    began = time.monotonic()
    assert end(server, process_id).json()["signal"] == "SIGKILL"
    assert proctree.TERM_GRACE * 0.9 < time.monotonic() - began < proctree.TERM_GRACE + 3


def test_a_clean_end_at_a_kill_is_told_with_its_code(server: ServerProcess) -> None:
    process_id = start(server, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for_output(server, process_id, "ready")
    shown = end(server, process_id).json()
    assert (shown["exitCode"], shown["signal"], shown["reason"]) == (7, None, "killed")


def test_ending_one_that_has_ended_ends_what_it_left(server: ServerProcess) -> None:
    process_id = start(server, "setsid sleep 60 >/dev/null 2>&1 & exit 4")
    follow(server, process_id)
    assert marked(server, process_id)
    shown = end(server, process_id).json()
    assert (shown["exitCode"], shown["reason"]) == (4, None)
    assert marked(server, process_id) == set()


def test_a_command_in_the_foreground_can_be_ended_too(server: ServerProcess) -> None:
    with ThreadPoolExecutor() as pool:
        work = pool.submit(server.execute, "sleep 60")
        while not (found := [p for p in server.get("/processes").json()["processes"] if p["status"] == "running"]):
            time.sleep(0.01)
        assert server.post(f"/processes/{found[0]['processId']}/stdin", {"input": "x"}).status_code == 409
        end(server, found[0]["processId"])
        done = work.result(20)
    assert (done["signal"], done["reason"], done["exitCode"]) == ("SIGTERM", "killed", None)


def test_no_more_than_so_many_run_at_a_time(server: ServerProcess) -> None:
    ids = [start(server, ["sleep", "60"]) for _ in range(BACKGROUND)]
    refused = server.post("/execute", {"command": "true", "background": True})
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert server.execute("echo still")["stdout"] == "still\n"
    for process_id in ids:
        server.post(f"/processes/{process_id}/signal", {"signal": "KILL"})
    for process_id in ids:
        follow(server, process_id)
    end(server, start(server, "sleep 60"))


# Output


def test_the_output_goes_on_from_any_event(server: ServerProcess) -> None:
    process_id = start(server, "for i in 1 2 3 4 5; do echo line $i; sleep 0.08; done")
    whole = follow(server, process_id)
    assert printed(whole) == "".join(f"line {n}\n" for n in range(1, 6))
    assert len(whole) > 3
    for number, event in enumerate(whole[:-1]):
        assert follow(server, process_id, f"?after={event['seq']}") == whole[number + 1 :]
        assert follow(server, process_id, **{"Last-Event-ID": str(event["seq"])}) == whole[number + 1 :]
    last = server.get(f"/processes/{process_id}/output", **{"Last-Event-ID": str(whole[-1]["seq"])})
    assert (last.status_code, last.content) == (204, b"")


@pytest.mark.parametrize("offset", [0, 1, 6, 7, 8, 11, 12])
def test_the_output_begins_at_any_byte(server: ServerProcess, offset: int) -> None:
    process_id = start(server, "echo 'héllo'; echo 'wörld' >&2")
    told = follow(server, process_id, f"?offset={offset}")
    whole = "héllo\nwörld\n".encode()
    assert printed(told) == whole[offset:].decode("utf-8", "ignore")
    assert [event["offset"] for event in told[:1] if event["type"] == "process.output"] == ([offset] if offset < len(whole) else [])


@pytest.mark.parametrize("offset", [4, 1000, 2**62])
def test_the_output_beyond_the_end_is_the_end(server: ServerProcess, offset: int) -> None:
    process_id = start(server, "echo abc")
    assert [event["type"] for event in follow(server, process_id, f"?offset={offset}")] == ["process.exited"]


def test_an_offset_that_has_not_come_yet_is_waited_for(server: ServerProcess) -> None:
    process_id = start(server, LISTENS)
    with server.client() as client, client.stream("GET", f"/processes/{process_id}/output?offset=6") as response:
        stream = events(response)
        server.post(f"/processes/{process_id}/stdin", {"input": "a\nb\n", "eof": True})
        told = list(stream)
    assert printed(told) == "got b\nend\n"


def test_offsets_join_where_a_character_comes_in_two_parts(server: ServerProcess) -> None:
    process_id = start(server, r"printf 'a\303'; sleep 0.2; printf '\244b'; sleep 0.2; printf c")
    told = [event for event in follow(server, process_id) if event["type"] == "process.output"]
    assert "".join(event["chunk"] for event in told) == "aäbc"
    for before, after in itertools.pairwise(told):
        assert before["offset"] + len(before["chunk"].encode()) == after["offset"]


def test_secrets_are_masked_also_where_they_come_in_two_parts(server: ServerProcess) -> None:
    process_id = start(server, 'printf %s "$MY_TOKEN" | (head -c 7; sleep 0.1; cat)', env={"MY_TOKEN": "a-very-secret-value"})
    assert printed(follow(server, process_id)) == "***REDACTED***"


@pytest.mark.parametrize("query", ["?offset=-1", "?offset=x", f"?offset={2**63}", "?after=-1"])
def test_an_offset_that_is_none_is_refused(server: ServerProcess, query: str) -> None:
    process_id = start(server, "true")
    assert server.get(f"/processes/{process_id}/output{query}").status_code == 400


# Input


def test_input_comes_in_parts_until_its_end(server: ServerProcess) -> None:
    process_id = start(server, LISTENS, stdin="first\n")
    for body in ({"input": "sec"}, {"input": "ond\n"}, {"eof": True}):
        response = server.post(f"/processes/{process_id}/stdin", body)
        assert response.status_code == 200, response.text
        assert response.json()["processId"] == process_id
    assert printed(follow(server, process_id)) == "got first\ngot second\nend\n"


def test_input_after_its_end_is_a_conflict(server: ServerProcess) -> None:
    process_id = start(server, "cat; echo over; sleep 60")
    server.post(f"/processes/{process_id}/stdin", {"input": "x\0y\n", "eof": True})
    wait_for_output(server, process_id, "over")
    refused = server.post(f"/processes/{process_id}/stdin", {"input": "late"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CONFLICT")
    end(server, process_id)


def test_input_that_the_command_has_closed_is_a_conflict(server: ServerProcess) -> None:
    process_id = start(server, "exec <&-; echo closed; exec sleep 60")
    wait_for_output(server, process_id, "closed")
    assert server.post(f"/processes/{process_id}/stdin", {"input": "x"}).status_code == 409
    end(server, process_id)


def test_input_that_is_not_read_is_bounded_and_taken_once_it_is(server: ServerProcess) -> None:
    process_id = start(server, "echo ready; while [ ! -e go ]; do sleep 0.02; done; wc -c")
    wait_for_output(server, process_id, "ready")
    part = "x" * (INPUT_MAX // 2)
    taken = 0
    while (response := server.post(f"/processes/{process_id}/stdin", {"input": part})).status_code == 200:
        taken += len(part)
        assert taken <= INPUT_MAX + len(part)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "TOO_MANY_REQUESTS")
    assert response.headers["retry-after"]
    too_large = server.post(f"/processes/{process_id}/stdin", {"input": "x" * (INPUT_MAX + 1)})
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    (server.workspace / "go").touch()
    assert server.post(f"/processes/{process_id}/stdin", {"eof": True}).status_code == 200
    assert printed(follow(server, process_id)) == f"ready\n{taken}\n"


# Signals


@pytest.mark.parametrize("name", ["SIGUSR1", "USR1", "usr1", "sigusr1", "10", 10])
def test_a_signal_goes_to_the_whole_group(server: ServerProcess, name: Any) -> None:
    child = "(trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.02; done) &"
    process_id = start(server, f"trap 'echo parent' USR1; {child} wait; wait; exit 5")
    wait_for_output(server, process_id, "ready")
    response = server.post(f"/processes/{process_id}/signal", {"signal": name})
    assert response.status_code == 200, response.text
    told = follow(server, process_id)
    assert {"child", "parent"} <= set(printed(told).split())
    assert told[-1]["exitCode"] == 5


@pytest.mark.parametrize("name", ["", "SIG", "SIGNONE", "0", "65", "-9", 0, -1, 65, 10**30, "9 ", "SIGTERM\0", "SIGSIGTERM", "٩"])
def test_what_is_no_signal_is_refused(server: ServerProcess, name: Any) -> None:
    process_id = start(server, "sleep 60")
    response = server.post(f"/processes/{process_id}/signal", {"signal": name})
    assert response.status_code == 400
    assert response.json()["error"]["details"] == {"path": "signal"}
    assert show(server, process_id)["status"] == "running"
    end(server, process_id)


def test_what_has_ended_takes_nothing_any_more(server: ServerProcess) -> None:
    process_id = start(server, "true")
    follow(server, process_id)
    for _, path, body in ROUTES[3:]:
        response = server.post(f"/processes/{process_id}{path}", body)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT"), path


def test_what_has_no_terminal_has_no_size(server: ServerProcess) -> None:
    process_id = start(server, "sleep 60")
    assert server.post(f"/processes/{process_id}/resize", {"cols": 80, "rows": 24}).status_code == 409
    end(server, process_id)


@pytest.mark.parametrize("process_id", ["proc_none", "x", "%00", "%ff", "..%2f", "a" * 3000])
@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_unknown_processes_are_not_found(server: ServerProcess, process_id: str, method: str, path: str, body: Any) -> None:
    with server.client() as client:
        response = client.request(method, f"/processes/{process_id}{path}", json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("PROCESS_NOT_FOUND", "NOT_FOUND")
    assert process_id != "proc_none" or response.json()["error"]["code"] == "PROCESS_NOT_FOUND"


# Restarts


def test_a_process_of_a_killed_server_has_ended_and_says_why(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        process_id = start(server, "setsid sleep 60 & sleep 60")
        done = server.execute("exit 2")["processId"]
        server.kill()
        server.start()
        with server.client() as client, client.stream("GET", f"/processes/{process_id}/output") as response:
            (ended,) = events(response)
        shown = show(server, process_id)
        assert (shown["status"], shown["exitCode"], shown["signal"]) == ("exited", None, None)
        assert shown["reason"] == ended["reason"] == "the server ended before it"
        assert shown["command"] == "setsid sleep 60 & sleep 60"
        assert marked(server) == set()
        assert show(server, done)["exitCode"] == 2
        before = server.get("/processes").json()
        server.stop()
        with sqlite3.connect(server.data / "events.db") as db:
            db.execute("DROP TABLE processes")
            db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
        db.close()
        server.start()
        assert server.get("/processes").json() == before


def test_a_stop_ends_processes_and_streams_and_tells_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        process_id = start(server, LISTENS)
        hidden = start(server, HIDDEN)
        wait_for_output(server, hidden, "ready")
        pid = show(server, hidden)["pid"]
        with server.client() as client, client.stream("GET", f"/processes/{process_id}/output") as response:
            began = time.monotonic()
            assert server.stop() == 0
            list(events(response))
        assert time.monotonic() - began < 5
        assert marked(server) == set()
        assert not is_alive(pid)
        server.start()
        for each in (process_id, hidden):
            shown = show(server, each)
            assert (shown["signal"], shown["reason"]) == (signal.SIGTERM.name, "the server was stopped")

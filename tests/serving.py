"""A real server process for the tests, spoken to over HTTP."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

TOKEN = "test-token-0123456789abcdef"
START_SECONDS = 30.0


class ServerProcess:
    """One server on a port of its own. Its folders outlive it, so that it can be started again on them.

    `environ` is the whole environment besides what every server here needs; values given to `start` go over it. `argv` is
    the command, and may be changed before the start.
    """

    def __init__(self, folder: Path, **environ: str) -> None:
        self.workspace = folder / "workspace"
        self.data = folder / "data"
        self.workspace.mkdir(parents=True, exist_ok=True)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HOST": "127.0.0.1",
            "PORT": "0",
            "WORKSPACE_DIR": str(self.workspace),
            "DATA_DIR": str(self.data),
            "AGENT_SERVER_TOKEN": TOKEN,
            "AGENT_MODEL": "test-model",  # not the default one: marks for Anthropic's cache are tested on their own
            **environ,
        }
        self.argv = [sys.executable, "-P", "-m", "agent_server", "serve"]
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.started = threading.Event()  # for readers in other threads: cleared while it is down
        self._log = folder / "server.log"

    def start(self, **environ: str) -> "ServerProcess":
        """Starts it and returns when it answers."""
        self.started.clear()
        with self._log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(self.argv, env={**self.environ, **environ}, stderr=log, cwd=self.workspace)
        return self._await(begin)

    def _await(self, begin: int) -> "ServerProcess":
        assert self.process is not None
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            if found := re.search(rb" on http://[^ ]+:(\d+),", self._log.read_bytes()[begin:]):
                self.url = f"http://127.0.0.1:{int(found[1])}"
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{self.url}/health", verify=False).status_code == 200:
                        self.started.set()
                        return self
            time.sleep(0.01)
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def stop(self) -> int:
        """Ends it with SIGTERM and gives its exit code."""
        assert self.process is not None
        self.started.clear()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        assert self.process is not None
        self.started.clear()
        self.process.kill()
        self.process.wait(30)

    def await_restart(self) -> None:
        """Returns when it answers again, after it has started itself anew."""
        self._await(self._log.stat().st_size)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """What it has written on standard error, over all its starts."""
        return self._log.read_text(errors="replace")

    def client(self, **headers: str) -> httpx.Client:
        """A client that has the token. It reads no certificates, which takes 30 ms."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}", **headers}, timeout=60, verify=False)

    def async_client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}", **headers}, timeout=60, verify=False)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        with self.client(**headers) as client:
            return client.post(path, json=body if body is not None else {})

    def get(self, path: str, **headers: str) -> httpx.Response:
        with self.client(**headers) as client:
            return client.get(path)

    def execute(self, command: str | list[str], **more: Any) -> dict[str, Any]:
        """Runs a command through the API and gives the reply's body."""
        response = self.post("/execute", {"command": command, **more})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def submit(self, prompt: str = "go", **more: Any) -> str:
        """Has a task accepted, and gives its id."""
        response = self.post("/run", {"prompt": prompt, "async": True, **more})
        assert response.status_code == 202, response.text
        return str(response.json()["taskId"])

    def finish(self, task_id: str, seconds: float = 60) -> dict[str, Any]:
        """Follows a task to its end (over restarts too) and gives it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            task: dict[str, Any] = self.get(f"/tasks/{task_id}").json()
            if task["status"] != "processing":
                return task
            time.sleep(0.05)
        raise AssertionError(f"{task_id} did not end:\n{self.log()}")

    def kill_at(self, task_id: str, kind: str, number: int = 1, *, stop: int = signal.SIGKILL) -> dict[str, Any]:
        """Follows a task, ends the server as soon as the `number`-th event of this type is seen, and gives that event.

        `stop` is the signal; for any but SIGKILL the exit code must be 0.
        """
        assert self.process is not None
        seen = 0
        with self.client() as client, client.stream("GET", f"/tasks/{task_id}/events") as response:
            for event in events(response):
                seen += event["type"] == kind
                if seen == number:
                    self.started.clear()
                    self.process.send_signal(stop)
                    code = self.process.wait(30)
                    assert code == (-signal.SIGKILL if stop == signal.SIGKILL else 0), self.log()
                    return event
        raise AssertionError(f"{task_id} ended with {seen} events {kind}")

    def wait_for(self, task_id: str, kind: str, *, after: int = 0) -> dict[str, Any]:
        """Follows a task to its first event of this type above `after`, and gives that."""
        with self.client() as client, client.stream("GET", f"/tasks/{task_id}/events?after={after}") as response:
            for event in events(response):
                if event["type"] == kind:
                    return event
        raise AssertionError(f"{task_id} ended without {kind}")

    def stream_text(self, path: str, **headers: str) -> str:
        """The whole of a stream that ends."""
        return self.get(path, **headers).text

    def newest(self) -> int:
        """The number of the newest event."""
        return int(self.get("/logs?lines=1&level=DEBUG").json()["logs"][-1]["seq"])

    def stored(self, where: str = "1") -> list[int]:
        """The numbers of the events in the log itself. For a server that was stopped: before, not all need to be in this file."""
        assert not self.is_running
        db = sqlite3.connect(self.data / "events.db")
        found = [seq for (seq,) in db.execute(f"SELECT seq FROM events WHERE {where} ORDER BY seq")]
        db.close()
        return found

    def task_events(self, task_id: str, after: int = 0) -> list[dict[str, Any]]:
        """The events of a task that has ended, above `after`."""
        with self.client() as client, client.stream("GET", f"/tasks/{task_id}/events?after={after}") as response:
            return list(events(response)) if response.status_code == 200 else []


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Gives the events of a stream as they come, each with its `id` checked against its `seq`."""
    last_id = ""
    for line in response.iter_lines():
        if line.startswith("id: "):
            last_id = line[4:]
        elif line.startswith("data: "):
            event: dict[str, Any] = json.loads(line[6:])
            assert last_id == str(event["seq"])
            yield event


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def serving(folder: Path | None = None, **environ: str) -> Iterator[ServerProcess]:
    """A running server, ended at the end."""
    with contextlib.ExitStack() as stack:
        place = folder if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = ServerProcess(place, **environ).start()
        try:
            yield server
        finally:
            if server.is_running:
                server.kill()

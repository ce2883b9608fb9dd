"""The server's peak memory over a whole task of 30 steps on the default provider; the commands it runs are not counted."""

import time
from typing import Any

from benchmarks import Line, figure
from benchmarks.apps import App, ours
from benchmarks.proc import Memory
from tests.emulators.openai import OpenAIEmulator

PEAK = 80.0
"""MB."""

STEPS = 30
INTERVAL = 0.02
TASK_SECONDS = 300


def measure() -> list[Line]:
    with OpenAIEmulator(keeps_bodies=False) as emulator, ours(AGENT_BASE_URL=emulator.url) as app, Memory(app.pid, INTERVAL) as memory:
        run_task(app, emulator, STEPS)
    return [figure(f"task: peak PSS over {STEPS} steps", memory.peak, "MB", at_most=PEAK)]


def run_task(app: App, emulator: OpenAIEmulator, steps: int, *, command: str = "true") -> None:
    """Has the model call bash so many times, and waits for the end of the task. Errors: AssertionError when it fails."""
    emulator.script({"script": "bash-true", "steps": steps, "command": command})
    limits = {"timeout": TASK_SECONDS * 1000, "maxSteps": max(steps + 1, 100)}
    task_id = app.post("/run", {"prompt": "Go on.", "async": True, **limits})["taskId"]
    task = _finish(app, task_id)
    assert task["status"] == "completed", task["error"]
    assert task["steps"] == steps + 1


def _finish(app: App, task_id: str) -> Any:
    until = time.monotonic() + TASK_SECONDS
    while time.monotonic() < until:
        task = app.get(f"/tasks/{task_id}")
        if task["status"] != "processing":
            return task
        time.sleep(0.2)
    raise AssertionError(f"The task did not end within {TASK_SECONDS} s.")

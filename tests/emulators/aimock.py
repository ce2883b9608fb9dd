"""Other makers' models, as the npm package @copilotkit/aimock plays them: one server with the wire formats of many providers."""

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.nodejs import MODULES, NODE

PROGRAM = MODULES / "@copilotkit" / "aimock" / "dist" / "cli.js"
START_SECONDS = 30.0


class Aimock:
    """The server as a child process, on fixtures in its own form: https://aimock.copilotkit.dev/fixtures"""

    def __init__(self, fixtures: Sequence[Mapping[str, Any]]) -> None:
        self._fixtures = fixtures
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> "Aimock":
        folder = Path(self._folder.name)
        (folder / "fixtures.json").write_text(json.dumps({"fixtures": self._fixtures}))
        command = [NODE, str(PROGRAM), "-p", "0", "-f", str(folder / "fixtures.json"), "--log-level", "info"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            if found := re.search(rb"listening on (http://127\.0\.0\.1:\d+)", (folder / "log").read_bytes()):
                self.url = found[1].decode()
                return self
            time.sleep(0.01)
        raise AssertionError(f"aimock did not start: {(folder / 'log').read_text()}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def requests(self) -> list[dict[str, Any]]:
        """What came, in order: `path`, and `body` in aimock's own reading of it."""
        entries: list[dict[str, Any]] = httpx.get(f"{self.url}/__aimock/journal").json()
        return entries

"""A ToolContext on a folder of the test: real files, real commands, no server."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tools import MAX_BYTES, Answers, Assignment, Background, CommandResult, Outcome, ToolContext, ToolError


@dataclass(frozen=True)
class LocalContext:
    workspace: Path
    spill_folder: Path
    instructions: Mapping[str, str]
    files: dict[Path, str] = field(default_factory=dict)
    web_allowed: Sequence[str] = ()

    @property
    def patch_notes(self) -> Path:
        return self.spill_folder.parent / "patches"

    def resolve(self, path: str, *, write: bool = False) -> Path:
        resolved = (self.workspace / path).resolve()
        allowed = [self.workspace] if write else [self.workspace, self.spill_folder]
        if not any(resolved.is_relative_to(folder) for folder in allowed):
            raise ToolError(f"{path} is outside of the workspace")
        return resolved

    async def run(
        self, command: str | Sequence[str], *, cwd: Path | None = None, timeout: float, limit: int = MAX_BYTES, live: bool = False
    ) -> CommandResult:
        start = asyncio.get_running_loop().time()
        process = await asyncio.create_subprocess_exec(
            *(["bash", "-c", command] if isinstance(command, str) else command),
            cwd=cwd or self.workspace,
            env={"PATH": os.environ["PATH"], "HOME": str(self.spill_folder)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        output = bytearray()
        timed_out = False
        try:
            async with asyncio.timeout(timeout):
                while data := await process.stdout.read(65_536):
                    output += data
                await process.wait()
        except TimeoutError:
            timed_out = True
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        assert process.returncode is not None
        code = process.returncode
        text, file = self._shortened(bytes(output), limit)
        return CommandResult(
            output=text,
            exit_code=code if code >= 0 else None,
            signal=signal.Signals(-code).name if code < 0 else None,
            timed_out=timed_out,
            truncated=file is not None,
            output_file=file,
            duration=asyncio.get_running_loop().time() - start,
        )

    def _shortened(self, output: bytes, limit: int) -> tuple[str, Path | None]:
        if len(output) <= limit:
            return output.decode("utf-8", "replace"), None
        file = self.spill_folder / f"output-{len(list(self.spill_folder.iterdir()))}.txt"
        file.write_bytes(output)
        head, tail = output[: limit // 2], output[-(limit // 2) :]
        left_out = len(output) - len(head) - len(tail)
        return f"{head.decode('utf-8', 'replace')}\n[... {left_out} bytes left out ...]\n{tail.decode('utf-8', 'replace')}", file

    @property
    def background(self) -> Background:
        raise NotImplementedError  # it is the server's: tests/test_bash_background.py

    async def delegate(self, assignment: Assignment) -> Outcome:
        raise ToolError("There is nobody here to delegate to.")

    async def ask(self, questions: Sequence[Mapping[str, Any]]) -> Answers:
        raise ToolError("Nobody is there.")

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        return self.instructions

    def stamp_of(self, path: Path) -> str | None:
        return self.files.get(path)

    def saw(self, path: Path, stamp: str | None) -> None:
        self.files.pop(path, None)
        if stamp is not None:
            self.files[path] = stamp


@pytest.fixture
def instructions() -> dict[str, str]:
    """What `nested_instructions` gives; a test may add to it."""
    return {}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def context(workspace: Path, instructions: dict[str, str]) -> ToolContext:
    spill = workspace.parent / "spill"
    for folder in (spill, workspace.parent / "patches"):
        folder.mkdir()
    return LocalContext(workspace, spill, instructions)

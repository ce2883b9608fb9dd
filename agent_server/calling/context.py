"""What a call gets of the server: its ToolContext."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_server.calling.asking import ask_questions
from agent_server.calling.background import Background
from agent_server.commands.execution import Command, Owner
from agent_server.errors import AgentServerError
from agent_server.messages import ToolCall
from agent_server.sessions.run import Caller
from agent_server.sessions.seen_files import remember
from tools import MAX_BYTES, Answers, Assignment, CommandResult, Outcome, ToolError


class Context:
    """What a call gets of the server: its ToolContext."""

    def __init__(self, caller: Caller, call: ToolCall) -> None:
        self._caller = caller
        self._call = call
        self.files: dict[str, str | None] = {}
        """The stamps of the files that the call has read or written; None for those it removed."""

    @property
    def owner(self) -> Owner:
        """On whose behalf the call is made."""
        return Owner(self._caller.session_id, self._caller.task_id, self._call.id)

    @property
    def workspace(self) -> Path:
        return self._caller.around.workspace.root

    @property
    def spill_folder(self) -> Path:
        return self._caller.around.outputs

    @property
    def web_allowed(self) -> Sequence[str]:
        return self._caller.around.web_allowed

    @property
    def patch_notes(self) -> Path:
        return self._caller.around.patch_notes

    def resolve(self, path: str, *, write: bool = False) -> Path:
        try:
            return self._caller.around.workspace.resolve(path, also=None if write else self.spill_folder)
        except AgentServerError as error:
            raise ToolError(error.message) from error

    async def run(
        self, command: str | Sequence[str], *, cwd: Path | None = None, timeout: float, limit: int = MAX_BYTES, live: bool = False
    ) -> CommandResult:
        wanted = Command(command, cwd or self.workspace, timeout=timeout, limit=limit, is_split=False)
        around = self._caller.around
        async with around.pause.aside():
            return await around.processes.run(wanted, self.owner, self._say if live else _ignore)

    def _say(self, stream: str, chunk: str, offset: int, skipped: int) -> None:
        data = {"toolCallId": self._call.id, "stream": stream, "chunk": chunk, **({"skipped": skipped} if skipped else {})}
        self._caller.say(self._caller.draft("tool.output", data))

    @property
    def background(self) -> Background:
        return Background(self._caller, self.owner)

    async def delegate(self, assignment: Assignment) -> Outcome:
        return await self._caller.delegate(self._call, assignment)

    async def ask(self, questions: Sequence[Mapping[str, Any]]) -> Answers:
        return await ask_questions(self._caller, self._call, questions)

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        return self._caller.nested_instructions(path)

    def stamp_of(self, path: Path) -> str | None:
        return self._caller.files.get(self._name_of(path))

    def saw(self, path: Path, stamp: str | None) -> None:
        name = self._name_of(path)
        self.files[name] = stamp
        # At once, and again with the call's result: the next call of the same file may be waiting for this one.
        remember(self._caller.files, {name: stamp})

    def _name_of(self, path: Path) -> str:
        """The name of a file in events, where secrets are masked."""
        around = self._caller.around
        return around.secrets.mask(around.workspace.relative(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _ignore(stream: str, chunk: str, offset: int, skipped: int) -> None:
    pass

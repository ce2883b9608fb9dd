"""The contract between the loop and the tools a model can call.

One file of this package is one tool: a module with a public value `TOOL`. This module is the bottom of the import
order: it knows nothing of the server, which hands down everything a tool may touch as a `ToolContext`.
Modules whose name begins with an underscore are shared code of the tools, not tools.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from tools._schema import schema_of, without_nulls

Answers: TypeAlias = list[list[str]]
"""To each question the labels that were chosen, or the user's own words."""

MASK = "***REDACTED***"
"""What stands in every text where a secret stood. File tools refuse to write it (`refuse_mask`)."""

MAX_LINES = 2_000
MAX_BYTES = 50 * 1024
"""Limits of one tool result, in lines and UTF-8 bytes: what is longer is spilled to a file that `read` can open."""


SubagentType: TypeAlias = Literal["explore", "general"]
"""The subagents there are: one that only reads, and one that can do what its caller can."""


class ToolError(Exception):
    """A failure the model can act on: its message reaches the model in full, as an error result."""


class CommandResult(msgspec.Struct, frozen=True):
    """How a command ended. Exactly one of `exit_code` and `signal` is set, unless it could not be waited for.

    Units: `duration` in seconds. `output` is stdout and stderr as they came, masked; when `truncated`, its middle is
    left out and `output_file` holds the whole.
    """

    output: str
    exit_code: int | None
    signal: str | None
    timed_out: bool
    truncated: bool
    output_file: Path | None
    duration: float


class ProcessState(msgspec.Struct, frozen=True):
    """How a command in the background stands. Of one that nobody saw the end of, neither `exit_code` nor `signal` is known.

    `reason` says why it ended, where that was not its own doing; `seconds` for how long one that runs has done so.
    """

    is_running: bool
    exit_code: int | None
    signal: str | None
    reason: str | None
    seconds: float = 0


class ProcessOutput(msgspec.Struct, frozen=True):
    """What a command in the background has printed, from byte `begin` to byte `end` of its masked output, and how it stands.

    Units: bytes. `left_out` are missing from its middle, and are in `file`, which holds the whole if it is there; `dropped` are
    kept nowhere.
    """

    output: str
    begin: int
    end: int
    left_out: int
    dropped: int
    file: Path | None
    state: ProcessState


class Picture(msgspec.Struct, frozen=True):
    """An image that goes with a result: a media type such as `image/png`, and base64 data."""

    media_type: str
    data: str


class ToolResult(msgspec.Struct, frozen=True):
    """What a call gives: `content` and `pictures` for the model, `details` (JSON values) for the log."""

    content: str
    details: Mapping[str, Any] = msgspec.field(default_factory=dict)
    is_error: bool = False
    pictures: tuple[Picture, ...] = ()


class Background(Protocol):
    """The commands in the background of the session a call is made in. They outlive the task, and end with the server.

    Errors, of all: ToolError for a process that is not one of them, or of another session.
    """

    async def start(self, command: str, *, cwd: Path, timeout: float | None) -> str:
        """Starts a command and gives its process id. Units: `timeout` in seconds. Errors: ToolError when too many run."""

    async def read(self, process_id: str, *, offset: int | None, wait: float, limit: int) -> ProcessOutput:
        """Gives its output from a byte on; without `offset`, from where the conversation's last reading of it ended.

        Units: `wait` in seconds, at the most, for output or the end; `limit` in bytes, half head, half tail.
        """

    async def kill(self, process_id: str) -> ProcessState:
        """Ends it with all its children; of one that has ended, what it left. Gives how it ended."""


class Assignment(msgspec.Struct, frozen=True):
    """What a subagent is to do: `title` stands for it in lists; `resume` names an earlier conversation that goes on with `prompt`."""

    agent: SubagentType
    title: str
    prompt: str
    resume: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How a subagent ended: `text` is its last message, or why it failed; `conversation` is what it can be resumed by."""

    conversation: str
    text: str
    is_error: bool
    details: Mapping[str, Any]


class ToolContext(Protocol):
    """What the server lends to one call. Valid until the call returns; never kept."""

    @property
    def workspace(self) -> Path:
        """The real path of the workspace."""

    @property
    def spill_folder(self) -> Path:
        """The folder (it exists) for outputs too long for the model. Files in it can be read by `read`."""

    @property
    def web_allowed(self) -> Sequence[str]:
        """Hosts, addresses and networks that `webfetch` may reach although they would be refused (WEBFETCH_ALLOW)."""

    @property
    def patch_notes(self) -> Path:
        """The folder (it exists) for notes of changes that a call makes in steps. What a kill breaks off is taken back from them."""

    def resolve(self, path: str, *, write: bool = False) -> Path:
        """Gives the absolute real path of `path` (relative to the workspace, or absolute).

        Errors: ToolError when it leaves the workspace (by .., by an absolute path, through a symlink) and outside is
        not allowed, or when it is in /proc. Files of `spill_folder` are allowed unless `write`.
        """

    async def run(
        self, command: str | Sequence[str], *, cwd: Path | None = None, timeout: float, limit: int = MAX_BYTES, live: bool = False
    ) -> CommandResult:
        """Runs a command (a string through bash, a sequence directly) with a clean environment and no stdin.

        Units: `timeout` in seconds, `limit` in bytes of output kept (half head, half tail). With `live`, its output is
        streamed as `tool.output` events. Cancellation: the whole process tree is dead before the error is raised.
        """

    @property
    def background(self) -> Background:
        """The commands in the background of this session."""

    async def delegate(self, assignment: Assignment) -> Outcome:
        """Has a subagent do something, in a conversation of its own, and waits for its end. The same call has one subagent, also
        when it is made again after a crash.

        Errors: ToolError when there is nothing to resume, or nobody to delegate for. Cancellation: whoever ends the task ends it too.
        """

    async def ask(self, questions: Sequence[Mapping[str, Any]]) -> Answers:
        """Asks the user, and gives an answer to each question. A call that is repeated after a crash waits for the same answer.

        Errors: ToolError when nobody answers.
        """

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        """Gives AGENTS.md (else CLAUDE.md) texts of the folders between the workspace and `path`, by path, that the
        conversation has not seen. A tool that shows them puts their paths into `details["instructions"]`."""

    def stamp_of(self, path: Path) -> str | None:
        """Gives what the session knows of a file: the stamp of when it was last read or written in it. May be called in a thread."""

    def saw(self, path: Path, stamp: str | None) -> None:
        """Notes, for the session, how a file is that the call has read or written; None when it is gone. May be called in a thread.
        It is in the log with the call's result, also when that is an error."""


class Tool(msgspec.Struct, frozen=True, dict=True):
    """One tool. `run` gets validated arguments; it may raise ToolError, and is cancelled at any await.

    `read_only` promises that a call changes nothing: such calls run side by side and are repeated after a crash. `delegates`
    promises that all it does is `ToolContext.delegate`: such calls run side by side too, and are gone on with after a crash.
    `description` and the arguments' descriptions are prompts. `source` says whose it is: `builtin`, `integration`, `mcp:NAME`.
    """

    name: str
    description: str
    arguments: type[msgspec.Struct]
    run: Callable[[Any, ToolContext], Awaitable[ToolResult]]
    read_only: bool = False
    delegates: bool = False
    source: str = "builtin"

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The arguments' JSON Schema, an object without references."""
        return schema_of(self.arguments)

    def parse(self, arguments: str) -> Any:
        """Validates a call's raw JSON arguments; a number given as a string is accepted, and null for what may be left out.

        Errors: ToolError that says what was expected, what came and what to do.
        """
        try:
            decoded = without_nulls(msgspec.json.decode(arguments or "{}"))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ToolError(f"The arguments of {self.name} are not valid JSON ({error}). Call it again with one JSON object.") from error
        try:
            return msgspec.convert(decoded, self.arguments, strict=False)
        except msgspec.ValidationError as error:
            raise ToolError(f"Invalid arguments for {self.name}: {error}. Call it again with arguments that fit its schema.") from error


def refuse_mask(text: str) -> None:
    """Raises ToolError when a text to be written contains the mask: writing it would destroy the secret it stands for."""
    if MASK in text:
        raise ToolError(
            f"The text contains {MASK}, which stands for a secret that you were not shown; writing it would destroy the value. "
            "Edit around it."
        )


def load() -> dict[str, Tool]:
    """Imports every tool of this package, by name.

    Errors: whatever a module's import raises, and AttributeError for one without `TOOL`: the server must not start.
    """
    found: dict[str, Tool] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        if not module.name.startswith("_"):
            tool = importlib.import_module(f"{__name__}.{module.name}").TOOL
            found[tool.name] = tool
    return found

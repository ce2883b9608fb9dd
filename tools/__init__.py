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
from typing import Any, Protocol, TypeAlias

import msgspec

from tools._schema import schema_of

Answers: TypeAlias = list[list[str]]
"""To each question the labels that were chosen, or the user's own words."""

MASK = "***REDACTED***"
"""What stands in every text where a secret stood. File tools refuse to write it (`refuse_mask`)."""

MAX_LINES = 2_000
MAX_BYTES = 50 * 1024
"""Limits of one tool result, in lines and UTF-8 bytes: what is longer is spilled to a file that `read` can open."""


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


class ToolResult(msgspec.Struct, frozen=True):
    """What a call gives: `content` for the model, `details` (JSON values) for the log."""

    content: str
    details: Mapping[str, Any] = msgspec.field(default_factory=dict)
    is_error: bool = False


class ToolContext(Protocol):
    """What the server lends to one call. Valid until the call returns; never kept."""

    @property
    def workspace(self) -> Path:
        """The real path of the workspace."""

    @property
    def spill_folder(self) -> Path:
        """The folder (it exists) for outputs too long for the model. Files in it can be read by `read`."""

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

    async def ask(self, questions: Sequence[Mapping[str, Any]]) -> Answers:
        """Asks the user, and gives an answer to each question. A call that is repeated after a crash waits for the same answer.

        Errors: ToolError when nobody answers.
        """

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        """Gives AGENTS.md (else CLAUDE.md) texts of the folders between the workspace and `path`, by path, that the
        conversation has not seen. A tool that shows them puts their paths into `details["instructions"]`."""


class Tool(msgspec.Struct, frozen=True, dict=True):
    """One tool. `run` gets validated arguments; it may raise ToolError, and is cancelled at any await.

    `read_only` promises that a call changes nothing: such calls run side by side and are repeated after a crash.
    `description` and the arguments' descriptions are prompts. `source` says whose it is: `builtin`, `integration`, `mcp:NAME`.
    """

    name: str
    description: str
    arguments: type[msgspec.Struct]
    run: Callable[[Any, ToolContext], Awaitable[ToolResult]]
    read_only: bool = False
    source: str = "builtin"

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The arguments' JSON Schema, an object without references."""
        return schema_of(self.arguments)

    def parse(self, arguments: str) -> Any:
        """Validates a call's raw JSON arguments; a number given as a string is accepted.

        Errors: ToolError that says what was expected, what came and what to do.
        """
        try:
            decoded = msgspec.json.decode(arguments or "{}")
        except msgspec.DecodeError as error:
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

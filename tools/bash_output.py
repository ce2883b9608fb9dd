"""The `bash_output` tool: what a command in the background has printed since it was last looked at, and how it stands."""

from typing import Annotated, Any

import msgspec

from tools import ProcessOutput, ProcessState, Tool, ToolContext, ToolResult
from tools._output import MAX_OUTPUT, shortened

MAX_WAIT_MS = 600_000
"""Milliseconds that one call waits at the most: as long as a command in the foreground may take."""


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    process_id: Annotated[str, msgspec.Meta(description="As bash gave it.")]
    wait: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_WAIT_MS)] | None,
        msgspec.Meta(description="Milliseconds to wait, at the most, for more output or the end (default 0)."),
    ] = None
    offset: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None,
        msgspec.Meta(description="Byte of the output to begin at (default: where the last call ended)."),
    ] = None


async def run(arguments: Arguments, context: ToolContext) -> ToolResult:
    wait = (arguments.wait or 0) / 1000
    found = await context.background.read(arguments.process_id, offset=arguments.offset, wait=wait, limit=MAX_OUTPUT)
    output, is_cut = shortened(found.output)
    notes = _notes(found, is_cut=is_cut or found.left_out > 0)
    content = "\n".join([output.removesuffix("\n") or "(nothing new)", *notes, f"({ending(found.state)} Next offset: {found.end}.)"])
    return ToolResult(content, {**details(arguments.process_id, found.state), **_places(found, is_cut=is_cut)})


def _notes(found: ProcessOutput, *, is_cut: bool) -> list[str]:
    notes = [f"({found.dropped} bytes of output were dropped, and are kept nowhere.)"] if found.dropped else []
    if is_cut:
        whole = "is not kept" if found.file is None else f"is in {found.file} (read or grep it)"
        notes.append(f"(The output was too long, its middle is left out; the whole {whole}.)")
    return notes


def _places(found: ProcessOutput, *, is_cut: bool) -> dict[str, Any]:
    places: dict[str, Any] = {"offset": found.begin, "nextOffset": found.end, "dropped": found.dropped}
    places["truncated"] = is_cut or found.left_out > 0
    return {**places, "outputFile": str(found.file)} if found.file is not None else places


def details(process_id: str, state: ProcessState) -> dict[str, Any]:
    """Gives what the log is told of a process."""
    told = {"exitCode": state.exit_code, "signal": state.signal, "reason": state.reason}
    return {"processId": process_id, "status": "running" if state.is_running else "exited", **told}


def ending(state: ProcessState) -> str:
    """Says how a process stands, in a sentence. Of one that runs it is another each second: who waits for it does not repeat himself."""
    if state.is_running:
        return f"Running for {state.seconds:.0f} s."
    why = f": {state.reason}" if state.reason is not None else ""
    if state.signal is not None:
        return f"Ended by {state.signal}{why}."
    if state.exit_code is not None:
        return f"Ended with exit code {state.exit_code}{why}."
    return f"Ended, nobody saw how{why}; what it left running was killed, and the end of its output may be missing."


TOOL = Tool(
    name="bash_output",
    description="Gives what a command in the background has printed since the last call, and whether it runs or how it ended.",
    arguments=Arguments,
    run=run,
    read_only=True,
)

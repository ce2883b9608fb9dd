"""How much of a command's output a model is shown, and what it is told of the rest."""

from tools import MAX_BYTES, MAX_LINES

MAX_OUTPUT = MAX_BYTES - 1024
MAX_OUTPUT_LINES = MAX_LINES - 10
"""Bytes and lines of output shown: what is told of them has room in the result, too."""


def shortened(output: str) -> tuple[str, bool]:
    """Gives the first and last lines of an output of too many, and whether some are left out."""
    lines = output.split("\n")
    half = MAX_OUTPUT_LINES // 2
    left_out = len(lines) - 2 * half
    if left_out <= 1:  # the last is what follows the last line feed
        return output, False
    return "\n".join([*lines[:half], f"[... {left_out} lines left out ...]", *lines[-half:]]), True

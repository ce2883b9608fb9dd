"""What the loop itself costs a step, in one long task whose tool is `bash` with `true`.

A step is the time from the last byte of the model's answer to the last byte of the next request, by the emulator's clock: it
takes in the answer, runs the command, and writes it all down. The model is a process of its own and takes no time.

A request repeats the whole conversation, so its bytes grow with the steps, as they must: sending a body of that size to the same
emulator is timed apart, and taken off where steps are compared.
"""

import time
from collections.abc import Sequence
from http.client import HTTPConnection
from statistics import median

from benchmarks import Line, figure
from benchmarks.apps import REPLY_SECONDS, ours
from benchmarks.proc import Memory, settle
from benchmarks.task import run_task
from tests.emulators.openai import OpenAIEmulator, Record

STEP = 12.0
"""Milliseconds, at step 200."""

GROWTH = 20.0
"""KB of memory a step, from step 200 to 1,000."""

LATE = 2.0
"""Times step 10, at step 1,000, without the sending."""

STEPS = 1010
AROUND = 10
"""Steps before and after one that are taken for its median; fewer around step 10, where there are fewer."""

INTERVAL = 0.1
SENDINGS = 21


def measure() -> list[Line]:
    settle()
    with OpenAIEmulator(is_strict=False, keeps_bodies=False) as emulator, ours(AGENT_BASE_URL=emulator.url) as app:
        with Memory(app.pid, INTERVAL) as memory:
            run_task(app, emulator, STEPS)
        records = emulator.requests()
        took = {number: _around(records, number) for number in (10, 200, 1000)}
        sizes = {number: int(records[number].headers["content-length"]) for number in took}
        sending = {number: _sending(emulator, size) for number, size in sizes.items()}
    growth = (_memory(memory, records, 1000) - _memory(memory, records, 200)) * 1000 / 800
    own = {number: took[number] - sending[number] for number in took}
    return [
        figure("loop: step 10", took[10], "ms"),
        figure("loop: step 200", took[200], "ms", at_most=STEP),
        figure("loop: step 1000", took[1000], "ms"),
        figure("loop: step 1000, its request", sizes[1000] / 1000, "KB"),
        figure("loop: step 1000, sending that alone", sending[1000], "ms"),
        Line("loop: step 1000 to step 10, sending apart", own[1000] / own[10], "x", f"{own[1000]:.2f} ms", "", LATE),
        figure("loop: memory a step", growth, "KB", at_most=GROWTH),
    ]


def _around(records: Sequence[Record], number: int) -> float:
    """Gives the median time of the steps around one, in milliseconds."""
    reach = min(AROUND, number // 2)
    steps = range(number - reach, number + reach + 1)
    return median((records[step].arrived_ns - records[step - 1].answered_ns) / 1e6 for step in steps if step < len(records))


def _memory(memory: Memory, records: Sequence[Record], number: int) -> float:
    """Gives the median memory around a step, in MB."""
    return median(memory.at(records[step].arrived_ns / 1e9) for step in range(number - AROUND, number + AROUND))


def _sending(emulator: OpenAIEmulator, size: int) -> float:
    """Gives how long the emulator takes to receive a body of a size, in milliseconds."""
    emulator.script()
    connection = HTTPConnection("127.0.0.1", emulator.port, timeout=REPLY_SECONDS)
    begins = []
    for _ in range(SENDINGS):
        begins.append(time.monotonic_ns())
        # The script is over, so it is answered with an error, after its last byte was read.
        connection.request("POST", "/v1/chat/completions", b'{"a":"' + b"x" * (size - 8) + b'"}')
        connection.getresponse().read()
    connection.close()
    return median((record.arrived_ns - begin) / 1e6 for record, begin in zip(emulator.requests(), begins, strict=True))

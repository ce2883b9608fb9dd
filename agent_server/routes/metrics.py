"""GET /metrics: the server in numbers, as Prometheus reads them. Source: its text exposition format, version 0.0.4."""

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agent_server import __version__
from agent_server.http import Endpoint
from agent_server.metrics import TOKEN_KINDS
from agent_server.server import Server, server_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PHASES = ("running", "waiting", "retrying")

LOG_FILES = ("events.db", "events.db-wal", "events.journal")

Samples = Sequence[tuple[Mapping[str, str], float]]


class Family(msgspec.Struct, frozen=True):
    """One metric, and its samples: each has its labels and a value."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Samples


async def metrics(request: Request) -> Response:
    server = server_of(request)
    families = [*_server(server), *_work(server), *_process()]
    return Response("".join(map(_text, families)), headers={"Content-Type": CONTENT_TYPE})


def _server(server: Server) -> Iterator[Family]:
    counted, log = server.metrics, server.data.path
    labels = {"version": __version__, "agent_type": server.settings.agent_type}
    yield Family("agent_server_info", "gauge", "1, with the version and the agent type.", [(labels, 1)])
    yield _one("agent_server_uptime_seconds", "gauge", "Seconds since the start.", server.uptime)
    yield _one("agent_server_draining", "gauge", "1 while the server is stopping.", server.is_draining)
    answers: Samples = [({"status": f"{digit}xx"}, counted.traffic.answers[digit]) for digit in range(1, 6)]
    yield Family("agent_server_http_responses_total", "counter", "Responses, by class of status.", answers)
    yield _one("agent_server_open_streams", "gauge", "Event streams and WebSockets that are open.", counted.traffic.streams)
    yield _one("agent_server_events_newest_seq", "gauge", "The number of the newest event.", server.log.newest)
    yield _one("agent_server_log_bytes", "gauge", "Bytes of the event log's files.", sum(_size(log / name) for name in LOG_FILES))
    yield _one("agent_server_event_loop_lag_seconds", "gauge", "How late the event loop was at most in the last minute.", counted.lag)


def _work(server: Server) -> Iterator[Family]:
    counted, phases = server.metrics, server.metrics.phases
    waiting = max(server.sessions.processing - phases.total(), 0)
    tasks: Samples = [({"phase": "queued"}, waiting), *(({"phase": phase}, phases[phase]) for phase in PHASES)]
    yield Family("agent_server_tasks", "gauge", "Tasks that are processing, by phase.", tasks)
    ended: Samples = [({"status": status, "phase": phase}, count) for (status, phase), count in sorted(counted.ended.items())]
    yield Family("agent_server_tasks_ended_total", "counter", "Tasks that ended, by status and phase.", ended)
    yield _one("agent_server_steps_total", "counter", "Steps of tasks: model calls with the tool calls they asked for.", counted.steps)
    yield _one("agent_server_model_retries_total", "counter", "Model calls that failed and were made again.", counted.retries)
    tokens: Samples = [({"kind": kind}, counted.tokens[kind]) for kind in TOKEN_KINDS]
    yield Family("agent_server_tokens_total", "counter", "Tokens, by kind; cached are part of prompt, reasoning of completion.", tokens)
    yield _one("agent_server_cost_usd_total", "counter", "USD that model calls cost, where a price is known.", counted.cost)
    calls: Samples = [({"tool": tool, "outcome": outcome}, count) for (tool, outcome), count in sorted(counted.calls.items())]
    yield Family("agent_server_tool_calls_total", "counter", "Tool calls that ended, by tool and outcome.", calls)
    yield _one("agent_server_processes_running", "gauge", "Commands that run.", server.processes.running)


def _process() -> Iterator[Family]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield _one("process_cpu_seconds_total", "counter", "CPU seconds of the server itself.", used.ru_utime + used.ru_stime)
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    yield _one("process_resident_memory_bytes", "gauge", "Resident memory of the server itself.", pages * os.sysconf("SC_PAGE_SIZE"))
    yield _one("process_open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd")))
    yield _one("process_max_fds", "gauge", "File descriptors there may be.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _one(name: str, kind: Literal["counter", "gauge"], text: str, value: float) -> Family:
    return Family(name, kind, text, [({}, value)])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _text(family: Family) -> str:
    lines = [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
    for labels, value in family.samples:
        shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        lines.append(f"{family.name}{{{shown}}} {value:.17g}" if shown else f"{family.name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


ROUTES = (Endpoint("GET", "/metrics", metrics, "The server in numbers, for Prometheus", replies={200: "text/plain"}),)

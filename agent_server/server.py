"""The parts of a running server, as its routes see them."""

import resource
import time
from collections.abc import Callable

import msgspec
from starlette.requests import HTTPConnection

from agent_server.activity import Activity
from agent_server.adapters.connections import Connections
from agent_server.changes.checkpoints import Checkpoints
from agent_server.changes.revert import Reverts
from agent_server.commands.processes import Processes
from agent_server.commands.proctree import Reaper
from agent_server.datadir import DataDirectory
from agent_server.environment import Environment
from agent_server.events.log import EventLog
from agent_server.files.files import Files
from agent_server.files.ignores import Ignores
from agent_server.files.watch import Watches
from agent_server.gateway import Gateway
from agent_server.lifecycle import Lifecycle
from agent_server.mcp.server import McpServer
from agent_server.metrics import Metrics
from agent_server.ports import Ports
from agent_server.proxy.proxy import Proxy
from agent_server.redaction import Secrets
from agent_server.sessions.sessions import Sessions
from agent_server.settings import Settings
from agent_server.snapshots import Snapshots
from agent_server.snapshots.restore import Restores
from agent_server.workspace import Workspace


class Server(msgspec.Struct):
    """One running server. `token_digest` is the SHA-256 of the token that requests must have."""

    settings: Settings
    data: DataDirectory
    secrets: Secrets
    log: EventLog
    workspace: Workspace
    processes: Processes
    checkpoints: Checkpoints
    sessions: Sessions
    reverts: Reverts
    gateway: Gateway
    reaper: Reaper
    token_digest: bytes
    mcp: McpServer
    metrics: Metrics
    ports: Ports
    proxy: Proxy
    files: Files
    ignores: Ignores
    watches: Watches
    connections: Connections
    environment: Environment
    lifecycle: Lifecycle
    activity: Activity
    snapshots: Snapshots
    restores: Restores
    restart: Callable[[], None] = lambda: None  # the process's own: it drains, and becomes itself again
    began: float = msgspec.field(default_factory=time.monotonic)
    began_at: float = msgspec.field(default_factory=time.time)

    @property
    def is_draining(self) -> bool:
        """Whether no tasks are taken, for a while or because it stops."""
        return self.sessions.is_draining or self.lifecycle.is_quiesced

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def cpu_percent(self) -> float:
        """Processor time of the server itself, in percent of one core, averaged since the start."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return round((used.ru_utime + used.ru_stime) / max(self.uptime, 0.001) * 100, 1)

    async def ready(self) -> None:
        """Returns when commands may run: until then each is taken for one of the server before, and a change for one of nobody."""
        await self.sessions.ready()
        await self.checkpoints.ready()


def server_of(request: HTTPConnection) -> Server:
    """Gives the server that a request, or a socket, came to."""
    server: Server = request.app.state.server
    return server

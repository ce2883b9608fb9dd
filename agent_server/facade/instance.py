"""The one instance as an object with the fields of in10nt, AgentHub and Hypeman together."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request

from agent_server import __version__, machine
from agent_server.ids import time_of
from agent_server.server import Server, server_of
from agent_server.settings import is_credential
from agent_server.wire import timestamp
from tools import MASK

STATES: dict[str, Literal["Running", "Standby", "Stopped"]] = {"running": "Running", "standby": "Standby", "stopped": "Stopped"}
"""Our states in Hypeman's words."""


class Deployment(msgspec.Struct, frozen=True):
    url: str
    resource_name: str
    deployment_type: str
    replicas: int
    restart_count: int


class Config(msgspec.Struct, frozen=True):
    port: int
    health_path: str
    long_running: bool
    enable_http: bool
    stdin_enabled: bool


class Allotment(msgspec.Struct, frozen=True):
    """What the machine gives, as Kubernetes writes quantities."""

    cpu: str
    memory: str
    cpu_limit: str
    memory_limit: str


class Metrics(msgspec.Struct, frozen=True):
    uptime_seconds: int
    cpu_usage_percent: Annotated[float, Meta(description="of one core, averaged since the start; the server itself")]
    memory_usage_mb: float


class Network(msgspec.Struct, frozen=True):
    enabled: bool


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """in10nt's fields are in camel case; AgentHub's and Hypeman's in snake case. What nobody told this server is null."""

    instance_id: str = msgspec.field(name="instanceId")
    agent_type: str = msgspec.field(name="agentType")
    agent_url: str = msgspec.field(name="agentUrl")
    created_at_in10nt: str = msgspec.field(name="createdAt")
    description: str | None = None
    id: str
    name: str
    status: Annotated[str, Meta(description="running, standby or stopped")]
    created_at: str
    updated_at: str
    agent_id: str | None = None
    build_id: str | None = None
    organization_id: str | None = None
    user_id: str | None = None
    deployment: Deployment
    config: Config
    resources: Allotment
    env_vars: dict[str, str]
    metrics: Metrics
    state: Annotated[str, Meta(description="Hypeman's: Running, Standby or Stopped")]
    image: str
    env: dict[str, str]
    exit_code: int | None = None
    exit_message: str | None = None
    network: Network
    size: str
    started_at: str
    stopped_at: str | None = None
    tags: dict[str, str] = {}
    vcpus: int
    volumes: list[dict[str, Any]] = []


def describe(request: Request) -> Instance:
    """Gives the instance as it is now."""
    server = server_of(request)
    identity = server.data.identity
    created = timestamp(time_of(identity.mark))
    started = timestamp(round(server.began_at * 1000))
    total, _ = machine.memory()
    cpus = machine.cpus()
    url = str(request.base_url).rstrip("/")
    variables = redacted(server)
    name = identity.instance_name or identity.instance_id
    return Instance(
        instance_id=identity.instance_id,
        agent_type=server.settings.agent_type,
        agent_url=url,
        created_at_in10nt=created,
        id=identity.instance_id,
        name=name,
        status=server.lifecycle.status,
        created_at=created,
        updated_at=started,
        deployment=Deployment(url, name, "HTTP_LONG_RUNNING", 1, identity.starts - 1),
        config=Config(request.url.port or server.settings.port, "/health", True, True, True),
        resources=Allotment(str(cpus), f"{total >> 20}Mi", str(cpus), f"{total >> 20}Mi"),
        env_vars=variables,
        metrics=Metrics(round(server.uptime), server.cpu_percent, round(machine.resident() / 1e6, 1)),
        state=STATES[server.lifecycle.status],
        image=f"agent-server:{__version__}",
        env=variables,
        network=Network(enabled=True),
        size=f"{total >> 20}MB",
        started_at=started,
        vcpus=cpus,
    )


def redacted(server: Server) -> dict[str, str]:
    """Gives the environment, the server's own and what was set since, with the values of credentials masked."""
    variables = {**server.settings.environ, **server.environment.variables}
    return {name: MASK if is_credential(name) else value for name, value in sorted(variables.items())}

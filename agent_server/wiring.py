"""Puts the server's parts together, once, from its settings. Nothing here decides anything."""

from collections.abc import Callable, Mapping
from typing import Any

from agent_server.activity import Activity
from agent_server.adapters.connections import Connections
from agent_server.adapters.deliveries import DeliveryIndex
from agent_server.agents import AGENTS
from agent_server.calling.configs import ToolConfigs
from agent_server.calling.web import WebTools
from agent_server.changes.checkpoints import Checkpoints
from agent_server.changes.index import MEASURE_BYTES, Limits
from agent_server.changes.revert import RevertIndex, Reverts
from agent_server.commands.process_index import ProcessIndex
from agent_server.commands.processes import Processes
from agent_server.commands.proctree import Reaper
from agent_server.datadir import DataDirectory
from agent_server.environment import Environment
from agent_server.events.log import EventLog
from agent_server.files.files import Files
from agent_server.files.ignores import Ignores
from agent_server.files.staging import Staging
from agent_server.files.watch import Watches
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.litellm import LitellmGateway
from agent_server.gateway.providers import ProviderSettings
from agent_server.gateway.replay import ReplayGateway
from agent_server.gateway.route import Gateways
from agent_server.gateway.windows import Windows
from agent_server.lifecycle import Lifecycle
from agent_server.mcp.calls import CallIndex, Calls
from agent_server.mcp.client import McpServers
from agent_server.mcp.server import McpServer
from agent_server.metrics import Metrics
from agent_server.pause import Pause
from agent_server.ports import PortIndex, Ports
from agent_server.proxy.proxy import Proxy
from agent_server.redaction import Secrets
from agent_server.server import Server
from agent_server.sessions.audience import Audience
from agent_server.sessions.run import Surroundings
from agent_server.sessions.session_index import SessionIndex
from agent_server.sessions.sessions import Sessions
from agent_server.sessions.tasks import TaskIndex
from agent_server.settings import Settings
from agent_server.snapshots import Snapshots
from agent_server.snapshots.restore import Restores
from agent_server.workspace import Workspace
from integrations import load as load_integrations
from tools import Tool
from tools import load as load_tools


def wire(settings: Settings, data: DataDirectory, secrets: Secrets, token_digest: bytes) -> Server:
    """Makes every part of a server. None of them has begun to work."""
    tools = load_tools()
    reaper = Reaper()
    metrics = Metrics(tools)
    indexes = (TaskIndex(), SessionIndex(), ProcessIndex(), CallIndex(), PortIndex(), DeliveryIndex(), RevertIndex(), metrics)
    log = EventLog(data.path / "events.db", secrets, indexes, max_bytes=settings.max_log)
    around = _surroundings(settings, data, secrets, log, tools)
    workspace = around.workspace
    checkpoints = _checkpoints(settings, data, around, reaper)
    sessions = Sessions(around, AGENTS[settings.agent_type], checkpoints, max_concurrent=settings.max_concurrent_tasks)
    mcp = McpServer(Calls(around, sessions.agent), settings.max_body)
    ports = Ports(log, settings.port)
    proxy = Proxy(ports, token_digest)
    connections = Connections(load_integrations(), data.path / "integrations.json", settings, secrets, log, sessions, tools)
    environment = Environment(data.path / "environment.json", secrets, around.processes)
    watches = Watches()
    lifecycle = _lifecycle(data, around, connections, watches)
    sessions.admit = lifecycle.admit
    snapshots = _snapshots(settings, data, around, _description(settings, data, connections, environment))
    return Server(
        settings=settings,
        data=data,
        secrets=secrets,
        log=log,
        workspace=workspace,
        processes=around.processes,
        checkpoints=checkpoints,
        sessions=sessions,
        reverts=Reverts(log, workspace.root, checkpoints, sessions, {name for name, tool in tools.items() if tool.read_only}),
        gateway=around.gateway,
        reaper=reaper,
        token_digest=token_digest,
        mcp=mcp,
        metrics=metrics,
        ports=ports,
        proxy=proxy,
        connections=connections,
        files=Files(workspace, Staging(data.path / "staging")),
        ignores=Ignores(data.path / "ignores", workspace.root, reaper.popen),
        watches=watches,
        environment=environment,
        lifecycle=lifecycle,
        activity=Activity(log, _running(sessions, around.processes, mcp, proxy)),
        snapshots=snapshots,
        restores=Restores(data, workspace.root, log, snapshots, lifecycle, checkpoints, sessions),
    )


def _surroundings(settings: Settings, data: DataDirectory, secrets: Secrets, log: EventLog, tools: Mapping[str, Tool]) -> Surroundings:
    workspace = Workspace(settings.workspace, allow_outside=settings.allow_outside_workspace)
    processes = Processes(log, secrets, settings.command_environment(), data.outputs, data.identity.mark)
    return Surroundings(
        log=log,
        secrets=secrets,
        gateway=_gateway(settings),
        processes=processes,
        workspace=workspace,
        outputs=data.outputs.resolve(),
        patch_notes=data.patch_notes,
        tools=tools,
        web=WebTools(),
        mcp=McpServers(processes, workspace, secrets),
        web_allowed=settings.webfetch_allow,
        configs=ToolConfigs(data.path / "tools"),
        pause=Pause(),
        windows=Windows(settings.context_tokens),
        audience=Audience(settings.question_wait),
    )


def _gateway(settings: Settings) -> Gateways:
    keys = ProviderSettings(settings.base_url, settings.api_key, settings.environ, settings.cache_marks)
    chat = ChatGateway(keys, idle_timeout=settings.model_idle_timeout)
    litellm = LitellmGateway(keys, idle_timeout=settings.model_idle_timeout)
    return Gateways(keys, chat, litellm, ReplayGateway(), settings.gateway)


def _checkpoints(settings: Settings, data: DataDirectory, around: Surroundings, reaper: Reaper) -> Checkpoints:
    limits = Limits(quota_bytes=settings.max_checkpoints, measure_bytes=min(MEASURE_BYTES, settings.max_checkpoints // 8))
    return Checkpoints(data.path / "shadow", around.workspace.root, around.log, reaper.popen, limits=limits)


def _lifecycle(data: DataDirectory, around: Surroundings, connections: Connections, watches: Watches) -> Lifecycle:
    lifecycle = Lifecycle(around.log, data, around.pause, around.gateway, (around.workspace.root, data.path))
    lifecycle.on_quiesce.append(connections.pause)
    lifecycle.on_resume += [connections.reconnect, around.web.close, around.mcp.renew]
    lifecycle.on_drop.append(watches.end)
    return lifecycle


def _snapshots(settings: Settings, data: DataDirectory, around: Surroundings, described: Callable[[], Mapping[str, Any]]) -> Snapshots:
    bounds = {"most": settings.max_snapshots, "quota": settings.max_snapshot_bytes}
    return Snapshots(data.path / "snapshots", around.workspace.root, around.log, around.secrets, around.pause, described, **bounds)


def _description(
    settings: Settings, data: DataDirectory, connections: Connections, environment: Environment
) -> Callable[[], Mapping[str, Any]]:
    """Gives what a snapshot says of the server that made it."""

    def described() -> Mapping[str, Any]:
        enabled = [state.name for state in connections.states() if state.is_enabled]
        who = {"instanceId": data.identity.instance_id, "instanceName": data.identity.instance_name}
        return {**who, **settings.described(), "integrations": enabled, "variables": sorted(environment.variables)}

    return described


def _running(sessions: Sessions, processes: Processes, mcp: McpServer, proxy: Proxy) -> Mapping[str, Callable[[], int]]:
    """Gives what counts as activity, by its name."""
    return {
        "task": lambda: sessions.processing,
        "process": lambda: processes.running - processes.terminals,
        "terminal": lambda: processes.terminals,
        "mcp": lambda: mcp.calls.working,
        "proxy": lambda: proxy.open,
    }

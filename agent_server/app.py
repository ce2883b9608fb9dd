"""Wires the parts into one ASGI application, once. Nothing here decides anything."""

import asyncio
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from agent_server import openapi, routes
from agent_server.activity import Activity
from agent_server.agents import AGENTS
from agent_server.checkpoints import Checkpoints
from agent_server.connections import Connections
from agent_server.datadir import DataDirectory
from agent_server.deliveries import DeliveryIndex
from agent_server.environment import Environment
from agent_server.events.log import EventLog
from agent_server.facade import agenthub, forward, hypeman, in10nt
from agent_server.files import Files
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.providers import ProviderSettings
from agent_server.gateway.replay import ReplayGateway
from agent_server.gateway.route import Gateways
from agent_server.guard import Guard
from agent_server.http import Dispatch, Endpoint, Raw, Socket, missing
from agent_server.ignores import Ignores
from agent_server.index import MEASURE_BYTES, Limits
from agent_server.lifecycle import Lifecycle
from agent_server.logs import LogEvents
from agent_server.mcp.calls import CallIndex, Calls
from agent_server.mcp.server import McpServer
from agent_server.mcp_client import McpServers
from agent_server.metrics import Metrics
from agent_server.pause import Pause
from agent_server.ports import PortIndex, Ports
from agent_server.process_index import ProcessIndex
from agent_server.processes import Processes
from agent_server.proctree import Reaper
from agent_server.proxy.proxy import Proxy
from agent_server.redaction import Secrets
from agent_server.revert import RevertIndex, Reverts
from agent_server.run import Surroundings
from agent_server.server import Server
from agent_server.session_index import SessionIndex
from agent_server.sessions import Sessions
from agent_server.settings import Settings
from agent_server.snapshots import Snapshots
from agent_server.snapshots.restore import Restores
from agent_server.staging import Staging
from agent_server.tasks import TaskIndex
from agent_server.tool_configs import ToolConfigs
from agent_server.watch import Watches
from agent_server.web_tool import WebTools
from agent_server.workspace import Workspace
from integrations import load as load_integrations
from tools import load as load_tools

logger = logging.getLogger(__name__)

BASE_DELAY = 1.0
"""Seconds after the start at which the workspace's state is recorded, unless something is to change it before."""


def endpoints() -> list[Endpoint | Socket | Raw]:
    """Gives the routes of every module of `routes`, and the document of them all.

    Errors: whatever a module's import raises, and AttributeError for one without ROUTES: the server must not start.
    """
    found: list[Endpoint | Socket | Raw] = []
    for module in sorted(pkgutil.iter_modules(routes.__path__), key=lambda m: m.name):
        found += importlib.import_module(f"{routes.__name__}.{module.name}").ROUTES
    for facade in (in10nt.ROUTES, agenthub.ROUTES, hypeman.ROUTES, forward.ROUTES):  # the last takes what the others leave
        found += facade
    return [*found, openapi.endpoint(found)]


def create_app(settings: Settings, data: DataDirectory, secrets: Secrets, token_digest: bytes) -> Starlette:
    """Makes the application. It works once its lifespan has begun."""
    offered = endpoints()
    app = Starlette(lifespan=_lifespan)
    server = app.state.server = _wire(settings, data, secrets, token_digest)
    app.state.dispatch = Dispatch(offered, _elsewhere)
    server.lifecycle.on_drop.append(app.state.dispatch.drop_sockets)
    app.middleware_stack = Guard(
        app.state.dispatch,
        settings=settings,
        digest=token_digest,
        traffic=server.metrics.traffic,
        public=[(e.method, e.path) for e in offered if isinstance(e, Endpoint) and e.is_public],
    )
    app.state.secrets = secrets
    return app


def _wire(settings: Settings, data: DataDirectory, secrets: Secrets, token_digest: bytes) -> Server:
    tools = load_tools()
    metrics = Metrics(tools)
    indexes = (TaskIndex(), SessionIndex(), ProcessIndex(), CallIndex(), PortIndex(), DeliveryIndex(), RevertIndex(), metrics)
    log = EventLog(data.path / "events.db", secrets, indexes, max_bytes=settings.max_log)
    workspace = Workspace(settings.workspace, allow_outside=settings.allow_outside_workspace)
    processes = Processes(log, secrets, settings.command_environment(), data.outputs, data.identity.mark)
    reaper = Reaper()
    limits = Limits(quota_bytes=settings.max_checkpoints, measure_bytes=min(MEASURE_BYTES, settings.max_checkpoints // 8))
    checkpoints = Checkpoints(data.path / "shadow", workspace.root, log, reaper.popen, limits=limits)
    keys = ProviderSettings(settings.base_url, settings.api_key, settings.environ)
    around = Surroundings(
        log=log,
        secrets=secrets,
        gateway=Gateways(ChatGateway(keys, idle_timeout=settings.model_idle_timeout), ReplayGateway()),
        processes=processes,
        workspace=workspace,
        outputs=data.outputs.resolve(),
        tools=tools,
        web=WebTools(),
        mcp=McpServers(processes, workspace),
        configs=ToolConfigs(data.path / "tools"),
        pause=Pause(),
    )
    sessions = Sessions(around, AGENTS[settings.agent_type], checkpoints, max_concurrent=settings.max_concurrent_tasks)
    mcp = McpServer(Calls(around, sessions.agent), settings.max_body)
    ports = Ports(log, settings.port)
    proxy = Proxy(ports, token_digest)
    connections = Connections(load_integrations(), data.path / "integrations.json", settings, secrets, log, sessions, tools)
    environment = Environment(data.path / "environment.json", secrets, processes)
    lifecycle = Lifecycle(log, data, around.pause, around.gateway, (workspace.root, data.path))
    lifecycle.on_quiesce.append(connections.pause)
    lifecycle.on_resume += [connections.reconnect, around.web.close]
    watches = Watches()
    lifecycle.on_drop.append(watches.end)
    sessions.admit = lifecycle.admit

    def described() -> Mapping[str, Any]:
        enabled = [state.name for state in connections.states() if state.is_enabled]
        who = {"instanceId": data.identity.instance_id, "instanceName": data.identity.instance_name}
        return {**who, **settings.described(), "integrations": enabled, "variables": sorted(environment.variables)}

    bounds = {"most": settings.max_snapshots, "quota": settings.max_snapshot_bytes}
    snapshots = Snapshots(data.path / "snapshots", workspace.root, log, secrets, around.pause, described, **bounds)
    running = {
        "task": lambda: sessions.processing,
        "process": lambda: processes.running - processes.terminals,
        "terminal": lambda: processes.terminals,
        "mcp": lambda: mcp.calls.working,
        "proxy": lambda: proxy.open,
    }
    return Server(
        settings=settings,
        data=data,
        secrets=secrets,
        log=log,
        workspace=workspace,
        processes=processes,
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
        activity=Activity(log, running),
        snapshots=snapshots,
        restores=Restores(data, workspace.root, log, snapshots, lifecycle, checkpoints, sessions),
    )


async def _elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers for a path that no route has."""
    server: Server = scope["app"].state.server
    await server.proxy.stray(scope, receive, send, missing)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    server: Server = app.state.server
    server.restores.mark_first_start(server.settings)
    server.log.open()
    handler = LogEvents(server.log)
    logging.getLogger().addHandler(handler)
    try:
        await _restore(server)
        async with asyncio.TaskGroup() as group:
            lasting = [
                *(server.reaper.run(), server.metrics.run(), _record_base(server), server.ports.run()),
                *(server.checkpoints.run(), server.lifecycle.run()),
            ]
            background = [group.create_task(work) for work in lasting]
            work = [group.create_task(_work(server)), group.create_task(server.mcp.run())]
            connections = group.create_task(server.connections.run())
            yield
            server.connections.close()
            await connections
            await server.sessions.drain(0)
            await server.mcp.drain(0)
            await asyncio.wait(work)
            for task in background:
                task.cancel()
    finally:
        server.snapshots.close()
        logging.getLogger().removeHandler(handler)
        await server.processes.close()
        await server.gateway.close()
        await server.sessions.around.web.close()
        await server.log.close()


async def _restore(server: Server) -> None:
    """Ends what a killed server left of a restore, and restores what the instance is to begin with. Nothing else runs yet."""
    await server.restores.recover()
    server.snapshots.sweep()
    await server.restores.first_start(server.settings)


async def _work(server: Server) -> None:
    """Ends what a killed server left running, then takes up what it left undone."""
    if server.data.identity.starts > 1:
        await server.processes.recover()
        await server.reverts.recover()
    await server.sessions.run()


async def _record_base(server: Server) -> None:
    await asyncio.to_thread(server.files.staging.clear)
    await asyncio.sleep(BASE_DELAY)
    await server.checkpoints.ready()
    await server.restores.clean()

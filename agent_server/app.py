"""The ASGI application: its routes, and what lives as long as it does. Its parts are put together in `wiring.py`."""

import asyncio
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from agent_server import openapi, routes
from agent_server.datadir import DataDirectory
from agent_server.dispatch import Dispatch
from agent_server.facade import agenthub, forward, hypeman, in10nt
from agent_server.guard import Guard
from agent_server.http import Endpoint, Raw, Socket, missing
from agent_server.logs import LogEvents
from agent_server.redaction import Secrets
from agent_server.server import Server
from agent_server.settings import Settings
from agent_server.wiring import wire
from tools._together import take_back_unfinished

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
    server = app.state.server = wire(settings, data, secrets, token_digest)
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
                *(server.checkpoints.run(), server.lifecycle.run(), server.sessions.around.mcp.run()),
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
    """Ends what a killed server left of patches and of a restore, and restores what the instance begins with. Nothing else runs yet."""
    await asyncio.to_thread(take_back_unfinished, server.data.patch_notes)
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

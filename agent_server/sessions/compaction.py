"""A session made short at a client's wish: a summary takes the place of its messages."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from agent_server.agents import Agent
from agent_server.commands.execution import Owner
from agent_server.errors import Draining, TaskTimeout
from agent_server.events import Draft, Event
from agent_server.gateway import ModelOptions
from agent_server.messages import ToolSpec
from agent_server.sessions import tasks
from agent_server.sessions.attempts import agent_named, fixed_tools, has_workspace_tools, system_message
from agent_server.sessions.conversation import load
from agent_server.sessions.run import Surroundings
from agent_server.sessions.sessions import Sessions
from agent_server.sessions.summary import Summarised, choose, summarise

COMPACT_TIME = 600.0
"""Seconds for one compaction, with all its tries: a slow model reads a million tokens in less."""


async def compact(sessions: Sessions, around: Surroundings, session_id: str, options: ModelOptions | None = None) -> Event | None:
    """Summarises an idle session with its last task's model, or another one; None when there is nothing to summarise.

    Errors: NotFound; Conflict when it is busy; ModelError, TaskTimeout and Draining, which leave it as it was.
    """
    async with sessions.held(session_id):
        state = await load(around.log, session_id)
        chosen = choose(state.settled)
        if chosen is None:
            return None
        newest = await tasks.find_all(around.log, session_id=session_id, limit=1)
        given: Mapping[str, Any] = newest[0].given if newest else {"autoTools": True, "provider": "", "model": ""}
        if options is None:
            options = ModelOptions(given["provider"], given["model"])
        agent = agent_named((state.began or {}).get("agent"), sessions.agent)
        specs = await _specs(around, agent, given, session_id)
        system = system_message(state, given)
        window = await around.windows.find(options.provider, options.model)
        summary = partial(summarise, around.gateway, chosen, system, specs, options, window=window)
        work = asyncio.create_task(around.pause.repeated(summary))
        done = await _within(work, sessions)
        (event,) = await around.log.append(Draft("session.compacted", done.to_wire(), session_id, sync=True))
        return event


async def _specs(around: Surroundings, agent: Agent, given: Mapping[str, Any], session_id: str) -> list[ToolSpec]:
    """Gives the tools that the session's last task offered, so that its cache pays for this request; but not those of MCP servers
    that it brought, which have ended with it."""

    def warn(text: str) -> None:
        around.log.say(Draft("log", {"level": "WARNING", "source": "mcp", "text": text}, session_id))

    fixed = await fixed_tools(around, agent, given, given.get("tools", ()))
    async with around.mcp.offered([], fixed, Owner(session_id), warn, has_workspace=has_workspace_tools(agent, given)) as toolset:
        return [ToolSpec(tool.name, tool.description, tool.parameters) for tool in toolset.tools.values()]


async def _within(work: "asyncio.Task[Summarised]", sessions: Sessions) -> Summarised:
    stopping = asyncio.create_task(sessions.stopping())
    try:
        await asyncio.wait([work, stopping], timeout=COMPACT_TIME, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if stopping.done():
            raise Draining("The server is stopping; the session is as it was, send the request again in a few seconds.")
        raise TaskTimeout(f"The model made no summary within {COMPACT_TIME:g} s; the session is as it was.")
    finally:
        for task in (work, stopping):
            task.cancel()
        await asyncio.wait([work, stopping])

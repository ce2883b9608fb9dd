"""A session made short at a client's wish: a summary takes the place of its messages."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from agent_server.errors import Draining, TaskTimeout
from agent_server.events import Draft, Event
from agent_server.gateway import ModelOptions
from agent_server.messages import ToolSpec
from agent_server.sessions import tasks
from agent_server.sessions.attempts import agent_named, built_in, own_tool, system_message
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
        specs = [ToolSpec(name, tool.description, tool.parameters) for name, tool in built_in(around, agent, given).items()]
        own = [await own_tool(around, entry) for entry in given.get("tools", ()) if "mcp" not in entry]
        specs += [ToolSpec(tool.name, tool.description, tool.parameters) for tool in own]
        system = system_message(state, given)
        window = await around.windows.find(options.provider, options.model)
        summary = partial(summarise, around.gateway, chosen, system, specs, options, window=window)
        work = asyncio.create_task(around.pause.repeated(summary))
        done = await _within(work, sessions)
        (event,) = await around.log.append(Draft("session.compacted", done.to_wire(), session_id, sync=True))
        return event


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

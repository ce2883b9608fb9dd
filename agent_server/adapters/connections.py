"""Which integrations are on, with which variables, and how they are: from the environment, and changed while the server runs.

What a client sets is in a file of mode 0600 and goes over the environment, at this start and the next ones.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from agent_server.adapters import deliveries
from agent_server.adapters.link import Link
from agent_server.agents import AGENTS
from agent_server.datadir import keep_private
from agent_server.errors import Draining, InstanceNotRunning, InvalidRequest, NotFound, SettingsError, TooManyRequests, Unprocessable
from agent_server.events import Draft, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.redaction import Secrets
from agent_server.sessions.sessions import Sessions
from agent_server.sessions.submission import Submission
from agent_server.sessions.tasks import find_all
from agent_server.settings import Settings, is_credential
from integrations import Answer, Callback, Inbound, Integration, NoCallbacks, Unavailable
from tools import MASK, Tool

logger = logging.getLogger(__name__)

TASK_MS = 480_000
"""Milliseconds that the task of a message may take: as POST /run has it."""

LONGEST_VALUE = 4_096
"""Characters of a variable's value: the longest tokens have about 2,000."""

SETTLE_SECONDS = 5.0
"""Seconds that a change waits for what it switched on to connect, so that its answer says whether it did."""

MOST_STOPPED = 1_000
"""Tasks of a conversation that one word stops; there are not more."""

INBOUND = "inbound"
"""What stands for the body where a task's key is the platform's: a message that comes again may differ in what nobody reads."""


class _Chosen(msgspec.Struct, frozen=True):
    """What clients have set: the names, None for those the environment says; and variables, "" for one that is taken away."""

    names: tuple[str, ...] | None = None
    environ: dict[str, str] = {}


class State(msgspec.Struct, frozen=True):
    """How one integration is."""

    name: str
    is_enabled: bool
    status: Literal["connected", "disabled", "error"]
    missing: list[str]
    error: str | None


class Connections:
    """The integrations. `run` must be running for any to work. `tools` gets those of the enabled ones."""

    def __init__(
        self,
        known: Mapping[str, Integration],
        path: Path,
        settings: Settings,
        secrets: Secrets,
        log: EventLog,
        sessions: Sessions,
        tools: dict[str, Tool],
    ) -> None:
        """Reads what was set.

        Errors: SettingsError when INTEGRATIONS names what is not known, or the file is damaged.
        """
        self._known = known
        self._path = path
        self._settings = settings
        self._secrets = secrets
        self._log = log
        self._sessions = sessions
        self._tools = tools
        self._links: dict[str, Link] = {}
        self._group: asyncio.TaskGroup | None = None
        self._changing = asyncio.Lock()  # what is on disk is what runs
        self._stop = asyncio.Event()
        self._is_paused = False
        try:
            self._allowed = self._names(settings.integrations, "INTEGRATIONS") if settings.integrations is not None else None
        except InvalidRequest as error:
            raise SettingsError(error.message) from error
        self._chosen = _read(path)
        self._mask(self._chosen.environ)

    async def run(self) -> None:
        """Connects what is enabled, and keeps it so until `close`."""
        await self._sessions.ready()
        async with asyncio.TaskGroup() as self._group:
            async with self._changing:
                await self._apply()
            await self._stop.wait()
            await asyncio.gather(*(link.stop() for link in self._links.values()))
        self._group = None

    def close(self) -> None:
        """Lets `run` end, once messages on their way have arrived or had the time to."""
        self._stop.set()

    async def pause(self) -> None:
        """Disconnects all, until `reconnect`: nothing comes and nothing goes."""
        async with self._changing:
            self._is_paused = True
            await asyncio.gather(*(link.stop() for link in self._links.values()))
            self._links.clear()

    async def reconnect(self) -> None:
        """Connects anew what is enabled, whatever became of the connections before."""
        await self.pause()
        async with self._changing:
            self._is_paused = False
            await self._apply()

    # What clients ask for

    def states(self) -> list[State]:
        """Gives how each integration is, by name."""
        return [self._state(integration) for integration in self._known.values()]

    def environ(self) -> dict[str, str]:
        """Gives the integrations' variables that are set."""
        set_by_name = {name: self._value(name) for name in sorted(self._variables())}
        return {name: value for name, value in set_by_name.items() if value}

    async def change(self, names: Sequence[str] | None, environ: Mapping[str, str | None]) -> None:
        """Sets which integrations are on (None: as before), and variables; one that is None is taken away, others stay.

        Returns when what was switched on has connected or failed to, or SETTLE_SECONDS have passed.
        Errors: InvalidRequest, Unprocessable, and nothing is changed.
        """
        chosen = self._names(names, "integrations") if names is not None else None
        for name in chosen or ():
            if name in self._sessions.agent.refused:
                raise InvalidRequest(f"integrations: {self._refusal(name)}", path="integrations")
        given = {name: value for name, value in environ.items() if value != MASK}  # as GET has shown it
        for name, value in given.items():
            self._check(name, value)
        async with self._changing:
            merged = {**self._chosen.environ, **{name: (value or "").strip() for name, value in given.items()}}
            self._mask(merged)  # before they are on disk: nothing may be said of them unmasked
            changed = _Chosen(chosen if chosen is not None else self._chosen.names, merged)
            await keep_private(self._path, msgspec.json.encode(changed))
            self._chosen = changed
            started = await self._apply()
        if started:
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await asyncio.gather(*(link.settled.wait() for link in started))

    async def callback(self, name: str, callback: Callback) -> Answer:
        """Hands a platform's request to its integration.

        Errors: NotFound when there is none that is on, or it takes none; those of `Connection.callback`.
        """
        known = self._by_lower_case().get(name.lower())
        link = self._links.get(known) if known is not None else None
        if link is None:
            raise NotFound(f"No integration {name[:40]!r} takes callbacks here; GET /integrations lists those that are on.")
        try:
            return await link.callback(callback)
        except NoCallbacks:
            raise NotFound(f"{known} takes no callbacks.") from None

    # What is on

    def _value(self, name: str) -> str:
        return self._chosen.environ.get(name, self._settings.environ.get(name, "")).strip()

    def _missing(self, integration: Integration) -> list[str]:
        return [name for name in integration.required_env if not self._value(name)]

    def _is_enabled(self, integration: Integration) -> bool:
        """Tells whether it is wanted: by name where clients or INTEGRATIONS name some, else by its variables."""
        names = self._chosen.names
        if integration.name in self._sessions.agent.refused:
            return False
        if names is not None:
            return integration.name in names
        return not self._missing(integration) and (self._allowed is None or integration.name in self._allowed)

    def _state(self, integration: Integration) -> State:
        is_enabled, missing = self._is_enabled(integration), self._missing(integration)
        link = self._links.get(integration.name)
        if link is not None:
            return State(integration.name, is_enabled, link.status, missing, link.error)
        error = None
        if integration.name in self._sessions.agent.refused and not missing:
            error = self._refusal(integration.name)
        elif is_enabled and integration.start is None:
            error = f"{integration.name} is not available in this version of agent-server."
        elif is_enabled and missing:
            error = f"Set {' and '.join(missing)}; then it connects."
        return State(integration.name, is_enabled, "disabled", missing, error)

    def _refusal(self, name: str) -> str:
        taking = " or ".join(agent.name for agent in AGENTS.values() if name not in agent.refused)
        return f"{name} does not reach an agent of the type {self._sessions.agent.name}; start the server with AGENT_TYPE={taking}."

    async def _apply(self) -> list[Link]:
        """Stops and starts what differs from what is wanted, and gives what it started. What goes on as it is is left alone."""
        if self._group is None or self._stop.is_set() or self._is_paused:
            return []
        wanted = {i.name: i for i in self._known.values() if self._is_enabled(i) and not self._missing(i)}
        environs = {name: self._environ_of(integration) for name, integration in wanted.items()}
        for name, link in list(self._links.items()):
            if name not in wanted or link.environ != environs[name] or link.status == "error":
                await link.stop()
                del self._links[name]
                for tool in link.integration.tools:
                    self._tools.pop(tool.name, None)
        started = []
        for name, integration in wanted.items():
            if name not in self._links and integration.start is not None:
                link = self._links[name] = Link(integration, integration.start, environs[name], self._log, self._receiver(name))
                self._tools.update((tool.name, msgspec.structs.replace(tool, source="integration")) for tool in integration.tools)
                link.start(self._group)
                started.append(link)
        return started

    def _environ_of(self, integration: Integration) -> dict[str, str]:
        values = {name: self._value(name) for name in (*integration.required_env, *integration.optional_env)}
        return {name: value for name, value in values.items() if value}

    # What comes

    def _receiver(self, name: str) -> Callable[[Inbound], Awaitable[None]]:
        lock = asyncio.Lock()  # one message at a time, so that what comes twice at once is taken once

        async def receive(inbound: Inbound) -> None:
            try:
                async with lock:
                    await self._receive(name, inbound)
            except (Draining, InstanceNotRunning, TooManyRequests, LogUnavailable) as error:
                raise Unavailable(error.message, error.retry_after or 0) from error

        return receive

    async def _receive(self, name: str, inbound: Inbound) -> None:
        key, session_id = f"{name.lower()}:{inbound.key}", f"{name.lower()}:{inbound.conversation}"
        received = {"integration": name, "key": key, "sender": inbound.sender, "to": dict(inbound.to)}
        if inbound.answer is None and not inbound.is_stop:
            try:
                await self._sessions.submit(self._task(inbound.text), session_id, key=key, request_hash=INBOUND, origin=received)
            except Unprocessable:
                logger.warning("a message through %s is dropped: a request has used its key %s as Idempotency-Key", name, key)
            return
        if await deliveries.is_known(self._log, key):
            return
        answer = inbound.answer
        if inbound.is_stop:
            # Before it is in the log: when we are killed here, it comes again, and what was stopped stays so.
            answer = None if await self._stop_tasks(session_id) else answer
        said = {"answer": answer} if answer is not None else {}
        await self._log.append(Draft("integration.received", {**received, "text": inbound.text, **said}, session_id, sync=True))

    async def _stop_tasks(self, session_id: str) -> int:
        tasks = await find_all(self._log, status="processing", session_id=session_id, limit=MOST_STOPPED)
        for task in tasks:  # the newest first: the next one must not begin when the first is ended
            await self._sessions.cancel(task.task_id)
        return len(tasks)

    def _task(self, text: str) -> Submission:
        settings = self._settings
        return Submission(
            prompt=text,
            model=settings.model,
            provider=settings.provider,
            timeout_ms=TASK_MS,
            max_steps=self._sessions.agent.max_steps,
        )

    # What may be set

    def _names(self, names: Sequence[str], field: str) -> tuple[str, ...]:
        by_lower_case = self._by_lower_case()
        for name in names:
            if name.lower() not in by_lower_case:
                raise InvalidRequest(f"{field}: there is no integration {name[:40]!r}; there are {', '.join(self._known)}.", path=field)
        return tuple(sorted({by_lower_case[name.lower()] for name in names}))

    def _by_lower_case(self) -> dict[str, str]:
        return {name.lower(): name for name in self._known}

    def _variables(self) -> set[str]:
        return {name for integration in self._known.values() for name in (*integration.required_env, *integration.optional_env)}

    def _check(self, name: str, value: str | None) -> None:
        path = f"integrationEnv.{name[:64]}"
        if name not in self._variables():
            raise InvalidRequest(f"{path}: no integration has this variable; GET /integrations lists what each needs.", path=path)
        if value is not None and (len(value) > LONGEST_VALUE or not value.strip().isprintable()):
            raise InvalidRequest(f"{path}: a value has at most {LONGEST_VALUE} characters, on one line.", path=path)

    def _mask(self, environ: Mapping[str, str]) -> None:
        self._secrets.add(value for name, value in environ.items() if is_credential(name))


def _read(path: Path) -> _Chosen:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Chosen)
    except FileNotFoundError:
        return _Chosen()
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{path} in DATA_DIR is damaged: {error}. Remove it; the environment alone counts then.") from error

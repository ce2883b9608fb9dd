"""The contract between the server and the platforms it can be reached through.

One file of this package is one integration: a module with a public value `INTEGRATION`. Like `tools`, it knows nothing of
the server, which hands down what an integration may do as a `Context`; the server keeps the record, restarts what fails,
and delivers replies. Modules whose name begins with an underscore are shared code of the integrations.

What an integration must not do: import a heavy library before `start`, retry by itself, keep messages in memory that it has
acknowledged, or send anything but what `deliver` is given.
"""

import asyncio
import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from tools import Tool


class Unavailable(Exception):
    """It does not work for now; the server tries again, after `retry_after` seconds at the least.

    From `deliver` it promises that nothing was sent.
    """

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(Exception):
    """The platform refuses the credentials: nothing is tried again until they change."""


class Undeliverable(Exception):
    """This reply can never be sent: the chat is gone, or the person does not want it."""


class Doubtful(Exception):
    """It is not known whether the reply was sent: the connection broke after the request had left."""


class BadSignature(Exception):
    """A callback does not come from the platform."""


class NoCallbacks(Exception):
    """This integration takes none."""


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """A message that came.

    `key` is the platform's id of the delivery: what comes again under one key is taken once. `conversation` names the chat
    ([A-Za-z0-9_.:@-], 100 at most), which is a session of its own; `sender` is for the log; `to` is where the reply goes, as
    JSON values of the integration's own. With an `answer` no task is made: that is what is replied. With `is_stop` the
    conversation's tasks are cancelled, and `answer` is said where there was none.
    """

    key: str
    conversation: str
    sender: str
    to: Mapping[str, Any]
    text: str
    answer: str | None = None
    is_stop: bool = False


class Reply(msgspec.Struct, frozen=True):
    """One message to send. `key` is the same at every try, for platforms that drop repetitions."""

    key: str
    to: Mapping[str, Any]
    text: str


class Callback(msgspec.Struct, frozen=True):
    """A request of the platform: `headers` in lower case, `query` as it came, `body` unread by anybody."""

    headers: Mapping[str, str]
    query: str
    body: bytes


class Answer(msgspec.Struct, frozen=True):
    """What a callback is answered with."""

    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


class Context(Protocol):
    """What the server lends to one connection."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The integration's own variables, those that are set."""

    async def submit(self, inbound: Inbound) -> None:
        """Takes a message; it is durable when this returns, and may be acknowledged to the platform then.

        Errors: Unavailable; the message must be given again then.
        """


class Connection:
    """One connection to the platform, from `start` to `stop`. Whatever else its methods raise is logged, and it is made anew."""

    account: str = ""
    """Who we are there, for the log."""

    async def receive(self) -> None:
        """Waits for what comes, submits it and returns; called again and again.

        Errors: Unavailable, after which it is called again; Rejected. Cancellation: at any await.
        """
        await asyncio.Event().wait()

    async def callback(self, callback: Callback) -> Answer:
        """Takes a request of the platform, which nobody has authenticated: verifies its signature, and submits what it brings.

        Errors: BadSignature, before anything is done; Unavailable, and the platform is asked to repeat it; NoCallbacks.
        """
        raise NoCallbacks

    def split(self, text: str) -> list[str]:
        """Gives a reply as messages the platform takes, none of them empty; the same text always gives the same ones."""
        return [text]

    async def deliver(self, reply: Reply) -> str:
        """Sends one message, once, and gives the platform's id of it.

        Errors: Unavailable, Undeliverable, Rejected, Doubtful. Any other, and a cancellation, counts as Doubtful.
        """
        raise Undeliverable("This integration sends no replies.")

    async def show_working(self, to: Mapping[str, Any]) -> None:
        """Shows for some seconds that an answer is being made; called every few while it is. Its errors are ignored."""

    async def stop(self) -> None:
        """Closes the connection. No other method is at work then, or called after."""


Start = Callable[[Context], Awaitable[Connection]]


class Integration(msgspec.Struct, frozen=True):
    """One integration. It is started when all of `required_env` is set, and it is not excluded.

    `start` imports what is heavy, checks the credentials and gives a connection; its errors are those of
    `Connection.receive`. Without it the integration is only known by name: this version does not have it. `tools` are the
    agent's while it is enabled.
    """

    name: str
    required_env: tuple[str, ...]
    optional_env: tuple[str, ...] = ()
    start: Start | None = None
    tools: tuple[Tool, ...] = ()


ABSENT = (
    Integration("Discord", ("DISCORD_BOT_TOKEN", "DISCORD_GUILD_ID", "DISCORD_CHANNEL_ID")),
    Integration("GitHub", ("GITHUB_TOKEN",)),
    Integration("Jira", ("JIRA_BASE_URL", "JIRA_EMAIL", "JIRA_API_TOKEN")),
    Integration("Notion", ("NOTION_API_TOKEN",)),
    Integration("Slack", ("SLACK_BOT_TOKEN",)),
    Integration("Voice", ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM_NUMBER"), ("ELEVENLABS_API_KEY", "ELEVENLABS_VOICE_ID")),
)
"""Those a client may ask for by name and this version does not have. A module's INTEGRATION takes the place of its entry."""


def load() -> dict[str, Integration]:
    """Imports every integration of this package; gives them, and those that are ABSENT, by name.

    Errors: ImportError that names the module which cannot be loaded: the server must not start.
    """
    found = {integration.name: integration for integration in ABSENT}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        if module.name.startswith("_"):
            continue
        try:
            integration: Integration = importlib.import_module(f"{__name__}.{module.name}").INTEGRATION
        except Exception as error:  # the border: whatever its module does at import
            raise ImportError(f"integrations/{module.name}.py cannot be loaded: {type(error).__name__}: {error}") from error
        found[integration.name] = integration
    return dict(sorted(found.items()))

"""Tools that a client brings with its task, in three forms: called by URL, run by the client itself, or of an MCP server.

This is what they are and how they are checked; `web.py` calls a URL, `sessions/delivery.py` waits for a client, `mcp/client.py`
speaks to MCP servers.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec

from agent_server.calling.schema import Schema, compile_schema
from agent_server.commands.execution import Owner
from agent_server.errors import InvalidRequest
from agent_server.settings import is_credential
from tools import MASK, ToolError, ToolResult

MAX_TOOLS = 128
"""Entries of `tools`: no provider takes more."""

NAME = r"^[A-Za-z0-9_-]{1,64}$(?!\n)"
"""What providers take for a tool's name."""

HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type", "mcp-protocol-version", "user-agent"})
"""Headers whose values are words of every text: they are kept out of events, and not masked elsewhere."""

_OAUTH_SECRETS = ("clientSecret", "privateKey", "idToken", "idpClientSecret")

EMPTY: Mapping[str, Any] = {"type": "object", "properties": {}}


class Offered(Protocol):
    """A tool as the loop sees it: one of ours (`tools.Tool`) or a client's."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def run(self) -> Callable[[Any, Any], Awaitable[ToolResult]] | None:
        """Runs a call with its parsed arguments and a ToolContext; None where the client does."""

    def parse(self, arguments: str) -> Any:
        """Validates a call's raw JSON arguments. Errors: ToolError."""


class Owned(Protocol):
    """What a client's tool gets of its call: on whose behalf it is made."""

    @property
    def owner(self) -> Owner: ...


class OAuth(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Who we are to the authorization server of an MCP server; without it, a client is registered where that is possible.

    `client_id` may be the URL of a client's metadata. `private_key` (PEM) signs with `algorithm`, in place of a secret.
    `issuer` is the only authorization server that may have it. `id_token` is of somebody who is logged in at the identity provider whose
    token endpoint is `idp_token_endpoint`, where we are `idp_client_id`: with it a token is had in that person's name.
    """

    client_id: str | None = None
    client_secret: str | None = None
    scope: str | None = None
    grant_type: Literal["authorization_code", "client_credentials"] = "authorization_code"
    private_key: str | None = None
    algorithm: Literal["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "EdDSA"] = "RS256"
    issuer: str | None = None
    id_token: str | None = None
    idp_token_endpoint: str | None = None
    idp_client_id: str | None = None
    idp_client_secret: str | None = None


class McpConfig(msgspec.Struct, frozen=True):
    """How an MCP server is reached: a command that speaks stdio, or the URL of an endpoint (streamable HTTP, or the older SSE).

    `timeout` is in milliseconds, for its start and for each call; without it each has a default of its own.
    """

    name: str = "mcp"
    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    type: Literal["stdio", "http", "sse"] | None = None
    timeout: int | None = None
    oauth: OAuth | bool = True


class CustomTool(msgspec.Struct, frozen=True):
    """A tool with a JSON Schema of its own. Without `run` the client executes it. `source` is as in GET /tools.

    An MCP server's has a `server` and an `own_name`, as that calls it: `name` depends on what other tools there are.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    schema: Schema
    run: Callable[[dict[str, Any], Owned], Awaitable[ToolResult]] | None = None
    read_only: bool = False
    source: str = "client"
    server: str | None = None
    own_name: str | None = None

    def parse(self, arguments: str) -> dict[str, Any]:
        """Validates a call's raw JSON arguments against the schema.

        Errors: ToolError that says what was expected, what came and what to do.
        """
        try:
            decoded = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise ToolError(f"The arguments of {self.name} are no JSON object ({error}). Call it again with one JSON object.") from error
        if (complaint := self.schema.complaint(decoded)) is not None:
            raise ToolError(f"Invalid arguments for {self.name}: {complaint}. Call it again with arguments that fit its schema.")
        return decoded


async def check(entries: Sequence[Mapping[str, Any]], taken: Collection[str]) -> None:
    """Checks the `tools` of a request whose fields have their types; `taken` are the names it must not use.

    Errors: InvalidRequest.
    """
    if len(entries) > MAX_TOOLS:
        raise InvalidRequest(f"tools: it has {len(entries)} entries; send at most {MAX_TOOLS}.", path="tools")
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        place = f"tools[{number}]"
        if "mcp" in entry:
            _check_mcp(entry, place)
            continue
        name = entry.get("name")
        if name is None:
            raise InvalidRequest(f"{place}: it needs a name, or mcp with a server's configuration.", path=f"{place}.name")
        if name in taken or name in seen:
            whose = "the agent's own; choose another, or set autoTools to false" if name in taken else "another entry's; choose another"
            raise InvalidRequest(f"{place}.name: {name!r} is {whose}.", path=f"{place}.name")
        seen.add(name)
        if (url := entry.get("url")) is not None:
            _check_url(url, f"{place}.url")
        parameters = entry.get("parameters") or EMPTY
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(f"{place}.parameters: its type must be object.", path=f"{place}.parameters")
        await check_schema(parameters, f"{place}.parameters")


async def check_schema(schema: Mapping[str, Any], place: str) -> None:
    """Errors: InvalidRequest for what is no JSON Schema that can be used."""
    try:
        await compile_schema(schema)
    except ValueError as error:
        raise InvalidRequest(f"{place}: {error}.", path=place) from error


def _check_mcp(entry: Mapping[str, Any], place: str) -> None:
    if "name" in entry or "url" in entry:
        raise InvalidRequest(f"{place}: mcp stands alone; name and url belong to it.", path=place)
    check_mcp(entry["mcp"], f"{place}.mcp")


def check_mcp(config: Mapping[str, Any], place: str) -> None:
    """Checks how an MCP server is reached. Errors: InvalidRequest that names `place`."""
    if (config.get("command") is None) == (config.get("url") is None):
        raise InvalidRequest(f"{place}: it needs either a command or a url.", path=place)
    kind = config.get("type")
    if kind is not None and (kind == "stdio") != (config.get("command") is not None):
        raise InvalidRequest(f"{place}.type: stdio goes with a command, http and sse with a url.", path=f"{place}.type")
    if config.get("url") is not None:
        _check_url(config["url"], f"{place}.url")
    texts = (config.get("command") or "", *config.get("args", ()), config.get("cwd") or "", *config.get("env", {}).values())
    if any("\0" in text for text in texts) or any(not name or "=" in name or "\0" in name for name in config.get("env", {})):
        raise InvalidRequest(f"{place}: a command, its arguments and variables cannot hold a NUL character.", path=place)
    for name, value in config.get("headers", {}).items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or not value.isascii() or not value.isprintable():
            raise InvalidRequest(f"{place}.headers: {name[:64]!r} is no header that can be sent.", path=f"{place}.headers")
    if isinstance(oauth := config.get("oauth"), dict) and oauth.get("idToken") is not None:
        _check_identity(oauth, f"{place}.oauth")


def _check_identity(oauth: Mapping[str, Any], place: str) -> None:
    if not (oauth.get("clientId") and oauth.get("clientSecret") and oauth.get("idpTokenEndpoint")) or oauth.get("privateKey"):
        raise InvalidRequest(f"{place}: idToken goes with clientId, clientSecret and idpTokenEndpoint, and without privateKey.", path=place)
    _check_url(oauth["idpTokenEndpoint"], f"{place}.idpTokenEndpoint")


def _check_url(url: str, place: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    if not is_usable or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequest(f"{place}: it must be an http or https URL.", path=place)


def shown(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gives the entries as events may have them: without the values of variables and headers, and what URLs hold besides their place."""
    return [_shown(entry) for entry in entries]


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    public = dict(entry)
    if public.get("url") is not None:
        public["url"] = _place(public["url"])
    for name in ("env", "headers"):
        if public.get(name):
            public[name] = dict.fromkeys(public[name], MASK)
    if isinstance(public.get("oauth"), dict):
        public["oauth"] = {**public["oauth"], **{name: MASK for name in _OAUTH_SECRETS if public["oauth"].get(name)}}
    if "mcp" in public:
        public["mcp"] = _shown(public["mcp"])
    return public


def _place(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    kept = parts._replace(netloc=host, query=MASK if parts.query else "", fragment="")
    return kept.geturl() if kept.netloc == parts.netloc else kept._replace(netloc=f"{MASK}@{host}").geturl()


def secrets_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Gives the values in the entries that must never be seen: headers, variables named like credentials, and what URLs hold."""
    found: list[str] = []
    for entry in entries:
        config = entry.get("mcp") or {}
        for name, value in config.get("headers", {}).items():
            if name.lower() not in HARMLESS_HEADERS:
                found += [value, value.rpartition(" ")[2]]  # Bearer and the like are none
        found += [value for name, value in config.get("env", {}).items() if is_credential(name)]
        if isinstance(oauth := config.get("oauth"), dict):
            found += [oauth.get(name) or "" for name in _OAUTH_SECRETS]
        for url in (entry.get("url"), config.get("url")):
            parts = urlsplit(url or "")
            found += [parts.password or "", *(value for _, value in parse_qsl(parts.query))]
    return found

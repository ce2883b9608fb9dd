"""The settings, read from the environment once at the start. docs/configuration.md lists them; a test keeps it true."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from agent_server.errors import SettingsError
from tools._addresses import parse_allowed

CREDENTIAL_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
"""Variables whose values are secrets, by the end of their (upper-case) names."""

_NAMED_SECRETS = frozenset(
    {"TWILIO_ACCOUNT_SID", "JIRA_EMAIL", "SNAPSHOT_URL", "VERTEXAI_CREDENTIALS", "SNOWFLAKE_JWT", "AWS_BEARER_TOKEN_BEDROCK"}
)

COMMAND_VARIABLES = frozenset(
    (
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "LANGUAGE",
            "TERM",
            "COLORTERM",
            "TZ",
            "TMPDIR",
            "DISPLAY",
            "DEBIAN_FRONTEND",
        ),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
        *("JAVA_HOME", "GOPATH", "GOROOT", "CARGO_HOME", "RUSTUP_HOME", "NVM_DIR", "PNPM_HOME", "BUN_INSTALL"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"),
    )
)
"""The server's own variables that commands get, besides LC_* and those named in COMMAND_ENV."""

T = TypeVar("T")
AgentType = Literal["opencode", "moltbot"]


class Settings(msgspec.Struct, frozen=True):
    """What the environment says. Times in seconds, sizes in bytes."""

    agent_type: AgentType
    workspace: Path
    data: Path
    host: str
    port: int
    token: str | None
    auth: Literal["token", "none"]
    instance_id: str | None
    instance_name: str | None
    model: str
    provider: str
    base_url: str | None
    api_key: str | None
    gateway: Literal["auto", "litellm"]
    integrations: tuple[str, ...] | None
    log_level: str
    log_format: Literal["console", "json"]
    shutdown_grace: float
    question_wait: float
    max_concurrent_tasks: int
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    allow_outside_workspace: bool
    max_body: int
    max_log: int
    max_checkpoints: int
    max_snapshots: int
    max_snapshot_bytes: int
    snapshot_file: Path | None
    snapshot_url: str | None
    model_idle_timeout: float
    context_tokens: int | None
    cache_marks: bool
    webfetch_allow: tuple[str, ...]
    command_variables: tuple[str, ...]
    environ: Mapping[str, str]

    def __repr__(self) -> str:
        return "<Settings>"  # a key must not get into a log line by way of its holder

    def credentials(self) -> list[str]:
        """The values that must never be seen: every variable of ours that is named like a credential."""
        return [value.strip() for name, value in self.environ.items() if is_credential(name)]

    def described(self) -> dict[str, Any]:
        """What a snapshot says of the server that made it: no values of the environment, but those that name no secret."""
        return {
            "agentType": self.agent_type,
            "model": self.model,
            "provider": self.provider,
            "environment": sorted(self.environ),
        }

    def command_environment(self) -> dict[str, str]:
        """The part of our environment that commands get: an allow-list, so that no credential is in it by accident."""
        return {
            name: value
            for name, value in self.environ.items()
            if name in COMMAND_VARIABLES or name.startswith("LC_") or name in self.command_variables
        }


def is_credential(name: str) -> bool:
    """Tells whether a variable of this name holds a secret."""
    return bool(CREDENTIAL_NAME.search(name.upper())) or name in _NAMED_SECRETS


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the settings.

    Errors: SettingsError that names the variable, what came and what is expected.
    """
    read = _Reader(environ)
    settings = Settings(
        agent_type=read.choice("AGENT_TYPE", ("opencode", "moltbot"), "opencode"),
        workspace=Path(read.text("WORKSPACE_DIR", "/workspace")).absolute(),
        data=Path(read.text("DATA_DIR", "/var/lib/agent-server")).absolute(),
        host=read.text("HOST", "::"),
        port=read.number("PORT", 3000, 0, 65_535),
        token=read.optional("AGENT_SERVER_TOKEN"),
        auth=read.choice("AGENT_SERVER_AUTH", ("token", "none"), "token"),
        instance_id=read.optional("INSTANCE_ID"),
        instance_name=read.optional("INSTANCE_NAME"),
        model=read.text("AGENT_MODEL", "anthropic/claude-sonnet-4.5"),
        provider=read.text("AGENT_PROVIDER", "openrouter"),
        base_url=read.optional("AGENT_BASE_URL"),
        api_key=read.optional("AGENT_API_KEY"),
        gateway=read.choice("AGENT_GATEWAY", ("auto", "litellm"), "auto"),
        integrations=read.names("INTEGRATIONS") if "INTEGRATIONS" in environ else None,
        log_level=read.choice("LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
        log_format=read.choice("LOG_FORMAT", ("console", "json"), "console"),
        shutdown_grace=read.number("SHUTDOWN_GRACE_MS", 10_000, 0, 3_600_000) / 1000,
        question_wait=read.number("QUESTION_WAIT_MS", 60_000, 0, 86_400_000) / 1000,
        max_concurrent_tasks=read.number("MAX_CONCURRENT_TASKS", 8, 1, 1_000),
        allowed_hosts=tuple(name.lower() for name in read.names("ALLOWED_HOSTS")),
        allowed_origins=read.names("ALLOWED_ORIGINS"),
        allow_outside_workspace=read.choice("ALLOW_OUTSIDE_WORKSPACE", ("0", "1"), "0") == "1",
        max_body=read.number("MAX_BODY_BYTES", 16 << 20, 1 << 10, 1 << 30),
        max_log=read.number("MAX_LOG_BYTES", 1 << 30, 1 << 20, 1 << 50),
        max_checkpoints=read.number("MAX_CHECKPOINT_BYTES", 2 << 30, 1 << 20, 1 << 50),
        max_snapshots=read.number("MAX_SNAPSHOTS", 20, 0, 10_000),
        max_snapshot_bytes=read.number("MAX_SNAPSHOT_BYTES", 16 << 30, 1 << 20, 1 << 50),
        snapshot_file=Path(file).absolute() if (file := read.optional("SNAPSHOT_FILE")) is not None else None,
        snapshot_url=read.optional("SNAPSHOT_URL"),
        model_idle_timeout=read.number("MODEL_IDLE_TIMEOUT_MS", 120_000, 100, 3_600_000) / 1000,
        context_tokens=read.number("AGENT_CONTEXT_TOKENS", 0, 0, 100_000_000) or None,
        cache_marks=read.choice("AGENT_CACHE_MARKS", ("0", "1"), "1") == "1",
        webfetch_allow=read.names("WEBFETCH_ALLOW"),
        command_variables=read.names("COMMAND_ENV"),
        environ=dict(environ),
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    token = settings.token
    if token is not None and len(token) < 16:
        raise SettingsError(
            f"AGENT_SERVER_TOKEN has {len(token)} characters; use at least 16, such as the output of `openssl rand -hex 24`."
        )
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise SettingsError(
            "AGENT_SERVER_TOKEN has spaces or other characters that no header can carry; use ASCII letters, digits and signs."
        )
    if settings.snapshot_file is not None and settings.snapshot_url is not None:
        raise SettingsError("SNAPSHOT_FILE and SNAPSHOT_URL are both given; an instance begins with one snapshot, so name one of them.")
    if settings.snapshot_url is not None and not settings.snapshot_url.startswith(("https://", "http://")):
        raise SettingsError("SNAPSHOT_URL must begin with https:// or http://.")
    try:
        parse_allowed(settings.webfetch_allow)
    except ValueError as error:
        raise SettingsError(
            f"WEBFETCH_ALLOW: {error}; separate entries such as build.internal, 127.0.0.1 or 10.0.0.0/8 by commas."
        ) from error
    if settings.data.resolve().is_relative_to(settings.workspace.resolve()):
        raise SettingsError(
            f"DATA_DIR {settings.data} is inside WORKSPACE_DIR {settings.workspace}: the agent could change it. Name a folder outside."
        )


def new_token() -> str:
    return secrets.token_urlsafe(32)


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def optional(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def text(self, name: str, default: str) -> str:
        return self.optional(name) or default

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in self._environ.get(name, "").split(",") if part.strip())

    def number(self, name: str, default: int, least: int, most: int) -> int:
        raw = self.text(name, str(default))
        if not re.fullmatch("[0-9]{1,18}", raw) or not least <= int(raw) <= most:
            raise SettingsError(f"{name} is {_short(raw)}; it must be a whole number from {least} to {most}.")
        return int(raw)

    def choice(self, name: str, allowed: tuple[T, ...], default: T) -> T:
        raw = self.text(name, str(default))
        for value in allowed:
            if raw.lower() == str(value).lower():
                return value
        raise SettingsError(f"{name} is {_short(raw)}; it must be one of {', '.join(map(str, allowed))}.")


def _short(raw: str) -> str:
    return repr(raw if len(raw) <= 60 else raw[:59] + "…")

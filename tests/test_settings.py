"""The settings: what each variable takes, and that the documentation lists them all."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent_server.errors import SettingsError
from agent_server.gateway.providers import PROVIDERS
from agent_server.settings import load
from tests.serving import TOKEN, ServerProcess, serving

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"


class Recording(Mapping[str, str]):
    """An empty environment that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def documented() -> dict[str, str]:
    """The variables of the table, with their defaults."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|(.*?)\| .+ \|$", DOCUMENT.read_text(), re.M)
    return {name: default.strip().strip("`") for name, default in rows}


def test_the_documentation_lists_exactly_the_variables_that_are_read() -> None:
    environ = Recording()
    load(environ)
    assert set(documented()) == environ.asked


def test_the_documentation_gives_the_defaults() -> None:
    settings = load({})
    table = documented()
    for name, value in {
        "AGENT_TYPE": settings.agent_type,
        "WORKSPACE_DIR": settings.workspace,
        "DATA_DIR": settings.data,
        "HOST": settings.host,
        "PORT": settings.port,
        "AGENT_SERVER_AUTH": settings.auth,
        "AGENT_PROVIDER": settings.provider,
        "AGENT_MODEL": settings.model,
        "AGENT_GATEWAY": settings.gateway,
        "MODEL_IDLE_TIMEOUT_MS": round(settings.model_idle_timeout * 1000),
        "AGENT_CACHE_MARKS": int(settings.cache_marks),
        "MAX_CONCURRENT_TASKS": settings.max_concurrent_tasks,
        "ALLOW_OUTSIDE_WORKSPACE": int(settings.allow_outside_workspace),
        "MAX_BODY_BYTES": settings.max_body,
        "MAX_LOG_BYTES": settings.max_log,
        "SHUTDOWN_GRACE_MS": round(settings.shutdown_grace * 1000),
        "LOG_LEVEL": settings.log_level,
        "LOG_FORMAT": settings.log_format,
    }.items():
        assert table[name] == str(value), name


def test_the_documentation_lists_every_provider_and_key() -> None:
    text = DOCUMENT.read_text()
    for name, provider in PROVIDERS.items():
        assert f"`{name}`" in text
        assert provider.key is None or f"`{provider.key}`" in text


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"AGENT_TYPE": "MoltBot"}, "agent_type", "moltbot"),
        ({"WORKSPACE_DIR": "/a/b"}, "workspace", Path("/a/b")),
        ({"DATA_DIR": "/d"}, "data", Path("/d")),
        ({"HOST": "127.0.0.1"}, "host", "127.0.0.1"),
        ({"PORT": "0"}, "port", 0),
        ({"PORT": ""}, "port", 3000),
        ({"PORT": " 81\n"}, "port", 81),
        ({"AGENT_SERVER_TOKEN": TOKEN + "\n"}, "token", TOKEN),
        ({"AGENT_SERVER_TOKEN": ""}, "token", None),
        ({"AGENT_SERVER_AUTH": "NONE"}, "auth", "none"),
        ({"INSTANCE_ID": "i"}, "instance_id", "i"),
        ({"INSTANCE_NAME": "n"}, "instance_name", "n"),
        ({"AGENT_MODEL": "m"}, "model", "m"),
        ({"AGENT_PROVIDER": "p"}, "provider", "p"),
        ({"AGENT_GATEWAY": "litellm"}, "gateway", "litellm"),
        ({"AGENT_BASE_URL": "http://h/v1"}, "base_url", "http://h/v1"),
        ({"AGENT_API_KEY": "k"}, "api_key", "k"),
        ({}, "context_tokens", None),
        ({"AGENT_CONTEXT_TOKENS": "32000"}, "context_tokens", 32_000),
        ({"AGENT_CACHE_MARKS": "0"}, "cache_marks", False),
        ({}, "integrations", None),
        ({"INTEGRATIONS": ""}, "integrations", ()),
        ({"INTEGRATIONS": "a, b,,"}, "integrations", ("a", "b")),
        ({"LOG_LEVEL": "debug"}, "log_level", "DEBUG"),
        ({"LOG_FORMAT": "json"}, "log_format", "json"),
        ({"SHUTDOWN_GRACE_MS": "1500"}, "shutdown_grace", 1.5),
        ({"MAX_CONCURRENT_TASKS": "2"}, "max_concurrent_tasks", 2),
        ({"ALLOWED_HOSTS": "A.example , b:80"}, "allowed_hosts", ("a.example", "b:80")),
        ({"ALLOWED_ORIGINS": "https://a.example"}, "allowed_origins", ("https://a.example",)),
        ({"ALLOW_OUTSIDE_WORKSPACE": "1"}, "allow_outside_workspace", True),
        ({"MAX_BODY_BYTES": "2048"}, "max_body", 2048),
        ({"MAX_LOG_BYTES": "2097152"}, "max_log", 2097152),
        ({"MODEL_IDLE_TIMEOUT_MS": "250"}, "model_idle_timeout", 0.25),
        ({"COMMAND_ENV": "A,B"}, "command_variables", ("A", "B")),
    ],
    ids=str,
)
def test_a_variable_sets_its_field(environ: dict[str, str], field: str, value: Any) -> None:
    assert getattr(load(environ), field) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGENT_TYPE", "other"),
        ("PORT", "x"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "3.5"),
        ("PORT", "٣"),
        ("PORT", "9" * 5000),
        ("AGENT_SERVER_TOKEN", "short"),
        ("AGENT_SERVER_TOKEN", "a token of several words"),
        ("AGENT_SERVER_TOKEN", "é" * 20),
        ("AGENT_SERVER_AUTH", "off"),
        ("AGENT_GATEWAY", "openai"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("SHUTDOWN_GRACE_MS", "1s"),
        ("MAX_CONCURRENT_TASKS", "0"),
        ("ALLOW_OUTSIDE_WORKSPACE", "maybe"),
        ("MAX_BODY_BYTES", "1"),
        ("MAX_LOG_BYTES", "1k"),
        ("MODEL_IDLE_TIMEOUT_MS", "0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert len(message) < 250
    assert "\n" not in message
    assert name != "AGENT_SERVER_TOKEN" or value not in message


@pytest.mark.parametrize("data", ["/w", "/w/data", "/w/../w/data"])
def test_the_data_directory_cannot_be_inside_the_workspace(data: str) -> None:
    with pytest.raises(SettingsError, match="DATA_DIR"):
        load({"WORKSPACE_DIR": "/w", "DATA_DIR": data})


def test_the_workspace_may_be_inside_the_data_directory(tmp_path: Path) -> None:
    load({"WORKSPACE_DIR": str(tmp_path / "workspace"), "DATA_DIR": str(tmp_path)})


def test_a_link_into_the_workspace_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "workspace")
    with pytest.raises(SettingsError, match="DATA_DIR"):
        load({"WORKSPACE_DIR": str(tmp_path / "workspace"), "DATA_DIR": str(tmp_path / "data")})


def test_credentials_are_known_by_name_and_never_given_to_commands() -> None:
    environ = {
        "MY_TOKEN": "a-token-1",
        "X_KEY": "a-key-12\n",
        "DB_PASSWORD": "a-password",
        "some_secret": "a-secret",
        "PATH": "/bin",
        "LC_ALL": "C",
        "OTHER": "x",
        "TURKEY_SIZE": "large-one",
    }
    settings = load({**environ, "COMMAND_ENV": "OTHER"})
    assert set(settings.credentials()) == {"a-token-1", "a-key-12", "a-password", "a-secret"}
    assert settings.command_environment() == {"PATH": "/bin", "LC_ALL": "C", "OTHER": "x"}


# What ends a start


def start(folder: Path, **environ: str) -> tuple[int, str]:
    """Starts a server that cannot start, and gives its exit code and what it says."""
    server = ServerProcess(folder, **environ)
    argv = [sys.executable, "-P", "-m", "agent_server", "serve"]
    ended = subprocess.run(argv, env=server.environ, capture_output=True, text=True, timeout=30, cwd=folder)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def check_refused(folder: Path, *words: str, **environ: str) -> None:
    code, said = start(folder, **environ)
    assert code == 2, said
    assert said.startswith("agent-server: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said


def test_a_bad_value_ends_the_start(tmp_path: Path) -> None:
    check_refused(tmp_path, "PORT", "'x'", PORT="x")


def test_a_workspace_that_is_a_file_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_refused(tmp_path, "WORKSPACE_DIR", str(tmp_path / "file"), WORKSPACE_DIR=str(tmp_path / "file"))


def test_a_data_directory_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    check_refused(tmp_path, "DATA_DIR", DATA_DIR="/dev/null/data")


def test_an_address_that_is_not_ours_ends_the_start(tmp_path: Path) -> None:
    check_refused(tmp_path, "HOST", "192.0.2.1", HOST="192.0.2.1")


def test_a_port_in_use_and_a_held_data_directory_end_the_start(tmp_path: Path) -> None:
    with serving(tmp_path / "first") as first:
        assert first.process is not None
        check_refused(tmp_path / "second", "PORT", "in use", PORT=first.url.rpartition(":")[2])
        check_refused(tmp_path / "second", "DATA_DIR", f"process {first.process.pid}", DATA_DIR=str(first.data))
        assert first.get("/health").status_code == 200


@pytest.mark.parametrize("name", ["identity.json", "token.sha256"])
def test_a_damaged_file_in_the_data_directory_ends_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"{\xff")
    check_refused(tmp_path, "DATA_DIR", name, AGENT_SERVER_TOKEN="")


def test_an_event_log_that_is_none_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "events.db").write_bytes(b"no database" * 1000)
    code, said = start(tmp_path)
    assert code == 2
    assert said.count("\n") == 1
    assert said.startswith("agent-server: The event log events.db cannot be opened: file is not a database.")
    assert "DATA_DIR" in said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_without_the_rights_to_its_folders_the_start_ends_and_with_them_it_serves() -> None:
    # The interpreter may lie where only root looks; reading, and nothing else, stays allowed.
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    become += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search"]
    if subprocess.run([*become, sys.executable, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip("setpriv cannot do that here")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        server = ServerProcess(Path(name))
        server.argv = [*become, *server.argv]
        ended = subprocess.run(server.argv, env=server.environ, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 2
        assert f"DATA_DIR {server.data}" in ended.stderr
        assert "Permission denied" in ended.stderr
        for folder in (server.workspace, server.data):
            folder.mkdir(exist_ok=True)
            os.chown(folder, 65534, 65534)
        server.start()
        try:
            assert server.execute("id -u; touch mine; stat -c %u mine")["stdout"] == "65534\n65534\n"
            changes = server.get("/changes")
            assert changes.status_code == 200, changes.text
            assert changes.json()["files"] == ["mine"]
        finally:
            server.kill()

"""The data directory: private, held by one server, and clear about what is wrong with it."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent_server.datadir import DataDirectory, matches, write_private
from agent_server.errors import SettingsError
from agent_server.settings import Settings, load
from tests.serving import ServerProcess, serving


def settings(folder: Path, **environ: str) -> Settings:
    return load({"DATA_DIR": str(folder / "data"), "WORKSPACE_DIR": str(folder / "workspace"), **environ})


def modes(folder: Path) -> Mapping[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


def test_everything_in_it_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        data = DataDirectory(settings(tmp_path))
        data.token(settings(tmp_path))
        data.close()
    finally:
        os.umask(before)
    found = modes(data.path)
    assert set(found) == {".", "events.db", "identity.json", "lock", "outputs", "patches", "shadow", "token.sha256"}
    assert {mode & 0o077 for mode in found.values()} == {0}


def test_what_a_running_server_writes_there_is_private_too(server: ServerProcess) -> None:
    server.execute("seq 300000")
    others = {name: oct(mode) for name, mode in modes(server.data).items() if mode & 0o077 and "/" not in name}
    assert others == {}, "the folders in it keep others out of what is deeper"


def test_an_instance_keeps_its_id_and_counts_its_starts(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        data = DataDirectory(settings(tmp_path))
        seen.append(data.identity)
        data.close()
    assert len({(identity.instance_id, identity.mark) for identity in seen}) == 1
    assert [identity.starts for identity in seen] == [1, 2, 3]
    data = DataDirectory(settings(tmp_path, INSTANCE_ID="inst_given"))
    data.close()
    assert data.identity.instance_id == "inst_given"
    assert data.identity.mark == seen[0].mark
    data = DataDirectory(settings(tmp_path))
    data.close()
    assert data.identity.instance_id == seen[0].instance_id


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    data = DataDirectory(settings(tmp_path, PORT="3123"))
    with pytest.raises(SettingsError, match=rf"held by agent-server process {os.getpid()} on port 3123, since 20"):
        DataDirectory(settings(tmp_path))
    data.close()
    DataDirectory(settings(tmp_path)).close()


def test_a_second_server_refuses_to_start_and_harms_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.process is not None
        argv = [sys.executable, "-P", "-m", "agent_server", "serve"]
        second = subprocess.run(argv, env=server.environ, cwd=server.workspace, capture_output=True, text=True, timeout=30)
        assert second.returncode == 2
        assert f"held by agent-server process {server.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert server.execute("echo still here")["output"] == "still here\n"


def test_the_lock_goes_with_a_killed_server_and_not_with_its_commands(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.execute("setsid sleep 30 >/dev/null 2>&1 </dev/null & true")
        server.kill()
        server.start()
        assert server.get("/health").status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"instanceId": 3}', b"\xff"])
def test_a_damaged_identity_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    DataDirectory(settings(tmp_path)).close()
    (tmp_path / "data" / "identity.json").write_bytes(content)
    with pytest.raises(SettingsError, match=r"is damaged: .* Remove it"):
        DataDirectory(settings(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a hash", b"\xff\xfe", b"0" * 63, b"g" * 64])
def test_a_damaged_token_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    data = DataDirectory(settings(tmp_path))
    (data.path / "token.sha256").write_bytes(content)
    with pytest.raises(SettingsError, match=r"is damaged: .* Remove it"):
        data.token(settings(tmp_path))
    data.close()


def test_a_file_in_its_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(SettingsError, match="cannot be used: File exists"):
        DataDirectory(settings(tmp_path))


def test_a_full_disk_is_a_clear_error(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "fill").write_bytes(b"x" * (5 << 20))
    with pytest.raises(SettingsError, match="cannot be used: No space left on device"):
        DataDirectory(settings(small_disk))


def test_a_token_that_was_made_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    data = DataDirectory(settings(tmp_path))
    digest, token = data.token(settings(tmp_path))
    assert token is not None
    assert matches(token, digest)
    assert data.token(settings(tmp_path)) == (digest, None)
    assert not any(token.encode() in path.read_bytes() for path in data.path.rglob("*") if path.is_file())
    data.close()


def test_a_token_that_was_given_goes_before_the_one_that_was_made(tmp_path: Path) -> None:
    data = DataDirectory(settings(tmp_path))
    data.token(settings(tmp_path))
    assert data.token(settings(tmp_path, AGENT_SERVER_TOKEN="x" * 16)) == (hashlib.sha256(b"x" * 16).digest(), None)
    data.close()


@pytest.mark.parametrize("token", ["", "x", "é", "\udcff", "x" * 10_000])
def test_any_text_can_be_compared_with_a_token(token: str) -> None:
    assert not matches(token, hashlib.sha256(b"right").digest())


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(0o644)
    write_private(path, b"after")
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]

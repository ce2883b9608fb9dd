"""Which paths are in the workspace."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.errors import AgentServerError, Forbidden, InvalidRequest, SettingsError
from agent_server.workspace import Workspace
from tests.serving import ServerProcess, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with links in it, beside a folder that is outside."""
    folder = tmp_path_factory.mktemp("paths")
    root = folder / "workspace"
    (root / "inner" / "deep").mkdir(parents=True)
    (folder / "outside").mkdir()
    (folder / "workspace-2").mkdir()
    (folder / "outside" / "secret").write_text("secret")
    (root / "file").write_text("here")
    (root / "out").symlink_to(folder / "outside")
    (root / "up").symlink_to("..")
    (root / "around").symlink_to(folder / "outside" / ".." / "workspace" / "inner")
    (root / "inside").symlink_to("inner")
    (root / "loop").symlink_to("loop")
    (root / "process").symlink_to("/proc/self")
    (root / "broken").symlink_to(folder / "outside" / "not-there")
    (folder / "entrance").symlink_to(root)
    return folder


@pytest.fixture(scope="module")
def workspace(folder: Path) -> Workspace:
    return Workspace(folder / "workspace")


@pytest.mark.parametrize(
    ("path", "real"),
    [
        (".", "."),
        ("", "."),
        ("./", "."),
        ("file", "file"),
        ("./inner/../file", "file"),
        ("inner//deep/", "inner/deep"),
        ("inside/deep", "inner/deep"),
        ("around/deep", "inner/deep"),
        ("not/there/yet", "not/there/yet"),
        ("up/workspace/file", "file"),
        ("..file", "..file"),
        ("~", "~"),
        ("a\nb", "a\nb"),
        ("ä €", "ä €"),
    ],
)
def test_a_path_inside_is_given_as_it_really_is(workspace: Workspace, path: str, real: str) -> None:
    assert workspace.resolve(path) == workspace.root / real
    assert workspace.relative(workspace.resolve(path)) == real


def test_absolute_paths_inside_are_given_whatever_way_they_come(workspace: Workspace, folder: Path) -> None:
    assert workspace.resolve(str(folder / "workspace" / "file")) == workspace.root / "file"
    assert workspace.resolve(str(folder / "entrance" / "file")) == workspace.root / "file"


@pytest.mark.parametrize(
    "path",
    [
        *("..", "../", "../outside", "inner/../..", "inner/../../workspace-2", "/", "/etc/passwd", "//etc/passwd", "/./etc", "/dev/null"),
        *("out", "out/secret", "out/not-there", "up", "up/outside", "broken", "inside/../../..", "/sys"),
    ],
)
def test_a_path_that_leads_out_is_forbidden(workspace: Workspace, path: str) -> None:
    with pytest.raises(Forbidden) as caught:
        workspace.resolve(path)
    assert caught.value.details == {"path": path}


def test_a_neighbour_of_the_same_beginning_is_outside(workspace: Workspace, folder: Path) -> None:
    with pytest.raises(Forbidden):
        workspace.resolve(str(folder / "workspace-2"))


@pytest.mark.parametrize("path", ["/proc", "/proc/self/environ", "process", "process/environ", "/dev/fd"])
@pytest.mark.parametrize("allow_outside", [False, True])
def test_proc_is_forbidden_always(folder: Path, path: str, allow_outside: bool) -> None:
    with pytest.raises(Forbidden):
        Workspace(folder / "workspace", allow_outside=allow_outside).resolve(path)


def test_outside_is_given_where_it_is_allowed(folder: Path) -> None:
    free = Workspace(folder / "workspace", allow_outside=True)
    assert free.resolve("/etc/passwd") == Path("/etc/passwd").resolve()
    assert free.resolve("out/secret") == (folder / "outside" / "secret").resolve()
    assert free.relative(Path("/etc/passwd")) == "/etc/passwd"


def test_one_more_folder_can_be_allowed(workspace: Workspace, folder: Path) -> None:
    outside = (folder / "outside").resolve()
    assert workspace.resolve("out/secret", also=outside) == outside / "secret"
    with pytest.raises(Forbidden):
        workspace.resolve("../workspace-2", also=outside)


@pytest.mark.parametrize("path", ["a\0b", "loop", "loop/x", "x" * 256, "a/" + "é" * 128, "a/" * 2048])
def test_a_path_that_no_file_can_have_is_refused_by_field(workspace: Workspace, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        workspace.resolve(path, field="cwd")
    assert caught.value.details == {"path": "cwd"}


def test_a_workspace_is_made_and_has_to_be_a_folder(tmp_path: Path) -> None:
    assert Workspace(tmp_path / "new" / "one").root.is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingsError, match="WORKSPACE_DIR"):
            Workspace(path)


PARTS = [
    "..",
    ".",
    "",
    "file",
    "inner",
    "deep",
    "out",
    "up",
    "around",
    "inside",
    "loop",
    "process",
    "broken",
    "outside",
    "workspace",
    "secret",
    "x",
]


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=8), start=st.sampled_from(["", "/", "//"]))
def test_no_path_ever_leads_out(workspace: Workspace, folder: Path, parts: list[str], start: str) -> None:
    for path in (start + "/".join(parts), str(folder / "workspace") + "/" + "/".join(parts)):
        try:
            real = workspace.resolve(path)
        except AgentServerError:
            continue
        assert os.path.realpath(real).startswith((f"{workspace.root}/", str(workspace.root)))
        assert real == Path(os.path.realpath(real))
        assert real.is_relative_to(workspace.root)


# Over HTTP


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with serving(folder) as running:
        yield running


@pytest.mark.parametrize(("cwd", "real"), [("", "."), ("inner", "inner"), ("inside/deep", "inner/deep"), ("inner/..", ".")])
def test_a_command_runs_in_a_folder_of_the_workspace(server: ServerProcess, cwd: str, real: str) -> None:
    assert Path(server.execute("pwd -P", cwd=cwd)["stdout"].strip()) == (server.workspace / real).resolve()


@pytest.mark.parametrize(
    "cwd", ["..", "/", "/tmp", "out", "up/outside", "/proc/self/cwd/..", "/proc", "process", "../workspace-2", "//etc"]
)
def test_a_command_does_not_run_outside(server: ServerProcess, cwd: str) -> None:
    response = server.post("/execute", {"command": "touch /tmp/agent-server-was-here", "cwd": cwd})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["details"]) == (403, "FORBIDDEN", {"path": cwd})


@pytest.mark.parametrize("cwd", ["file", "not-there", "loop", "x" * 300])
def test_a_command_needs_a_folder_to_run_in(server: ServerProcess, cwd: str) -> None:
    response = server.post("/execute", {"command": "true", "cwd": cwd})
    assert (response.status_code, response.json()["error"]["details"]["path"]) == (400, "cwd")


def test_outside_is_open_where_the_setting_says_so_but_proc_is_not(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, ALLOW_OUTSIDE_WORKSPACE="1") as server:
        assert server.execute("pwd -P", cwd="/")["stdout"] == "/\n"
        assert server.execute("pwd -P", cwd="..")["stdout"].strip() == str(tmp_path.resolve())
        assert server.post("/execute", {"command": "true", "cwd": "/proc/self"}).status_code == 403

"""Listing and searching folders over HTTP."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving import ServerProcess, serving
from tests.workspaces import git, write


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[httpx.Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def workspace(shared: ServerProcess) -> Path:
    """The workspace, empty."""
    empty(shared.workspace)
    return shared.workspace


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def tree(client: httpx.Client, **query: Any) -> dict[str, Any]:
    response = client.get("/files/tree", params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def paths(client: httpx.Client, **query: Any) -> list[str]:
    return [entry["path"] for entry in tree(client, **query)["entries"]]


def in_order(workspace: Path) -> list[str]:
    found = [path.relative_to(workspace) for path in workspace.rglob("*")]
    return [str(path) for path in sorted(found, key=lambda path: [os.fsencode(part) for part in path.parts])]


# The tree


def test_a_tree_has_all_levels_in_order(client: httpx.Client, workspace: Path) -> None:
    write(workspace / "a/b/c.txt", "four")
    write(workspace / "a-b/f")
    write(workspace / "a.txt")
    (workspace / "empty").mkdir()
    (workspace / "link").symlink_to("a")
    (workspace / "out").symlink_to("/etc")
    os.mkfifo(workspace / "pipe")
    os.utime(workspace / "a/b/c.txt", (1_700_000_000.25, 1_700_000_000.25))
    os.utime(workspace / "a.txt", (-5, -5))
    body = tree(client)
    assert (body["root"], body["truncated"], body["nextCursor"]) == (str(workspace), False, None)
    assert [(entry["path"], entry["type"]) for entry in body["entries"]] == [
        *[("a", "directory"), ("a/b", "directory"), ("a/b/c.txt", "file"), ("a-b", "directory"), ("a-b/f", "file"), ("a.txt", "file")],
        *[("empty", "directory"), ("link", "symlink"), ("out", "symlink"), ("pipe", "other")],
    ]
    assert body["entries"][2] == {"path": "a/b/c.txt", "type": "file", "size": 4, "mtime": "2023-11-14T22:13:20.250Z"}


def test_a_tree_of_a_part_of_it(client: httpx.Client, workspace: Path) -> None:
    write(workspace / "a/b/c")
    (workspace / "link").symlink_to("a")
    assert paths(client, depth=1) == ["a", "link"]
    assert paths(client, depth=2) == ["a", "a/b", "link"]
    assert paths(client, path="a") == paths(client, path=str(workspace / "a")) == paths(client, path="link") == ["a/b", "a/b/c"]
    assert paths(client, path="a/b", depth=1) == ["a/b/c"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *[
            ("path=missing", 404),
            ("path=f", 400),
            ("path=../", 403),
            ("path=/etc", 403),
            ("path=out", 403),
            ("path=", 400),
            ("path=a%00b", 400),
        ],
        *[
            ("depth=0", 400),
            ("limit=0", 400),
            ("limit=50001", 400),
            ("limit=x", 400),
            ("ignored=x", 400),
            ("cursor=!", 400),
            ("cursor=é", 400),
        ],
    ],
)
def test_what_cannot_be_listed(client: httpx.Client, workspace: Path, query: str, status: int) -> None:
    write(workspace / "f")
    (workspace / "out").symlink_to("/etc")
    for route in ("/files/tree", *(("/files/search", "/files/archive", "/files/watch") if query.startswith("path") else ())):
        assert client.get(f"{route}?query=x&{query}").status_code == status


def test_an_empty_workspace_is_an_empty_tree(client: httpx.Client, workspace: Path) -> None:
    assert tree(client)["entries"] == []


def test_ignored_files_are_left_out_unless_asked_for(client: httpx.Client, workspace: Path) -> None:
    write(workspace / ".gitignore", "*.log\n!keep.log\n/build/\nnode_modules\n# comment\n:odd\n")
    write(workspace / "sub/.gitignore", "!x.log\ninner.txt\n")
    for name in (
        "x.log",
        "keep.log",
        "build/out",
        "sub/x.log",
        "sub/y.log",
        "sub/inner.txt",
        "sub/build/f",
        "sub/node_modules/m/i.js",
        ":odd",
    ):
        write(workspace / name)
    write(workspace / "build.txt")
    shown = [".gitignore", "build.txt", "keep.log", "sub", "sub/.gitignore", "sub/build", "sub/build/f", "sub/x.log"]
    assert paths(client) == shown
    assert paths(client, ignored="true") == in_order(workspace)
    assert paths(client, path="sub/node_modules") == ["sub/node_modules/m", "sub/node_modules/m/i.js"]
    # A repository, and its own excludes, change nothing else.
    git(workspace, "init", "-q")
    assert paths(client) == shown
    write(workspace / ".git/info/exclude", "build.txt\n")
    assert paths(client) == [path for path in shown if path != "build.txt"]
    write(workspace / "sub/build/.git", "gitdir: elsewhere\n")
    write(workspace / "nested/.git/config")
    write(workspace / "nested/f")
    assert "nested/f" in paths(client)
    assert not [path for path in paths(client, ignored="true") if ".git" in path.split("/")]


def test_a_hostile_ignore_file_is_no_harm(client: httpx.Client, workspace: Path) -> None:
    write(workspace / ".gitignore", b"\xff\xfe\0[\n" + b"*a" * 30 + b"b\n[[:nope:]]\n\\\n!\n/\n**\0\n" + b"x" * 100_000)
    write(workspace / ("a" * 200))
    assert client.get("/files/tree").status_code == 200
    assert client.get("/health").status_code == 200


pattern = st.text(alphabet="ab*?/!.[]\\ #", min_size=1, max_size=6)
part = st.sampled_from(["a", "b", "ab", "a.b", "A", ".a", "a b", ":a", "ä", "*", "b#"])
files = st.sets(st.lists(part, min_size=1, max_size=4).map("/".join), max_size=10)
AT_WORK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fill(workspace: Path, names: set[str]) -> None:
    """Empties the workspace and makes these files, where none is in the place of a folder."""
    empty(workspace)
    for path in sorted(names):
        if not any(parent.is_file() for parent in (workspace / path).parents) and not (workspace / path).exists():
            write(workspace / path)


@AT_WORK
@given(st.lists(pattern, max_size=4), st.lists(pattern, max_size=2), files)
def test_what_is_ignored_is_what_git_ignores(
    client: httpx.Client, workspace: Path, top: list[str], inner: list[str], names: set[str]
) -> None:
    fill(workspace, names)
    (workspace / ".gitignore").write_text("\n".join(top))
    if (workspace / "a").is_dir():
        write(workspace / "a/.gitignore", "\n".join(inner))
    git(workspace, "init", "-q")
    listed = git(workspace, "-c", "core.excludesFile=/dev/null", "ls-files", "-z", "--others", "--exclude-standard")
    assert {entry["path"] for entry in tree(client)["entries"] if entry["type"] == "file"} == set(listed.split("\0")) - {""}


@AT_WORK
@given(files, st.integers(1, 5))
def test_pages_together_are_the_whole(client: httpx.Client, workspace: Path, names: set[str], limit: int) -> None:
    fill(workspace, names)
    found: list[str] = []
    page = tree(client, limit=limit)
    while page["truncated"]:
        assert len(page["entries"]) == limit
        found += [entry["path"] for entry in page["entries"]]
        page = tree(client, limit=limit, cursor=page["nextCursor"])
    found += [entry["path"] for entry in page["entries"]]
    assert found == in_order(workspace)


def test_a_page_goes_on_after_a_path_that_is_gone(client: httpx.Client, workspace: Path) -> None:
    for path in ("a/1", "b/1", "b/2", "c"):
        write(workspace / path)
    page = tree(client, limit=4)
    assert page["entries"][-1]["path"] == "b/1"
    shutil.rmtree(workspace / "b")
    assert paths(client, cursor=page["nextCursor"]) == ["c"]


def test_names_that_are_not_utf8_are_shown_and_can_be_addressed(client: httpx.Client, workspace: Path) -> None:
    folder = os.fsencode(workspace) + b"/\xff"
    os.mkdir(folder)
    with open(folder + b"/\xe4 &x", "w") as file:
        file.write("needle")
    write(workspace / "line\nfeed", "needle")
    entries = tree(client, path=".")["entries"]
    assert [entry["path"] for entry in entries] == ["line\nfeed", "\\xff", "\\xff/\\xe4 &x"]
    assert [entry.get("encodedPath") for entry in entries] == [None, "%FF", "%FF/%E4%20%26x"]
    assert client.get(f"/files?path={entries[2]['encodedPath']}").text == "needle"
    inner = client.get(f"/files/tree?path={entries[1]['encodedPath']}").json()["entries"]
    assert inner == entries[2:]
    page = tree(client, limit=2)
    assert paths(client, cursor=page["nextCursor"]) == ["\\xff/\\xe4 &x"]
    found = client.get("/files/search?query=needle").json()["matches"]
    assert [match["path"] for match in found] == ["line\nfeed", "\\xff/\\xe4 &x"]


def test_a_folder_too_deep_to_be_a_path_is_listed_as_far_as_it_goes(client: httpx.Client, workspace: Path) -> None:
    here = os.open(workspace, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert len(paths(client)) == 256
    with pytest.raises(httpx.RemoteProtocolError):  # it does not look whole
        client.get("/files/archive")
    assert client.delete("/files?path=d").status_code == 200


def test_a_large_tree_is_listed_by_pages_while_the_server_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.client() as client:
        write(server.workspace / ".gitignore", "*0\n")
        for number in range(12_000):
            (server.workspace / f"f{number:05}").touch()
        began = time.monotonic()
        page = tree(client)
        seconds = time.monotonic() - began
        assert (len(page["entries"]), page["truncated"]) == (10_000, True)
        assert seconds < 10  # a guard against what grows with the square, not a measurement
        rest = tree(client, limit=50_000, cursor=page["nextCursor"])
        assert (len(rest["entries"]), rest["truncated"]) == (801, False)
        memory = int(Path(f"/proc/{server.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]) if server.process else 0
        assert 0 < memory < 150_000


# Searching


def search(client: httpx.Client, query: str, **more: Any) -> dict[str, Any]:
    response = client.get("/files/search", params={"query": query, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_lines_are_found(client: httpx.Client, workspace: Path) -> None:
    write(workspace / "a.py", "one\n  two (x)\r\nthree\n")
    write(workspace / "sub/b.txt", "äö two (x) two (x)\n")
    write(workspace / ".gitignore", "skipped\n")
    write(workspace / "skipped", "two (x)\n")
    write(workspace / ".git/f", "two (x)\n")
    write(workspace / "z.bin", b"two (x)\n" + b"x" * 100 + b"\0\n")
    assert search(client, "two (x)") == {
        "matches": [
            {"path": "a.py", "line": 2, "column": 3, "text": "  two (x)"},
            {"path": "sub/b.txt", "line": 1, "column": 6, "text": "äö two (x) two (x)"},
        ],
        "truncated": False,
    }
    assert [match["path"] for match in search(client, r"t[wh].*\d?", regex="true")["matches"]] == ["a.py", "a.py", "sub/b.txt"]
    assert [match["path"] for match in search(client, "two", glob="*.txt")["matches"]] == ["sub/b.txt"]
    assert [match["path"] for match in search(client, "two", path="sub")["matches"]] == ["sub/b.txt"]
    assert [match["path"] for match in search(client, "two", glob="**")["matches"] if ".git/" in match["path"]] == []
    for query in ("none", "--files", "-e", "t[wh]"):
        assert search(client, query) == {"matches": [], "truncated": False}


def test_a_search_is_bounded_in_number_and_length(client: httpx.Client, workspace: Path) -> None:
    write(workspace / "long", "needle" + "x" * 1_000_000 + "\n" + "needle\n" * 5_000)
    body = search(client, "needle")
    assert (len(body["matches"]), body["truncated"]) == (1_000, True)
    assert len(body["matches"][0]["text"]) < 600
    assert len(search(client, "needle", limit=3)["matches"]) == 3
    full = search(client, "needle", limit=5_001 + 1)
    assert (len(full["matches"]), full["truncated"]) == (5_001, False)
    write(workspace / "huge", ("y" * 400 + "\n") * 100_000)
    many = search(client, "y", limit=10_000)
    assert (len(many["matches"]), many["truncated"]) == (10_000, True)


@pytest.mark.parametrize(
    "query",
    [
        *["query=(&regex=true", "query=a{99999999}&regex=true", "query=(?=x)&regex=true", "query=x&glob=[", "query=a%0Ab", "query="],
        *["", "query=x&regex=maybe", "query=x&limit=0", "query=x&limit=10001", f"query={'x' * 5000}"],
    ],
)
def test_a_search_that_cannot_be_made_says_so(client: httpx.Client, workspace: Path, query: str) -> None:
    write(workspace / "f", "x\n")
    response = client.get(f"/files/search?{query}")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST")


def test_secrets_in_found_lines_are_masked_and_in_files_are_not(tmp_path: Path) -> None:
    with serving(tmp_path, OPENAI_API_KEY="sk-a-secret-of-the-server") as server, server.client() as client:
        write(server.workspace / "f", "key sk-a-secret-of-the-server\n")
        assert "sk-a-secret" not in client.get("/files/search?query=key").text
        assert client.get("/files?path=f").text == "key sk-a-secret-of-the-server\n"


def test_no_process_is_left_of_a_listing_or_search(shared: ServerProcess, client: httpx.Client, workspace: Path) -> None:
    for number in range(50):
        write(workspace / f"f{number}", "x\n")
    tree(client, limit=1)
    search(client, "x", limit=1)
    assert shared.process is not None
    children = subprocess.run(["ps", "-o", "args=", "--ppid", str(shared.process.pid)], capture_output=True, text=True).stdout
    assert "check-ignore" not in children
    assert "rg" not in children.split()

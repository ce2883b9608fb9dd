"""Vite's development server behind the proxy, in a real browser: the page loads, and edits arrive in it without a reload."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.nodejs import CHROMIUM, CHROMIUM_FLAGS, FOLDER, MODULES, NODE
from tests.serving import TOKEN, ServerProcess, serving

pytestmark = pytest.mark.skipif(
    not MODULES.is_dir() or shutil.which(CHROMIUM) is None, reason="needs `make test`'s Node.js packages, and Chromium"
)

PAGE = """<!doctype html>
<html>
  <head><link rel="icon" href="data:,"></head>
  <body><p id="text"></p><script type="module" src="/src/main.js"></script></body>
</html>
"""
MAIN = """import './style.css'
import { text } from './text.js'

const show = (text) => { document.querySelector('#text').textContent = text }
show(text)
import.meta.hot.accept('./text.js', (updated) => show(updated.text))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@contextmanager
def vite(folder: Path, *arguments: str) -> Iterator[int]:
    """A project, and its development server; gives the port."""
    (folder / "src").mkdir(parents=True)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "index.html").write_text(PAGE)
    (folder / "src" / "main.js").write_text(MAIN)
    (folder / "src" / "text.js").write_text("export const text = 'before the edit'\n")
    (folder / "src" / "style.css").write_text("#text { color: rgb(9, 9, 9) }\n")
    argv = [NODE, str(MODULES / "vite" / "bin" / "vite.js"), "--clearScreen", "false", *arguments]
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={"NO_COLOR": "1"})
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://localhost:(\d+)/", line):
                yield int(found[1])
                return
        raise AssertionError("Vite did not start")
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def edit_in_browser(server: ServerProcess, folder: Path, path: str) -> dict[str, Any]:
    """Opens the page, edits its files, and gives what the page made of that."""
    given = {"url": server.url, "token": TOKEN, "path": path, "folder": str(folder), "executablePath": CHROMIUM, "args": CHROMIUM_FLAGS}
    ended = subprocess.run([NODE, FOLDER / "hot_reload.mjs", json.dumps(given)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, Any] = json.loads(ended.stdout)
    return seen


def test_hot_reload_of_a_vite_that_knows_nothing_of_the_proxy(server: ServerProcess, tmp_path: Path) -> None:
    with vite(tmp_path / "page", "--port", "5183") as port:
        seen = edit_in_browser(server, tmp_path / "page", f"/proxy/{port}/")
        host = server.url.removeprefix("http://")
        assert seen == {"isTheSamePage": True, "place": f"/proxy/{port}/", "sockets": [f"ws://{host}/?token=…"], "errors": []}


def test_hot_reload_of_a_vite_whose_base_is_the_prefix(server: ServerProcess, tmp_path: Path) -> None:
    with vite(tmp_path / "page", "--port", "5193", "--base", "/proxy/5193/") as port:
        seen = edit_in_browser(server, tmp_path / "page", f"/proxy/{port}/")
        host = server.url.removeprefix("http://")
        sockets = [f"ws://{host}/proxy/{port}/?token=…"]
        assert seen == {"isTheSamePage": True, "place": f"/proxy/{port}/", "sockets": sockets, "errors": []}

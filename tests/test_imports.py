"""The import rules hold, and the script that holds them sees what breaks them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT, complaints, dependencies


def test_the_rules_hold() -> None:
    assert complaints(ROOT) == []
    assert dependencies(ROOT) == []


def test_the_script_says_so() -> None:
    ended = subprocess.run([sys.executable, "tests/imports.py"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def tree(folder: Path, **files: str) -> Path:
    """Writes a project: `a__b` is the module a.b."""
    for package in ("agent_server", "integrations", "tools"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("")
    for name, source in files.items():
        (folder / f"{name.replace('__', '/')}.py").write_text(source)
    return folder


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tools__a", "import agent_server.settings\n"),
        ("tools__a", "from agent_server import settings\n"),
        ("tools__a", "from integrations import Integration\n"),
        ("integrations__a", "import agent_server\n"),
        ("tools__a", "def f():\n    import agent_server  # a reason does not help\n"),
        ("tools__a", "try:\n    import agent_server\nexcept ImportError:\n    pass\n"),
    ],
)
def test_an_import_against_the_direction_is_seen(tmp_path: Path, module: str, source: str) -> None:
    found = complaints(tree(tmp_path, **{module: source}))
    assert len(found) == 1
    assert found[0].startswith(f"{module.replace('__', '/')}.py:")
    assert "may not import" in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("agent_server__a", "import integrations\nfrom tools import x\nfrom agent_server.b import y\n"),
        ("integrations__a", "from tools import x\nimport tools.read\n"),
        ("tools__a", "import os\nimport agent_server_of_another_name\n"),
        ("tools__a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from agent_server import x\n"),
    ],
)
def test_an_import_in_the_direction_is_fine(tmp_path: Path, module: str, source: str) -> None:
    assert complaints(tree(tmp_path, **{module: source})) == []


def test_a_cycle_is_seen(tmp_path: Path) -> None:
    files = {
        "tools__a": "from tools import b\n",
        "tools__b": "from tools.c import x\n",
        "tools__c": "import tools.a\n",
        "tools__d": "import tools.a\n",
    }
    assert complaints(tree(tmp_path, **files)) == ["tools.a imports tools.b imports tools.c imports tools.a: a cycle"]


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import json\n",
        "async def f():\n    from os import path\n",
        "class A:\n    def f(self):\n        if self:\n            import json\n",
        "def f():\n    import json  # noqa: PLC0415\n",
    ],
)
def test_an_import_inside_a_function_needs_a_reason(tmp_path: Path, source: str) -> None:
    found = complaints(tree(tmp_path, tools__a=source))
    assert len(found) == 1
    assert "without a comment" in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    import json  # it is heavy\n",
        "def f():\n    # It is heavy.\n    import json\n",
        "from typing import TYPE_CHECKING\ndef f():\n    if TYPE_CHECKING:\n        import json\n",
        "class A:\n    import json\n",
    ],
)
def test_an_import_with_a_reason_is_fine(tmp_path: Path, source: str) -> None:
    assert complaints(tree(tmp_path, tools__a=source)) == []


def test_a_relative_import_is_seen(tmp_path: Path) -> None:
    assert "relative" in complaints(tree(tmp_path, tools__a="from . import b\n"))[0]


def test_an_unused_dependency_and_a_needless_reason_are_seen(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["msgspec>=1", "leftover>=2", "uvloop>=2"]\n')
    found = dependencies(tree(tmp_path, agent_server__a="import msgspec\nimport uvloop\n"))
    assert "pyproject.toml: leftover is imported nowhere, and tests/imports.py gives no reason for it" in found
    assert "tests/imports.py: uvloop is in RESERVED, but it is imported, or no dependency" in found
    assert not [line for line in found if "msgspec" in line]

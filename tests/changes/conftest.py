from pathlib import Path

import pytest

from agent_server.changes.shadow import Shadow


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "shadow"


@pytest.fixture
def shadow(folder: Path, workspace: Path) -> Shadow:
    return Shadow(folder, workspace)

"""Folders in memory: these tests write out much and often, and must not wait for a disk that others use."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")  # it is a test's


def _folder() -> tempfile.TemporaryDirectory[str]:
    is_small = "SNAPSHOT_MIB" not in os.environ
    return tempfile.TemporaryDirectory(dir=MEMORY if is_small and MEMORY.is_dir() else None, prefix="agent-server-tests-")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, in memory."""
    with _folder() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """One for the servers that the tests of a module share."""
    with _folder() as folder:
        yield Path(folder)

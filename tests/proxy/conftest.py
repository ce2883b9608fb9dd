from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import ServerProcess, serving
from tests.upstreams import answering, listening


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def echo() -> Iterator[Any]:
    with listening(answering()) as upstream:
        yield upstream

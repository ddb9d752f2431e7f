"""Demo engines in a thread of their own, and a whole gateway in front of them."""

from collections.abc import Iterator

import pytest

from tests.support.engine_thread import EngineThread


@pytest.fixture
def engines() -> Iterator[EngineThread]:
    made = EngineThread()
    yield made
    made.close()

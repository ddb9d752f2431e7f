"""What a vLLM 0.32 answered, byte for byte."""

from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "recorded"


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], bytes]:
    return lambda name: (FOLDER / name).read_bytes()

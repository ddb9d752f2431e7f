"""Folders of the dead, on memory where there is some."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ledgers import fast_folder


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder

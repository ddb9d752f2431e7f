"""The snapshot file gives back what was written, or nothing; never half of it."""

import stat
from pathlib import Path

import pytest

from gateway.link import snapshot_file
from gateway.snapshot import Move, TenantDoc, encode_doc

MOVES = (Move("tenant", 1, encode_doc(TenantDoc(id=1, name="acme"))), Move("key", 2, None))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    snapshot_file.write(path, 7, MOVES)
    snapshot_file.write(path, 8, MOVES)
    assert snapshot_file.read(path) == (8, MOVES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cut", [0, 5, 20, 60])
def test_a_torn_file_is_no_snapshot(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "snapshot"
    snapshot_file.write(path, 7, MOVES)
    path.write_bytes(path.read_bytes()[:cut])
    assert snapshot_file.read(path) is None


def test_a_changed_byte_is_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    snapshot_file.write(path, 7, MOVES)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert snapshot_file.read(path) is None


def test_a_missing_file_is_no_snapshot(tmp_path: Path) -> None:
    assert snapshot_file.read(tmp_path / "none") is None

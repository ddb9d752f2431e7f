"""The folder of one life: when it exists, who holds it, when it goes."""

import errno
import os
import time
from pathlib import Path

import pytest

from gateway.metering.incarnation import (
    Incarnation,
    all_folders,
    dead_folders,
    remove_folder,
    sweep_unborn,
    take_lock,
)


def test_each_life_has_a_folder_of_its_own(data_dir: Path) -> None:
    first = Incarnation.create(data_dir, 0, 16, 65_536)
    second = Incarnation.create(data_dir, 0, 16, 65_536)
    assert all_folders(data_dir) == [first.folder, second.folder]
    names = {path.name for path in first.folder.iterdir()}
    assert names == {"board", "lock", "journal-000001.seg", "journal-000002.seg"}
    assert first.folder.stat().st_mode & 0o777 == 0o700
    first.close()
    second.close()


def test_a_folder_is_dead_when_its_owner_has_let_go(data_dir: Path) -> None:
    first = Incarnation.create(data_dir, 0, 16, 65_536)
    second = Incarnation.create(data_dir, 1, 16, 65_536)
    first.close()
    assert dead_folders(data_dir) == [first.folder]
    second.close()
    assert dead_folders(data_dir) == [first.folder, second.folder]


def test_a_full_disk_leaves_nothing_behind(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate
    left = [3]

    def filling(descriptor: int, offset: int, length: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", filling)
    with pytest.raises(OSError, match="No space"):
        Incarnation.create(data_dir, 0, 16, 65_536)
    assert list((data_dir / "run").iterdir()) == []


def test_a_folder_is_removed_with_everything_in_it(data_dir: Path) -> None:
    life = Incarnation.create(data_dir, 0, 16, 65_536)
    life.close()
    lock = take_lock(life.folder)
    assert lock is not None
    remove_folder(life.folder)
    os.close(lock)
    assert all_folders(data_dir) == []
    assert take_lock(life.folder) is None


def test_a_half_made_folder_is_swept_when_it_is_old_and_nobodys(data_dir: Path) -> None:
    run = data_dir / "run"
    young, old, held = (run / f".new-{name}" for name in ("young", "old", "held"))
    for path in (young, old, held):
        path.mkdir(parents=True)
    lock = take_lock(held)
    assert lock is not None
    hour_ago = time.time() - 3_600
    os.utime(old, (hour_ago, hour_ago))
    os.utime(held, (hour_ago, hour_ago))
    sweep_unborn(data_dir)
    assert sorted(path.name for path in run.iterdir()) == [".new-held", ".new-young"]
    assert all_folders(data_dir) == []
    os.close(lock)


def test_a_data_folder_without_lives_has_none(data_dir: Path) -> None:
    assert all_folders(data_dir) == []
    assert dead_folders(data_dir) == []
    sweep_unborn(data_dir)

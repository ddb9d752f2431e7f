"""The data folder: one holder at a time, secrets made once, files for their owner alone."""

import os
import stat
from pathlib import Path

import pytest

from gateway.datafolder import DataFolder, FolderError, RunFile


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(str(tmp_path / "a" / "data"))
    made.make()
    return made


def run_file(pid: int) -> RunFile:
    return RunFile(
        base_url="b", control_url="c", operator_token="t", pid=pid, store="memory", version="1"
    )


def test_the_folder_is_its_owners_alone(folder: DataFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot make the data folder"):
        DataFolder(str(tmp_path / "file" / "data")).make()


def test_one_holder_at_a_time_and_any_copy_of_the_descriptor_holds(folder: DataFolder) -> None:
    fd = folder.lock()
    copy = os.dup(fd)
    for held in (fd, copy):
        with pytest.raises(FolderError, match=f"in use by process {os.getpid()}"):
            folder.lock(wait_s=0)
        os.close(held)
    os.close(folder.lock(wait_s=0))


def test_a_secret_is_made_once(folder: DataFolder) -> None:
    first = folder.pepper(None)
    assert DataFolder(str(folder.path)).pepper(None) == first
    assert folder.pepper("configured") == "configured"
    assert folder.operator_token() == folder.operator_token()
    for name in ("pepper", "operator_token"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600


def test_an_empty_secret_file_is_made_anew(folder: DataFolder) -> None:
    (folder.path / "pepper").write_text("")
    assert len(folder.pepper(None)) == 64


def test_run_json_counts_while_its_process_lives(folder: DataFolder) -> None:
    assert folder.read_run() is None
    folder.write_run(run_file(os.getpid()))
    assert folder.read_run() == run_file(os.getpid())
    folder.write_run(run_file(2**22 + 1))  # above the kernel's largest pid
    assert folder.read_run() is None
    (folder.path / "run.json").write_text("{")
    assert folder.read_run() is None
    folder.remove_run()
    folder.remove_run()


def test_sockets_lie_in_the_folder_or_where_their_path_fits(
    folder: DataFolder, tmp_path: Path
) -> None:
    assert folder.socket_dir() == folder.path
    deep = DataFolder(str(tmp_path / ("d" * 120)))
    short = deep.socket_dir()
    assert len(str(short)) < 60
    assert stat.S_IMODE(short.stat().st_mode) == 0o700
    short.chmod(0o777)
    with pytest.raises(FolderError, match="not a private folder"):
        deep.socket_dir()
    short.chmod(0o700)
    deep.leave_socket_dir()
    assert not short.exists()

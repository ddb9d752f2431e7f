"""A disk that has no room, as the kernel says it: nothing is admitted, nothing lost, no signal.

The limit is the kernel's own on a file's size, laid on a process of the test's: what it refuses to
allocate it refuses as a full disk does, in ``posix_fallocate``, and needs no file system of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

from gateway.metering.backlog import Backlog
from gateway.metering.frames import read_segment
from gateway.metering.journal import segment_paths
from tests.support.processes import ROOT

SEGMENT_BYTES = 65_536
CHILD = f"""
import json, resource, sys, time
from pathlib import Path
from gateway.metering.board import Board
from gateway.metering.incarnation import Incarnation
from gateway.metering.journal import JournalFull

folder = Path(sys.argv[1])
life = Incarnation.create(folder, 0, 16, {SEGMENT_BYTES})
journal = life.journal
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)


def wait_for(admitting):
    until = time.monotonic() + 20
    while journal.admitting != admitting and time.monotonic() < until:
        time.sleep(0.01)
    return journal.admitting == admitting


resource.setrlimit(resource.RLIMIT_FSIZE, ({SEGMENT_BYTES} // 2, hard))
written = refused = 0
told = False
for number in range(400):
    try:
        journal.append(b"%06d" % number + bytes(500))
        written += 1
    except JournalFull:
        refused += 1
    if not told and written * 526 > {SEGMENT_BYTES} * 1.2:
        told = wait_for(False)  # while there is still room for what is in flight
try:
    Board(folder / "board", 1_000)
    board = "made"
except OSError as error:
    board = error.strerror
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
again = wait_for(True)
journal.append(b"after" + bytes(500))
life.close()
print(json.dumps([written, refused, told, board, again]))
"""


def test_a_full_disk_stops_admission_and_loses_nothing(data_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(data_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    written, refused, told, board, again = json.loads(done.stdout)
    assert told, "not said while there was room"
    assert refused > 0
    assert board != "made"
    assert again, "room was not found again"
    (folder,) = (data_dir / "run").iterdir()
    frames = [f for path in segment_paths(folder) for f in read_segment(path.read_bytes())]
    assert len(frames) == written + 1
    assert [int(frame.payload[:6]) for frame in frames[:-1]] == list(range(written))
    assert frames[-1].payload.startswith(b"after")
    backlog = Backlog(folder)
    backlog.scan()
    assert len(backlog.unshipped) == written + 1

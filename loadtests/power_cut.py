"""Every picture that a power cut may leave of three requests' files, recovered and checked.

    python -m loadtests.power_cut [--every N]

Each board image of an earlier moment x the journal cut at each byte x each number of records that
had been shipped x with and without the shipper's mark. ``--every N`` takes each N-th picture.
"""

import argparse
import asyncio
import logging
import shutil
import sys
import time

from tests.support.ledgers import fast_folder
from tests.support.power import every_picture, history, wrong_with


async def run(every: int) -> int:
    with fast_folder() as folder:
        past = history(folder)
        wrong = count = 0
        begun_s = time.monotonic()
        pictures = every_picture(past, range(len(past.boards)), range(past.written + 1))
        for number, picture in enumerate(pictures):
            if number % every:
                continue
            count += 1
            for line in await wrong_with(past, picture, folder):
                wrong += 1
                print(f"{picture}: {line}")
            shutil.rmtree(folder / "run", ignore_errors=True)
        took_s = time.monotonic() - begun_s
    print(f"{len(past.boards)} boards, {past.written + 1} cuts, {len(past.records)} records")
    print(f"{count} pictures in {took_s:.0f} s, {wrong} wrong")
    return 1 if wrong or not count else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N")
    logging.disable(logging.WARNING)
    sys.exit(asyncio.run(run(parser.parse_args().every)))


if __name__ == "__main__":
    main()

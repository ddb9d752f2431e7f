"""Every picture that a power cut may leave of three requests' files, recovered and checked.

    python -m loadtests.power_cut [--lives N] [--every N]

Each board image of an earlier moment x the journal cut at each byte x each number of records that
had been shipped x with and without the shipper's mark. ``--every N`` takes each N-th picture. What it
found so far is said every few seconds.
"""

import argparse
import asyncio
import logging
import sys
import time

from tests.support.ledgers import fast_folder
from tests.support.power import Pictures, every_picture, history

SAY_S = 5.0


async def run(lives: int, every: int) -> int:
    with fast_folder() as folder:
        past = history(folder, lives)
        print(
            f"{lives} requests: {len(past.boards)} boards, {past.written + 1} cuts,"
            f" {len(past.records)} records",
            flush=True,
        )
        pictures = Pictures(past, folder)
        wrong = count = 0
        begun_s = said_s = time.monotonic()
        every_one = every_picture(past, range(len(past.boards)), range(past.written + 1))
        for number, picture in enumerate(every_one):
            if number % every:
                continue
            count += 1
            for line in await pictures.wrong_with(picture):
                wrong += 1
                print(f"{picture}: {line}")
            if time.monotonic() - said_s > SAY_S:
                said_s = time.monotonic()
                print(f"{count} pictures so far, {wrong} wrong", flush=True)
    took_s = time.monotonic() - begun_s
    print(
        f"{count} pictures in {took_s:.0f} s, recovered {pictures.recovered} times, {wrong} wrong"
    )
    return 1 if wrong or not count else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lives", type=int, default=3, metavar="N")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    logging.disable(logging.WARNING)
    asked = parser.parse_args()
    sys.exit(asyncio.run(run(asked.lives, asked.every)))


if __name__ == "__main__":
    main()

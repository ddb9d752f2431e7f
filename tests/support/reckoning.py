"""The checker of a campaign: what engines saw against what ledger and store were told."""

from collections import Counter
from collections.abc import Iterable, Mapping

from quotas.record import UsageRecord
from tests.support.lives import STEPS


def discrepancies(
    steps: Mapping[str, str],
    rows: Iterable[UsageRecord],
    settled: Iterable[str],
    released: Iterable[str],
) -> list[str]:
    """``steps``: request id -> the last step its life took. The others name request ids.

    Empty when every request that an engine saw has one row with the table's counts and one
    settle, every reservation before that one release, and nothing else exists.
    """
    rows_of: dict[str, list[UsageRecord]] = {}
    for row in rows:
        rows_of.setdefault(row.request_id, []).append(row)
    settles, releases = Counter(settled), Counter(released)
    strangers = (rows_of.keys() | settles.keys() | releases.keys()) - steps.keys()
    found = [f"{name}: of no request" for name in strangers]
    for name, step in steps.items():
        left = STEPS[step]
        mine = rows_of.get(name, [])
        wanted = left.outcome is not None
        if len(mine) != wanted:
            found.append(f"{name}: {len(mine)} rows after {step}")
        for row in mine:
            counts = (row.usage["prompt_tokens"], row.usage["completion_tokens"])
            if (*counts, row.outcome) != (left.prompt, left.completion, left.outcome):
                found.append(f"{name}: {counts} {row.outcome} after {step}")
            if row.billed != {"input": counts[0], "output": counts[1]}:
                found.append(f"{name}: billed {row.billed}")
        if settles[name] != wanted:
            found.append(f"{name}: {settles[name]} settles after {step}")
        if releases[name] != left.released:
            found.append(f"{name}: {releases[name]} releases after {step}")
    return found

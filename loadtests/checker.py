"""Whether a ledger says what happened: engines' witness, clients' notes and usage records compared.

Pure. The engines know which attempts reached them and what they made, the clients what they got; a
record must lie between the two, and be exact where the answer came whole. It knows nothing of how
the gateway works. ``tests/loadtests/test_checker.py`` shows that it finds a lost, a doubled, an
altered and an invented record.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

COUNTED = ("engine_final", "engine_partial")


class Witnessed(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt as an engine saw it. ``number`` is the client's, read from the prompt.

    ``prompt_tokens`` of all ``prompts`` together, 0 where it refused before it counted; ``tokens`` made, over all choices, each before
    it was written to the socket; ``ended``: finished, aborted or refused.
    """

    number: int
    request_id: str
    endpoint: str
    prompts: int
    choices: int
    prompt_tokens: int
    tokens: int
    ended: str


class Noted(msgspec.Struct, kw_only=True):
    """What a client knows of its request. ``request_id`` is empty where no head came.

    ``received``: tokens of text that came (a whole answer's: as it says). ``whole``: the answer ended as it should, and ``told``
    is the (prompt, completion) that it says of itself, None where it was not asked to.
    """

    number: int
    kind: str
    request_id: str = ""
    status: int = 0
    received: int = 0
    whole: bool = False
    told: tuple[int, int] | None = None


class Verdict(msgspec.Struct):
    """Sentences, one a fault; and the numbers that a table shows."""

    lost: list[str] = []
    doubled: list[str] = []
    altered: list[str] = []
    invented: list[str] = []
    seen: int = 0  # requests that an engine saw
    attempts: int = 0  # of them, at engines
    exact: int = 0  # answers that came whole, and whose record is the same to the token
    between: int = 0  # cut short, and whose record is between received and made
    unseen: int = 0  # records of 0 completion tokens whose request was sent and reached no engine

    @property
    def faults(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.altered, *self.invented]


Record = Mapping[str, Any]


def check(
    witnessed: Iterable[Witnessed], noted: Iterable[Noted], records: Iterable[Record]
) -> Verdict:
    """``records`` as ``tokenfactory usage --records --json`` prints them."""
    verdict = Verdict()
    attempts: dict[str, list[Witnessed]] = {}
    for each in witnessed:
        attempts.setdefault(each.request_id, []).append(each)
    notes = {note.number: note for note in noted}
    kept: dict[str, Record] = {}
    times = Counter[str]()
    for record in records:
        kept[record["request_id"]] = record
        times[record["request_id"]] += 1
    verdict.doubled = [f"{name}: {count} records" for name, count in times.items() if count > 1]
    verdict.seen = len(attempts)
    verdict.attempts = sum(map(len, attempts.values()))
    for request_id, mine in attempts.items():
        found = kept.get(request_id)
        note = notes.get(mine[0].number)
        if found is None:
            verdict.lost.append(f"{request_id}: an engine made {mine[-1].tokens} tokens, no record")
        else:
            _judge(verdict, found, mine, note)
    for note in notes.values():
        if note.whole and note.request_id not in kept:
            verdict.lost.append(f"{note.request_id}: answered whole, no record")
    for request_id, record in kept.items():
        if request_id not in attempts:
            _judge_unseen(verdict, record)
    return verdict


def _judge(verdict: Verdict, record: Record, mine: list[Witnessed], note: Noted | None) -> None:
    """One request that engines saw: its record against theirs and the client's account."""
    wrong = _wrong(record, mine, note)
    if wrong:
        verdict.altered.append(f"{record['request_id']}: {wrong}; {dict(record)}; {mine}; {note}")
    elif note is not None and note.whole:
        verdict.exact += 1
    else:
        verdict.between += 1


def _wrong(record: Record, mine: list[Witnessed], note: Noted | None) -> str:
    """What is wrong with a record, empty when nothing is."""
    counts = (record["prompt_tokens"], record["completion_tokens"])
    here = [each for each in mine if each.endpoint == record["endpoint"]]
    made = max((each.tokens for each in here), default=0)
    if note is not None and note.request_id and note.request_id != record["request_id"]:
        return f"the client was told that it is {note.request_id}"
    if note is not None and note.whole:
        answers = [each for each in here if (each.prompt_tokens, each.tokens) == counts]
        if not answers:
            return f"answered whole, and no attempt there made {counts}"
        if note.told not in (None, counts) or note.received != counts[1]:
            return f"the answer says {note.told}, {note.received} tokens came"
    elif record["outcome"] == "ok" and not any(
        each.ended == "finished" and (each.prompt_tokens, each.tokens) == counts for each in here
    ):
        return f"ended well, and no attempt there made {counts}"
    received = note.received if note is not None else 0
    if not received <= counts[1] <= made:
        return f"{counts[1]} tokens, received {received}, made {made}"
    choices = {each.choices for each in mine if each.prompt_tokens}
    if choices and choices != {record["choices"]}:
        return f"{record['choices']} choices a prompt, sent {choices}"
    if record["attempts"] < min(len(mine), 4):
        return f"{record['attempts']} attempts, engines saw {len(mine)}"
    return _wrong_prompt(record, here)


def _wrong_prompt(record: Record, here: list[Witnessed]) -> str:
    prompt, source = record["prompt_tokens"], record["source"]
    if source == "none":
        return f"{prompt} prompt tokens of no source" if prompt else ""
    if source == "estimated":
        return ""
    wanted = {each.prompt_tokens for each in here}
    if prompt in wanted:
        return ""
    if source == "tokenized" and not any(wanted):
        return ""  # another engine counted what this one refused, or never saw
    # A list of prompts that was cut short: some of them may not have been counted yet.
    if source == "engine_partial" and any(each.prompts > 1 for each in here):
        return "" if prompt <= max(wanted) else f"{prompt} prompt tokens, at most {max(wanted)}"
    if record["outcome"] == "engine_error" and prompt == 0:
        return ""  # finished void: nothing is billed
    return f"{prompt} prompt tokens, the engine counted {sorted(wanted)}"


def _judge_unseen(verdict: Verdict, record: Record) -> None:
    """It was sent, and the network or a kill came between: nothing can have been counted."""
    if record["completion_tokens"] or record["source"] in COUNTED or record["outcome"] == "ok":
        verdict.invented.append(f"{record['request_id']}: no engine saw it; {dict(record)}")
    else:
        verdict.unseen += 1

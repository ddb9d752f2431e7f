"""What a run of loadtests/faults.py is to break, and what it found, as values and as a table.

Not here: the breaking (``trouble``), the accounts that are compared (``checker``, ``auditor``).
"""

import msgspec

from loadtests.checker import Verdict


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what; times in seconds, ``rate`` in requests a second."""

    requests: int = 20_000
    rate: float = 40.0
    workers: int = 48
    seed: int = 1
    data_kills: int = 20
    tree_kills: int = 5
    control_kills: int = 5
    supervisor_kills: int = 5
    store_losses: int = 10
    cuts: int = 10
    sql_outages: int = 1
    sql_outage_s: float = 300.0
    full_disks: int = 1
    cut_s: float = 1.5
    pause_s: float = 2.0
    top_up_s: float = 10.0


SHORT = Plan(
    requests=300, rate=25.0, workers=24, data_kills=1, tree_kills=1, control_kills=1,
    supervisor_kills=1, store_losses=2, cuts=2, sql_outages=1, sql_outage_s=3.0, full_disks=0,
    cut_s=0.5, pause_s=0.2, top_up_s=1.0,
)  # fmt: skip


class Report(msgspec.Struct):
    """What a run found. ``faults``: name -> (how often, the longest until an answer came whole)."""

    plan: Plan
    verdict: Verdict = msgspec.field(default_factory=Verdict)
    faults: dict[str, tuple[int, float]] = {}
    sent: int = 0
    away: int = 0
    refused: dict[int, int] = {}
    outcomes: dict[str, int] = {}
    sources: dict[str, int] = {}
    failovers: int = 0
    several_choices: int = 0
    quarantined: int = 0
    open_reservations: int = 0
    limits_asked: int = 0
    limits_wrong: list[str] = []
    sql_caught_up_s: float = 0.0
    disk_refused_s: float = 0.0
    disk_wrong: list[str] = []
    same_after_stop: bool = True
    money_wrong: list[str] = []
    sold: dict[str, int] = {}
    postings: int = 0
    statements: int = 0
    top_ups: int = 0
    seconds: float = 0.0

    @property
    def wrong(self) -> list[str]:
        found = [
            *self.verdict.faults, *self.limits_wrong, *self.money_wrong, *self.disk_wrong,
        ]  # fmt: skip
        if self.open_reservations:
            found.append(f"{self.open_reservations} reservations are open and nothing runs")
        if self.quarantined:
            found.append(f"{self.quarantined} records in quarantine")
        if not self.same_after_stop:
            found.append("the records after a graceful stop are not those before it")
        if self.verdict.seen < self.plan.requests:
            found.append(f"engines saw {self.verdict.seen} requests of {self.plan.requests}")
        return found

    def table(self) -> str:
        verdict, plan = self.verdict, self.plan
        rows = [
            ("requests sent / that an engine saw", f"{self.sent:,} / {verdict.seen:,}"),
            ("attempts at engines / with failover", f"{verdict.attempts:,} / {self.failovers:,}"),
            ("with several choices", f"{self.several_choices:,}"),
            ("answers other than 200", counts(self.refused)),
            ("connections refused while down", f"{self.away:,}"),
            ("records by outcome", counts(self.outcomes)),
            ("records by source", counts(self.sources)),
        ]
        for name, (times, longest_s) in self.faults.items():
            rows.append((name, f"{times}; served again within {longest_s:.1f} s"))
        if plan.sql_outages:
            rows.append(("ledger up to date after the SQL outage", f"{self.sql_caught_up_s:.1f} s"))
        if plan.full_disks:
            said = "no" if self.disk_wrong else f"all, within {self.disk_refused_s:.1f} s"
            rows.append(("new requests refused with 503 while the disk was full", said))
        else:
            rows.append(("full disk", "left out of this run"))
        rows += [
            ("limits asked after a loss of the store",
             f"{self.limits_asked}; wrong {len(self.limits_wrong)}"),
            ("open reservations at the end", f"{self.open_reservations}"),
            ("exact / between received and made", f"{verdict.exact:,} / {verdict.between:,}"),
            ("sent and seen by no engine (0 tokens)", f"{verdict.unseen:,}"),
            ("**lost**", f"{len(verdict.lost)}"),
            ("**twice**", f"{len(verdict.doubled)}"),
            ("altered / invented / quarantined",
             f"{len(verdict.altered)} / {len(verdict.invented)} / {self.quarantined}"),
            ("sold, in nano-units", counts(self.sold)),
            ("credits added meanwhile", f"{self.top_ups}"),
            ("**postings / statements / differing by a nano or more**",
             f"{self.postings:,} / {self.statements} / {len(self.money_wrong)}"),
        ]  # fmt: skip
        head = f"| seed {plan.seed}, {self.seconds:.0f} s | |\n|---|---|\n"
        return head + "\n".join(f"| {name} | {value} |" for name, value in rows)


def counts(counts: dict) -> str:
    return ", ".join(f"{name} {times:,}" for name, times in sorted(counts.items())) or "none"

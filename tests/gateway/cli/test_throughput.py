"""``throughput`` as it is typed, without a server."""

import json
from pathlib import Path

from tests.gateway.cli.test_offline import Cli, applied, cli, file

__all__ = ["cli", "file"]


def test_a_term_is_asked_for_sold_shown_and_ended(cli: Cli, file: Path) -> None:
    applied(cli, file)
    ask = ("throughput", "ask", "acme", "m", "--tokens-per-minute", "3000")
    priced = ("--price-per-hour", "1.50", "--until", "2999-12-31")
    said = cli(*ask, *priced, "--overflow", "reject")
    assert said == "term 1: 3000 tokens a minute of m at 1.50 USD an hour, asked\n"
    assert "accepted" in cli("throughput", "accept", "1")

    (shown,) = json.loads(cli("throughput", "show", "acme", "--json"))
    assert (shown["overflow"], shown["used_tokens"], shown["used_percent"]) == ("reject", 0, "0.00")
    assert shown["idle_tokens"] == shown["sold_tokens"]
    assert "reject" in cli("throughput", "show", "acme")
    assert cli("throughput", "show", "acme", "--month", "2020-01", "--json").count("2020-01") == 1
    assert "ended" in cli("throughput", "end", "1")
    assert "no throughput term 9" in cli("throughput", "accept", "9", code=1)

"""``sinks`` as it is typed, without a server; and a file's sinks, judged."""

import json
from pathlib import Path

import pytest

from tests.gateway.cli.test_offline import FILE, Cli, applied, cli

__all__ = ["cli"]
SINKS = """
sinks:
  - {name: meter, url: "https://openmeter.example/api/v1/events", auth_env: OPENMETER_KEY}
  - name: cards
    url: https://api.stripe.com/v1/billing/meter_events
    format: stripe
    event_name: tokens
    subjects: {acme: cus_1}
    auth_env: STRIPE_KEY
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE + SINKS)
    return path


def test_sinks_are_declared_listed_shown_and_pruned(cli: Cli, file: Path) -> None:
    assert "no sinks" in cli("sinks", "list")
    assert applied(cli, file)["created"]["sinks"] == ["meter", "cards"]
    assert "sinks" not in applied(cli, file)["created"]
    table = cli("sinks", "list")
    assert table.splitlines()[0].startswith("name   kind  format")
    assert [line.split()[:4] for line in table.splitlines()[1:]] == [
        ["cards", "sink", "stripe", "idle"],
        ["meter", "sink", "cloudevents", "idle"],
    ]
    shown = json.loads(cli("sinks", "show", "meter", "--json"))
    assert (shown["waiting"], shown["parked_events"], shown["failure"]) == (0, [], None)
    assert shown["options"]["auth_env"] == "OPENMETER_KEY"
    assert "nothing is parked" in cli("sinks", "show", "meter")
    assert "0 parked events are sent again" in cli("sinks", "retry", "meter")

    file.write_text(FILE)
    cli("apply", str(file), "--prune", "--yes")
    assert "no sinks" in cli("sinks", "list")


def test_webhooks_are_declared_beside_sinks_under_names_of_their_own(cli: Cli, file: Path) -> None:
    file.write_text(
        FILE.replace("- name: acme", "- name: acme\n    low_balance: '10'")
        + SINKS
        + 'webhooks: [{name: pager, url: "https://ops.example/hook", secret_env: PAGER}]\n'
    )
    assert applied(cli, file)["created"]["webhooks"] == ["pager"]
    assert "pager  webhook  webhook" in cli("sinks", "list")

    file.write_text('webhooks: [{name: meter, url: "https://ops.example", secret_env: P}]')
    assert "'meter' is a sink already" in cli("apply", str(file), code=1)
    file.write_text('webhooks: [{name: other, url: "https://ops.example"}]')
    assert "the place of the signing secret" in cli("apply", str(file), code=1)
    file.write_text('webhooks: [{name: o, url: "http://x", secret_env: P, events: [all]}]')
    assert "webhooks[0].events[0]" in cli("apply", str(file), code=1)


def test_a_sink_that_is_not_there_is_said(cli: Cli, file: Path) -> None:
    applied(cli, file)
    assert "no sink nobody" in cli("sinks", "show", "nobody", code=1)
    assert "no sink nobody" in cli("sinks", "retry", "nobody", code=1)
    assert "has no parked event e1" in cli("sinks", "retry", "meter", "e1", code=1)


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ('{name: a, url: "ftp://x"}', "sinks[0].url: 'ftp://x': expected http:// or https://"),
        ('{name: a, url: "https://me:hidden@x"}', "a secret belongs in auth_env"),
        ('{name: a, url: "https://x/?key=hidden"}', "a secret belongs in auth_env"),
        ('{name: a, url: "http://x", format: lago}', "event_name: the metric at lago or stripe"),
        ('{name: a, url: "http://x", event_name: b}', "event_name: the metric at lago or stripe"),
        ('{name: a, url: "http://x", format: stripe, event_name: t}', "subjects: expected a"),
        ('{name: a, url: "http://x", auth_env: A, auth_file: b}', "auth_env, auth_file: expected"),
        ('{name: a, url: "http://x", auth_header: Host}', "auth_header: Host is set by the"),
        ('{name: a, url: "http://x", batch: 0}', "sinks[0].batch"),
        ('{name: a, url: "http://x", colour: red}', "unknown field, expected one of name, url"),
        ('{name: a, url: "http://x"}, {name: a, url: "http://y"}', "'a' comes twice"),
    ],
)
def test_a_sink_that_cannot_be_is_refused_in_a_sentence(
    cli: Cli, file: Path, sink: str, said: str
) -> None:
    file.write_text(f"sinks: [{sink}]")
    refused = cli("apply", str(file), code=1)
    assert said in refused
    assert "hidden@" not in refused
    assert "key=hidden" not in refused

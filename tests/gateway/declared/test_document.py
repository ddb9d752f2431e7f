"""The file: what is valid, and errors that name file, path, value and what was expected."""

import re
from datetime import datetime
from typing import Any

import pytest

from gateway.declared.document import DeclaredError, load

EXAMPLE = """
pools:
  - name: h100-fra
    endpoints:
      - url: "http://10.0.0.5:8000"
        dialect: vllm
        api_key_env: FRA_KEY
        ca_file: null
        max_in_flight: 256
        usage: auto
models:
  - name: llama-3.1-8b
    upstream: meta-llama/Llama-3.1-8B-Instruct
    pool: h100-fra
    context_tokens: 131072
    max_output_tokens: 8192
    timeouts: {connect_s: 5, first_event_s: 300, gap_s: 120, unary_s: 600, stream_s: 3600}
    price: {currency: USD, input: "0.10", cached_input: "0.05", output: "0.40"}
tenants:
  - name: acme
    limits: {requests_per_minute: 600, tokens_per_minute: 200000, concurrent_requests: 32}
    projects:
      - name: chatbot
        limits: {tokens_per_minute: 100000}
        keys:
          - {name: ci, models: [llama-3.1-8b], expires: 2027-06-30, limits: {requests_per_minute: 60}}
"""


def refused(text: str) -> str:
    with pytest.raises(DeclaredError) as error:
        load(text, "bad.yaml")
    assert str(error.value).startswith("bad.yaml")
    return str(error.value)


def test_the_documented_example_is_valid() -> None:
    declared = load(EXAMPLE, "file.yaml")
    (key,) = declared.tenants[0].projects[0].keys
    assert key.expires is not None
    assert key.expires.isoformat() == "2027-06-30T23:59:59+00:00"
    price = declared.models[0].price
    assert price is not None
    assert price.nano() == {
        "input": 100_000_000,
        "cached_input": 50_000_000,
        "output": 400_000_000,
    }


@pytest.mark.parametrize("text", ["", "{}", "pools: []", "tenants: [{name: a}]"])
def test_a_missing_section_has_a_sane_default(text: str) -> None:
    assert load(text, "file.yaml").models == []


PRICE = "models: [{{name: m, pool: p, price: {{input: {0}, output: '1'}}}}]"
#: text -> what the message must name
WRONG: list[tuple[str, list[str]]] = [
    ("[1, 2]", ["mapping"]),
    ("poools: []", ["poools", "unknown field"]),
    ("pools: [{name: p, endpoint: []}]", ["pools[0].endpoint", "unknown field"]),
    ("pools: [{name: 'a/b'}]", ["pools[0].name", "a/b"]),
    ("pools: [{name: p, endpoints: [{url: 'ftp://x'}]}]", ["pools[0].endpoints[0].url", "ftp://x"]),
    (
        "pools: [{name: p, endpoints: [{url: 'http://x', dialect: tgi}]}]",
        ["endpoints[0].dialect", "tgi", "vllm"],
    ),
    (
        "pools: [{name: p, endpoints: [{url: 'http://x', max_in_flight: 0}]}]",
        ["endpoints[0].max_in_flight", "0", "1"],
    ),
    ("models: [{name: m}]", ["models[0].pool", "missing"]),
    (PRICE.format("0.1"), ["models[0].price.input", "0.1", "quotes"]),
    (PRICE.format("'1e3'"), ["models[0].price.input", "1e3", "digits"]),
    (PRICE.format("'-1'"), ["models[0].price.input", "-1", "negative"]),
    (PRICE.format("'0.0000000001'"), ["models[0].price.input", "decimals"]),
    (
        "models: [{name: m, pool: p, timeouts: {gap_s: 0}}]",
        ["models[0].timeouts.gap_s", "0", "greater"],
    ),
    ("models: [{name: m, pool: p}, {name: m, pool: p}]", ["models", "'m'", "twice"]),
    ("tenants: [{name: 5}]", ["tenants[0].name", "5", "string"]),
    (
        "tenants: [{name: a, limits: {requests_per_minute: -1}}]",
        ["tenants[0].limits.requests_per_minute", "-1"],
    ),
    (
        "tenants: [{name: a, limits: {requests_per_minute: many}}]",
        ["tenants[0].limits.requests_per_minute", "many", "integer"],
    ),
    (
        "tenants: [{name: a, projects: [{name: b, keys: [{name: k, expires: soon}]}]}]",
        ["tenants[0].projects[0].keys[0].expires", "soon"],
    ),
    ("pools: [{name: p\nmodels", ["line", "not YAML"]),
    ("pools: []\npools: []", ["line 2", "'pools'", "twice"]),
]


@pytest.mark.parametrize(
    ("text", "named"), WRONG, ids=[re.sub(r"\s+", " ", t)[:60] for t, _ in WRONG]
)
def test_a_fault_names_file_path_value_and_what_was_expected(text: str, named: list[str]) -> None:
    message = refused(text)
    assert [each for each in named if each not in message] == [], message


def test_every_fault_is_a_line_of_its_own() -> None:
    message = refused("poools: []\nmodels: [{name: m, pool: p, context_tokens: 0}]\n")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        ("2027-06-30", "2027-06-30T23:59:59+00:00"),
        ("2027-06-30T12:00:00Z", "2027-06-30T12:00:00+00:00"),
        ("2027-06-30T12:00:00", "2027-06-30T12:00:00+00:00"),
        ("2027-06-30T12:00:00+02:00", "2027-06-30T10:00:00+00:00"),
    ],
)
def test_an_expiry_is_a_day_or_a_moment_in_utc(expires: str, expected: str) -> None:
    text = f"tenants: [{{name: a, projects: [{{name: b, keys: [{{name: k, expires: '{expires}'}}]}}]}}]"
    found: Any = load(text, "file.yaml").tenants[0].projects[0].keys[0].expires
    assert found.timestamp() == datetime.fromisoformat(expected).timestamp()

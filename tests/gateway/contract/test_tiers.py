"""The tier a request got is in its answer once, and nothing else of the answer changes."""

import json

import pytest

from gateway.contract.tiers import tell_tier, tier_of


@pytest.mark.parametrize(
    ("asked", "got"),
    [(None, "default"), ("auto", "default"), ("default", "default"), ("flex", "flex")],
)
def test_what_names_no_tier_is_served_as_the_default(asked, got):
    assert tier_of(asked) == got


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "a", "choices": []},
        {},
        {"id": "a", "service_tier": None, "usage": {"x": 1}},
        {"service_tier": "default", "id": "a"},
        {"choices": [{"text": 'say "service_tier":null'}], "service_tier": None},
        {"choices": [{"text": 'say "service_tier":null'}]},
    ],
)
@pytest.mark.parametrize("compact", [True, False])
def test_it_is_told_once_wherever_the_engine_put_it(answer, compact):
    body = json.dumps(answer, separators=(",", ":") if compact else None).encode()
    pairs = json.loads(tell_tier(body, b"flex"), object_pairs_hook=list)

    assert dict(pairs)["service_tier"] == "flex"
    assert [name for name, _ in pairs].count("service_tier") == 1
    told = json.loads(tell_tier(body, b"flex"))
    del told["service_tier"]
    assert told == {name: value for name, value in answer.items() if name != "service_tier"}

"""The names of limits, and what each becomes as a row."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.declared.limits import NAMES, LimitsPart, shown
from gateway.store.limits import LimitName, LimitValue


def rows(**limits: Any) -> dict[LimitName, LimitValue]:
    return LimitsPart.model_validate(limits).rows({"llama": 7})


def test_a_bare_number_is_the_limit() -> None:
    assert rows(tokens_per_minute=60, concurrent_requests=0, requests_per_day=5) == {
        LimitName("tokens", "minute"): LimitValue(60, outage="local_share"),
        LimitName("concurrency", "now"): LimitValue(0, outage="local_share"),
        LimitName("requests", "day"): LimitValue(5),
    }


def test_an_object_says_more() -> None:
    said = {
        "limit": 60,
        "burst": 90,
        "shadow": True,
        "outage": "fail_closed",
        "cached_input_weight": 0.25,
    }
    assert rows(tokens_per_minute=said) == {
        LimitName("tokens", "minute"): LimitValue(60, 90, 250, shadow=True, outage="fail_closed")
    }


def test_budgets_are_micro_units_of_exact_decimals() -> None:
    assert rows(budget_per_month="12.50", budget_lifetime={"limit": "0.000001"}) == {
        LimitName("money", "month"): LimitValue(12_500_000),
        LimitName("money", "lifetime"): LimitValue(1),
    }


def test_bursts_beside_bare_numbers_still_work() -> None:
    made = rows(requests_per_minute=60, requests_burst=5, tokens_per_minute=9, tokens_burst=3)
    assert [each.burst for each in made.values()] == [5, 3]


def test_models_and_end_users_have_limits_of_their_own() -> None:
    made = rows(
        models={"llama": {"output_tokens_per_minute": 5}}, end_user={"requests_per_minute": 2}
    )
    assert made == {
        LimitName("output_tokens", "minute", model_id=7): LimitValue(5, outage="local_share"),
        LimitName("requests", "minute", each="user"): LimitValue(2, outage="local_share"),
    }


@pytest.mark.parametrize(
    ("limits", "path"),
    [
        ({"tokens_per_minute": 0}, "tokens_per_minute.limit"),
        ({"tokens_per_minute": {"limit": 5, "weight": 1}}, "tokens_per_minute.weight"),
        ({"tokens_per_day": {"limit": 5, "burst": 9}}, "tokens_per_day.burst"),
        ({"requests_per_minute": {"limit": 5, "cached_input_weight": 0}}, "cached_input_weight"),
        ({"tokens_per_minute": {"limit": 5, "cached_input_weight": 1.5}}, "cached_input_weight"),
        ({"tokens_per_minute": {"limit": 5, "cached_input_weight": 0.12345}}, "three decimals"),
        ({"budget_per_day": 12.5}, "quotes"),
        ({"budget_per_day": "-1"}, "negative"),
        ({"budget_per_day": {"limit": "1", "outage": "local_share"}}, "budget_per_day.outage"),
        ({"offline_credit": {"limit": "1", "shadow": True}}, "offline_credit.shadow"),
        ({"tokens_per_year": 5}, "tokens_per_year"),
        ({"models": {"llama": {"models": {}}}}, "models.llama.models"),
    ],
)
def test_a_fault_names_its_place(limits: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as error:
        rows(**limits)
    first = error.value.errors()[0]
    said = ".".join(map(str, first["loc"])) + ": " + first["msg"]
    assert path in said


def test_what_is_shown_can_be_declared_again() -> None:
    for name, (dimension, window) in NAMES.items():
        value = LimitValue(1_500_000, shadow=name != "offline_credit")
        said = shown(LimitName(dimension, window), value)
        assert rows(**{name: said}) == {LimitName(dimension, window): value}
    assert shown(LimitName("money", "day"), LimitValue(1_500_000)) == {"limit": "1.50"}
    assert shown(LimitName("tokens", "minute"), LimitValue(5, 9, 250, outage="fail_closed")) == {
        "limit": 5, "burst": 9, "cached_input_weight": 0.25, "outage": "fail_closed",
    }  # fmt: skip

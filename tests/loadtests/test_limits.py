"""The short forms of loadtests/limits.py: 5,000 random steps, honest waits, overshoot, an outage."""

import asyncio

import pytest

from loadtests import leases
from loadtests.cancels import cancel
from loadtests.histories import walk
from loadtests.honesty import dishonest
from loadtests.outage import break_off
from loadtests.overshoot import Setting, dense_setting, run
from loadtests.pace import in_process_us, pace
from loadtests.rebuild import rebuild
from tests.support.valkey import own_valkey, valkey

__all__ = ["own_valkey", "valkey"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chance", [1, 2])
def test_stores_agree_through_random_histories(own_valkey, chance):
    assert walk(own_valkey.unix_url, own_valkey.admin, examples=65, steps=45, chance=chance) >= 1500


@pytest.mark.timeout(300)
def test_client_that_waits_as_long_as_told_is_admitted(valkey):
    refused, wrong = dishonest(valkey.unix_url, valkey.admin, states=200, chance=1)

    assert refused > 100
    assert wrong == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mode", "seed", "least", "most"),
    [("reserve", 1, -1, 0), ("reserve", 2, -1, 0), ("prompt", 1, 0.2, 9), ("after", 1, 0.4, 9)],
)
async def test_only_what_is_reserved_does_not_overshoot(valkey, mode, seed, least, most):
    result = await run(Setting(mode, seed, 1.5), valkey.unix_url)

    assert least < result.overshoot <= most
    assert result.killed > 0
    # The store says what the clients' logs say.
    tenant_left = result.left[0]
    assert abs(tenant_left - (20_000 - result.used)) <= result.allowed - 20_000 + 1


@pytest.mark.timeout(300)
async def test_denser_prompts_overshoot_by_their_errors_at_most_and_repay_them(valkey):
    result = await run(dense_setting(1), valkey.unix_url)

    assert result.used > 1.5 * result.errors + 20_000, "it would have gathered"
    assert result.used - result.allowed <= result.errors


@pytest.mark.timeout(300)
async def test_lost_calls_leak_nothing_and_get_nobody_elses_reply(own_valkey):
    outcome = await cancel(own_valkey, 2_000)

    assert outcome.lost >= 2_000
    assert (outcome.wrong, outcome.leaked) == (0, 0)


@pytest.mark.timeout(300)
async def test_store_that_is_away_costs_no_rate_and_no_money():
    outcome = await break_off(["stopped", "killed"], 3.0)

    # Of a short outage the requests that found out are the slowest in a hundred.
    assert outcome.wrong(most_p99_s=1.0) == []


async def test_pace_is_kept_and_measured(valkey):
    seen = await pace(valkey, per_second=200, seconds=0.5)

    assert len(seen.waits_s) == 100
    assert min(seen.reserve_us, seen.settle_us) > 0


async def test_the_in_process_store_is_measured_and_holds_nothing_afterwards():
    assert 0 < await in_process_us() < 1_000


async def test_every_balance_is_counted_anew_after_a_loss_and_nobody_is_served_before(own_valkey):
    seen = await rebuild(own_valkey, 150)

    assert seen.refused == 50
    assert seen.wrong == 0


@pytest.mark.timeout(300)
def test_what_all_tenants_share_is_not_overshot_by_a_crowd_of_which_one_is_killed(valkey):
    setting = leases.Setting("leases", 1, 1.0, limit=20_000)
    result = asyncio.run(leases.run(setting, valkey.unix_url))

    assert result.requests > 20
    assert result.overshoot <= 0
    assert result.unspent - result.dead <= leases.wasted_at_most(setting)


@pytest.mark.timeout(300)
def test_the_check_sees_a_lease_that_gives_back_what_was_used(valkey):
    setting = leases.Setting("leak", 1, 1.0, limit=20_000, kill_s=-1.0)
    assert asyncio.run(leases.run(setting, valkey.unix_url)).overshoot > 0.2

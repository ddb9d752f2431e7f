"""The short form of loadtests/storm.py: who leaves before the first frame is held by its limits."""

import asyncio

import httpx

from gateway.demo.works import Faults
from loadtests.storm import SILENCE_S, declared, rage
from tests.support.gateway import running


def post(gateway, secret, tokens=1):
    return httpx.post(
        gateway.base_url + "/chat/completions",
        json={
            "model": "llama",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": tokens,
        },
        headers={"authorization": f"Bearer {secret}"},
        trust_env=False,
        timeout=20,
    )


def test_a_client_that_leaves_before_the_first_frame_for_ever_is_held_by_its_limits(
    tmp_path, engines
):
    engine = engines.start(token_ms=1.0, faults=Faults(delay_s=SILENCE_S))
    with running(tmp_path / "data", unbilled_endings_per_minute=0, access_log="false") as gateway:
        keys = gateway.apply(declared(engine.url))["keys"]
        held, free, calm = (each["secret"] for each in keys)
        stormed = asyncio.run(rage(gateway, engine, held, 2.0))
        again = post(gateway, held, 3_000)
        unheld = asyncio.run(rage(gateway, engine, free, 1.0))

        assert 0 < stormed.reached <= stormed.allowed
        assert stormed.sent > 3 * stormed.reached
        assert unheld.reached > 2 * stormed.reached / stormed.took_s  # the check can see it
        assert again.status_code == 429  # what it left is not given back
        assert post(gateway, calm).status_code == 200
        records = gateway.records_when(stormed.reached + unheld.reached)
        left = [each for each in records if each["outcome"] == "client_abort"]
        assert len(left) >= stormed.reached + unheld.reached

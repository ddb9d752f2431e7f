"""A name belongs to the request that claimed it first, whoever asks at once, in both stores."""

import asyncio


async def claim(rig, request_id, name="n", ttl_s=3600):
    return await rig.store.claim(rig.tag, name, request_id, ttl_s)


async def test_the_first_holds_the_name_and_the_others_are_told_who(rig):
    found = await asyncio.gather(*(claim(rig, f"r{number}") for number in range(50)))

    assert len(set(found)) == 1
    assert await claim(rig, found[0]) == found[0]
    assert await claim(rig, "x", name="other") == "x"


async def test_who_holds_it_may_give_it_back_and_nobody_else(rig):
    await claim(rig, "first")
    rig.store.unclaim(rig.tag, "n", "second")
    await rig.settled()
    assert await claim(rig, "second") == "first"
    rig.store.unclaim(rig.tag, "n", "first")
    await rig.settled()
    assert await claim(rig, "second") == "second"


async def test_a_claim_ends_by_itself(rig):
    await claim(rig, "first", ttl_s=1)
    await rig.wait(1_001)

    assert await claim(rig, "second") == "second"


async def test_a_name_is_a_tenants_own(rig):
    await claim(rig, "first")

    assert await rig.store.claim(rig.tag + "x", "n", "second", 3600) == "second"

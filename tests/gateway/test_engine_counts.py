"""An engine's own tokenizer: asked with the endpoint's key, left alone where it is known to refuse."""

import pytest

from gateway.engine_counts import ANSWER_BYTES_MAX, ASK_S, LATER_S, EngineCounts
from gateway.engines import Engines
from gateway.wire.fetch import Fetched, FetchFailed
from routing.signals import EndpointSignals
from tests.support.topology import endpoint

KEYED = endpoint(1, url="http://10.0.0.5:8000/prefix", api_key_env="ENGINE_KEY")


class Site:
    """An engine's /tokenize and a clock."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.now_s = 100.0
        self.engines = Engines({"ENGINE_KEY": "secret"}, 4.0)
        self.counts = EngineCounts(self.engines, self.fetch, lambda: self.now_s)

    async def fetch(self, address, method, path, **more):
        self.asked.append((address.prefix, method, path, more))
        status, said = self.answers.pop(0)
        return Fetched(status, [], said)


async def test_a_question_goes_out_with_the_endpoints_key_and_within_bounds():
    site = Site((200, b'{"count":9,"tokens":[1]}'))
    assert await site.counts.ask(KEYED, b"{}") == 9
    [(prefix, method, path, more)] = site.asked
    assert (prefix, method, path) == ("/prefix", "POST", "/tokenize")
    assert more["headers"] == [
        (b"content-type", b"application/json"), (b"authorization", b"Bearer secret"),
    ]  # fmt: skip
    assert (more["body"], more["timeout_s"]) == (b"{}", ASK_S)
    assert more["max_bytes"] == ANSWER_BYTES_MAX


@pytest.mark.parametrize("said", [b"<html>", b"[]", b'{"count":-1}', b'{"count":"9"}', b"\xff"])
async def test_what_is_no_count_is_none(said):
    assert await Site((200, said)).counts.ask(KEYED, b"{}") is None
    assert await Site((500, b'{"count":9}')).counts.ask(KEYED, b"{}") is None


async def test_who_refuses_is_left_alone_for_a_while_and_who_fails_is_not():
    site = Site((500, b""), (404, b""))
    await site.counts.ask(KEYED, b"{}")
    assert site.counts.may_ask(KEYED)
    await site.counts.ask(KEYED, b"{}")
    assert not site.counts.may_ask(KEYED)
    assert site.counts.may_ask(endpoint(2))
    site.now_s += LATER_S
    assert site.counts.may_ask(KEYED)


async def test_an_engine_that_is_away_is_the_askers_to_deal_with():
    site = Site()

    async def away(*_, **__):
        raise FetchFailed("refused")

    counts = EngineCounts(site.engines, away, lambda: 0.0)
    with pytest.raises(FetchFailed):
        await counts.ask(KEYED, b"{}")


def test_only_engines_that_are_well_and_of_a_kind_that_counts_are_asked():
    site = Site()
    assert not site.counts.may_ask(endpoint(1, dialect="openai"))
    assert site.counts.may_ask(endpoint(1, dialect="nim"))
    site.engines.signals[1] = EndpointSignals(endpoint_id=1, healthy=False)
    assert not site.counts.may_ask(KEYED)

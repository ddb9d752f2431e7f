"""What money is held for: never less than the prompt, and nothing where nothing bounds it."""

import json

import pytest

from gateway.ceilings import Ceilings
from gateway.contract.envelope import parse
from gateway.contract.errors import CostUnbounded, ModelNotPriced
from gateway.engine_counts import EngineCounts
from gateway.engines import Engines
from gateway.snapshot import (
    KeyDoc,
    ModelDoc,
    PlatformDoc,
    Principal,
    ProjectDoc,
    Snapshot,
    TenantDoc,
)
from gateway.terms import Calendars, terms_of
from gateway.wire.fetch import Fetched, FetchFailed
from quotas.estimate import TEMPLATE_TOKENS
from quotas.pricing import Price
from routing.signals import EndpointSignals
from tests.support.topology import endpoint, pool

PRICE = Price(id=9, version=1, currency="USD", nano={"input": 1, "output": 1})
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


class Engine:
    """An engine's /tokenize: counts, refuses or is away."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def fetch(self, address, method, path, *, headers, body, **more):
        assert (method, path) == ("POST", "/tokenize")
        self.asked.append(json.loads(body))
        answer = self.answers.pop(0)
        if answer is None:
            raise FetchFailed("away")
        return Fetched(200 if answer else 500, [], b'{"count":%d}' % answer)


async def most(
    engine, fields, *, context=None, template=40, price=PRICE, healthy=True, operation="chat"
):
    engines = Engines({}, 4.0)
    snapshot = Snapshot()
    snapshot.pools[1] = pool(endpoint(1), endpoint(2, url="http://10.0.0.9:1"))
    for each in (1, 2):
        told = {"llama": template} if template else {}
        engines.signals[each] = EndpointSignals(
            endpoint_id=each, healthy=healthy, template_tokens=told
        )
    model = ModelDoc(id=7, name="m", upstream="llama", pool_id=1, price=price)
    who = Principal(
        KeyDoc(id=3, project_id=2, name="c", path="a/b/c", secrets=()),
        ProjectDoc(id=2, tenant_id=1, name="b"),
        TenantDoc(id=1, name="a"),
    )
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    body = json.dumps({name: value for name, value in asked.items() if value is not None})
    envelope = parse(body.encode(), operation)
    ceilings = Ceilings(snapshot, engines, EngineCounts(engines, engine.fetch, lambda: 0.0))
    terms = terms_of(who, model, Calendars(), PlatformDoc())
    return len(body), await ceilings.of(terms, envelope, body.encode(), context)


async def test_text_is_bounded_by_its_bytes_and_the_template_without_a_question():
    engine = Engine()
    size, tokens = await most(engine, {})

    assert tokens == size + 40
    assert engine.asked == []


async def test_a_chat_is_counted_until_its_template_is_known_and_a_text_needs_none():
    engine = Engine(12)
    assert (await most(engine, {}, template=None))[1] == 12 + TEMPLATE_TOKENS
    assert engine.asked[0]["messages"] == [{"role": "user", "content": "hi"}]

    text = {"messages": None, "prompt": "hi"}
    size, tokens = await most(Engine(), text, template=None, operation="completions")
    assert tokens == size + TEMPLATE_TOKENS


async def test_tools_are_counted_by_the_first_engine_that_answers():
    engine = Engine(None, 0)
    with pytest.raises(CostUnbounded):
        await most(engine, TOOLS)
    engine = Engine(None, 120)
    _, tokens = await most(engine, TOOLS)

    assert tokens == 120 + TEMPLATE_TOKENS
    assert engine.asked[0]["model"] == "llama"
    assert engine.asked[0]["tools"] == TOOLS["tools"]


async def test_what_the_engine_does_not_count_is_bounded_by_the_context():
    engine = Engine()
    assert (await most(engine, {"messages": PICTURE}, context=4096))[1] == 4096
    assert (await most(engine, {"documents": []}, context=4096))[1] == 4096
    assert engine.asked == []
    assert (await most(Engine(None, None), TOOLS, context=4096))[1] == 4096


async def test_an_endpoint_that_is_ill_is_not_asked():
    engine = Engine()
    assert (await most(engine, TOOLS, context=4096, healthy=False))[1] == 4096


async def test_nothing_to_bound_it_is_a_refusal_with_the_reason():
    with pytest.raises(CostUnbounded, match="template"):
        await most(Engine(None, None), {}, template=None)
    with pytest.raises(CostUnbounded, match="not plain text"):
        await most(Engine(), {"messages": PICTURE})


async def test_a_model_without_a_price_is_refused():
    with pytest.raises(ModelNotPriced):
        await most(Engine(), {}, price=None)

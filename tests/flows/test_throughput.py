"""Reserved throughput, sold: others' load does not keep it out, and what is above it spills or is refused."""

import json

import httpx
import pytest

from tests.flows.conftest import EngineThread
from tests.support.gateway import running
from tests.support.until import wait_until

PRICE = {"input": "1", "output": "4"}
#: Who has reserved: nothing paid in, and less of tokens than it has bought apart.
SOLD = {"contract": {"kind": "prepaid"}, "limits": {"tokens_per_minute": 50}}
RATE = 1_000


class Market:
    """An operator with one small engine; "guarded" and "spilling" have reserved, "crowd" has not."""

    def __init__(self, gateway, engine):
        self.engine = engine
        self.gateway = gateway
        endpoint = {"url": engine.url, "max_in_flight": 1}
        tenants = {"guarded": SOLD, "spilling": {"contract": {"kind": "payg"}}, "crowd": {}}
        applied = gateway.apply(
            {
                "pools": [{"name": "pool", "endpoints": [endpoint]}],
                "models": [
                    {"name": "llama", "upstream": "demo-model", "pool": "pool", "price": PRICE}
                ],
                "tenants": [
                    {"name": name, "projects": [{"name": "p", "keys": [{"name": "k"}]}], **rest}
                    for name, rest in tenants.items()
                ],
            }
        )
        self.keys = {each["path"].split("/")[0]: each["secret"] for each in applied["keys"]}
        run = json.loads((gateway.data_dir / "run.json").read_text())
        token = {"authorization": f"Bearer {run['operator_token']}"}
        self.admin = httpx.Client(base_url=run["control_url"] + "/admin/v1", headers=token)
        self.api = httpx.Client(base_url=gateway.base_url, timeout=30)

    def sell(self, tenant, overflow):
        asked = {"model": "llama", "tokens_per_minute": RATE, "price_per_hour": "1",
                 "until": "2999-01-01", "overflow": overflow}  # fmt: skip
        term = self.admin.post(f"/tenants/{tenant}/throughput", json=asked).json()
        assert self.admin.post(f"/throughput/{term['id']}/accept", json={}).is_success
        wait_until(lambda: "reserved throughput" in self.get(tenant, "/key").text)

    def get(self, tenant, path):
        return self.api.get(path, headers={"authorization": f"Bearer {self.keys[tenant]}"})

    def ask(self, tenant, tokens=10, **body):
        body = {"model": "llama", "prompt": "a b c d e", "max_tokens": tokens} | body
        key = {"authorization": f"Bearer {self.keys[tenant]}"}
        return self.api.post("/completions", json=body, headers=key)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    engines = EngineThread()
    engine = engines.start(token_ms=0.0)
    with running(tmp_path_factory.mktemp("market") / "data", store="memory") as gateway:
        made = Market(gateway, engine)
        with made.admin, made.api:
            made.sell("guarded", "reject")
            made.sell("spilling", "spill")
            yield made
    engines.close()


def test_it_is_admitted_while_others_have_filled_the_only_engine(market):
    body = {"model": "llama", "prompt": "a", "max_tokens": 9, "stream": True}
    key = {"authorization": f"Bearer {market.keys['crowd']}"}
    market.engine.faults.stall_after_frames = 2
    with market.api.stream("POST", "/completions", json=body, headers=key) as held:
        lines = held.iter_lines()  # kept: the stream is closed with it
        next(lines)
        others, sold = market.ask("crowd"), market.ask("guarded")
    market.engine.faults.stall_after_frames = -1

    assert others.status_code == 503
    assert sold.status_code == 200
    assert sold.headers["x-tf-throughput"] == "reserved"


def test_it_needs_no_balance_and_costs_its_hours_alone(market):
    assert market.ask("guarded", 100).headers["x-tf-throughput"] == "reserved"

    # The stream that was held before may end its books after this one.
    records = market.gateway.records_when(3)
    assert ("guarded", 100) in [(each["tenant"], each["completion_tokens"]) for each in records]
    balance = market.admin.get("/tenants/guarded/credits").json()["balance"]
    assert (balance["available"], balance["owed"]) == ("0.00", "0.00")
    (shown,) = market.admin.get("/tenants/guarded/throughput").json()["data"]
    assert shown["used_tokens"] >= 105
    assert shown["idle_tokens"] == shown["sold_tokens"] - shown["used_tokens"]


def test_above_it_a_request_is_refused_by_its_name_and_never_sold_otherwise(market):
    answers = [market.ask("guarded", 400) for _ in range(4)]
    refused = next(each for each in answers if each.status_code != 200)
    error = refused.json()["error"]

    assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
    assert "reserved throughput of tenant guarded on model llama" in error["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 60
    too_large = market.ask("guarded", RATE * 2)
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (400, "request_too_large")
    key = market.get("guarded", "/key").json()
    assert any(each["scope"].startswith("reserved throughput") for each in key["limits"])


def test_above_it_a_request_spills_and_is_sold_as_to_everybody(market):
    went = [market.ask("spilling", 400).headers["x-tf-throughput"] for _ in range(4)]
    larger = market.ask("spilling", RATE * 2)

    assert went[0] == "reserved"
    assert went[-1] == larger.headers["x-tf-throughput"] == "spilled"
    assert market.get("spilling", "/key").json()["refusals"] == [], "nobody was refused"
    spilled = [400] * went.count("spilled") + [RATE * 2]
    owed = sum(5 * 1_000 + tokens * 4_000 for tokens in spilled)

    def charged():
        page = market.admin.get("/statements/preview", params={"party": "spilling"}).json()["data"]
        return page[0]["charged_nano"] if page and page[0]["records"] == 5 else None

    wait_until(lambda: charged() is not None)
    assert charged() == owed


def test_what_all_tenants_share_holds_a_spilled_request_once_and_a_reserved_one_not_at_all(market):
    market.gateway.cli("limits", "set", "@platform", "requests_per_minute=3")
    wait_until(lambda: "platform" in market.get("spilling", "/key").text)

    spilled = [market.ask("spilling", RATE * 2) for _ in range(4)]
    reserved = market.ask("guarded", 1)

    assert [each.status_code for each in spilled] == [200, 200, 200, 429]
    assert {each.headers["x-tf-throughput"] for each in spilled[:3]} == {"spilled"}
    assert "platform" in spilled[3].json()["error"]["message"]
    error = reserved.json().get("error", {}).get("message", "")
    assert "platform" not in error, "nobody's load holds back what was bought"

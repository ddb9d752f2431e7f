"""A whole gateway loses its store: who paid ahead spends the configured credit, and never more."""

import concurrent.futures
import json

import httpx
import pytest

from tests.support.gateway import running
from tests.support.until import wait_until
from tests.support.valkey import serving

CLIENTS = 8
PAID, OFFLINE = 5_000, 500  # in thousandths: a token costs one
#: 10 tokens of prompt and up to 20 of answer.
BODY = {"model": "llama", "prompt": "a b c d e", "max_tokens": 20}


def document(engine_url):
    price = {"input": "1000", "output": "1000"}
    project = {"name": "p", "keys": [{"name": "k"}]}
    return {
        "pools": [{"name": "pool", "endpoints": [{"url": engine_url}]}],
        "models": [{"name": "llama", "upstream": "demo-model", "pool": "pool", "price": price}],
        "tenants": [
            {"name": "ahead", "contract": {"kind": "prepaid"}, "projects": [project],
             "limits": {"offline_credit": "0.50"}},
            {"name": "careful", "contract": {"kind": "prepaid"}, "projects": [project]},
        ],
    }  # fmt: skip


class Shop:
    """``api``: a client of each tenant's key."""

    def __init__(self, gateway, engine_url):
        self.gateway = gateway
        applied = gateway.apply(document(engine_url))
        run = json.loads((gateway.data_dir / "run.json").read_text())
        admin = httpx.Client(
            base_url=run["control_url"] + "/admin/v1",
            headers={"authorization": f"Bearer {run['operator_token']}"},
        )
        self.api = {}
        for key in applied["keys"]:
            name = key["path"].partition("/")[0]
            said = admin.post(f"/tenants/{name}/credits", json={"amount": "5", "reference": "a"})
            assert said.status_code == 201, said.text
            head = {"authorization": f"Bearer {key['secret']}"}
            self.api[name] = httpx.Client(base_url=gateway.base_url, headers=head, timeout=20)
        admin.close()

    def ask(self, tenant):
        return self.api[tenant].post("/completions", json=BODY)

    def spend(self, tenant):
        """Clients ask until each is refused; the answers."""

        def client(_number):
            answers = [self.ask(tenant)]
            while answers[-1].status_code == 200:
                answers.append(self.ask(tenant))
            return answers

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            together = [each for answers in pool.map(client, range(CLIENTS)) for each in answers]
        return together + client(0)  # alone: what others only held is free again

    def balance(self, tenant):
        """The store's, in thousandths; None while it does not know."""
        answer = self.api[tenant].get("/key")
        if answer.status_code != 200:
            return None
        (row,) = [each for each in answer.json()["limits"] if "money" in each["name"]]
        return round(float(row["balance"]) * 1000) if "balance" in row else None


def tokens_of(answer):
    return answer.json()["usage"]["total_tokens"]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_money_goes_on_within_the_offline_credit_and_is_charged_when_the_store_is_back(
    tmp_path, engines, how
):
    engine = engines.start(token_ms=0.5)
    with (
        serving() as valkey,
        running(tmp_path / "data", redis_url=valkey.unix_url, access_log="false") as gateway,
    ):
        shop = Shop(gateway, engine.url)
        for tenant in shop.api:
            wait_until(lambda tenant=tenant: shop.ask(tenant).status_code == 200, 5)
        spent = {tenant: sum(tokens_of(shop.ask(tenant)) for _ in range(2)) for tenant in shop.api}
        if how == "stopped":
            valkey.pause()
        else:
            valkey.kill()

        refused = shop.ask("careful")
        answers = shop.spend("ahead")

        assert refused.status_code == 503, "money is not spent on a guess"
        served = [answer for answer in answers if answer.status_code == 200]
        assert {answer.status_code for answer in answers} == {200, 503}
        without = sum(map(tokens_of, served))
        # What is left would not hold one request more, at the dearest it could be: its bytes and 20.
        assert OFFLINE - 90 < without <= OFFLINE
        assert shop.ask("ahead").status_code == 503, "a credit is not given twice"

        if how == "stopped":
            valkey.resume()
        else:
            valkey.start()
        wait_until(lambda: shop.ask("ahead").status_code == 200, 10)
        wait_until(lambda: shop.ask("careful").status_code == 200, 10)

        def recorded(tenant):
            return sum(
                each["prompt_tokens"] + each["completion_tokens"]
                for each in gateway.records()
                if each["tenant"] == tenant
            )

        assert spent["ahead"] < PAID - OFFLINE
        for tenant in shop.api:
            # What was served without it is charged: the store's balance is what was paid less all records.
            wait_until(
                lambda tenant=tenant: shop.balance(tenant) == PAID - recorded(tenant) < PAID, 10
            )
        assert recorded("ahead") >= spent["ahead"] + without
        for client in shop.api.values():
            client.close()

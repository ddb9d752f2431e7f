"""Prepaid money under 64 clients at once: never below zero, refused by name, credited at once."""

import concurrent.futures
import json
import time

import httpx
import pytest

from tests.support.gateway import running
from tests.support.until import wait_until

CLIENTS = 64
#: A request costs 10 in and at most 40 out: at 1,000 a million, 0.05 at its ceiling's most.
PRICE = {"input": "1000", "output": "1000"}


class Wallet:
    def __init__(self, gateway, engine_url):
        applied = gateway.apply(
            {
                "pools": [{"name": "pool", "endpoints": [{"url": engine_url}]}],
                "models": [{"name": "llama", "upstream": "demo-model", "pool": "pool",
                            "price": PRICE}],
                "tenants": [{"name": "acme", "contract": {"kind": "prepaid"},
                             "projects": [{"name": "p", "keys": [{"name": "k"}]}]}],
            }
        )  # fmt: skip
        run = json.loads((gateway.data_dir / "run.json").read_text())
        token = {"authorization": f"Bearer {run['operator_token']}"}
        self.gateway = gateway
        self.admin = httpx.Client(base_url=run["control_url"] + "/admin/v1", headers=token)
        key = {"authorization": f"Bearer {applied['keys'][0]['secret']}"}
        pool = httpx.Limits(max_connections=CLIENTS)
        self.api = httpx.Client(base_url=gateway.base_url, headers=key, timeout=30, limits=pool)

    def credit(self, amount, reference):
        path = "/tenants/acme/credits"
        response = self.admin.post(path, json={"amount": amount, "reference": reference})
        assert response.status_code == 201, response.text

    def balance(self):
        return self.admin.get("/tenants/acme/credits").json()["balance"]

    def ask(self, _number=0):
        body = {"model": "llama", "prompt": "a b c d e", "max_tokens": 20}
        return self.api.post("/completions", json=body)

    def spend(self):
        """All clients ask until each is refused; (answers served, the last refusals)."""

        def client(number):
            served = 0
            while True:
                answer = self.ask(number)
                served += answer.status_code == 200
                if answer.headers.get("x-should-retry") == "false":  # spent, not only held
                    return served, answer

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(client, range(CLIENTS)))
        return sum(served for served, _ in found), [answer for _, answer in found]


@pytest.fixture(params=["memory", "auto"])
def wallet(request, tmp_path, engines):
    engine = engines.start(token_ms=0.5)
    with running(tmp_path / "data", store=request.param) as gateway:
        made = Wallet(gateway, engine.url)
        with made.admin, made.api:
            yield made


def test_sixty_four_clients_cannot_spend_what_is_not_there(wallet):
    assert wallet.ask().status_code == 429, "nothing was paid in"
    wallet.credit("5", "first")
    began_s = time.monotonic()
    wait_until(lambda: wallet.ask().status_code == 200, 1.0)
    assert time.monotonic() - began_s < 1.0, "a credit counts within a second"

    served, refusals = wallet.spend()

    assert served > 10
    for refused in refusals:
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "insufficient_quota")
        assert "The balance of tenant acme" in error["message"]
    wait_until(lambda: len(wallet.gateway.records()) == served + 1, 10.0)
    balance = wallet.balance()
    spent = sum(each["prompt_tokens"] + each["completion_tokens"]
                for each in wallet.gateway.records())  # fmt: skip
    assert balance["owed"] == "0.00"
    assert 0 <= round(float(balance["available"]) * 1000) == 5_000 - spent
    wallet.credit("1", "second")
    wait_until(lambda: wallet.ask().status_code == 200, 1.0)


def test_a_credit_that_is_taken_back_cannot_be_spent(wallet):
    wallet.credit("5", "first")
    assert wallet.ask().status_code == 200
    response = wallet.admin.post("/tenants/acme/credits/reverse", json={"reference": "first"})
    assert response.status_code == 200

    wait_until(lambda: wallet.ask().status_code == 429, 1.0)


def test_what_a_correction_gives_back_can_be_spent_at_once(wallet):
    wallet.credit("0.2", "first")
    wait_until(lambda: wallet.ask().status_code == 200, 1.0)
    while (answer := wallet.ask()).headers.get("x-should-retry") != "false":
        assert answer.status_code == 200
    wait_until(wallet.gateway.records, 10.0)
    for record in wallet.gateway.records()[:2]:
        response = wallet.admin.post(f"/records/{record['request_id']}/reverse")
        assert response.status_code == 200, response.text

    wait_until(lambda: wallet.ask().status_code == 200, 1.0)

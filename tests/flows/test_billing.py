"""The worked examples of docs/billing.md, as requests through the gateway and statements after."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.demo.engine import DemoEngine
from tests.flows.conftest import EngineThread
from tests.support.gateway import Gateway, running
from tests.support.until import wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "billing.md").read_text()
#: Heading of the example -> the tenant that follows it.
EXAMPLES = {
    "Pay as you go": "payg",
    "Prepaid": "prepaid",
    "Commitment": "commitment",
    "Reserved throughput": "throughput",
    "Free tier": "free",
    "Service tiers": "tiered",
}
PROMPT = " ".join(["token"] * 1_000)
#: Of a price or contract, from its moment on, until no request is admitted under the one before.
TAKES_EFFECT_S = 1.0
LINE = re.compile(r"(\w+) +(?:(\d+) +)?(-?[\d.]+)")


def blocks(heading: str) -> tuple[Any, dict[str, tuple[int | None, str]]]:
    """The section's YAML, and its statement: name -> (units, amount)."""
    section = PAGE.split(f"### {heading}\n")[1].split("\n##")[0]
    written = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    table = re.findall(r"```text\n(.*?)```", section, re.DOTALL)[0]
    rows = [LINE.fullmatch(line.strip()) for line in table.splitlines()]
    said = {row[1]: (int(row[2]) if row[2] else None, _amount(row[3])) for row in rows if row}
    return yaml.safe_load(written), said


def _amount(text: str) -> str:
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest.ljust(2, '0')}"


class Books:
    """A gateway with a tenant an example, its admin API, and a key a tenant."""

    def __init__(self, gateway: Gateway, applied: Any) -> None:
        self.gateway = gateway
        self.keys = {each["path"].split("/")[0]: each["secret"] for each in applied["keys"]}
        run = json.loads((gateway.data_dir / "run.json").read_text())
        token = {"authorization": f"Bearer {run['operator_token']}"}
        self.admin = httpx.Client(base_url=run["control_url"] + "/admin/v1", headers=token)
        self.api = httpx.Client(base_url=gateway.base_url, timeout=30)

    engine: DemoEngine

    def post(self, path: str, body: Any) -> Any:
        response = self.admin.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    def ask(
        self, tenant: str, model: str = "llama", tokens: int = 1_000, **more: Any
    ) -> httpx.Response:
        return self.api.post(
            "/completions",
            json={"model": model, "prompt": PROMPT, "max_tokens": tokens} | more,
            headers={"authorization": f"Bearer {self.keys[tenant]}"},
        )

    def statement(self, party: str, records: int, kind: str = "tenant") -> dict[str, Any]:
        """This month's so far, once it has all records: name -> (units, amount), as the page."""
        until = time.monotonic() + 10
        while True:
            params = {"party": party, "kind": kind}
            found = self.admin.get("/statements/preview", params=params).json()["data"]
            if (found and found[0]["records"] >= records) or time.monotonic() > until:
                break
            time.sleep(0.05)
        (made,) = found
        said = {
            line["meter"]: (line["units"], _nano(line["amount_nano"])) for line in made["lines"]
        }
        said["charged"] = (None, _nano(made["charged_nano"]))
        return said | {name: (None, _nano(nano)) for name, nano in made["closing"].items()}


def _nano(nano: int) -> str:
    sign, whole, rest = "-" if nano < 0 else "", abs(nano) // 10**9, abs(nano) % 10**9
    return f"{sign}{whole}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    engines = EngineThread()
    engine = engines.start(token_ms=0.0)
    price = {"input": "1", "output": "4"}
    shared, _ = blocks("Publishers")
    contracts = {tenant: blocks(heading)[0] for heading, tenant in EXAMPLES.items()}
    contracts["shared"] = contracts["corrected"] = {"contract": {"kind": "payg"}}
    contracts["told"] = contracts["later"] = {}
    upstream = {"upstream": "demo-model", "pool": "pool"}
    document = {
        "pools": [{"name": "pool", "endpoints": [{"url": engine.url}]}],
        "publishers": shared["publishers"],
        "models": [
            {"name": "llama", "price": price | {"tiers": {"flex": "0.5"}}, **upstream},
            {"name": "unpriced", **upstream},
            {"name": "dated", "price": price, **upstream},
            *({**model, "price": price, **upstream} for model in shared["models"]),
        ],
        "tenants": [
            {"name": name, "projects": [{"name": "p", "keys": [{"name": "k"}]}], **contract}
            for name, contract in contracts.items()
        ],
    }
    with running(tmp_path_factory.mktemp("billing") / "data", store="memory") as gateway:
        made = Books(gateway, gateway.apply(document))
        made.engine = engine
        with made.admin, made.api:
            yield made
    engines.close()


def two_requests(books: Books, tenant: str, model: str = "llama") -> None:
    for _ in range(2):
        usage = books.ask(tenant, model).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (1_000, 1_000)


@pytest.mark.parametrize("heading", ["Pay as you go", "Commitment", "Free tier"])
def test_the_pages_example_is_what_is_billed(books, heading):
    tenant = EXAMPLES[heading]
    two_requests(books, tenant)

    assert books.statement(tenant, 2) == blocks(heading)[1]


def test_the_pages_prepaid_example_is_what_is_billed(books):
    path = "/tenants/prepaid/credits"
    gift = {"amount": "0.004", "reference": "gift", "kind": "promotional"}
    books.post(path, gift)
    assert books.post(path, {"amount": "10", "reference": "w1"})["balance"]["available"] == "10.004"
    two_requests(books, "prepaid")

    assert books.statement("prepaid", 2) == blocks("Prepaid")[1]
    shown = books.admin.get(path).json()
    assert (shown["balance"]["available"], shown["balance"]["owed"]) == ("9.994", "0.00")


def test_the_pages_throughput_example_is_what_is_billed(books):
    asked = {"model": "llama", "tokens_per_minute": 3_200, "price_per_hour": "1.5",
             "until": "2999-01-01"}  # fmt: skip
    term = books.post("/tenants/throughput/throughput", asked)
    books.post(f"/throughput/{term['id']}/accept", {})
    key = {"authorization": f"Bearer {books.keys['throughput']}"}
    wait_until(lambda: "reserved throughput" in books.api.get("/key", headers=key).text)
    two_requests(books, "throughput")

    assert books.statement("throughput", 2) == blocks("Reserved throughput")[1]
    (shown,) = books.admin.get("/tenants/throughput/contract").json()["throughput"]
    assert shown["used_tokens"] == 2_000
    assert shown["idle_tokens"] == max(0, shown["sold_tokens"] - 2_000)


def test_the_pages_service_tier_example_is_what_is_billed_and_told(books):
    answers = [books.ask("tiered", service_tier="flex", stream=stream) for stream in (False, True)]
    events = [line[6:] for line in answers[1].text.splitlines() if line.startswith("data: {")]

    assert answers[0].json()["service_tier"] == "flex"
    assert {json.loads(each)["service_tier"] for each in events} == {"flex"}
    assert all(b"service_tier" not in entry.body for entry in books.engine.log[-2:])
    assert books.statement("tiered", 2) == blocks("Service tiers")[1]


@pytest.mark.parametrize(("asked", "got"), [("auto", "default"), ("default", "default")])
def test_what_names_the_default_tier_is_told_so(books, asked, got):
    assert books.ask("free", "unpriced", 1, service_tier=asked).json()["service_tier"] == got
    assert not books.ask("free", "unpriced", 1).json().get("service_tier")


@pytest.mark.parametrize(
    ("model", "tier", "said"),
    [
        ("llama", "priority", "'service_tier' priority is not offered for the model llama"),
        ("llama", "scale", "'service_tier' scale is not offered for the model llama"),
        ("unpriced", "flex", "'service_tier' flex is not offered for the model unpriced"),
        ("llama", "gold", "'service_tier' must be one of auto, default, flex, scale, priority"),
        ("llama", 1, "'service_tier' must be a string"),
    ],
)
def test_a_tier_that_is_not_offered_is_refused_in_a_sentence(books, model, tier, said):
    refused = books.ask("free", model, service_tier=tier)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "service_tier"
    assert said in refused.json()["error"]["message"]


def test_a_price_that_was_dated_in_advance_begins_by_itself(books):
    begins_s = time.time() + 3
    moment = datetime.fromtimestamp(begins_s, UTC).isoformat()
    model = {"name": "dated", "upstream": "demo-model", "pool": "pool"}
    price = {"input": "2", "output": "8", "from": moment}
    books.gateway.apply({"models": [model | {"price": price}]})

    def cost() -> str:
        key = {"authorization": f"Bearer {books.keys['free']}", "x-tf-usage-cost": "true"}
        body = {"model": "dated", "prompt": PROMPT, "max_tokens": 1_000}
        return books.api.post("/completions", json=body, headers=key).json()["usage"]["cost"]

    told = []
    while time.time() < begins_s + 10 and told[-1:] != ["0.01"]:
        asked_s = time.time()
        told.append(cost())
    assert told[-1] == "0.01"
    assert set(told[:-1]) == {"0.005"}
    assert begins_s <= time.time()
    assert asked_s < begins_s + TAKES_EFFECT_S


def test_a_contract_that_was_dated_in_advance_begins_by_itself(books):
    begins_s = time.time() + 3
    moment = datetime.fromtimestamp(begins_s, UTC).isoformat()
    books.gateway.apply(
        {"tenants": [{"name": "later", "contract": {"kind": "prepaid", "from": moment}}]}
    )
    statuses = []
    while time.time() < begins_s + 10 and statuses[-1:] != [429]:
        asked_s = time.time()
        statuses.append(books.ask("later", tokens=1).status_code)
    assert statuses[-1] == 429, "nothing was paid in"
    assert set(statuses[:-1]) == {200}
    assert begins_s <= time.time()
    assert asked_s < begins_s + TAKES_EFFECT_S


def test_the_pages_publisher_example_is_what_is_earned(books):
    two_requests(books, "shared", "llama-labs")
    books.statement("shared", 2)

    assert books.statement("labs", 2, "publisher") == blocks("Publishers")[1]
    cli = books.gateway.cli
    preview = cli("statements", "show", "--preview", "labs", "--publisher")
    assert "publisher_payable -0.007" in preview
    paid = cli("publishers", "pay", "labs", "0.005", "--reference", "wire-1")
    assert paid == "payable 0.002 after 0.005 paid\n"
    assert "llama-labs" in cli("margin")


def test_what_a_request_was_charged_is_charged_anew_and_then_not_at_all(books):
    request_id = books.ask("corrected", "llama").headers["x-request-id"]
    assert books.statement("corrected", 1)["charged"] == (None, "0.005")
    records = ("records", "reprice", request_id, "1")

    again = books.gateway.cli(*records)
    undone = books.gateway.cli("records", "reverse", request_id)

    assert again == f"charged 0.005 in place of use:{request_id}\n"
    assert undone == f"reversal:{request_id}:2 takes back reprice:{request_id}:1\n"
    assert books.statement("corrected", 1)["charged"] == (None, "0.00")
    books.gateway.cli("records", "reverse", request_id, code=1)


def test_a_model_without_a_price_is_refused_to_those_who_pay_and_free_to_others(books):
    refused = books.ask("payg", "unpriced")

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_priced")
    assert books.ask("free", "unpriced").status_code == 200


def test_an_answer_says_its_cost_where_that_is_asked_for_and_the_ledger_says_the_same(books):
    def ask(headers, **more):
        body = {"model": "llama", "prompt": PROMPT, "max_tokens": 7, **more}
        said = books.api.post(
            "/completions",
            json=body,
            headers={"authorization": f"Bearer {books.keys['told']}", **headers},
        )
        if more.get("stream"):
            (usage,) = (
                json.loads(line[6:])["usage"]
                for line in said.text.splitlines()
                if line.startswith("data: {") and '"choices":[]' in line
            )
        else:
            usage = said.json()["usage"]
        key = {"authorization": f"Bearer {books.keys['told']}"}
        found = books.api.get(
            "/generation", params={"id": said.headers["x-request-id"]}, headers=key
        ).json()
        return usage, found

    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    for more in ({}, {"n": 2}, streamed):
        usage, found = ask({"x-tf-usage-cost": "true"}, **more)
        nano = 1_000 * usage["prompt_tokens"] + 4_000 * usage["completion_tokens"]
        assert (usage["cost"], usage["currency"]) == (_nano(nano), "USD")
        assert usage["cost"] == found["cost"]
        assert usage["completion_tokens"] == found["usage"]["completion_tokens"]
        usage, _ = ask({}, **more)
        assert "cost" not in usage
    usage, _ = ask({"x-tf-usage-cost": "true"}, model="unpriced")
    assert (usage["cost"], usage["currency"]) == (None, None)


def test_a_project_may_have_every_answer_say_its_cost(books):
    switch = {"name": "p", "usage_cost": True}
    books.gateway.apply({"tenants": [{"name": "told", "projects": [switch]}]})
    wait_until(lambda: "cost" in books.ask("told", tokens=3).json()["usage"])
    books.gateway.apply({"tenants": [{"name": "told", "projects": [{"name": "p"}]}]})
    assert "cost" in books.ask("told", tokens=3).json()["usage"]
    switch["usage_cost"] = False
    books.gateway.apply({"tenants": [{"name": "told", "projects": [switch]}]})
    wait_until(lambda: "cost" not in books.ask("told", tokens=3).json()["usage"])

"""The admin API in this process, as the command line drives it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway import identity
from gateway.control.app import ControlDeps, build_app
from gateway.control.purses import Move
from gateway.loader import Loader
from gateway.metering.reconcile import Explained, Range, Report
from gateway.signing import Signer
from gateway.snapshot import Snapshot
from gateway.store import reconciliations
from gateway.store.database import Database, open_database
from gateway.store.ledger import insert_records
from tests.support.applying import FULL, PEPPER, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import FIELDS, record

__all__ = ["database_url", "db", "postgres"]
TOKEN = "tfo_secret"
REPORT = Report(
    endpoint="http://one", from_ms=0, to_ms=3_600_000, exact=True, attempts=2, probes=1,
    engine_prompt=20, engine_generation=9, prompt=Range(20, 20), generation=Range(7, 8),
    difference_prompt=0, difference_generation=1, with_room=1,
    explained_by=(Explained("ab", "client_abort", Range(0, 0), Range(0, 1)),),
)  # fmt: skip


class Desk:
    """The application with callbacks that count; ``state`` is what /readyz says."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.changes = 0
        self.shipped = 0
        self.credited: list[tuple[str, int]] = []
        self.state: dict[str, object] = {"ready": True}
        deps = ControlDeps(
            db=db,
            pepper=PEPPER,
            key_env="test",
            operator_token=TOKEN,
            changed=self._changed,
            ship=self._ship,
            metrics_text=self._metrics,
            ready=lambda: self.state,
            probe=self._probe,
            doctor=self._doctor,
            reconcile=self._reconcile,
            explain=self._explain,
            credited=self._credited,
            signer=Signer("11" * 32),
            stripe_secret="whsec_test",
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=build_app(deps)),
            base_url="http://control",
            headers={"authorization": f"Bearer {TOKEN}"},
        )

    async def _changed(self) -> None:
        self.changes += 1

    async def _ship(self) -> None:
        self.shipped += 1

    async def _credited(self, moves: Sequence[Move]) -> None:
        self.credited += [(move.entry_key, move.nano) for move in moves]

    async def _metrics(self) -> bytes:
        return b"tf_requests_total 1\n"

    async def _probe(self, url: str, upstream: str) -> Mapping[str, object]:
        return {"models": f"{upstream} at {url}"}

    async def _doctor(self) -> list[Any]:
        return [{"check": "store", "severity": "ok"}]

    async def _reconcile(self) -> list[Report]:
        return [REPORT]

    async def _explain(self, *asked: object) -> Mapping[str, object]:
        return {"asked": asked}

    async def post(self, path: str, body: object, status: int) -> Any:
        response = await self.http.post(f"/admin/v1/{path}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    async def snapshot(self) -> Snapshot:
        snapshot = Snapshot()
        snapshot.apply(*await Loader(self.db, lambda: 2**62).full())
        return snapshot

    async def admits(self, token: str) -> bool:
        kid = identity.parse(token)
        assert kid is not None
        found = (await self.snapshot()).find_secret(kid)
        return found is not None and identity.matches(
            found[1].digest, identity.digest(PEPPER, token)
        )


@pytest.fixture
async def desk(db: Database) -> AsyncIterator[Desk]:
    made = Desk(db)
    yield made
    await made.http.aclose()


ADMIN = [
    ("POST", "/admin/v1/apply"), ("GET", "/admin/v1/keys"), ("POST", "/admin/v1/keys"),
    ("POST", "/admin/v1/keys/rotate"), ("POST", "/admin/v1/keys/revoke"),
    ("GET", "/admin/v1/models"), ("POST", "/admin/v1/models"), ("GET", "/admin/v1/usage"),
    ("GET", "/admin/v1/usage/records"), ("GET", "/admin/v1/doctor"), ("GET", "/admin/v1/nothing"),
]  # fmt: skip


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", TOKEN, f"Bearer {TOKEN}x"])
async def test_every_admin_path_asks_for_the_token(desk: Desk, authorization: str) -> None:
    for method, path in ADMIN:
        answer = await desk.http.request(method, path, headers={"authorization": authorization})
        assert answer.status_code == 401, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKEN not in answer.text
    assert (desk.changes, desk.shipped) == (0, 0)


async def test_health_and_metrics_are_open_and_readiness_has_its_status(desk: Desk) -> None:
    desk.http.headers.pop("authorization")
    assert (await desk.http.get("/healthz")).status_code == 200
    assert (await desk.http.get("/metrics")).text == "tf_requests_total 1\n"
    assert (await desk.http.get("/readyz")).status_code == 200
    desk.state = {"ready": False, "snapshot_age_s": 9}
    not_ready = await desk.http.get("/readyz")
    assert (not_ready.status_code, not_ready.json()["snapshot_age_s"]) == (503, 9)


async def test_apply_creates_tells_of_the_change_and_shows_new_secrets(desk: Desk) -> None:
    said = await desk.post("apply", {"document": FULL, "file": "f.yaml"}, 200)
    assert (said["version"], desk.changes) == (1, 1)
    assert [each["path"] for each in said["keys"]] == ["acme/bot/ci", "acme/bot/any"]
    assert await desk.admits(said["keys"][0]["secret"])
    assert (await desk.post("apply", {"document": FULL}, 200))["keys"] == []


async def test_apply_takes_the_text_of_a_yaml_file_too(desk: Desk) -> None:
    text = "tenants: [{name: acme, projects: [{name: b, keys: [{name: k, expires: 2097-01-01}]}]}]"
    answer = await desk.http.post("/admin/v1/apply?dry_run=1", content=text)
    assert answer.json()["created"]["keys"] == ["acme/b/k"]
    assert (await desk.snapshot()).version == 0
    assert (await desk.http.post("/admin/v1/apply", content=text)).json()["version"] == 1


async def test_a_wrong_file_is_a_problem_that_names_it_and_changes_nothing(desk: Desk) -> None:
    said = await desk.post("apply", {"document": {"poools": []}, "file": "mine.yaml"}, 400)
    assert "mine.yaml: poools" in said["detail"]
    assert desk.changes == 0


async def test_a_key_is_created_rotated_with_overlap_and_revoked_at_once(desk: Desk) -> None:
    await apply(desk.db, FULL)
    made = await desk.post("keys", {"path": "acme/bot/new", "models": ["llama"]}, 201)
    assert await desk.admits(made["secret"])
    rotated = await desk.post("keys/rotate", {"path": "acme/bot/new"}, 200)
    assert await desk.admits(made["secret"])
    assert await desk.admits(rotated["secret"])
    third = await desk.post("keys/rotate", {"path": "acme/bot/new"}, 200)
    assert not await desk.admits(made["secret"])
    assert await desk.admits(rotated["secret"])
    await desk.post("keys/revoke", {"path": "acme/bot/new"}, 200)
    assert not await desk.admits(rotated["secret"])
    assert not await desk.admits(third["secret"])
    assert desk.changes == 4


async def test_keys_are_listed_with_their_state_and_never_their_secret(desk: Desk) -> None:
    applied = await apply(desk.db, FULL)
    await desk.post("keys", {"path": "acme/bot/old", "expires": "2001-01-01"}, 201)
    await desk.post("keys/revoke", {"path": "acme/bot/any"}, 200)
    answer = await desk.http.get("/admin/v1/keys")
    states = {each["path"]: each["state"] for each in answer.json()["data"]}
    assert states == {"acme/bot/any": "revoked", "acme/bot/ci": "live", "acme/bot/old": "expired"}
    assert all(each["secret"] not in answer.text for each in applied.keys)


async def test_a_model_is_added_with_what_its_probe_found(desk: Desk) -> None:
    body = {"name": "qwen", "url": "http://10.0.0.9:8000/v1/", "upstream": "Qwen/Q"}
    added = await desk.post("models", body, 201)
    assert added["found"] == {"models": "Qwen/Q at http://10.0.0.9:8000"}
    (shown,) = (await desk.http.get("/admin/v1/models")).json()["data"]
    assert (shown["name"], shown["upstream"], shown["pool"]) == ("qwen", "Qwen/Q", "qwen")


async def test_records_have_exactly_their_fields_and_come_by_cursor(desk: Desk) -> None:
    await insert_records(desk.db, [record(number) for number in range(5)])
    seen: list[Any] = []
    params: dict[str, Any] = {"limit": 2}
    while params.get("cursor", "") is not None:
        page = (await desk.http.get("/admin/v1/usage/records", params=params)).json()
        seen += page["data"]
        params["cursor"] = page["next"]
    assert [each["request_id"] for each in seen] == [f"{number:032x}" for number in range(5)]
    assert all(list(each) == FIELDS for each in seen)
    assert desk.shipped == 3


@pytest.mark.parametrize("by", ["key", "model", "day"])
async def test_usage_is_summed_by_what_is_asked(desk: Desk, by: str) -> None:
    await insert_records(desk.db, [record(1), record(2)])
    answer = await desk.http.get("/admin/v1/usage", params={"by": by, "since": "2020-01-01"})
    (row,) = answer.json()["data"]
    assert (row["requests"], row["prompt_tokens"], desk.shipped) == (2, 20, 1)


async def test_sums_are_compared_with_the_ledger_and_made_anew(desk: Desk) -> None:
    await insert_records(desk.db, [record(1)])
    assert (await desk.http.get("/admin/v1/usage/differences")).json() == {"data": []}
    assert await desk.post("usage/rebuild", {}, 200) == {"rows": 5}  # hour, day, week; of models


async def test_usage_is_filtered_by_paths_and_told_page_by_page(desk: Desk) -> None:
    await apply(desk.db, FULL)
    await insert_records(desk.db, [record(1), record(2, key_id=2)])
    asked = {"by": "day,key", "project": "acme/bot", "limit": 1}
    first = (await desk.http.get("/admin/v1/usage", params=asked)).json()
    rest = await desk.http.get("/admin/v1/usage", params=asked | {"cursor": first["next"]})
    assert [first["data"][0]["key"], rest.json()["data"][0]["key"]] == [
        "acme/bot/ci",
        "acme/bot/any",
    ]
    assert rest.json()["next"] is None
    (one,) = (await desk.http.get("/admin/v1/usage", params={"key": "acme/bot/any"})).json()["data"]
    assert one["requests"] == 1


BAD: list[tuple[str, str, object, int]] = [
    ("POST", "apply", {"file": "x"}, 400),
    ("POST", "apply", {"document": {}, "extra": 1}, 400),
    ("POST", "apply", {"document": [1]}, 400),
    ("POST", "keys", {}, 400),
    ("POST", "keys", {"path": "acme"}, 400),
    ("POST", "keys", {"path": "acme/bot/ci"}, 409),
    ("POST", "keys", {"path": "nobody/bot/ci"}, 404),
    ("POST", "keys", {"path": "acme/nothing/ci"}, 404),
    ("POST", "keys", {"path": "acme/bot/k", "models": ["gpt"]}, 404),
    ("POST", "keys", {"path": "acme/bot/k", "expires": "soon"}, 400),
    ("POST", "keys/rotate", {"path": "acme/bot/nothing"}, 404),
    ("POST", "keys/revoke", {"path": 5}, 400),
    ("POST", "models", {"name": "m"}, 400),
    ("POST", "models", {"name": "m", "url": "file:///etc/passwd"}, 400),
    ("POST", "models", {"name": "", "url": "http://x"}, 400),
    ("GET", "usage?by=colour", None, 400),
    ("GET", "usage?by=day,hour", None, 400),
    ("GET", "usage?teant=acme", None, 400),
    ("GET", "usage?tenant=nobody", None, 404),
    ("GET", "usage?model=nothing", None, 404),
    ("GET", "usage?key=acme", None, 400),
    ("GET", "usage?to=0001-01-01", None, 400),
    ("GET", "usage?limit=0", None, 400),
    ("GET", "usage?cursor=x", None, 400),
    ("GET", "usage?since=yesterday", None, 400),
    ("GET", "usage/records?limit=0", None, 400),
    ("GET", "usage/records?limit=1000000", None, 400),
    ("GET", "usage/records?cursor=-1", None, 400),
    ("GET", "usage/records?cursor=99999999999999999999", None, 400),
    ("GET", "nothing", None, 404),
    ("DELETE", "keys", None, 405),
]


async def test_bad_input_is_a_clear_problem_and_no_change(desk: Desk) -> None:
    await apply(desk.db, FULL)
    for method, path, body, status in BAD:
        answer = await desk.http.request(method, f"/admin/v1/{path}", json=body)
        assert answer.status_code == status, (path, body, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        said = answer.json()
        assert (said["status"], bool(said["detail"])) == (status, True)
    assert desk.changes == 0


async def test_a_revoked_key_cannot_be_rotated_back_to_life(desk: Desk) -> None:
    await apply(desk.db, FULL)
    await desk.post("keys/revoke", {"path": "acme/bot/ci"}, 200)
    said = await desk.post("keys/rotate", {"path": "acme/bot/ci"}, 409)
    assert "revoked" in said["detail"]


async def test_revoking_and_rotating_at_once_never_leave_a_revoked_key_alive(desk: Desk) -> None:
    await apply(desk.db, FULL)
    body = {"path": "acme/bot/ci"}
    answers = await asyncio.gather(
        *(desk.http.post(f"/admin/v1/keys/{verb}", json=body) for verb in ("rotate", "revoke") * 4)
    )
    assert {each.status_code for each in answers} <= {200, 409}
    key = next(each for each in (await desk.snapshot()).keys.values() if each.name == "ci")
    assert key.secrets == ()


async def test_limits_are_changed_by_path_and_listed(desk: Desk) -> None:
    await apply(desk.db, FULL)
    await desk.post("limits", {"path": "acme", "limits": {"tokens_per_day": 5}}, 200)
    response = await desk.http.get("/admin/v1/limits", params={"path": "acme/bot"})
    assert [each["name"] for each in response.json()["data"]] == [
        "tokens_per_minute",
        "requests_per_minute",
    ]
    said = await desk.post("limits", {"path": "acme", "limits": {"tokens_per_day": 0}}, 400)
    assert "tokens_per_day" in said["detail"]
    await desk.post("limits", {"path": "gone", "limits": {"tokens_per_day": 1}}, 404)
    assert desk.changes == 1


async def test_reconciliations_are_made_and_read_again(desk: Desk, db: Database) -> None:
    response = await desk.http.post("/admin/v1/reconciliations")
    [made] = response.json()["data"]
    assert (made["from"], made["to"]) == ("1970-01-01T00:00:00.000Z", "1970-01-01T01:00:00.000Z")
    assert made["generation"] == {"low": 7, "high": 8}
    assert made["explained_by"][0]["reason"] == "client_abort"
    await reconciliations.begin(db, "http://one", 0, "0")
    row = {
        "endpoint": "http://one", "from_ms": 0, "to_ms": 3_600_000, "difference_tokens": 1,
        "first_point": "0", "last_point": "1", "report": msgspec.json.encode(REPORT).decode(),
    }  # fmt: skip
    await reconciliations.save(
        db, endpoint="http://one", since_ms=0, at_ms=1, point="1", found=[row]
    )
    read = (await desk.http.get("/admin/v1/reconciliations?endpoint=http://one")).json()["data"]
    assert read == [made]
    assert (await desk.http.get("/admin/v1/reconciliations?limit=x")).status_code == 400


async def test_a_database_that_is_away_is_a_503_in_one_sentence(tmp_path: Path) -> None:
    away = open_database("postgresql://nobody@127.0.0.1:1/none", tmp_path)
    desk = Desk(away)
    for path in ("usage", "usage/records", "keys", "reconciliations"):
        response = await desk.http.get(f"/admin/v1/{path}")
        assert response.status_code == 503
        assert response.json()["detail"] == "the database does not answer; try again"
    await desk.http.aclose()
    await away.close()


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ({}, ["k", "m", 500, 500]),
        ({"tokens": "9"}, ["k", "m", 5, 4]),
        ({"tokens": "9", "max_tokens": "9"}, ["k", "m", 0, 9]),
    ],
)
async def test_a_request_to_be_explained_has_a_size(
    desk: Desk, query: dict[str, str], asked: list[object]
) -> None:
    params = {"key": "k", "model": "m", **query}
    response = await desk.http.get("/admin/v1/explain", params=params)
    assert response.json() == {"asked": asked}


async def test_a_size_that_is_none_is_told(desk: Desk) -> None:
    for query in ({"tokens": "0"}, {"tokens": "x"}, {"tokens": "5", "max_tokens": "6"}):
        response = await desk.http.get("/admin/v1/explain", params=query)
        assert response.status_code == 400

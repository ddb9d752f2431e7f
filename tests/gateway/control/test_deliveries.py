"""Every event arrives, in order, whatever the receiver does and whenever the sender dies."""

import asyncio
import random

import msgspec
import pytest
from sqlalchemy import select

from gateway.control import deliveries as module
from gateway.control.deliveries import Deliveries
from gateway.store import duties
from gateway.store import sinks as kept
from gateway.store.corrections import reprice_record, reverse_record
from gateway.store.ledger import insert_records
from gateway.store.schema import models, price_versions, tenants, usage_records
from gateway.wire.fetch import fetch
from tests.support.applying import FULL, NOW_MS, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.receiver import receiving
from tests.support.records import record
from tests.support.until import until

__all__ = ["database_url", "db", "postgres"]

TENANTS = ("acme", "zen")
#: Of SQLite alone: what is proven does not ask the database anything else.
ONE_DATABASE = pytest.mark.parametrize("database_url", [None], ids=["sqlite"])


class Clock:
    """Unix ms that a test moves."""

    def __init__(self):
        self.now_ms = NOW_MS

    def __call__(self):
        return self.now_ms


@pytest.fixture
async def clock():
    return Clock()


async def ledger(db, url, *, count=30, **options):
    """Two tenants who pay, ``count`` records of theirs in turn, and a sink; the ids in order."""
    file = FULL | {
        "tenants": [
            {"name": name, "contract": {"kind": "payg"},
             "projects": [{"name": "p", "keys": [{"name": "k"}]}]}
            for name in TENANTS
        ],
        "sinks": [{"name": "meter", "url": url} | options],
    }  # fmt: skip
    await apply(db, file)
    await more_records(db, 0, count)


async def more_records(db, start, count):
    async with db.read() as connection:
        owners = list(await connection.scalars(select(tenants.c.id).order_by(tenants.c.id)))
        model_id = await connection.scalar(select(models.c.id))
        price_id = await connection.scalar(select(price_versions.c.id))
    batch = [
        record(number, tenant_id=owners[number % 2], model_id=model_id, price_id=price_id)
        for number in range(start, start + count)
    ]
    await insert_records(db, batch)


def sender(db, clock, *, kind=Deliveries, ask=fetch, owner="host-1", environ=None):
    return kind(
        db, ask, owner=owner, environ=environ or {}, unix_ms=clock, chance=lambda: 0.0, idle_s=0.01
    )


async def the_sink(db):
    async with db.read() as connection:
        (sink,) = await kept.read_sinks(connection)
    return sink


async def state(db):
    async with db.read() as connection:
        (row,) = await kept.list_sinks(connection)
    return row


async def deliver(db, made):
    await made.deliver((await the_sink(db)).id)


async def check(db, receiver):
    """What came is the ledger, each tenant's in order; what came twice was the same twice."""
    async with db.read() as connection:
        query = select(usage_records.c.request_id, tenants.c.name).join(
            tenants, tenants.c.id == usage_records.c.tenant_id
        )
        rows = (await connection.execute(query.order_by(usage_records.c.id))).all()
    first = {}
    for event in receiver.events:
        assert first.setdefault(event["id"], event) == event, "told twice, it is the same"
    assert sorted(first) == sorted(row.request_id for row in rows)
    for name in TENANTS:
        came = [each["id"] for each in first.values() if each["subject"] == name]
        assert came == [row.request_id for row in rows if row.name == name]


async def test_a_record_becomes_one_cloudevent_with_its_cost(db, clock):
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=1)
        await deliver(db, sender(db, clock))
        await deliver(db, sender(db, clock))

    (request,) = receiver.requests
    assert request.path == "/in"
    assert request.headers["content-type"] == "application/cloudevents+json"
    event = request.json
    assert event["data"].pop("price_version") == 1
    assert event == {
        "specversion": "1.0",
        "id": f"{0:032x}",
        "source": "tokenfactory",
        "type": "tokenfactory.usage.v1",
        "subject": "acme",
        "time": "2027-01-15T08:00:00.000Z",
        "datacontenttype": "application/json",
        "data": {
            "request_id": f"{0:032x}",
            "tenant": "acme", "project": "p", "key": "k", "model": "llama",
            "operation": "chat", "outcome": "ok", "counted_by": "engine_final", "requests": 1,
            "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 3,
            "reasoning_tokens": 0, "total_tokens": 13,
            "cost": "0.000002", "charged": "0.000002", "currency": "USD",
        },
    }  # fmt: skip
    row = await state(db)
    assert (row["delivered"], row["waiting"], row["parked"]) == (1, 0, 0)


def faults(seed, per_request=0.6):
    """A receiver's answers: mostly trouble of every kind."""
    rng = random.Random(seed)
    kinds = [500, 503, 429, 408, 401, "hang", "cut", "cut", (200, {}, b"fine")]

    def answer(_request):
        return rng.choice(kinds) if rng.random() < per_request else 204

    return answer


class Killed(BaseException):
    """The process is gone, at this very moment."""


async def troubled(db, clock, receiver, kind=Deliveries, seed=7):
    """Deliver everything through trouble: the receiver's answers, its restarts, and senders that die
    between an answer and its note.
    """
    rng = random.Random(seed)
    deaths = 0

    async def mortal(*args, **kwargs):
        nonlocal deaths
        fetched = await fetch(*args, **kwargs)
        if rng.random() < 0.2:
            deaths += 1
            raise Killed
        return fetched

    for turn in range(200):
        made = sender(db, clock, kind=kind, ask=mortal)
        try:
            await deliver(db, made)
        except Killed:
            continue  # and another one takes over, under the same name
        row = await state(db)
        if not row["waiting"]:
            break
        if turn % 7 == 3:
            await receiver.stop()  # it restarts, and refuses meanwhile
            clock.now_ms = row["retry_ms"]
            await deliver(db, made)
            await receiver.start()
        clock.now_ms = max(clock.now_ms, (await state(db))["retry_ms"])
    return deaths


async def test_everything_arrives_through_failures_restarts_and_deaths(db, clock):
    async with receiving(faults(11)) as receiver:
        await ledger(db, receiver.url, count=40, batch=7, timeout_s=0.1)
        deaths = await troubled(db, clock, receiver)

        await check(db, receiver)
        assert deaths > 0
        assert len(receiver.events) > 40, "something came twice"
        row = await state(db)
        assert (row["waiting"], row["parked"]) == (0, 0)


class Hasty(Deliveries):
    """The bug that must be caught: the cursor moves before the answer."""

    async def _send_page(self, sink, page):
        await kept.advance(self._db, sink, page.end, len(page.items), self._unix_ms())
        sink = msgspec.structs.replace(sink, cursor=page.end)
        return await super()._send_page(sink, page)


@ONE_DATABASE
async def test_a_cursor_that_moves_before_the_answer_is_caught(db, clock):
    async with receiving(faults(11)) as receiver:
        await ledger(db, receiver.url, count=40, batch=7, timeout_s=0.1)
        await troubled(db, clock, receiver, kind=Hasty)
        assert (await state(db))["waiting"] == 0, "it believes that all has arrived"
        with pytest.raises(AssertionError):
            await check(db, receiver)


@ONE_DATABASE
async def test_a_receiver_that_is_told_twice_sees_the_same_id(db, clock):
    answers = iter(["cut", 204])
    async with receiving(lambda _: next(answers)) as receiver:
        await ledger(db, receiver.url, count=2)
        made = sender(db, clock)
        await deliver(db, made)
        clock.now_ms = (await state(db))["retry_ms"]
        await deliver(db, made)

        assert receiver.kept[0].body == receiver.kept[1].body
        await check(db, receiver)


@ONE_DATABASE
async def test_failures_wait_longer_each_time_and_retry_after_is_obeyed(db, clock):
    said = [500, (429, {"retry-after": "90"}, b""), (503, {"retry-after": "1"}, b"busy"), 204]
    answers = iter(said)
    async with receiving(lambda _: next(answers)) as receiver:
        await ledger(db, receiver.url, count=1)
        made = sender(db, clock)
        waits = []
        for _ in range(3):
            await deliver(db, made)
            await deliver(db, made)  # not before its time
            row = await state(db)
            waits.append(row["retry_ms"] - clock.now_ms)
            clock.now_ms = row["retry_ms"]
        assert (row["failures"], row["failure"]) == (3, "the receiver answered 503: busy")
        await deliver(db, made)

    assert waits == [1_000, 90_000, 4_000]
    assert len(receiver.requests) == 4
    row = await state(db)
    assert (row["failures"], row["failure"], row["delivered"]) == (0, "", 1)


async def test_an_event_that_is_refused_is_parked_and_the_others_go_on(db, clock):
    bad = f"{3:032x}"
    repaired = False

    def answer(request):
        ill = any(event["id"] == bad for event in request.events) and not repaired
        return (422, {}, b'{"error": "no such customer"}') if ill else 204

    async with receiving(answer) as receiver:
        await ledger(db, receiver.url, count=10)
        made = sender(db, clock)
        await deliver(db, made)
        row = await state(db)
        assert (row["delivered"], row["waiting"], row["parked"]) == (9, 0, 1)
        async with db.read() as connection:
            (parked,) = await kept.list_parked(connection, row["id"], 10)
        assert (parked["id"], parked["queued"]) == (bad, False)
        assert parked["reason"] == 'the receiver answered 422: {"error": "no such customer"}'

        async with db.begin() as connection:
            assert await kept.retry(connection, "meter", [bad]) == 1
        await deliver(db, made)
        assert (await state(db))["parked"] == 1, "refused again"
        repaired = True
        async with db.begin() as connection:
            await kept.retry(connection, "meter", None)
        await deliver(db, made)

        row = await state(db)
        assert (row["delivered"], row["parked"], row["queued"]) == (10, 0, 0)
        assert sorted(each["id"] for each in receiver.events) == [f"{n:032x}" for n in range(10)]


@ONE_DATABASE
@pytest.mark.parametrize("status", [401, 403, 404, 302])
async def test_a_wrong_key_or_address_parks_nothing(db, clock, status):
    async with receiving(lambda _: status) as receiver:
        await ledger(db, receiver.url, count=5)
        await deliver(db, sender(db, clock))

    row = await state(db)
    assert (row["waiting"], row["parked"], row["failures"]) == (5, 0, 1)


async def test_corrections_follow_their_records_with_ids_of_their_own(db, clock):
    request_id = f"{0:032x}"
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=2)
        async with db.begin() as connection:
            await reverse_record(connection, request_id, NOW_MS)
        made = sender(db, clock)
        await deliver(db, made)
        await deliver(db, made)

        *records, correction = receiver.events
        assert [event["id"] for event in records] == [request_id, f"{1:032x}"]
        assert correction["id"] == f"reversal:{request_id}:1"
        assert correction["type"] == "tokenfactory.correction.v1"
        data = correction["data"]
        assert (data["kind"], data["charged"]) == ("reversal", "-0.000002")
        assert (data["tenant"], data["model"], data["request_id"]) == ("acme", "llama", request_id)

        await more_records(db, 2, 2)
        async with db.begin() as connection:
            await reprice_record(connection, f"{1:032x}", 1, NOW_MS)
        await deliver(db, made)

        ids = [event["id"] for event in receiver.events[3:]]
        one = f"{1:032x}"
        assert ids == [f"{2:032x}", f"{3:032x}", f"reversal:{one}:1", f"reprice:{one}:1"]
        charged = [event["data"]["charged"] for event in receiver.events[-2:]]
        assert charged == ["-0.000002", "0.000002"]


@ONE_DATABASE
async def test_a_sink_of_some_tenants_passes_over_the_others(db, clock):
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=10, tenants=["zen"])
        await deliver(db, sender(db, clock))

        assert {event["subject"] for event in receiver.events} == {"zen"}
        row = await state(db)
        assert (row["delivered"], row["waiting"]) == (5, 0)


@ONE_DATABASE
async def test_a_sink_that_starts_now_is_told_of_what_comes(db, clock):
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=3)
        later = [{"name": "meter", "url": receiver.url, "start": "now"}]
        await apply(db, FULL | {"sinks": []}, prune=True)
        await apply(db, {"sinks": later})
        await more_records(db, 3, 2)
        await deliver(db, sender(db, clock))

        assert [event["id"] for event in receiver.events] == [f"{n:032x}" for n in (3, 4)]


@ONE_DATABASE
async def test_secrets_are_sent_and_said_nowhere(db, clock, caplog):
    secret = "sk-very-secret"

    def echo(request):
        return 403, {}, request.headers["authorization"].encode()

    async with receiving(echo) as receiver:
        await ledger(db, receiver.url, count=1, auth_env="METER_KEY")
        made = sender(db, clock, environ={"METER_KEY": secret})
        await deliver(db, made)

        assert receiver.requests[0].headers["authorization"] == f"Bearer {secret}"
        row = await state(db)
        assert row["failure"] == "the receiver answered 403: Bearer (hidden)"
        assert secret not in caplog.text + str(row)


@ONE_DATABASE
async def test_nothing_is_sent_without_the_secret_that_was_declared(db, clock):
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=1, auth_env="METER_KEY")
        await deliver(db, sender(db, clock))

        assert not receiver.requests
        assert "METER_KEY" in (await state(db))["failure"]


@ONE_DATABASE
async def test_no_metadata_service_is_a_receiver(db, clock):
    await ledger(db, "http://169.254.169.254/latest", count=1, timeout_s=1)
    await deliver(db, sender(db, clock))

    row = await state(db)
    assert (row["waiting"], row["failures"]) == (1, 1)
    assert "link-local" in row["failure"]


async def test_one_host_sends_until_it_lets_go(db, clock):
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=20, batch=1)
        hosts = [sender(db, clock, owner=f"host-{n}") for n in range(3)]
        tasks = [asyncio.create_task(each.run()) for each in hosts]
        await until(lambda: len(receiver.requests) >= 20, 20.0)
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert len(receiver.requests) == 20, "nobody sent what another one had sent"
        await check(db, receiver)
        await more_records(db, 20, 1)
        last = sender(db, clock, owner="host-9")
        task = asyncio.create_task(last.run())
        await until(lambda: len(receiver.requests) == 21, 10.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@ONE_DATABASE
async def test_a_sender_that_was_replaced_moves_no_cursor(db, clock):
    async with receiving() as receiver:
        await ledger(db, receiver.url, count=2, batch=1)
        sink = await the_sink(db)
        await deliver(db, sender(db, clock))
        with pytest.raises(kept.Deposed):
            await kept.advance(db, sink, kept.Cursor(1), 1, NOW_MS)
        assert await duties.hold(db, f"sink {sink.id}", "host-1", 1)
        slow = sender(db, clock, owner="host-2")
        await more_records(db, 2, 1)
        await asyncio.sleep(0.01)  # its duty of a millisecond ends
        assert await duties.hold(db, f"sink {sink.id}", "host-3", 60_000)
        with pytest.raises(module.Deposed):
            await deliver(db, slow)

        assert len(receiver.requests) == 2

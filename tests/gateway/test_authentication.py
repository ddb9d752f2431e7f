"""Who calls: one answer for every wrong key, and none that outlives a change."""

import random

import pytest

from gateway import identity
from gateway.authentication import Authentication
from gateway.contract.errors import InvalidKey, ModelNotFound, ModelNotPriced
from gateway.settings import WireSettings
from gateway.snapshot import KeyDoc, ModelDoc, ProjectDoc, SecretDoc, Snapshot, TenantDoc
from gateway.wire.guard import read_head
from tests.support.calls import request

PEPPER = b"pepper"
KEY = identity.mint("live", random.Random(1).randbytes)
OTHER = identity.mint("live", random.Random(2).randbytes)
MODEL = ModelDoc(id=4, name="llama", upstream="up", pool_id=1)


def head(line: bytes):
    return read_head(b"GET / HTTP/1.1\r\nhost: gw\r\n%b\r\n" % line, WireSettings())


def bearing(token: str):
    return head(b"authorization: Bearer " + token.encode() + b"\r\n")


class Bench:
    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.now_ms = 1_000_000
        self.authentication = Authentication(self.snapshot, PEPPER, lambda: self.now_ms)
        self.snapshot._put("tenant", 1, TenantDoc(id=1, name="acme"))
        self.snapshot._put("project", 2, ProjectDoc(id=2, tenant_id=1, name="bot"))
        self.snapshot._put("model", 4, MODEL)
        self.live()

    def live(self, **fields) -> None:
        secret = SecretDoc(kid=KEY.kid, digest=identity.digest(PEPPER, KEY.token), **fields)
        self.put(secrets=(secret,))

    def put(self, **fields) -> None:
        key = {"id": 3, "project_id": 2, "name": "ci", "path": "acme/bot/ci", "secrets": ()}
        self.snapshot._put("key", 3, KeyDoc(**key | fields))

    def asks(self, asking_head):
        return self.authentication.principal_of(request(head=asking_head))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    "asking", [bearing(KEY.token), head(b"x-api-key: " + KEY.token.encode() + b"\r\n")]
)
def test_a_live_key_is_its_principal_however_often_it_asks(bench, asking):
    for _ in range(2):
        assert bench.asks(asking).key.path == "acme/bot/ci"


@pytest.mark.parametrize(
    "asking",
    [
        head(b""),
        bearing("nonsense"),
        bearing(OTHER.token),  # well formed, and nobody's
        bearing(KEY.token[:-1] + ("a" if KEY.token[-1] != "a" else "b")),
        head(b"authorization: Basic " + KEY.token.encode() + b"\r\n"),
    ],
)
def test_any_other_key_is_the_same_error(bench, asking):
    for _ in range(2):
        with pytest.raises(InvalidKey):
            bench.asks(asking)


def test_another_secret_under_a_known_name_is_refused(bench):
    bench.put(secrets=(SecretDoc(kid=KEY.kid, digest=identity.digest(PEPPER, OTHER.token)),))

    with pytest.raises(InvalidKey):
        bench.asks(bearing(KEY.token))


def test_a_head_that_was_right_is_looked_up_again_after_every_change(bench):
    asking = bearing(KEY.token)
    first = bench.asks(asking)
    bench.snapshot._put("tenant", 1, TenantDoc(id=1, name="acme", pays=True))
    assert bench.asks(asking) is not first
    assert bench.asks(asking).tenant.pays
    bench.put()  # revoked: no secret is left
    with pytest.raises(InvalidKey):
        bench.asks(asking)
    bench.live()
    assert bench.asks(asking).key.id == 3
    bench.snapshot.adopt(Snapshot())  # a whole load that does not have it
    with pytest.raises(InvalidKey):
        bench.asks(asking)


def test_a_key_ends_at_its_time_with_no_change_at_all(bench):
    bench.live(expires_s=1_001)
    asking = bearing(KEY.token)
    assert bench.asks(asking).key.id == 3

    bench.now_ms = 1_001_000
    with pytest.raises(InvalidKey):
        bench.asks(asking)


def test_a_model_that_the_key_may_not_use_does_not_exist(bench):
    bench.put(models=("other",))
    caller = bench.snapshot.principal(3)

    with pytest.raises(ModelNotFound) as hidden:
        bench.authentication.model_for(caller, "llama")
    with pytest.raises(ModelNotFound) as missing:
        bench.authentication.model_for(caller, "nothing")
    assert str(hidden.value) == str(missing.value).replace("nothing", "llama")


def test_a_model_without_a_price_is_free_but_not_to_who_pays(bench):
    assert bench.authentication.model_for(bench.snapshot.principal(3), "llama") is MODEL
    bench.snapshot._put("tenant", 1, TenantDoc(id=1, name="acme", pays=True))

    with pytest.raises(ModelNotPriced):
        bench.authentication.model_for(bench.snapshot.principal(3), "llama")

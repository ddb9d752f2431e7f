"""A call ends when its key is gone or the last of its secrets has expired."""

import pytest

from gateway.call import Call
from gateway.revocation import cut_revoked
from gateway.snapshot import KeyDoc, ModelDoc, ProjectDoc, SecretDoc, Snapshot, TenantDoc
from gateway.telemetry.tracing import context_from
from gateway.wire.reply import Reply
from tests.support.calls import REQUEST_ID, exchange, request

MODEL = ModelDoc(id=4, name="m", upstream="m", pool_id=5, context_tokens=10, max_output_tokens=5)


def snapshot(*secrets: SecretDoc) -> Snapshot:
    made = Snapshot()
    made._put("tenant", 1, TenantDoc(id=1, name="acme", limits=()))
    made._put("project", 2, ProjectDoc(id=2, tenant_id=1, name="bot", limits=()))
    made._put("key", 3, KeyDoc(id=3, project_id=2, name="ci", path="p", secrets=secrets, limits=()))
    return made


class Bench:
    def __init__(self, *, admitted=True):
        reply = Reply(None, is_head=False, chunked=True, close=False, on_done=lambda close: None)
        trace = context_from(None, "ab" * 16, "cd" * 8, sample=False)
        self.call = Call(request(), reply, REQUEST_ID, trace)
        if admitted:
            self.call.exchange = exchange(MODEL)

    @property
    def ending(self):
        return self.call.stopped and self.call.stopped[0]


def secret(expires_s=None):
    return SecretDoc(kid="k", digest=b"d", expires_s=expires_s)


@pytest.mark.parametrize(
    ("known", "ends"),
    [
        (snapshot(secret()), False),
        (snapshot(secret(101.0)), False),
        (snapshot(secret(99.0), secret(101.0)), False),
        (snapshot(secret(99.0)), True),
        (snapshot(), True),
        (Snapshot(), True),
    ],
)
def test_a_call_ends_with_the_last_secret_of_its_key(known, ends):
    bench = Bench()
    cut_revoked([bench.call], known, 100.0)

    assert bench.ending == ("key_revoked" if ends else None)


def test_a_call_that_has_no_key_yet_is_let_be():
    bench = Bench(admitted=False)
    cut_revoked([bench.call], Snapshot(), 100.0)

    assert bench.ending is None

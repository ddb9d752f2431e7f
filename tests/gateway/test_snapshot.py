"""What a data process knows, and how moves change it."""

from gateway.snapshot import (
    KeyDoc,
    ModelDoc,
    Move,
    Principal,
    ProjectDoc,
    SecretDoc,
    Snapshot,
    TenantDoc,
    encode_doc,
)
from quotas.limits import Limit
from quotas.pricing import Price

LIMIT = Limit("t1", "tenant acme", "requests", "bucket", 60, 60, 1)


def move(kind, doc):
    return Move(kind, doc.id, encode_doc(doc))


def loaded() -> Snapshot:
    snapshot = Snapshot()
    snapshot.apply(
        7,
        [
            move("tenant", TenantDoc(id=1, name="acme", limits=(LIMIT,))),
            move("project", ProjectDoc(id=2, tenant_id=1, name="chatbot")),
            move(
                "key",
                KeyDoc(
                    id=3,
                    project_id=2,
                    name="ci",
                    path="acme/chatbot/ci",
                    secrets=(SecretDoc(kid="k1", digest=b"d"),),
                ),
            ),
            move("model", ModelDoc(id=4, name="llama", upstream="meta/llama", pool_id=5)),
        ],
    )
    return snapshot


def test_full_load_finds_key_principal_and_model():
    snapshot = loaded()

    key, secret = snapshot.find_secret("k1")
    principal = snapshot.principal(key.id)

    assert (snapshot.version, secret.digest, principal.tag) == (7, b"d", "t1")
    assert principal.limits == (LIMIT,)
    assert snapshot.model_by_name["llama"].id == 4


def test_tenant_change_reaches_principals_already_made():
    snapshot = loaded()
    snapshot.principal(3)
    snapshot.apply(8, [move("tenant", TenantDoc(id=1, name="acme"))])

    assert snapshot.principal(3).limits == ()


def test_rotated_key_forgets_the_old_secret():
    snapshot = loaded()
    new = KeyDoc(
        id=3,
        project_id=2,
        name="ci",
        path="acme/chatbot/ci",
        secrets=(SecretDoc(kid="k2", digest=b"e"),),
    )
    snapshot.apply(8, [move("key", new)])

    assert snapshot.find_secret("k1") is None
    assert snapshot.find_secret("k2")[1].digest == b"e"


def test_removed_key_has_no_principal():
    snapshot = loaded()
    snapshot.apply(8, [Move("key", 3, None)])

    assert snapshot.principal(3) is None
    assert snapshot.find_secret("k1") is None


def test_renamed_model_is_known_by_its_new_name_only():
    snapshot = loaded()
    snapshot.apply(8, [move("model", ModelDoc(id=4, name="llama-2", upstream="x", pool_id=5))])

    assert set(snapshot.model_by_name) == {"llama-2"}


def test_name_taken_over_by_another_model_survives_the_first_ones_removal():
    snapshot = loaded()
    snapshot.apply(
        8,
        [
            move("model", ModelDoc(id=9, name="llama", upstream="y", pool_id=5)),
            Move("model", 4, None),
        ],
    )

    assert snapshot.model_by_name["llama"].id == 9


def test_unknown_kinds_are_skipped():
    snapshot = loaded()
    snapshot.apply(9, [Move("voucher", 1, b"\x80")])

    assert snapshot.version == 9


def test_adopting_a_full_load_forgets_what_it_lacks():
    snapshot = loaded()
    other = Snapshot()
    other.apply(9, [move("tenant", TenantDoc(id=8, name="else"))])
    snapshot.adopt(other)

    assert (snapshot.version, snapshot.keys, snapshot.find_secret("k1")) == (9, {}, None)


def test_a_tenants_own_price_has_tiers_of_its_own():
    def price(number, tier="default"):
        return Price(id=number, version=number, currency="USD", nano={"input": 1}, tier=tier)

    model = ModelDoc(id=4, name="m", upstream="m", pool_id=1, price=price(1),
                     tiers={"flex": price(2, "flex")})  # fmt: skip
    key = KeyDoc(id=3, project_id=2, name="ci", path="a/b/ci", secrets=())
    project = ProjectDoc(id=2, tenant_id=1, name="b")

    def version(tier, **tenant):
        found = Principal(key, project, TenantDoc(id=1, name="a", **tenant)).price_of(model, tier)
        return found and found.version

    own = {"prices": {4: price(3)}, "tiers": {4: {"priority": price(4, "priority")}}}
    assert [version(tier) for tier in ("default", "flex", "priority")] == [1, 2, None]
    assert [version(tier, **own) for tier in ("default", "flex", "priority")] == [3, None, 4]

"""The endpoints a process knows: made when first asked, kept while they are the same, closed when gone."""

import asyncio

import pytest

from gateway.engines import Engines, credential_of
from gateway.snapshot import ModelDoc, Snapshot
from routing.topology import Endpoint, Pool
from tests.support.engine import serving
from tests.support.topology import endpoint, pool, signals
from tests.support.until import until


@pytest.fixture
async def engines():
    made = Engines({"KEY_A": "s3cret", "EMPTY": ""}, idle_s=4.0)
    yield made
    made.close()


def snapshot_of(*endpoints: Endpoint) -> Snapshot:
    made = Snapshot()
    made.pools[1] = Pool(id=1, name="h100", endpoints=endpoints)
    return made


async def test_an_endpoint_has_one_engine_until_it_changes(engines):
    one = endpoint(1)
    engines.sync(snapshot_of(one))
    first = engines.get(one)

    assert engines.get(one) is first
    assert engines.get(endpoint(1)) is first
    assert engines.get(endpoint(1, api_key_env="KEY_A")) is not first


async def test_its_idle_connections_close_when_it_goes(engines):
    closed = []

    async def hold(reader, writer):
        await reader.read()
        closed.append(1)

    async with serving(hold) as address:
        one = endpoint(1, url=f"http://127.0.0.1:{address.port}")
        engines.sync(snapshot_of(one))
        connections = engines.get(one).pool
        connections.give_back(await connections.connect(1))
        assert connections.idle == 1
        engines.signals[1] = signals(1)
        engines.sync(snapshot_of())
        await until(lambda: closed)

    assert (engines.loads, engines.signals, connections.idle) == ({}, {}, 0)


async def test_load_is_kept_over_a_change_of_the_endpoint(engines):
    engines.sync(snapshot_of(endpoint(1), endpoint(2)))
    engines.loads[1].in_flight = 3
    engines.sync(snapshot_of(endpoint(1, draining=True)))

    assert engines.loads.keys() == {1}
    assert engines.loads[1].in_flight == 3


@pytest.mark.parametrize(
    ("fields", "credential"),
    [
        ({}, None),
        ({"api_key_env": "KEY_A"}, b"s3cret"),
        ({"api_key_env": "EMPTY"}, None),
        ({"api_key_env": "UNKNOWN"}, None),
        ({"api_key_file": "there"}, b"from-file"),
        ({"api_key_file": "gone"}, None),
        ({"api_key_file": "blank"}, None),
    ],
)
def test_a_credential_is_read_from_where_the_endpoint_says(tmp_path, fields, credential):
    (tmp_path / "there").write_text("  from-file\n")
    (tmp_path / "blank").write_text("\n")
    if "api_key_file" in fields:
        fields = {"api_key_file": str(tmp_path / fields["api_key_file"])}

    assert credential_of(endpoint(1, **fields), {"KEY_A": "s3cret", "EMPTY": ""}) == credential


async def test_a_credential_that_was_refused_is_read_again(engines, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("old")
    one = endpoint(1, api_key_file=str(secret))

    def head():
        return engines.get(one).pool.request_head(b"POST", b"/v1/x", (), 0)

    assert b"Bearer old" in head()
    secret.write_text("new")
    assert b"Bearer old" in head()
    engines.renew(one)
    engines.renew(endpoint(2))
    assert b"Bearer new" in head()


async def test_the_credential_goes_to_its_own_endpoint_alone(engines):
    with_key, without = endpoint(1, api_key_env="KEY_A"), endpoint(2)

    def head(of):
        return engines.get(of).pool.request_head(b"POST", b"/v1/x", (), 0)

    assert b"authorization: Bearer s3cret\r\n" in head(with_key)
    assert b"authorization" not in head(without)


# -- how to ask for usage -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "configured", "probed", "mode"),
    [
        ("vllm", "auto", None, "continuous"),
        ("nim", "auto", None, "continuous"),
        ("openai", "auto", None, "final"),
        ("vllm", "auto", "none", "none"),
        ("openai", "auto", "continuous", "continuous"),
        ("vllm", "final", "continuous", "final"),
    ],
)
async def test_usage_is_asked_as_configured_else_as_probed_else_by_dialect(
    engines, dialect, configured, probed, mode
):
    engine = engines.get(endpoint(1, dialect=dialect, usage=configured))

    assert engine.usage_mode(signals(1, usage=probed)) == mode
    assert engine.usage_mode(None) == (mode if probed is None or configured != "auto" else {
        "vllm": "continuous", "openai": "final",
    }[dialect])  # fmt: skip


async def test_a_refused_way_of_asking_is_never_used_again_on_the_same_engine(engines):
    engine = engines.get(endpoint(1))
    for mode, after in (("continuous", "final"), ("final", "none"), ("none", "none")):
        engine.refuse_usage(mode)
        assert engine.usage_mode(signals(1, usage="continuous")) == after

    assert engines.get(endpoint(1, max_in_flight=9)).usage_mode(None) == "none"
    assert engines.get(endpoint(1, url="http://elsewhere")).usage_mode(None) == "continuous"


async def test_the_smallest_window_of_a_pool_is_the_models(engines):
    model = ModelDoc(id=1, name="m", upstream="llama", pool_id=1)
    both = pool(endpoint(1), endpoint(2), endpoint(3))
    assert engines.context_of(model, both) is None
    engines.signals[1] = signals(1, max_model_len={"llama": 8192})
    engines.signals[2] = signals(2, max_model_len={"llama": 4096, "other": 16})

    assert engines.context_of(model, both) == 4096
    assert engines.context_of(model, None) is None
    await asyncio.sleep(0)

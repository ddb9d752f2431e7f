"""Engines behind TLS: reached with their own authority and credential, and not without."""

import httpx
import pytest

from tests.support.certificates import self_signed, server_context
from tests.support.gateway import document, running
from tests.support.raw_engine import RawEngine


@pytest.fixture
def engine(tmp_path):
    cert, key = self_signed(tmp_path)
    made = RawEngine(server_context(cert, key))
    yield made, cert
    made.close()


def test_an_engine_is_reached_over_tls_where_its_authority_is_known(tmp_path, engine):
    made, cert = engine
    secret_file = tmp_path / "engine-key"
    secret_file.write_text("engines-own\n")
    applied = document(made.url)
    applied["pools"][0]["endpoints"][0] |= {"ca_file": cert, "api_key_file": str(secret_file)}
    unknown = document(made.url, model="unverified")
    applied["pools"].append({**unknown["pools"][0], "name": "unverified"})
    applied["models"].append({**unknown["models"][0], "pool": "unverified"})
    with running(tmp_path / "data") as gateway:
        [key] = gateway.apply(applied)["keys"]
        with httpx.Client(
            base_url=gateway.base_url,
            headers={"authorization": f"Bearer {key['secret']}"},
            timeout=10,
            trust_env=False,
        ) as client:

            def ask(model="llama", **fields):
                body = {"model": model, "messages": [], "nonce": "own", "max_tokens": 2, **fields}
                return client.post("/chat/completions", json=body)

            whole, again, streamed = ask(), ask(), ask(stream=True)
            refused = ask("unverified")
        log = gateway.log

    assert whole.json()["choices"][0]["message"]["content"] == "own"
    assert again.status_code == 200
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert made.connections["inference"] == 1  # kept, and used for all three
    assert {b"authorization: Bearer engines-own" in head for head, _ in made.log} == {True}
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_error")
    assert "engines-own" not in log

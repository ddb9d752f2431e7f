"""What ``up`` puts into a gateway that has nothing: a pool, its models, and one key to try.

Applied through the admin API like any file. A key's secret is shown once, so each start makes a
fresh one: the first creates the key, later ones rotate it, or make another where it was revoked.
Not here: the demo engine.
"""

import secrets
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.cli.client import live_admin, models_at
from gateway.datafolder import RunFile

KEY_PATH = "demo/first/try"


class DemoAccess(msgspec.Struct, frozen=True):
    """``version`` of the snapshot from which on ``api_key`` works."""

    api_key: str
    model: str
    version: int


async def make_demo(run: RunFile, engine_url: str, model: str | None) -> DemoAccess:
    """Apply the demo document to a live gateway; ``model`` None: those the engine lists.

    Raises ``CommandFailed``.
    """
    engine_url = engine_url.rstrip("/").removesuffix("/v1")
    async with live_admin(run) as admin:
        models = [model] if model else await models_at(engine_url)
        applied = await admin.apply(document(engine_url, models), "the demo document")
        made = {key["path"]: key["secret"] for key in applied["keys"]}
        if KEY_PATH in made:
            return DemoAccess(made[KEY_PATH], models[0], applied["version"])
        states = {key["path"]: key["state"] for key in await admin.keys()}
        if states.get(KEY_PATH) == "live":
            fresh = await admin.rotate_key(KEY_PATH)
        else:  # revoked by somebody, for good
            path = f"{KEY_PATH}-{secrets.token_hex(3)}"
            fresh = await admin.create_key(path, None, None)
        return DemoAccess(fresh["secret"], models[0], fresh["version"])


def document(engine_url: str, models: list[str]) -> dict[str, Any]:
    """Generous limits, and prices so that usage shows money.

    The pool is named by its engine's address: an address of an earlier start stays behind in a pool
    of its own, which no model names any more.
    """
    pool = "demo-" + urlsplit(engine_url).netloc.translate({ord("["): "", ord("]"): ""})
    price = {"currency": "USD", "input": "0.10", "cached_input": "0.05", "output": "0.40"}
    return {
        "pools": [{"name": pool, "endpoints": [{"url": engine_url}]}],
        "models": [
            {
                "name": name,
                "upstream": name,
                "pool": pool,
                # Fits the context of any engine worth trying; who asks for more names a number.
                "max_output_tokens": 1_024,
                "price": price,
            }
            for name in models
        ],
        "tenants": [
            {
                "name": "demo",
                "limits": {"requests_per_minute": 6_000, "tokens_per_minute": 10_000_000},
                "projects": [{"name": "first", "keys": [{"name": "try"}]}],
            }
        ],
    }

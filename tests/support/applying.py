"""Applying files to a database, as the admin API does."""

import itertools
import secrets
from typing import Any

from gateway import identity
from gateway.declared.apply import Applied, Applier
from gateway.declared.document import parse
from gateway.store.database import Database

PEPPER = b"pepper"
NOW_MS = 1_800_000_000_000

FULL: dict[str, Any] = {
    "pools": [
        {
            "name": "fra",
            "endpoints": [
                {"url": "http://10.0.0.5:8000", "api_key_env": "FRA_KEY", "max_in_flight": 8},
                {"url": "http://10.0.0.6:8000", "dialect": "nim", "usage": "final"},
            ],
        }
    ],
    "models": [
        {
            "name": "llama",
            "upstream": "meta/llama",
            "pool": "fra",
            "context_tokens": 131_072,
            "timeouts": {"gap_s": 60},
            "price": {
                "currency": "USD",
                "input": "0.10",
                "cached_input": "0.05",
                "output": "0.40",
            },
        }
    ],
    "tenants": [
        {
            "name": "acme",
            "limits": {
                "requests_per_minute": 600,
                "requests_burst": 50,
                "concurrent_requests": 32,
            },
            "projects": [
                {
                    "name": "bot",
                    "limits": {"tokens_per_minute": 100_000},
                    "keys": [
                        {"name": "ci", "models": ["llama"], "expires": "2097-06-30"},
                        {"name": "any", "limits": {"requests_per_minute": 60}},
                    ],
                }
            ],
        }
    ],
}


def applier(db: Database, now_ms: int = NOW_MS) -> Applier:
    moments = itertools.count(now_ms)
    return Applier(
        db,
        mint=lambda: identity.mint("test", secrets.token_bytes),
        digest=lambda token: identity.digest(PEPPER, token),
        now_ms=lambda: next(moments),
    )


async def apply(db: Database, document: object, now_ms: int = NOW_MS, **options: bool) -> Applied:
    return await applier(db, now_ms).apply(parse(document, "file.yaml"), "file.yaml", **options)

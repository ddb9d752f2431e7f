"""A PostgreSQL URL as operators write it, libpq's, turned into what the asyncpg driver takes.

Hosted databases hand out URLs with ``?sslmode=require``; asyncpg knows other words, and SQLAlchemy
passes unknown ones on until a connection fails. Here each parameter is translated or refused with a
sentence. Words: https://www.postgresql.org/docs/current/libpq-connect.html. No connection is made.
"""

import ssl
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
FILES = ("sslrootcert", "sslcert", "sslkey")
#: Passed on as they are: a socket's folder and port, and the driver's own.
PASSED = frozenset(("host", "port", "ssl", "prepared_statement_cache_size"))
TRANSLATED = frozenset(("sslmode", "application_name", "connect_timeout", *FILES))


def driver_url(url: str) -> tuple[URL, dict[str, Any]]:
    """SQLAlchemy's URL and the driver's arguments. Raises ``ValueError``, which names no password."""
    _, _, rest = url.partition("://")
    try:
        made = make_url(f"postgresql+asyncpg://{rest}")
    except (ArgumentError, ValueError):
        raise ValueError("database_url: expected postgresql://user@host/name") from None
    words = dict(made.query)
    unknown = sorted(words.keys() - PASSED - TRANSLATED)
    if unknown:
        known = ", ".join(sorted(PASSED | TRANSLATED))
        raise ValueError(f"database_url: {unknown[0]} is not known; expected one of {known}")
    texts = {name: _one(name, words[name]) for name in TRANSLATED & words.keys()}
    arguments: dict[str, Any] = {}
    if texts.keys() & {"sslmode", *FILES}:
        arguments["ssl"] = _ssl(texts)
    if "application_name" in texts:
        arguments["server_settings"] = {"application_name": texts["application_name"]}
    if "connect_timeout" in texts:
        if not texts["connect_timeout"].isdigit():
            raise ValueError("database_url: connect_timeout: expected seconds")
        arguments["timeout"] = int(texts["connect_timeout"]) or None
    return made.difference_update_query(TRANSLATED), arguments


def _one(name: str, value: str | tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise ValueError(f"database_url: {name} is there twice")  # noqa: TRY004 -- a wrong URL
    return value


def _ssl(texts: dict[str, str]) -> str | ssl.SSLContext:
    """A mode by its name, or a context where files say whom to trust and who we are.

    As libpq has it, a root certificate makes ``require`` verify, and the default mode is prefer.
    """
    mode = texts.get("sslmode", "prefer")
    if mode not in MODES:
        raise ValueError(f"database_url: sslmode: expected one of {', '.join(MODES)}")
    if not any(name in texts for name in FILES) or mode in ("disable", "allow", "prefer"):
        return mode
    root = texts.get("sslrootcert")
    try:
        context = ssl.create_default_context(cafile=None if root in (None, "system") else root)
        if "sslcert" in texts:
            context.load_cert_chain(texts["sslcert"], texts.get("sslkey"))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"database_url: a certificate cannot be used: {error}") from None
    context.check_hostname = mode == "verify-full"
    if mode == "require" and root is None:
        context.verify_mode = ssl.CERT_NONE
    return context

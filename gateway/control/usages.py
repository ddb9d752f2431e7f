"""Usage as it is asked for: by operators over all tenants, by a key over its own project.

Questions are read here, and answered from sums. A developer's question names keys and models of its
project alone; what is not there has no usage, so nothing is told of others. Not here: SQL
(``gateway.store.summaries``), records (``gateway.control.app``).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from gateway.contract.errors import InvalidBody
from gateway.control.bodies import parse_moment
from gateway.link.messages import Read
from gateway.store import accounts
from gateway.store.database import Database
from gateway.store.ledger import timestamp
from gateway.store.schema import models, tenants
from gateway.store.summaries import EVER_MS, Asked, By, Names, Page, summary

OPERATORS_BY: tuple[By, ...] = ("tenant", "project", "key", "model", "day", "hour")
DEVELOPERS_BY: tuple[By, ...] = ("key", "model", "day", "hour")
OPERATORS_LIMIT, OPERATORS_LIMIT_MAX = 1_000, 10_000
DEVELOPERS_LIMIT, DEVELOPERS_LIMIT_MAX = 100, 1_000
_NAME_MAX = 256


class Usages:
    """``ship``: bring what ended a moment ago into the ledger first."""

    def __init__(self, db: Database, ship: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._ship = ship

    async def look(self, question: Read) -> object:
        """``GET /v1/usage``, of the asking key's project. Raises ``InvalidBody``.

        Nothing is shipped for it: the shipper passes four times a second anyway.
        """
        query = question.query
        try:
            _known(query, ("by", "from", "to", "key", "model", "limit", "cursor"))
            key = query.get("key", "").rpartition("/")[2]
            asked = Asked(
                by=_by(query, DEVELOPERS_BY, "day"),
                from_ms=_moment(query, "from", 0),
                to_ms=_moment(query, "to", EVER_MS),
                project_id=question.project_id,
                names=Names(key=_name(key), model=_name(query.get("model", ""))),
                after=query.get("cursor", ""),
                limit=_limit(query, DEVELOPERS_LIMIT, DEVELOPERS_LIMIT_MAX),
            )
            page = await summary(self._db, asked)
        except ValueError as error:
            raise InvalidBody(str(error), str(error).partition(":")[0]) from None
        for each in page.data:
            del each["unbilled_ms"]  # engine time: the operator's affair
        return {"object": "list", **_shown(page), "has_more": page.next is not None}

    async def of_operator(self, query: Mapping[str, str]) -> object:
        """``GET /admin/v1/usage``. Raises ``ValueError``, and ``NotFound`` for an unknown name."""
        allowed = ("by", "since", "from", "to", "tenant", "project", "key", "model", "limit")
        _known(query, (*allowed, "cursor"))
        names = _paths(query)
        asked = Asked(
            by=_by(query, OPERATORS_BY, "key"),
            from_ms=_moment(query, "from" if "from" in query else "since", 0),
            to_ms=_moment(query, "to", EVER_MS),
            names=names,
            after=query.get("cursor", ""),
            limit=_limit(query, OPERATORS_LIMIT, OPERATORS_LIMIT_MAX),
        )
        await self._check(names)
        await self._ship()
        return _shown(await summary(self._db, asked))

    async def _check(self, names: Names) -> None:
        """A tenant or model that never was is a slip of the pen."""
        async with self._db.read() as connection:
            for kind, table, name in (
                ("tenant", tenants, names.tenant),
                ("model", models, names.model),
            ):
                if name and not await accounts.was_ever(connection, table, name):
                    raise accounts.NotFound(f"no {kind} {name}")


def _shown(page: Page) -> dict[str, Any]:
    return {
        "data": page.data,
        "from": timestamp(page.from_ms) if page.from_ms else None,
        "to": timestamp(page.to_ms) if page.to_ms < EVER_MS else None,
        "next": page.next,
    }


def _known(query: Mapping[str, str], names: tuple[str, ...]) -> None:
    """A filter that is misspelt must not be taken for none."""
    for name in query:
        if name not in names:
            raise ValueError(f"{name[:40]}: expected one of {', '.join(names)}")


def _by(query: Mapping[str, str], allowed: tuple[By, ...], default: By) -> tuple[By, ...]:
    asked = [each for each in query.get("by", default).split(",") if each]
    if not all(each in allowed for each in asked):
        raise ValueError(f"by: expected some of {', '.join(allowed)}, with commas between")
    if "day" in asked and "hour" in asked:
        raise ValueError("by: expected day or hour, not both")
    return cast("tuple[By, ...]", tuple(asked))


def _moment(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    found = default if text is None else parse_moment(text, name)
    if not 0 <= found <= EVER_MS:
        raise ValueError(f"{name}: expected a time since 1970")
    return found


def _limit(query: Mapping[str, str], default: int, most: int) -> int:
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):  # noqa: PLR2004
        raise ValueError(f"limit: expected a number from 1 to {most}")
    return int(text)


def _name(text: str) -> str:
    if len(text) > _NAME_MAX or "\0" in text:
        raise ValueError(f"key, model: expected names of at most {_NAME_MAX} characters")
    return text


def _paths(query: Mapping[str, str]) -> Names:
    """``tenant=acme``, ``project=acme/bot``, ``key=acme/bot/ci``: the longest says it all."""
    path = query.get("key") or query.get("project") or query.get("tenant") or ""
    wanted = 3 if query.get("key") else 2 if query.get("project") else 1
    parts = path.split("/")
    if path and (len(parts) != wanted or not all(parts)):
        raise ValueError("tenant, project, key: expected acme, acme/bot, acme/bot/ci")
    parts = [_name(each) for each in parts] + ["", ""]
    return Names(parts[0], parts[1], parts[2], _name(query.get("model", "")))

"""What a key is told of its project's usage: no other project's, and nothing of the engines."""

from typing import Any

import pytest

from gateway.contract.errors import InvalidBody
from gateway.control.usages import Usages
from gateway.link.messages import Read
from gateway.store.database import Database
from gateway.store.ledger import insert_records
from tests.support.applying import FULL, apply
from tests.support.databases import database_url, db
from tests.support.postgres import postgres
from tests.support.records import record

__all__ = ["database_url", "db", "postgres"]


async def nothing_waits() -> None:
    pass


def question(project_id: int = 1, **query: str) -> Read:
    return Read("/v1/usage", query, 1, project_id, 1)


async def test_a_key_sees_its_project_by_day_key_and_model(db: Database) -> None:
    await apply(db, FULL)
    others = record(3, project_id=2, key_id=9)
    await insert_records(db, [record(1), record(2, key_id=2), others])
    look = Usages(db, nothing_waits).look
    told: Any = await look(question())
    assert told == {
        "object": "list",
        "data": [
            {
                "day": "2027-01-15", "requests": 2, "prompt_tokens": 20, "cached_tokens": 8,
                "completion_tokens": 6, "reasoning_tokens": 0, "cost": "0.000004", "charged": "0",
                "currency": "USD",
            }
        ],
        "from": None, "to": None, "next": None, "has_more": False,
    }  # fmt: skip
    told = await look(question(by="key,model,hour", limit="1"))
    assert told["data"][0]["key"] == "acme/bot/ci"
    assert told["has_more"]
    told = await look(question(by="key,model,hour", limit="1", cursor=told["next"]))
    assert (told["data"][0]["key"], told["has_more"]) == ("acme/bot/any", False)
    for path in ("any", "acme/bot/any"):
        told = await look(question(by="key", key=path))
        assert [row["requests"] for row in told["data"]] == [1]


async def test_what_is_not_in_the_project_has_no_usage(db: Database) -> None:
    await apply(db, FULL)
    await insert_records(db, [record(1)])
    look = Usages(db, nothing_waits).look
    for asked in (question(2), question(key="nobody"), question(model="hidden")):
        told: Any = await look(asked)
        assert told["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"by": "tenant"}, "by"),
        ({"by": "day,hour"}, "by"),
        ({"from": "yesterday"}, "from"),
        ({"to": "99999-01-01"}, "to"),
        ({"limit": "1001"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"tenant": "acme"}, "tenant"),
    ],
)
async def test_a_wrong_question_names_its_part(
    db: Database, query: dict[str, str], param: str
) -> None:
    with pytest.raises(InvalidBody) as found:
        await Usages(db, nothing_waits).look(question(**query))
    assert found.value.param == param

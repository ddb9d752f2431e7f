"""PostgreSQL URLs as hosted databases hand them out: translated, or refused with a sentence."""

import ssl
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.store.database import open_database
from gateway.store.postgres import driver_url
from tests.support.postgres import postgres

__all__ = ["postgres"]

BASE = "postgresql://me:hunter2@db.example:6432/gateway"


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-full"])
def test_a_mode_is_the_drivers_own(mode: str) -> None:
    url, arguments = driver_url(f"{BASE}?sslmode={mode}")
    assert (url.host, url.port, url.password, dict(url.query)) == (
        "db.example",
        6432,
        "hunter2",
        {},
    )
    assert arguments == {"ssl": mode}


def test_names_timeouts_and_sockets_keep_their_meaning() -> None:
    url, arguments = driver_url(
        "postgres:///gateway?host=/run/pg&application_name=tf&connect_timeout=5"
    )
    assert dict(url.query) == {"host": "/run/pg"}
    assert arguments == {"server_settings": {"application_name": "tf"}, "timeout": 5}


def test_a_root_certificate_verifies(tmp_path: Path) -> None:
    root = ssl.get_default_verify_paths().cafile
    words = f"sslrootcert={root}" if root else "sslrootcert=system"
    for mode, named in (("require", False), ("verify-ca", False), ("verify-full", True)):
        context = driver_url(f"{BASE}?sslmode={mode}&{words}")[1]["ssl"]
        assert isinstance(context, ssl.SSLContext)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, named)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=yes", "expected one of disable"),
        ("sslmode=require&sslmode=disable", "is there twice"),
        ("target_session_attrs=any", "target_session_attrs is not known"),
        ("connect_timeout=soon", "expected seconds"),
        ("sslmode=verify-full&sslrootcert=/nowhere.pem", "cannot be used"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_without_the_password(query: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        driver_url(f"{BASE}?{query}")
    assert "hunter2" not in str(refused.value)


async def test_a_real_server_takes_the_translated_words(postgres, tmp_path: Path) -> None:
    url = postgres.new_url()
    words = "sslmode=prefer&application_name=tf-test&connect_timeout=5"
    database = open_database(f"{url}{'&' if '?' in url else '?'}{words}", tmp_path)
    async with database.read() as connection:
        assert await connection.scalar(text("SHOW application_name")) == "tf-test"
    await database.close()

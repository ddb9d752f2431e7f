"""Settings: flags over variables over defaults, and errors that say what to change."""

from pathlib import Path

import pytest

from gateway.settings import SettingsError, describe, load, reference, shown

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_defaults_come_from_the_tree() -> None:
    loaded = load({}, {})
    assert loaded.settings.port == 8080
    assert set(loaded.origins.values()) == {"default"}


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    environ = {"TF_PORT": "1", "TF_DRAIN_S": "2.5", "PATH": "/bin"}
    loaded = load(environ, {"--port": "9", "--wire-head-s": "3", "--access-log": "false"})
    assert loaded.settings.port == 9
    assert loaded.settings.drain_s == 2.5
    assert loaded.settings.wire.head_s == 3
    assert loaded.settings.access_log is False
    assert loaded.origins["port"] == "--port"
    assert loaded.origins["drain_s"] == "TF_DRAIN_S"
    assert loaded.origins["wire.head_s"] == "--wire-head-s"
    assert loaded.origins["host"] == "default"


def test_an_empty_text_unsets_an_optional_setting() -> None:
    assert load({"TF_REDIS_URL": ""}, {}).settings.redis_url is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TF_PORT", "abc", "TF_PORT='abc': expected an integer from 0 to 65535"),
        ("TF_PORT", "65536", "TF_PORT='65536': expected an integer from 0 to 65535"),
        ("TF_PORT", "", "TF_PORT='': expected an integer"),
        ("TF_PROCESSES", "0", "expected an integer from 1 to 256"),
        ("TF_STORE", "etcd", "TF_STORE='etcd': expected auto|redis|memory"),
        ("TF_ACCESS_LOG", "maybe", "expected true or false"),
        ("TF_PROXY_PROTOCOL", "true", "expected TF_TRUSTED_PROXIES to name the proxies"),
        ("TF_CORS_ORIGINS", "*", "'*' is none"),
        ("TF_CORS_ORIGINS", "https://a.example,https://b.example/", "'https://b.example/' is none"),
        ("TF_WIRE_HEAD_S", "0", "TF_WIRE_HEAD_S='0': expected a number above 0"),
        ("TF_KEY_ENV", "Prod", "expected text that matches"),
        ("TF_TRUSTED_PROXIES", "10.0.0.0/8, nginx", "'nginx' is neither"),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load({name: value}, {})
    assert expected in str(raised.value)


def test_a_bad_flag_is_named_as_a_flag() -> None:
    with pytest.raises(SettingsError, match=r"^--port='x'"):
        load({}, {"--port": "x"})


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("TF_DATADIR", "TF_DATA_DIR"),
        ("TF_PROT", "TF_PORT"),
        ("TF_REDIS_URI", "TF_REDIS_URL"),
        ("TF_PROCESS", "TF_PROCESSES"),
        ("TF_DATABASEURL", "TF_DATABASE_URL"),
    ],
)
def test_a_mistyped_variable_names_what_was_meant(mistyped: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"{mistyped} is no setting; did you mean {meant}\?"):
        load({mistyped: "x"}, {})


def test_variables_of_others_with_our_prefix_are_left_alone() -> None:
    others = ("TF_CLI_CONFIG_FILE", "TF_CPP_MIN_LOG_LEVEL", "TF_IN_AUTOMATION", "TF_LOG")
    assert load(dict.fromkeys(others, "1"), {}).ignored == others


def test_secrets_are_not_shown() -> None:
    settings = load(
        {"TF_PEPPER": "salt", "TF_DATABASE_URL": "postgresql://gw:s3cret@db/gw"}, {}
    ).settings
    values = shown(settings)
    assert values["pepper"] == "(set)"
    assert values["database_url"] == "postgresql://gw:***@db/gw"
    assert values["wire.tick_s"] == "0.25"


def test_every_setting_has_a_description_and_its_own_name() -> None:
    rows = describe()
    assert all(row.description for row in rows)
    assert len({row.variable for row in rows}) == len(rows) == len({row.flag for row in rows})


def test_the_reference_page_is_the_generated_one() -> None:
    assert DOCS.read_text() == reference(), "tokenfactory config reference > docs/settings.md"

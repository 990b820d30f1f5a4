"""Keys: made, found, revoked; what the command shows; what each lets through is in test_server_search."""

import json
import re
from collections.abc import Callable, Iterator

import pytest
from cli_driver import mm
from places import Place
from sqlalchemy import inspect, text

from mm_assets.errors import ConfigError
from mm_assets.ledger import Ledger


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open an empty ledger, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def test_a_key_is_found_by_itself_alone(ledger: Ledger) -> None:
    """Neither another secret, nor another id, nor anything that looks like one."""
    key = ledger.keys.add("web", ["read", "search"], ["b", "a"])
    other = ledger.keys.add("other", ["upload"])
    found = ledger.keys.find(key)
    assert found is not None
    assert (found.name, found.rights, found.sources, found.revoked_at) == ("web", ("search", "read"), ("a", "b"), None)
    _, key_id, secret = key.split("_", 2)
    _, other_id, other_secret = other.split("_", 2)
    wrong = [f"mm_{key_id}_{other_secret}", f"mm_{other_id}_{secret}", f"mm_{'0' * 16}_{secret}", key[:-1], key + "x"]
    wrong += [secret, "", "mm__", f"mm_{key_id}_", key.upper(), key + "\n", f"mm_{key_id}_{'é' * 43}"]
    assert [ledger.keys.find(text) for text in wrong] == [None] * len(wrong)


def test_no_secret_is_kept(ledger: Ledger) -> None:
    """Who reads the ledger cannot ask with what is in it."""
    key = ledger.keys.add("web", ["read"])
    with ledger._engine.connect() as connection:
        [row] = connection.execute(text("SELECT * FROM api_keys")).all()
    assert key.split("_", 2)[2] not in str(row)
    assert ledger.keys.find(f"mm_{row.key_id}_{row.digest[:43]}") is None


def test_a_revoked_key_is_none(ledger: Ledger) -> None:
    """At once, and its name is free; the book still knows it, so the server does not become open."""
    assert ledger.keys.is_empty()
    key = ledger.keys.add("web", ["read"])
    assert ledger.keys.rights() == {"read"}
    assert ledger.keys.revoke("web")
    assert not ledger.keys.revoke("web")
    assert ledger.keys.find(key) is None
    assert ledger.keys.rights() == set()
    assert not ledger.keys.is_empty()
    again = ledger.keys.add("web", ["search"])
    assert ledger.keys.find(key) is None
    assert ledger.keys.find(again) is not None
    assert [(known.rights, known.revoked_at is None) for known in ledger.keys.all()] == [
        (("read",), False),
        (("search",), True),
    ]


@pytest.mark.parametrize(
    ("name", "rights", "told"),
    [
        ("web", ["read"], "called 'web' already"),
        ("", ["read"], "cannot be called ''"),
        ("a b", ["read"], "letters, digits"),
        ("x" * 64, ["read"], "1-63 letters"),
        ("new", [], "without a right"),
        ("new", ["read", "admin"], "unknown right 'admin'; there are search, read, upload, events"),
    ],
)
def test_what_is_no_key_is_refused(ledger: Ledger, name: str, rights: list[str], told: str) -> None:
    """It says what would be one, and nothing is written."""
    ledger.keys.add("web", ["read"])
    with pytest.raises(ConfigError, match=told):
        ledger.keys.add(name, rights)
    assert [key.name for key in ledger.keys.all()] == ["web"]


def test_an_older_ledger_gets_the_table(ledger_url: str) -> None:
    """Opening it once is all."""
    older = Ledger(ledger_url)
    with older._engine.begin() as connection:
        connection.execute(text("DROP TABLE api_keys"))
        connection.execute(text("UPDATE facts SET value = '4' WHERE name = 'schema'"))
    older.close()
    ledger = Ledger(ledger_url)
    assert ledger.keys.find(ledger.keys.add("web", ["read"])) is not None
    assert {index["name"] for index in inspect(ledger._engine).get_indexes("api_keys")} == {"api_keys_name"}
    ledger.close()


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_makes_lists_and_revokes(make_workspace: Callable[..., Place]) -> None:
    """The key is the only line on stdout, and is not shown again."""
    place = make_workspace()
    config = ("-c", str(place.config_file))
    made = mm("keys", "add", "web", "--allow", "search", "--allow", "read", "--source", "source", *config).stdout
    assert re.fullmatch(r"mm_[0-9a-f]{16}_[A-Za-z0-9_-]{43}\n", made)
    assert place.open().ledger.keys.find(made.strip()) is not None
    [listed] = [json.loads(line) for line in mm("keys", "list", "--json", *config).stdout.splitlines()]
    assert (listed["name"], listed["rights"], listed["sources"]) == ("web", ["search", "read"], ["source"])
    assert listed["revoked_at"] is None
    assert made.strip().split("_", 2)[2] not in mm("keys", "list", *config).stdout
    assert mm("keys", "revoke", "web", *config).stdout == "Revoked web.\n"
    assert mm("keys", "list", *config).stdout.splitlines()[1].split("\t")[5] != ""
    assert "no key that is good" in mm("keys", "revoke", "web", *config, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("x", "--allow", "everything"), "unknown right 'everything'"),
        (("x", "--allow", "read", "--source", "other"), "no source is called 'other'"),
        (("x",), "--allow"),
    ],
)
def test_the_command_refuses_what_is_no_key(
    make_workspace: Callable[..., Place], arguments: tuple[str, ...], told: str
) -> None:
    """Code 2, what is wrong, and no key."""
    place = make_workspace()
    assert told in mm("keys", "add", *arguments, "-c", str(place.config_file), code=2).stderr
    assert place.open().ledger.keys.is_empty()

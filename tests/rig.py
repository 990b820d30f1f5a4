"""A whole pipeline over a bucket that can fail: server, proxy, ledger, lake, and the checker at the end.

Put here: laying it out, running it until nothing is left to do. Keep out: tests, and single faults (``fault_proxy``).
"""

import dataclasses
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pytest
from checker import Bucket, Evidence, find_broken_promises, find_violations
from fault_proxy import FaultProxy
from flow_driver import process, refresh
from places import Place
from s3_server import KEY_ID, SECRET, make_client
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from mm_assets.buckets.s3 import S3Store
from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.workspace import Workspace
from mm_assets.schemas import STEP_TABLES

_ALL = [(server, ledger) for server in ("moto", "rclone") for ledger in ("sqlite", "postgresql")]
_PAIRS = [("moto", "sqlite"), ("rclone", "postgresql")]


def _over(places: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rig", places, ids=["-".join(place) for place in places], indirect=True)


everywhere, pairwise, once = _over(_ALL), _over(_PAIRS), _over(_PAIRS[:1])


def alternately(names: str, cases: Mapping[str, tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Run many cases, each in one of the two pairs in turn."""
    rows = [(place, *case) for place, case in zip(itertools.cycle(_PAIRS), cases.values(), strict=False)]
    ids = [f"{case}-{'-'.join(row[0])}" for case, row in zip(cases, rows, strict=True)]
    return pytest.mark.parametrize(f"rig,{names}", rows, ids=ids, indirect=["rig"])


# What reads no other step's results: one claim makes all of it, so that a count of tries or records is what a test says.
FIRST_WAVE = tuple(step for step in STEP_TABLES if step != "text_embeddings")
_MAX_ROUNDS = 12
_BUDGET_S = 4.0


class NeverAtRestError(AssertionError):
    """There is still something to do after so many rounds."""


@dataclass
class Rig:
    """One source bucket and one lake bucket behind the proxy, one ledger.

    Attributes
    ----------
    server : moto | rclone
    client : goes straight to the server, past the proxy
    source, lake : names of the buckets
    """

    server: str
    place: Place
    proxy: FaultProxy
    client: Any
    source: str
    lake: str
    ledger_url: str

    def put(self, key: str, data: bytes) -> str:
        """Write an object into the source; returns its ETag."""
        self.client.put_object(Bucket=self.source, Key=key, Body=data)
        return str(self.client.head_object(Bucket=self.source, Key=key)["ETag"]).strip('"')

    def add(self, *names: str) -> None:
        """Put drawn media into the source under their own names."""
        for name in names:
            self.put(name, self.drawn(name))

    def drawn(self, name: str) -> bytes:
        """Return drawn media."""
        return (self.place.media / name).read_bytes()

    def delete(self, key: str) -> None:
        """Delete an object of the source."""
        self.client.delete_object(Bucket=self.source, Key=key)

    def configure(self, **settings: Any) -> None:
        """Write the settings file; keyword arguments are further settings. One child decodes, unless they say otherwise."""
        access = access_to(self.proxy.url)
        settings["runs"] = {"decode_workers": 1} | settings.get("runs", {})
        values: dict[str, Any] = {
            "sources": [{"uri": f"s3://{self.source}", "alias": "source", **read_from(self.proxy.url)}],
            "lake": {"uri": f"s3://{self.lake}", **access},
            "ledger_url": self.ledger_url,
        }
        self.place.write_settings(aliases=(), **values | settings)

    def open(self, **options: str) -> Workspace:
        """Open a workspace that does not wait long for a failing service."""
        return impatient(self.place.open(**options))

    def settle(self, workspace: Workspace) -> None:
        """Run until there is nothing left to do; all waits are cut short."""
        for _ in range(_MAX_ROUNDS):
            self.skip_waits()
            drain_inbox(workspace)
            found = discover(workspace, "source")
            process(workspace)
            if found.is_complete and not found.has_changes and not self.rows(_OPEN):
                refresh(workspace)
                if not self.rows(_OPEN):  # a refresh asks again for results that it misses
                    return
        raise NeverAtRestError(self.rows(_OPEN))

    def skip_waits(self) -> None:
        """Make everything that waits for a time due at once."""
        for statement in ("UPDATE work SET not_before = 0", "UPDATE inbox SET not_before = 0"):
            self.execute(statement)

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Ask the ledger in plain SQL."""
        return self.evidence().rows(query)  # type: ignore[return-value]

    def execute(self, statement: str) -> None:
        """Change the ledger in plain SQL."""
        engine = create_engine(self.ledger_url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(statement))

    def states(self, key: str) -> dict[str, tuple[str, str | None]]:
        """Return step → (state, reason) of the live version of a key."""
        return {row["step"]: (row["state"], row["reason"]) for row in self.work(key)}

    def work(self, key: str) -> list[dict[str, Any]]:
        """Return the rows of work of the live version of a key."""
        rows = self.rows("SELECT o.key, w.* FROM work w JOIN objects o USING (object_id) WHERE o.state = 'live'")
        return sorted((row for row in rows if row["key"] == key), key=itemgetter("step"))

    def evidence(self) -> Evidence:
        """Gather what the checker looks at."""
        return Evidence({"source": Bucket(self.client, self.source)}, self.ledger_url, Bucket(self.client, self.lake))

    def broken_promises(self) -> list[str]:
        """Return what the ledger says and may never say, at any moment."""
        return find_broken_promises(self.evidence())

    def violations(self) -> list[str]:
        """Return what the checker finds wrong."""
        return find_violations(self.evidence())


def run_once(workspace: Workspace) -> None:
    """Do each part of the pipeline once."""
    drain_inbox(workspace)
    for source in workspace.settings.sources:
        discover(workspace, source.alias)
    process(workspace)
    refresh(workspace)


_OPEN = """
SELECT o.key, w.step, w.state, w.reason, w.error FROM work w JOIN objects o USING (object_id)
WHERE o.state = 'live' AND w.state NOT IN ('done', 'skipped', 'dead')
"""


def access_to(url: str) -> dict[str, str]:
    """Return the settings by which a location is reached."""
    return {"endpoint_url": url, "region": "us-east-1", "access_key_id": KEY_ID, "secret_access_key": SECRET}


def impatient(workspace: Workspace, budget_s: float = _BUDGET_S) -> Workspace:
    """Let the stores give up after seconds instead of minutes."""
    for store in (*workspace.sources.values(), workspace.lake.store):
        if isinstance(store, S3Store):
            store._requests.retry = dataclasses.replace(store._requests.retry, budget_s=budget_s, base_s=0.05)
    return workspace


def read_from(url: str, steps: Sequence[str] = FIRST_WAVE) -> dict[str, Any]:
    """Return the settings by which a source is reached and what is made of it."""
    return access_to(url) | {"steps": list(steps)}


@contextmanager
def buckets(url: str) -> Iterator[tuple[Any, str, str]]:
    """Make a source and a lake on a server; yields a client and both names."""
    client, word = make_client(url), uuid.uuid4().hex[:12]
    for name in (f"source-{word}", f"lake-{word}"):
        client.create_bucket(Bucket=name)
    yield client, f"source-{word}", f"lake-{word}"


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds; fails when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)

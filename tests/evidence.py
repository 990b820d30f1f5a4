"""What lies in buckets, ledger and lake, read by plain means: written SQL, plain listings, pyarrow.

Put here: reading, each part once. Keep out: what must hold, which ``checker`` says; any line of the product.
"""

import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool


class Files(Protocol):
    """Files by name, as a plain listing shows them."""

    def etags(self) -> dict[str, str]:
        """Return name → ETag; '' where the place has none of its own."""
        ...

    def read(self, name: str) -> bytes:
        """Return one file's bytes."""
        ...


@dataclass(frozen=True)
class Folder:
    """Files below a folder."""

    path: Path

    def etags(self) -> dict[str, str]:
        """List the files; hidden staging folders are not meant for readers."""
        found = (file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file())
        return {str(name): "" for name in found if not name.parts[0].startswith(".")}

    def read(self, name: str) -> bytes:
        """Read one file."""
        return (self.path / name).read_bytes()


@dataclass(frozen=True)
class Bucket:
    """Objects of a bucket, through a client that goes straight to the server."""

    client: Any
    name: str
    prefix: str = ""

    def etags(self) -> dict[str, str]:
        """List all pages."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix)
        found = (entry for page in pages for entry in page.get("Contents", ()))
        return {entry["Key"].removeprefix(self.prefix): entry["ETag"].strip('"') for entry in found}

    def read(self, name: str) -> bytes:
        """GET one object."""
        data: bytes = self.client.get_object(Bucket=self.name, Key=self.prefix + name)["Body"].read()
        return data


Row = Mapping[str, Any]


@dataclass
class Evidence:
    """Everything that is looked at; each part is read once.

    Attributes
    ----------
    sources : alias → what is there
    n_results : results to be opened and compared with the tables, spread evenly; None for all
    """

    sources: Mapping[str, Files]
    ledger_url: str
    lake: Files
    n_results: int | None = None
    _tables: dict[str, pa.Table | None] = field(default_factory=dict)
    _ids: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def rows(self, query: str) -> list[Row]:
        """Ask the ledger."""
        engine = create_engine(self.ledger_url, poolclass=NullPool)
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query)).mappings()]

    @cached_property
    def live(self) -> dict[str, Row]:
        """Live versions by id."""
        return {row["object_id"]: row for row in self.rows("SELECT * FROM objects WHERE state = 'live'")}

    @cached_property
    def erased(self) -> list[Row]:
        """Versions that a person had erased, with their record in the lake; their object may still be there."""
        rows = self.rows("SELECT * FROM objects WHERE state = 'erased'")
        return [row for row in rows if f"erasures/{row['object_id']}.json" in self.names]

    @cached_property
    def published(self) -> dict[str, str]:
        """Step → recipe that the tables show."""
        return {row["step"]: row["recipe"] for row in self.rows("SELECT * FROM published")}

    @cached_property
    def work(self) -> dict[tuple[str, str], Row]:
        """Rows of work of live versions under the published recipes."""
        rows = self.rows("SELECT w.* FROM work w JOIN objects o USING (object_id) WHERE o.state = 'live'")
        return {(r["object_id"], r["step"]): r for r in rows if self.published.get(r["step"]) == r["recipe"]}

    @cached_property
    def names(self) -> set[str]:
        """All files of the lake."""
        return set(self.lake.etags())

    def table(self, name: str) -> pa.Table | None:
        """Read a published table whole."""
        if name not in self._tables:
            files = sorted(file for file in self.names if file.startswith(f"tables/{name}/shard="))
            parts = [read_parquet(self.lake.read(file)) for file in files]
            full = [part for part in parts if part.num_rows] or parts[:1]
            self._tables[name] = pa.concat_tables(full) if full else None
        return self._tables[name]

    def column(self, table: str, name: str) -> list[Any]:
        """Read one column of a published table; [] where there is no table."""
        found = self.table(table)
        return [] if found is None else list(found[name].to_pylist())

    def ids_by_object(self, table: str, id_column: str) -> dict[str, list[str]]:
        """Group the row ids of a published table by object."""
        if table not in self._ids:
            self._ids[table] = defaultdict(list)
            rows = zip(self.column(table, "object_id"), self.column(table, id_column), strict=True)
            for version, item in rows:
                self._ids[table][version].append(item)
        return self._ids[table]

    def json(self, name: str) -> dict[str, Any]:
        """Read a record."""
        found: dict[str, Any] = json.loads(self.lake.read(name))
        return found


def read_parquet(data: bytes) -> pa.Table:
    """Read a Parquet file held in memory."""
    return pq.read_table(io.BytesIO(data), partitioning=None)

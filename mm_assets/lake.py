"""The lake: results, tables, indexes and dead letters in the user's own bucket or folder.

Put here: the layout of the lake and its Parquet. Keep out: what the rows mean, and state that needs a transaction
(B2 has no conditional write): that is the ledger's.

    results/{step}/{recipe}/{object_id[:2]}/{object_id}.parquet     one file = one result = the commit
    judgements/{name}/{generation}/{batch_id}-{n}.parquet           on arrival; a publish derives the same rows again
    arrivals/{space}/{recipe or table}/{batch_id}-{n}.parquet       on arrival; searched until the index holds the rows
    tables/{table}/shard={n}/part-0.parquet                         what analysts read with a glob
    tables/published.json                                           step → recipe that the tables show
    {kind}/{name}/{generation}/… · current.json                     indexes, models, baselines, taxonomies
    dead_letters/{object_id}/{step}.json · reports/… · lake.json
    erasures/{object_id}.json · receipts/{digest}.parquet           what may not come back, and what was removed
    receipts/open/{digest}.parquet                                  what is about to be removed
"""

import io
import json
import re
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.buckets.base import ObjectNotFoundError, Store, StoredObject
from mm_assets.errors import ConfigError
from mm_assets.schemas import Table, check_schema

PROVENANCE = b"mm_assets"
JUDGEMENTS, ARRIVALS = "judgements/", "arrivals/"  # of batches, until a publish shows the same rows
_READ_THREADS = 8
_RELEASED_WITHIN_S = 1.0  # a thread of Arrow lets go of a file; most within .1 ms, on a busy machine .2 s
_TAIL_BYTES = 1 << 16  # what readers of Parquet ask for first
_ROWS_PER_GROUP = 64  # results hold images: a small group keeps readers' memory flat
_SHARD_KEY = re.compile(r"tables/(?P<table>[^/]+)/shard=(?P<shard>\d{1,9})/part-0\.parquet")
_RESULT_KEY = re.compile(r"results/(?P<step>[^/]+)/(?P<recipe>[^/]+)/[0-9a-f]{2}/(?P<object_id>[0-9a-f]{32})\.parquet")
DISCOVERY = "discovery"  # stands for the step in the record of a name that was refused
# A version has 32 digits, a refused name 16.
_DEAD_LETTER_KEY = re.compile(r"dead_letters/(?P<object_id>(?:[0-9a-f]{16}){1,2})/(?P<step>[^/]+)\.json")


class Lake:
    """Everything that is written for the user, by names of things and never by names of keys."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def uri(self) -> str:
        """Where the lake lies."""
        return self.store.uri

    def lake_id(self) -> str:
        """Return the lake's id; raises ConfigError where nothing was ever written."""
        found = self.find_id()
        if found is None:
            msg = f"{self.uri} holds no lake; correct `lake.uri`, or run `mm ingest` first"
            raise ConfigError(msg)
        return found

    def find_id(self) -> str | None:
        """Return the lake's id; None where nothing was ever written."""
        found = self._read_json("lake.json")
        return None if found is None else str(found["lake_id"])

    def write_id(self, lake_id: str) -> None:
        """Name the lake, at its first use; the ledger chooses the name."""
        self.store.put("lake.json", _to_json({"lake_id": lake_id, "layout": 1}))

    def is_used(self) -> bool:
        """Whether anything was published or computed; two requests at most."""
        return bool(self.published()) or bool(self.store.list_page(limit=1, prefix="results/").objects)

    # -- results -------------------------------------------------------------------------------------------------

    @staticmethod
    def result_key(step: str, recipe: str, object_id: str) -> str:
        """Key of one result."""
        return f"results/{step}/{recipe}/{object_id[:2]}/{object_id}.parquet"

    def has_result(self, step: str, recipe: str, object_id: str) -> bool:
        """Whether the result was committed."""
        try:
            self.store.head(self.result_key(step, recipe, object_id))
        except ObjectNotFoundError:
            return False
        return True

    def n_result_rows(self, step: str, recipe: str, object_id: str) -> int | None:
        """Count the rows of a result from its footer; None where there is none, or a damaged one, which is made again."""
        try:
            with RangeFile(self.store, self.result_key(step, recipe, object_id)) as file:
                return int(pq.read_metadata(file).num_rows)
        except (ObjectNotFoundError, pa.ArrowException, OSError):  # failures of the store are our own errors
            return None

    def write_result(
        self, step: str, recipe: str, object_id: str, rows: pa.Table, provenance: Mapping[str, Any]
    ) -> str:
        """Commit a result held in memory; returns its key."""
        key = self.result_key(step, recipe, object_id)
        self.store.put(key, to_parquet(rows, provenance))
        return key

    def upload_result(self, step: str, recipe: str, object_id: str, file: Path) -> str:
        """Commit a result held in a file; returns its key."""
        key = self.result_key(step, recipe, object_id)
        self.store.upload(key, file)
        return key

    def fetch_result(self, step: str, recipe: str, object_id: str, target: Path) -> Path:
        """Copy a result into a file; raises ObjectNotFoundError."""
        self.store.download(self.result_key(step, recipe, object_id), target)
        return target

    def read_results(
        self, step: str, wanted: Sequence[tuple[str, str]], columns: Sequence[str]
    ) -> list[pa.Table | None]:
        """Read these columns of (recipe, object_id) results, in order; None where a file is missing or damaged."""
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            return list(pool.map(lambda item: self._read_result(step, item[0], item[1], columns), wanted))

    def _read_result(self, step: str, recipe: str, object_id: str, columns: Sequence[str]) -> pa.Table | None:
        try:
            return self.read_columns(self.result_key(step, recipe, object_id), columns)
        except (ObjectNotFoundError, pa.ArrowException, OSError):  # failures of the store are our own errors
            return None

    def read_columns(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file; raises ObjectNotFoundError."""
        with RangeFile(self.store, key) as file:
            return read_parquet(file, columns)

    def recipes(self) -> Iterator[tuple[str, str]]:
        """Yield each (step, recipe) that has results; one listing call for each, however many results there are."""
        after = ""
        while found := self.store.list_page(after=after, limit=1, prefix="results/").objects:
            key = found[0].key
            result = parse_result_key(key)
            if result is not None:
                yield result[:2]
            # "0" follows "/": the next key after all those of this recipe.
            after = f"results/{result[0]}/{result[1]}0" if result else key

    # -- tables --------------------------------------------------------------------------------------------------

    @staticmethod
    def shard_key(table: str, shard: int) -> str:
        """Key of the published file of one shard."""
        return f"tables/{table}/shard={shard}/part-0.parquet"

    def write_shard(self, table: Table, shard: int, rows: pa.Table, dim: int | None, fingerprint: str) -> None:
        """Publish one shard of a table; readers see the old or the new file, never a mixture."""
        check_schema(table.name, table.published_schema(dim), rows.schema)
        made_of = {"table": table.name, "fingerprint": fingerprint}
        self.store.put(self.shard_key(table.name, shard), to_parquet(rows, made_of, rows_per_group=65_536))

    def describe_shard(self, table: str, shard: int) -> tuple[str, int] | None:
        """Return fingerprint and number of rows of a published shard from its footer; None where there is none."""
        try:
            with RangeFile(self.store, self.shard_key(table, shard)) as file:
                footer = pq.read_metadata(file)
        except ObjectNotFoundError:
            return None
        made_of = json.loads((footer.metadata or {}).get(PROVENANCE, b"{}"))
        return str(made_of.get("fingerprint", "")), int(footer.num_rows)

    def read_shard(self, table: str, shard: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """Read a published shard; None where there is none, or where it is damaged, and so holds no row for anybody."""
        try:
            return self.read_columns(self.shard_key(table, shard), columns)
        except (ObjectNotFoundError, pa.ArrowException, OSError):  # failures of the store are our own errors
            return None

    def shard_files(self, table: str = "") -> set[tuple[str, int]]:
        """List the published files as (table, shard), of one table or of all."""
        prefix = f"tables/{table}/" if table else "tables/"
        found = (_SHARD_KEY.fullmatch(stored.key) for stored in self.walk(prefix))
        return {(match["table"], int(match["shard"])) for match in found if match}

    def shards(self, table: str) -> list[int]:
        """List the published shards of a table."""
        return sorted(shard for _, shard in self.shard_files(table))

    def read_table(self, table: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """Read a whole published table; None where nothing is published."""
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            parts = list(pool.map(lambda shard: self.read_shard(table, shard, columns), self.shards(table)))
        found = [part for part in parts if part is not None]
        # An empty shard may still have the vectors' former dimension.
        return pa.concat_tables([part for part in found if part.num_rows] or found[:1]) if found else None

    def write_published(self, recipes: Mapping[str, str]) -> None:
        """Note which recipes the tables show, for who has lost the ledger."""
        self.store.put("tables/published.json", _to_json(recipes))

    def published(self) -> dict[str, str]:
        """Return step → recipe that the tables show."""
        return self._read_json("tables/published.json") or {}

    # -- generations ---------------------------------------------------------------------------------------------

    def write_generation(self, name: str, manifest: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> None:
        """Write an immutable build: its files, given as bytes or as files, then its manifest."""
        folder = f"{name}/{manifest['generation']}"
        for file, data in files.items():
            if isinstance(data, Path):
                self.store.upload(f"{folder}/{file}", data)
            else:
                self.store.put(f"{folder}/{file}", data)
        self.store.put(f"{folder}/manifest.json", _to_json(manifest))

    @staticmethod
    def generation_keys(manifest: Mapping[str, Any]) -> list[str]:
        """Return the keys of the files of a build, its manifest last; an index shares its parts with others."""
        name = manifest["name"]
        own = [f"{name}/{manifest['generation']}/{file}" for file in (*sorted(manifest["sha256"]), "manifest.json")]
        return [*(Lake.part_key(name, part["name"]) for part in manifest.get("parts", ())), *own]

    @staticmethod
    def part_key(name: str, part: str) -> str:
        """Key of a file of vectors that the builds of one index share."""
        return f"{name}/vectors/{part}.arrow"

    def point_to_generation(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Rewrite the pointer that outside readers follow; the ledger's is the one that counts."""
        self.store.put(f"{name}/current.json", _to_json(manifest))

    def read_generation(self, name: str, generation: str, file: str) -> bytes:
        """Read one file of a build."""
        return self.store.read(f"{name}/{generation}/{file}")

    def current_generation(self, name: str) -> dict[str, Any] | None:
        """Return the manifest that the pointer in the lake names."""
        return self._read_json(f"{name}/current.json")

    # -- other records -------------------------------------------------------------------------------------------

    def write_judgements(self, judgement: str, generation: str, name: str, rows: pa.Table) -> str:
        """Write the judgements that were made on arrival of a group of objects; returns the key."""
        key = f"{JUDGEMENTS}{judgement}/{generation}/{name}.parquet"
        self.store.put(key, to_parquet(rows, {"judgement": judgement, "generation": generation}))
        return key

    def write_arrivals(self, space: str, part: str, name: str, rows: pa.Table) -> str:
        """Write what a group of objects gave for a space; returns the key.

        Parameters
        ----------
        part : recipe of vectors, which are compared with those of the same alone; table of texts
        """
        key = f"{ARRIVALS}{space}/{part}/{name}.parquet"
        self.store.put(key, to_parquet(rows, {"space": space, "part": part}))
        return key

    def arrivals(self, space: str, part: str = "") -> Iterator[StoredObject]:
        """Yield what came for a space, of one part or of all, and the index may not hold yet."""
        return self.walk(f"{ARRIVALS}{space}/{part}/" if part else f"{ARRIVALS}{space}/")

    def write_dead_letter(self, object_id: str, step: str, record: Mapping[str, Any]) -> None:
        """Write a dead letter, before the ledger says dead."""
        self.store.put(f"dead_letters/{object_id}/{step}.json", _to_json(record))

    def read_dead_letter(self, object_id: str, step: str) -> dict[str, Any] | None:
        """Read a dead letter; None where there is none."""
        return self._read_json(f"dead_letters/{object_id}/{step}.json")

    def erase_dead_letter(self, object_id: str, step: str) -> None:
        """Remove a dead letter; none there is no error."""
        self.store.erase(f"dead_letters/{object_id}/{step}.json")

    def dead_letters(self, object_id: str = "") -> Iterator[tuple[str, str, StoredObject]]:
        """Yield (object_id, step, file) of all dead letters, or of one version's, in the order of their ids."""
        prefix = f"dead_letters/{object_id}/" if object_id else "dead_letters/"
        for stored in self.walk(prefix):
            match = _DEAD_LETTER_KEY.fullmatch(stored.key)
            if match:
                yield match["object_id"], match["step"], stored

    def write_erasure(self, object_id: str, erased_at: float) -> None:
        """Note that this version may never come back; its key is not told."""
        self.store.put(f"erasures/{object_id}.json", _to_json({"object_id": object_id, "erased_at": erased_at}))

    def erasures(self) -> Iterator[str]:
        """Yield the ids of the versions that were erased."""
        for stored in self.walk("erasures/"):
            yield stored.key.removeprefix("erasures/").removesuffix(".json")

    def write_report(self, name: str, data: bytes) -> str:
        """Write a report; returns its key."""
        key = f"reports/{name}"
        self.store.put(key, data)
        return key

    def walk(self, prefix: str = "") -> Iterator[StoredObject]:
        """List everything below a prefix."""
        after: str | None = ""
        while after is not None:
            page = self.store.list_page(after=after, prefix=prefix)
            yield from page.objects
            after = page.next_after

    def _read_json(self, key: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.store.read(key))
        except ObjectNotFoundError:
            return None
        return found


class RangeFile(io.RawIOBase):
    """A stored object as a seekable file that fetches only what is asked for.

    Parquet keeps its index at the end and its columns apart, so the few small columns of a file full of images
    cost a few small reads. The end is fetched first and kept: most files are no longer, and cost one request.

    Attributes
    ----------
    etag : of the version that is read; another one on the way raises ObjectChangedError
    """

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        self._store, self._key, self._at = store, key, 0
        stored, self._tail = store.read_tail(key, _TAIL_BYTES)
        self._size, self.etag = stored.size_bytes, stored.etag

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def size(self) -> int:
        """Return the object's size."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Fetch and return up to ``size`` bytes."""
        length = self._size - self._at if size < 0 else min(size, self._size - self._at)
        data = self._fetch(length) if length > 0 else b""
        self._at += len(data)
        return data

    def _fetch(self, length: int) -> bytes:
        in_tail = self._at - (self._size - len(self._tail))
        if in_tail >= 0:
            return self._tail[in_tail : in_tail + length]
        return self._store.read_range(self._key, self._at, length, etag=self.etag)

    def readinto(self, buffer: Any) -> int:
        """Fetch into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def parse_result_key(key: str) -> tuple[str, str, str] | None:
    """Return (step, recipe, object_id) of a result's key; None for what is none of ours."""
    match = _RESULT_KEY.fullmatch(key)
    return (match["step"], match["recipe"], match["object_id"]) if match else None


def read_parquet(file: io.IOBase, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file that Python opened; pyarrow's ArrowException or OSError where it is damaged, or lacks a column.

    Returns when Arrow has let go of the file: threads of its own hold it a moment longer than they read, and a process that
    ends then aborts. 33 of 100 did (pyarrow 26, November 2026; known as apache/arrow 33975).
    """
    lent, held = _Lent(file), Lock()
    held.acquire()
    weakref.finalize(lent, held.release)  # anywhere, also while we wait: an Event would wait for itself
    try:
        return pq.read_table(lent, columns=list(columns) if columns is not None else None, partitioning=None)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold it, too
        raise
    finally:
        del lent
        held.acquire(timeout=_RELEASED_WITHIN_S)


class _Lent:
    """A file under a name of its own, so that it can be seen when nobody holds it any longer."""

    def __init__(self, file: io.IOBase) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        """Be the file."""
        return getattr(self._file, name)


def to_parquet(rows: pa.Table, provenance: Mapping[str, Any], *, rows_per_group: int = _ROWS_PER_GROUP) -> bytes:
    """Encode a table; the same rows and provenance give the same bytes."""
    sink = io.BytesIO()
    with open_parquet(sink, rows.schema, provenance) as writer:
        writer.write_table(rows, row_group_size=rows_per_group)
    return sink.getvalue()


def open_parquet(sink: Path | io.BytesIO, schema: pa.Schema, provenance: Mapping[str, Any]) -> pq.ParquetWriter:
    """Open a writer whose file carries its provenance in its metadata."""
    known = {key: value for key, value in (schema.metadata or {}).items() if key != PROVENANCE}
    schema = schema.with_metadata({**known, PROVENANCE: _to_json(provenance)})
    plain = {"vector", "vector.list.element", "keyframe_jpeg", "thumbnail_jpeg", "audio_flac"}
    dictionary = [field.name for field in schema if field.name not in plain and not pa.types.is_nested(field.type)]
    return pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3, use_dictionary=dictionary)


def read_provenance(schema: pa.Schema) -> dict[str, Any]:
    """Return what ``open_parquet`` stored."""
    found: dict[str, Any] = json.loads((schema.metadata or {}).get(PROVENANCE, b"{}"))
    return found


def _to_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, default=str).encode("utf-8")

"""Compares bucket, ledger, lake, tables and indexes by plain means, without a line of the product.

Ids are computed from their documented formulas. What it knows of the extractors is that of ``fakes``: one found thing in
each segment that a step takes.

Put here: what must hold once everything has come to rest. Keep out: reading (``evidence``), running anything, tests.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from evidence import Bucket, Evidence, Files, Folder, Row, read_parquet

__all__ = ["Bucket", "Evidence", "Files", "Folder", "Row", "find_broken_promises", "find_violations"]

_PICTURES = {"scene", "image", "page"}
TAKES = {
    "visual_embeddings": _PICTURES,
    "detected_objects": _PICTURES,
    "faces": _PICTURES,
    "ocr_text": _PICTURES,
    "transcripts": {"audio"},
    "media_quality": _PICTURES | {"audio"},
}
ROW_IDS = {
    "raw_objects": "object_id",
    "segments": "segment_id",
    "visual_embeddings": "segment_id",
    "detected_objects": "detection_id",
    "faces": "face_id",
    "ocr_text": "line_id",
    "transcripts": "utterance_id",
    "media_quality": "segment_id",
    "text_embeddings": "piece_id",
}
SPACES = {
    "visual": ("visual_embeddings", "segment_id"),
    "face": ("faces", "face_id"),
    "text": ("text_embeddings", "piece_id"),
}
ONE_FOR_EACH_PICTURE = ("cluster_assignments", "anomaly_scores")
JUDGEMENTS = ("tags", *ONE_FOR_EACH_PICTURE)
FINAL = {"done", "skipped", "dead"}


def find_violations(evidence: Evidence) -> list[str]:
    """Return what is wrong, one sentence each; [] when bucket, ledger, lake, tables and indexes agree."""
    checks = (
        _check_versions,
        _check_work,
        _check_results,
        _check_tables,
        _check_states,
        _check_contents,
        _check_indexes,
        _check_judgements,
        _check_letters,
        _check_orphans,
        _check_leftovers,
    )
    return [f"{check.__name__.removeprefix('_check_')}: {text}" for check in checks for text in check(evidence)]


def find_broken_promises(evidence: Evidence) -> list[str]:
    """Return what a ledger may never say of a live version, not even between two writes: an end without its file."""
    names = {"done": _result_name, "dead": _letter_name}
    ends = "SELECT object_id, step, recipe, state FROM work WHERE state IN ('done', 'dead')"
    rows = [row for row in evidence.rows(ends) if row["object_id"] in evidence.live]
    files = ((row, names[row["state"]](row["object_id"], row["step"], row["recipe"])) for row in rows)
    return [f"{row['step']} is {row['state']} without {file}" for row, file in files if file not in evidence.names]


def _letter_name(version: str, step: str, _recipe: str) -> str:
    return f"dead_letters/{version}/{step}.json"


def _differences(what: str, wanted: Iterable[Any], found: Iterable[Any]) -> Iterator[str]:
    """Yield what is missing, what is too much and what is there twice."""
    counts = Counter(iter(found))
    expected = set(wanted)
    for word, items in (
        ("missing", expected - counts.keys()),
        ("too much", counts.keys() - expected),
        ("twice", {item for item, n in counts.items() if n > 1}),
    ):
        if items:
            yield f"{what}: {len(items)} {word}, e.g. {min(map(str, items))!r}"


def object_id(alias: str, key: str, etag: str) -> str:
    """Hash the parts of an identity, each preceded by its length."""
    digest = hashlib.sha256()
    for part in (alias, key, etag):
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    return digest.hexdigest()[:32]


def vector_id(item_id: str) -> int:
    """Return the number under which FAISS knows an item."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:8], "big") >> 1


# -- ledger against sources --------------------------------------------------------------------------------------------


def _check_versions(evidence: Evidence) -> Iterator[str]:
    for alias, files in evidence.sources.items():
        there = files.etags()
        known = [row for row in evidence.live.values() if row["alias"] == alias]
        erased = {
            row["key"] for row in evidence.erased if row["alias"] == alias and row["etag"] == there.get(row["key"])
        }
        unstorable = {key for key in there if "\0" in key}
        wanted = there.keys() - erased - unstorable
        yield from _differences(f"live keys of {alias}", wanted, [row["key"] for row in known])
        refused = [row for row in evidence.rows("SELECT alias FROM refusals") if row["alias"] == alias]
        if len(refused) < len(unstorable):
            yield f"{len(unstorable)} keys of {alias} can be held by no ledger, {len(refused)} are recorded as refused"
        for row in known:
            etag = there.get(row["key"], "")
            if etag and row["etag"] != etag:
                yield f"stale: {row['key']!r} is live as {row['etag']}, the bucket has {etag}"
            if row["object_id"] != object_id(alias, row["key"], row["etag"]):
                yield f"{row['key']!r} has another id than its identity gives"


def _check_work(evidence: Evidence) -> Iterator[str]:
    wanted = {(version, step) for version in evidence.live for step in evidence.published}
    yield from _differences("rows of work", wanted, evidence.work)
    for (version, step), row in evidence.work.items():
        if row["state"] not in FINAL:
            yield f"{step} of {version} has not ended: {row['state']} {row['reason']} {row['error']}"
        if row["state"] == "done" and row["n_rows"] is None:
            yield f"{step} of {version} is done without a count of rows"


# -- lake against ledger -----------------------------------------------------------------------------------------------


def _done(evidence: Evidence) -> dict[tuple[str, str], Row]:
    return {key: row for key, row in evidence.work.items() if row["state"] == "done"}


def _result_name(version: str, step: str, recipe: str) -> str:
    return f"results/{step}/{recipe}/{version[:2]}/{version}.parquet"


def _check_results(evidence: Evidence) -> Iterator[str]:
    done = _done(evidence)
    for (version, step), row in done.items():
        if _result_name(version, step, row["recipe"]) not in evidence.names:
            yield f"{step} of {version} is done without a result"
    stride = 1 if evidence.n_results is None else max(1, len(done) // evidence.n_results)
    for (version, step), row in list(done.items())[::stride]:
        name = _result_name(version, step, row["recipe"])
        if name in evidence.names:
            yield from _check_result(evidence, name, step, row)


def _check_result(evidence: Evidence, name: str, step: str, row: Row) -> Iterator[str]:
    try:
        rows = read_parquet(evidence.lake.read(name))
    except (pa.ArrowException, OSError) as error:
        yield f"{name} cannot be read: {error}"
        return
    if rows.num_rows != row["n_rows"]:
        yield f"{name} has {rows.num_rows} rows, the ledger says {row['n_rows']}"
    if set(rows["object_id"].to_pylist()) - {row["object_id"]}:
        yield f"{name} holds rows of another object"
    shown = evidence.ids_by_object(step, ROW_IDS[step]).get(row["object_id"], [])
    yield from _differences(f"{step} of {row['object_id']} in its table", rows[ROW_IDS[step]].to_pylist(), shown)


# -- tables ------------------------------------------------------------------------------------------------------------


def _check_tables(evidence: Evidence) -> Iterator[str]:
    done = _done(evidence)
    for step, recipe in evidence.published.items():
        wanted = {version: row["n_rows"] for (version, of), row in done.items() if of == step and row["n_rows"]}
        found = Counter(evidence.column(step, "object_id"))
        for version in wanted.keys() | found.keys():
            if wanted.get(version, 0) != found[version]:
                state = "live" if version in evidence.live else "not live"
                yield f"{step} of {version} ({state}): {found[version]} rows, {wanted.get(version, 0)} expected"
        yield from _differences(step, evidence.column(step, ROW_IDS[step]), evidence.column(step, ROW_IDS[step]))
        if set(evidence.column(step, "recipe")) - {recipe}:
            yield f"{step} shows rows of another recipe"


def _check_states(evidence: Evidence) -> Iterator[str]:
    columns = ("object_id", "step", "state", "n_rows")
    shown = list(zip(*(evidence.column("step_states", name) for name in columns), strict=True))
    wanted = [(version, step, row["state"], row["n_rows"]) for (version, step), row in evidence.work.items()]
    yield from _differences("step_states", wanted, shown)


def _check_contents(evidence: Evidence) -> Iterator[str]:
    """Whether the rows were made from the bytes that are there now, and as many as there are things in them."""
    yield from _check_digests(evidence)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for version, kind in zip(
        evidence.column("segments", "object_id"), evidence.column("segments", "segment_kind"), strict=True
    ):
        kinds[version][kind] += 1
    for (version, step), row in _done(evidence).items():
        n_segments = sum(n for kind, n in kinds[version].items() if kind in TAKES.get(step, ()))
        if step in TAKES and row["n_rows"] != n_segments:
            yield f"{step} of {version} has {row['n_rows']} rows from {n_segments} segments"


def _check_digests(evidence: Evidence) -> Iterator[str]:
    columns = ("bucket", "key", "sha256", "size_bytes", "media_kind")
    rows = list(zip(*(evidence.column("raw_objects", name) for name in columns), strict=True))
    stride = 1 if evidence.n_results is None else max(1, len(rows) // evidence.n_results)
    there = {alias: set(files.etags()) for alias, files in evidence.sources.items()}
    for alias, key, sha256, size_bytes, kind in rows[::stride]:
        if key not in there.get(alias, ()):
            continue
        data = evidence.sources[alias].read(key)
        if len(data) != size_bytes or (
            (sha256 or kind != "unsupported") and sha256 != hashlib.sha256(data).hexdigest()
        ):
            yield f"the row of {key!r} was made from other bytes than the source holds"


# -- indexes and judgements --------------------------------------------------------------------------------------------


def _check_indexes(evidence: Evidence) -> Iterator[str]:
    told = list(
        zip(evidence.column("indexed_vectors", "space"), evidence.column("indexed_vectors", "item_id"), strict=True)
    )
    for space, (table, item) in SPACES.items():
        if table not in evidence.published:
            continue
        items = evidence.column(table, item)
        yield from _differences(f"indexed_vectors of {space}", items, [name for of, name in told if of == space])
        if f"indexes/{space}/current.json" in evidence.names:
            yield from _check_index(evidence, space, items)
        elif items:
            yield f"there is no index of {space}"


def _check_index(evidence: Evidence, space: str, items: list[str]) -> Iterator[str]:
    import faiss
    import numpy as np

    manifest = evidence.json(f"indexes/{space}/current.json")
    if manifest != _generations(evidence).get(f"indexes/{space}"):
        yield f"lake and ledger point to different indexes of {space}"
    folder = f"indexes/{space}/{manifest['generation']}"
    index = faiss.deserialize_index(np.frombuffer(evidence.lake.read(f"{folder}/index.faiss"), np.uint8))
    parts = [evidence.lake.read(f"indexes/{space}/vectors/{part['name']}.arrow") for part in manifest["parts"]]
    held = [item for part in parts for item in pa.ipc.open_file(part).read_all()[SPACES[space][1]].to_pylist()]
    yield from _differences(f"vectors kept for the index of {space}", items, held)
    rows = pa.ipc.open_file(evidence.lake.read(f"{folder}/rows.arrow")).read_all()
    yield from _differences(f"rows of the index of {space}", map(vector_id, items), rows["vector_id"].to_pylist())
    if len(rows["number"].unique()) != index.ntotal:
        yield f"{index.ntotal} vectors in the index of {space} have {len(rows['number'].unique())} numbers"
    vectors = evidence.column(SPACES[space][0], "vector")
    if index.ntotal and vectors:
        nearest = index.search(np.asarray(vectors, np.float32), 1)[0][:, 0]
        if (nearest < 0.99).any():
            yield f"{int((nearest < 0.99).sum())} vectors of {space} are not found where they are"


def _generations(evidence: Evidence) -> dict[str, dict[str, Any]]:
    return {row["name"]: json.loads(row["manifest"]) for row in evidence.rows("SELECT * FROM generations")}


def _check_judgements(evidence: Evidence) -> Iterator[str]:
    if "visual_embeddings" not in evidence.published:
        return
    pictures = evidence.column("visual_embeddings", "segment_id")
    for table in ONE_FOR_EACH_PICTURE:
        yield from _differences(table, pictures, evidence.column(table, "segment_id"))
    for table in JUDGEMENTS:
        if foreign := set(evidence.column(table, "segment_id")) - set(pictures):
            yield f"{table} holds {len(foreign)} segments that are in no table, e.g. {min(foreign)}"
    current = {manifest["generation"] for manifest in _generations(evidence).values()}
    for table in (*JUDGEMENTS, "indexed_vectors"):
        if old := set(evidence.column(table, "generation")) - current:
            yield f"{table} was made against generations that are not current: {old}"


# -- what failed, and what is left over --------------------------------------------------------------------------------


def _check_letters(evidence: Evidence) -> Iterator[str]:
    for (version, step), row in evidence.work.items():
        if row["state"] != "dead":
            continue
        name = f"dead_letters/{version}/{step}.json"
        if name not in evidence.names:
            yield f"{step} of {version} is dead without a record"
        elif evidence.json(name)["reason"] != row["reason"]:
            yield f"{name} gives another reason than the ledger ({row['reason']})"
    dead = {
        f"dead_letters/{version}/{step}.json"
        for (version, step), row in evidence.work.items()
        if row["state"] == "dead"
    }
    for name in evidence.names - dead:
        if name.startswith("dead_letters/") and name.split("/")[1] in evidence.live:
            yield f"{name} is the record of a step that is not dead"


def _check_orphans(evidence: Evidence) -> Iterator[str]:
    """Whether anything lies in the lake of versions that are not live."""
    for name in evidence.names:
        kind, _, rest = name.partition("/")
        version = Path(name).stem if kind == "results" else rest.partition("/")[0]
        if kind in {"results", "dead_letters"} and version not in evidence.live and "discovery.json" not in name:
            yield f"orphan: {name}"
    known = {(row["name"], row["shard"]) for row in evidence.rows("SELECT name, shard FROM shard_files")}
    for name in evidence.names:
        table, shard = [*name.split("/"), "", ""][1:3]
        if name.startswith("tables/") and shard and (table, int(shard.removeprefix("shard="))) not in known:
            yield f"orphan: {name}"


def _check_leftovers(evidence: Evidence) -> Iterator[str]:
    """Whether somebody still holds something."""
    for row in evidence.rows("SELECT owner, count(*) AS n FROM work WHERE state = 'claimed' GROUP BY owner"):
        yield f"{row['owner']} still holds {row['n']} claims"
    for row in evidence.rows("SELECT count(*) AS n FROM inbox WHERE done_at IS NULL"):
        if row["n"]:
            yield f"{row['n']} events wait in the inbox"

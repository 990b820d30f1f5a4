"""Exports hold what search finds, are whole or not there, and are read back by the stores they are for.

Parquet by polars and DuckDB, Lance by Lance, Qdrant by its client's local mode; the index is ours, with fake models.
"""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_driver import mm
from fakes import DIM, fake_extractors
from flow_driver import ingest
from places import Place

from mm_assets.cli.export import export
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.exporting import EXPORTED, Collection, Contents, open_contents, write_parquet, write_qdrant
from mm_assets.indexing import VectorIndex
from mm_assets.lake import PROVENANCE
from mm_assets.resources.readers import link_to
from mm_assets.retrieval import Models, Retriever
from mm_assets.retrieval.indexes import open_index
from mm_assets.spaces import SPACES, WORDS

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

MakePlace = Callable[..., Place]
Rows = dict[str, dict[str, Any]]  # by item
HOSTILE = [
    "a\"b'c.png",
    "two\nlines.png",
    "\x1b[31mred.png",
    "50% of #1?.png",
    "ünï😀\u202e.png",
    "{{}}$x.png",
]
NOT_PAYLOAD = ("index", "generation")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place whose media are indexed, among them keys that were made to do harm."""
    place = Place(tmp_path_factory.mktemp("export"), media)
    place.write_settings(refresh={"shard_objects": 3})
    place.add("clip.mp4", "sound.wav")
    for number, name in enumerate(HOSTILE):
        place.add_as(f"picture{number}.png", name)
    ingest(place.open())
    yield place
    place.close()


def contents_of(place: Place, space: str = "visual", **options: Any) -> Contents:
    """Open what is published in a place."""
    workspace = place.open()
    options = {"link": lambda alias, key: link_to(workspace.settings, alias, key)} | options
    return open_contents(workspace.lake, EXPORTED[space], cache=place.folder / "cache", **options)


def index_of(place: Place, space: str = "visual") -> VectorIndex:
    """Open the index that search uses."""
    lake = place.open().lake
    manifest = lake.current_generation(SPACES[space].generation_name)
    assert manifest is not None
    return open_index(lake, manifest, place.folder / "cache")


def by_item(rows: Sequence[dict[str, Any]]) -> Rows:
    """Return rows by their items, each of which is there once."""
    found = {row["item_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@contextmanager
def local_qdrant(folder: Path) -> Iterator["QdrantClient"]:
    """Open a folder of Qdrant's local mode."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))
    yield client
    client.close()


def open_lance(folder: Path) -> Any:
    """Open a Lance dataset."""
    import lance

    return lance.dataset(str(folder))


class Store:
    """A way to export, and to read back what it wrote."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.target = kind, folder / f"out.{kind}"
        self.arguments = [kind, str(self.target), *(["--collection", "out"] if kind == "qdrant" else [])]

    def export(self, place: Place, *options: str, code: int = 0) -> str:
        """Run ``mm export``; returns all that it said."""
        return mm("export", *self.arguments, *options, "-c", str(place.config_file), code=code).output

    def rows(self) -> Rows:
        """Read all rows with a reader that is not ours."""
        if self.kind == "parquet":
            import polars as pl

            return by_item(pl.read_parquet(self.target).to_dicts())
        if self.kind == "lance":
            return by_item(open_lance(self.target).to_table().to_pylist())
        with local_qdrant(self.target) as client:
            found, _ = client.scroll("out", limit=1_000, with_vectors=True)
        return by_item([(point.payload or {}) | {"vector": point.vector} for point in found])

    def nearest(self, query: Sequence[float], k: int) -> list[str]:
        """Ask the store itself for the nearest items."""
        if self.kind == "parquet":
            import duckdb

            order = f"list_inner_product(vector, {list(query)}::FLOAT[]) DESC"
            return [
                row[0]
                for row in duckdb.sql(f"FROM '{self.target}' SELECT item_id ORDER BY {order} LIMIT {k}").fetchall()
            ]
        if self.kind == "lance":
            asked = {"column": "vector", "q": np.array(query, np.float32), "k": k, "metric": "cosine"}
            found = open_lance(self.target).to_table(columns=["item_id", "_distance"], nearest=asked)
            return [str(item) for item in found["item_id"].to_pylist()]
        with local_qdrant(self.target) as client:
            answer = client.query_points("out", query=list(query), limit=k).points
        return [str((point.payload or {})["item_id"]) for point in answer]


@pytest.fixture(params=["parquet", "lance", "qdrant"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Give each store in turn."""
    return Store(request.param, tmp_path)


# -- what is exported --------------------------------------------------------------------------------------------------


def test_an_export_is_the_published_index(place: Place, store: Store) -> None:
    """The same items, places, keys however hostile, and vectors; the link is that of the answers of search."""
    store.export(place)
    rows, index = store.rows(), index_of(place)
    published = place.open().lake.read_table("visual_embeddings")
    assert published is not None
    expected = by_item([row | {"item_id": row["segment_id"]} for row in published.drop_columns("recipe").to_pylist()])
    assert {*HOSTILE, "clip.mp4"} == {row["key"] for row in rows.values()}
    assert len(rows) == index.n_rows
    links = links_of_answers(place)
    for item, row in rows.items():
        vector, known = np.array(row.pop("vector"), np.float32), np.array(expected[item].pop("vector"), np.float32)
        np.testing.assert_allclose(vector, known, atol=1e-6 if store.kind == "qdrant" else 0)  # Qdrant normalises again
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert row.pop("link") == links[item]
        assert {name: value for name, value in row.items() if name not in NOT_PAYLOAD} == expected[item]


def links_of_answers(place: Place) -> dict[str, str]:
    """Return segment → link, as search answers."""
    workspace = place.open()
    fakes: dict[str, Any] = fake_extractors(workspace.settings)
    used = Models(fakes["visual_embeddings"], fakes["faces"], fakes["text_embeddings"], workspace.recipes)
    retriever = Retriever(
        workspace.lake, used, cache=place.folder, link=lambda alias, key: link_to(workspace.settings, alias, key)
    )
    found = retriever.search(text="anything", k=1_000, spaces=("visual",))
    return dict(zip(found["segment_id"], found["link"], strict=True))


def test_an_exported_store_finds_the_same_neighbours(place: Place, store: Store) -> None:
    """Asked with each vector, the store answers with the items of our index, in its order."""
    store.export(place)
    index = index_of(place)
    queries = index.rows.gather(index.rows.ids) + np.float32(0.1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, ids = index.search(queries, 4)
    for query, found in zip(queries, ids, strict=True):
        assert store.nearest(query.tolist(), 4) == index.rows.values(found, ["segment_id"])["segment_id"]


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_words_have_text_and_kind(place: Place, tmp_path: Path, kind: str) -> None:
    """What is said and shown, each under its own id; no vector."""
    store = Store(kind, tmp_path)
    store.export(place, "--space", "words")
    rows = store.rows()
    assert {(row["kind"], row["text"]) for row in rows.values()} == {("said", "words"), ("shown", "text")}
    assert {row["key"] for row in rows.values() if row["kind"] == "said"} == {"clip.mp4", "sound.wav"}
    assert all("vector" not in row for row in rows.values())


def test_faces_are_a_space_of_their_own(place: Place, store: Store) -> None:
    """Items are faces, and lie in segments."""
    store.export(place, "--space", "face")
    published = place.open().lake.read_table("faces", ["face_id", "segment_id"])
    assert published is not None
    expected = {row["face_id"]: row["segment_id"] for row in published.to_pylist()}
    assert {item: row["segment_id"] for item, row in store.rows().items()} == expected


def test_a_condition_leaves_what_passes(place: Place, store: Store) -> None:
    """As in search; what is no condition is told, and so is an empty one."""
    store.export(place, "--where", "media_kind = 'video'")
    assert {row["key"] for row in store.rows().values()} == {"clip.mp4"}
    assert "not a condition" in store.export(place, "--where", "nonsense", code=2)
    assert "it is empty" in store.export(place, "--where", "", code=2)


def test_metadata_name_generation_recipe_and_model(place: Place, tmp_path: Path) -> None:
    """Whoever finds the file knows which model to ask it with."""
    lake, facts = place.open().lake, {}
    for kind in ("parquet", "lance"):
        store = Store(kind, tmp_path)
        store.export(place)
        schema = pq.read_schema(store.target) if kind == "parquet" else open_lance(store.target).schema
        facts[kind] = json.loads(schema.metadata[PROVENANCE])
    manifest = lake.current_generation("indexes/visual")
    assert manifest is not None
    assert facts["parquet"] == facts["lance"]
    assert facts["parquet"]["generation"] == manifest["generation"]
    assert facts["parquet"]["recipes"] == manifest["recipes"]
    assert facts["parquet"]["made_by"]["model"] == "fake-visual_embeddings"


def test_rows_come_in_bounded_batches(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts are joined and large ones cut, and progress ends at all of them."""
    monkeypatch.setattr("mm_assets.exporting.contents.ROWS_PER_BATCH", 2)
    told: list[tuple[int, int]] = []
    contents = contents_of(place, report=lambda done, total: told.append((done, total)))
    write_parquet(contents, tmp_path / "out.parquet")
    file = pq.ParquetFile(tmp_path / "out.parquet")
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    assert sum(sizes) == contents.n_rows > 6
    assert all(2 <= size <= 3 for size in sizes[:-1])
    assert told[-1] == (contents.n_rows, contents.n_rows)


def test_a_generation_that_is_replaced_meanwhile_is_read_to_its_end(make_workspace: MakePlace) -> None:
    """Its files may go as soon as it is open."""
    place = make_workspace("picture0.png", "clip.mp4")
    ingest(place.open())
    contents = contents_of(place)
    for file in (place.lake / "indexes" / "visual" / "vectors").iterdir():
        file.unlink()
    assert sum(batch.num_rows for batch in contents.batches()) == contents.n_rows == 3


def test_an_index_without_rows_is_an_empty_export(make_workspace: MakePlace, store: Store) -> None:
    """Nothing was seen in a sound: no row, and no error."""
    place = make_workspace("sound.wav")
    ingest(place.open())
    store.export(place)
    assert store.rows() == {}


def test_before_anything_is_indexed_it_says_what_to_run(make_workspace: MakePlace, store: Store) -> None:
    """Before the first ingest; nothing is written."""
    assert "nothing is indexed for visual yet; run `mm ingest`" in store.export(make_workspace(), code=2)
    assert not store.target.exists()


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_a_target_that_is_there_is_replaced_by_force_only(place: Place, tmp_path: Path, kind: str) -> None:
    """And by force only where it is such an export; nothing is left beside it."""
    store = Store(kind, tmp_path)
    store.export(place)
    before = store.rows()
    assert "replace it with --force" in store.export(place, "--where", "false", code=2)
    assert store.rows() == before
    store.export(place, "--where", "false", "--force")
    assert store.rows() == {}
    assert list(tmp_path.iterdir()) == [store.target]


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_force_spares_folders_of_others(place: Place, tmp_path: Path, kind: str) -> None:
    """A folder named by mistake is not removed."""
    store = Store(kind, tmp_path)
    store.target.mkdir()
    (store.target / "precious").touch()
    assert "exists and is no" in store.export(place, "--force", code=2)
    assert (store.target / "precious").exists()


def test_force_spares_files_of_others(place: Place, tmp_path: Path) -> None:
    """Neither a medium nor a table of a lake, which is Parquet of ours as well, is replaced."""
    store = Store("parquet", tmp_path)
    table = next((place.lake / "tables").rglob("*.parquet"))
    foreign = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"mm_assets": b"no JSON"}), foreign)
    for content in (b"precious", b"", table.read_bytes(), foreign.getvalue()):
        store.target.write_bytes(content)
        assert "exists and is no export to Parquet" in store.export(place, "--force", code=2)
        assert store.target.read_bytes() == content


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_a_target_in_a_file_is_told(place: Place, tmp_path: Path, kind: str) -> None:
    """Its path cannot be."""
    (tmp_path / "file").touch()
    assert "correct the path" in Store(kind, tmp_path / "file").export(place, code=2)


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
from mm_assets.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_a_target_without_room_is_as_it_was(place: Place, tmp_path: Path, kind: str) -> None:
    """A disk that is full, or a limit on files: exit code 1, and no half of it is left."""
    store = Store(kind, tmp_path)
    ended = run(FULL, "export", *store.arguments, "-c", str(place.config_file))
    assert ended.returncode == 1, ended.stderr
    assert f"{store.target} cannot be written, and is as it was" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


INTERRUPTED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mm_assets.cli import main
from mm_assets.exporting import Contents, contents
whole, contents.ROWS_PER_BATCH = Contents.batches, 1
def stopped(self):
    for number, batch in enumerate(whole(self)):
        yield batch
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
Contents.batches = stopped
main()
"""


def test_ctrl_c_leaves_no_half_of_a_target(place: Place, store: Store, tmp_path: Path) -> None:
    """It ends with 130 and says what is left; the same command completes a collection."""
    ended = run(INTERRUPTED, "export", *store.arguments, "-c", str(place.config_file))
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    if store.kind == "qdrant":
        assert "the same command completes it" in ended.stderr
        assert 0 < len(store.rows()) < index_of(place).n_rows
        store.export(place)
        assert len(store.rows()) == index_of(place).n_rows
    else:
        assert f"{store.target} is as it was" in ended.stderr
        assert list(tmp_path.iterdir()) == []


# -- Qdrant ------------------------------------------------------------------------------------------------------------


def test_a_repeated_export_takes_out_what_left(make_workspace: MakePlace, tmp_path: Path) -> None:
    """Points are overwritten and not doubled; those of another space, and somebody's own, stay."""
    from qdrant_client import models

    place, store = (
        make_workspace("picture0.png", "picture1.png", refresh={"gone_brake": 1.0}),
        Store("qdrant", tmp_path),
    )
    ingest(place.open())
    assert "0 points removed" in store.export(place)
    store.export(place, "--space", "face")
    with local_qdrant(store.target) as client:
        client.upsert("out", [models.PointStruct(id=1, vector=[1.0] * DIM, payload={"item_id": "own"})])
    (place.source / "picture0.png").unlink()
    ingest(place.open())
    assert "1 point removed" in store.export(place)
    assert "0 points removed" in store.export(place)
    visual = [row["key"] for row in store.rows().values() if row.get("index", "").endswith("/visual")]
    assert visual == ["picture1.png"]
    faces = [row["key"] for row in store.rows().values() if row.get("index", "").endswith("/face")]
    assert sorted(faces) == ["picture0.png", "picture1.png"]
    assert "own" in store.rows()


def test_another_condition_takes_the_place_of_the_first(place: Place, tmp_path: Path) -> None:
    """Of one generation, too: the collection holds what the last export chose."""
    store = Store("qdrant", tmp_path)
    for where, kinds in (("media_kind = 'video'", {"clip.mp4"}), ("media_kind = 'image'", set(HOSTILE))):
        store.export(place, "--where", where)
        assert {row["key"] for row in store.rows().values()} == kinds


def test_words_are_refused(place: Place, tmp_path: Path) -> None:
    """A collection is of vectors; the message says where words can go."""
    store = Store("qdrant", tmp_path)
    assert "export them to parquet or lance" in store.export(place, "--space", "words", code=2)
    assert not store.target.exists()


def test_a_collection_for_other_vectors_is_refused(place: Place, tmp_path: Path) -> None:
    """Of another length, or compared in another way: nothing is put into it."""
    from qdrant_client import models

    with local_qdrant(tmp_path) as client:
        client.create_collection("out", models.VectorParams(size=DIM, distance=models.Distance.DOT))
    with pytest.raises(ConfigError, match=f"not for one vector of {DIM} dimensions by cosine"):
        write_qdrant(contents_of(place), Collection(str(tmp_path), "out"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the client leaves its lock file open
def test_a_folder_in_use_is_told(place: Place, tmp_path: Path) -> None:
    """The local mode is for one program at a time."""
    with local_qdrant(tmp_path), pytest.raises(ConfigError, match="open in another program"):
        write_qdrant(contents_of(place), Collection(str(tmp_path), "out"))


@pytest.mark.parametrize(
    ("target", "name", "told"),
    [
        ("folder", None, "with --collection"),
        ("folder", "a/b", "cannot be the name"),
        ("http://localhost:6333", None, "last part of its URL"),
        ("http://localhost:6333/", None, "last part of its URL"),
        ("http://localhost:6333/x", "x", "last part of its URL"),
        ("http://localhost:6333/a%2Fb", None, "cannot be the name"),
    ],
)
def test_a_place_that_is_none_is_told(target: str, name: str | None, told: str) -> None:
    """A folder needs a collection, a server's is in its URL."""
    with pytest.raises(ConfigError, match=told):
        Collection.of(target, name, None)


class Handler(BaseHTTPRequestHandler):
    """A server of Qdrant as far as an export asks it: it keeps what it is asked, and agrees."""

    asked: ClassVar[list[tuple[str, str, Any]]] = []
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        """Answer, whatever the method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path.partition("?")[0], json.loads(body or "null")))
        is_allowed = self.headers.get("api-key") == "right"
        done = {"operation_id": 0, "status": "completed"}
        answers = {"exists": {"exists": False}, "keyframes": True, "count": {"count": 2}}
        result = answers.get(self.path.partition("?")[0].rpartition("/")[2], done)
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(self.status if is_allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def qdrant_server(status: int = 200) -> Iterator[str]:
    """Give the URL of a collection, below a prefix as proxies have it."""
    Handler.asked, Handler.status = [], status
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/out/keyframes"
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_server_is_spoken_to_in_its_protocol(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection is made, its two fields are indexed, points are sent, and those of other generations removed."""
    monkeypatch.setenv("MM_ASSETS_EXPORT__QDRANT_API_KEY", "right")
    with qdrant_server() as url:
        output = mm("export", "qdrant", url, "-c", str(place.config_file)).output
    assert "2 points removed" in output
    assert "right" not in output
    below = "/out/collections/keyframes"
    paths = [(method, path) for method, path, _ in Handler.asked]
    assert paths == [
        ("GET", f"{below}/exists"),
        ("PUT", below),
        ("PUT", f"{below}/index"),
        ("PUT", f"{below}/index"),
        ("PUT", f"{below}/points"),
        ("POST", f"{below}/points/count"),
        ("POST", f"{below}/points/delete"),
    ]
    bodies = [body for _, _, body in Handler.asked]
    assert bodies[1]["vectors"] == {"size": DIM, "distance": "Cosine"}
    assert {body["field_name"] for body in bodies[2:4]} == {"index", "generation"}
    assert len(bodies[4]["batch"]["ids"]) == index_of(place).n_rows
    assert all(re.fullmatch(r"[0-9a-f-]{36}", point) for point in bodies[4]["batch"]["ids"])


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize(
    ("key", "status", "kind", "told"),
    [
        ("wrong", 200, ConfigError, "MM_ASSETS_EXPORT__QDRANT_API_KEY"),
        ("right", 400, ConfigError, "keyframes"),
        ("right", 503, ServiceError, "the same command completes it"),
    ],
)
def test_an_answer_says_whether_a_retry_can_help(
    place: Place, key: str, status: int, kind: type[Exception], told: str
) -> None:
    """A wrong key or request cannot be helped by one, a server in trouble can."""
    with qdrant_server(status) as url, pytest.raises(kind, match=told):
        write_qdrant(contents_of(place), Collection.of(url, None, key))


def test_a_server_that_is_not_there_is_told(place: Place) -> None:
    """No answer is a service's failure, with exit code 1."""
    with qdrant_server() as url:
        pass
    assert "Connection refused" in mm("export", "qdrant", url, "-c", str(place.config_file), code=1).output


# -- extras ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "module", "package"), [("lance", "lance", "pylance"), ("qdrant", "qdrant_client", "qdrant-client")]
)
def test_a_missing_library_is_named(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str, package: str
) -> None:
    """With the command that installs it; Parquet needs none."""
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert f"pip install {package}" in Store(kind, tmp_path).export(place, code=2)
    Store("parquet", tmp_path).export(place)


def test_every_index_can_be_exported() -> None:
    """The command offers all that search uses."""
    [space] = [option for option in export.commands["parquet"].params if option.name == "space"]
    assert isinstance(space.type, click.Choice)
    assert {*space.type.choices} == {*EXPORTED} == {*SPACES, WORDS.name}

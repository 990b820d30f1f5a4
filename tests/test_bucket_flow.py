"""The whole chain from and to a bucket: source, lake and state apart or within each other."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flow_driver import column, ingest, process
from s3_server import make_client, moto_server

from mm_assets.exporting import open_contents
from mm_assets.flows.discovery import discover
from mm_assets.mirror import local_copy
from mm_assets.resources.readers import link_to
from mm_assets.retrieval import open_tables
from mm_assets.spaces import SPACES

KEYS = ("a b/picture0.png", "a//b/picture1.png", "ünï/🎬.png", "u\u0308.png", "../up.png", "x" * 900 + ".png")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Run one S3 server for this module."""
    with moto_server() as url:
        yield url


@pytest.fixture
def bucket_place(make_workspace: Callable[..., Any], server: str, tmp_path: Path) -> Callable[..., Any]:
    """Give a function that fills a new bucket and opens a workspace with lake and source in it."""
    client = make_client(server)
    name = f"b{abs(hash(tmp_path)) % 10**12}"

    def make(objects: dict[str, bytes], *, source: str = "", lake: str = "lake", **settings: Any) -> Any:
        client.create_bucket(Bucket=name)
        for key, data in objects.items():
            client.put_object(Bucket=name, Key=f"{source}{key}", Body=data)
        access = {"endpoint_url": server, "region": "us-east-1", "access_key_id": "k", "secret_access_key": "s"}
        sources = [{"uri": f"s3://{name}/{source}", "alias": "source", **access}]
        place = make_workspace(sources=sources, lake={"uri": f"s3://{name}/{lake}", **access}, **settings)
        return place.open(), client, name

    return make


def _picture(media: Path, number: int = 0) -> bytes:
    return (media / f"picture{number}.png").read_bytes()


def test_a_bucket_with_hostile_keys_becomes_tables(
    bucket_place: Callable[..., Any], media: Path, tmp_path: Path
) -> None:
    """Keys reach the tables unchanged, and DuckDB reads a copy of the lake's tables."""
    workspace, _, _ = bucket_place({key: _picture(media, n % 6) for n, key in enumerate(KEYS)})

    assert ingest(workspace).n_new == len(KEYS)

    assert sorted(map(str, column(workspace, "visual_embeddings"))) == sorted(KEYS)
    with open_tables(workspace.lake, tmp_path / "cache") as connection:
        rows = connection.execute("SELECT key FROM moments ORDER BY key").fetchall()
    assert sorted(row[0] for row in rows) == sorted(KEYS)


def test_a_lake_in_the_watched_bucket_is_never_ingested(bucket_place: Callable[..., Any], media: Path) -> None:
    """People put results beside media: listing them again finds nothing of ours."""
    workspace, client, name = bucket_place({"picture0.png": _picture(media)})
    ingest(workspace)

    found = discover(workspace, "source")

    assert (found.n_new, found.n_changed) == (0, 0)
    assert found.n_listed > 10
    assert client.list_objects_v2(Bucket=name, Prefix="lake/results/")["KeyCount"] > 0


def test_a_prefix_is_not_part_of_the_key(bucket_place: Callable[..., Any], media: Path) -> None:
    """A source below a prefix has keys of its own, and what lies beside it is not listed."""
    workspace, client, name = bucket_place({"in/picture0.png": _picture(media)}, source="media/")
    client.put_object(Bucket=name, Key="other/picture1.png", Body=_picture(media, 1))

    ingest(workspace)

    assert column(workspace, "raw_objects") == ["in/picture0.png"]


def test_overwriting_and_deleting_in_a_bucket_reach_the_tables(bucket_place: Callable[..., Any], media: Path) -> None:
    """A new ETag replaces, a missing key retires."""
    workspace, client, name = bucket_place({f"p{n}.png": _picture(media, n) for n in range(4)})
    ingest(workspace)
    client.put_object(Bucket=name, Key="p0.png", Body=_picture(media, 5))
    client.delete_object(Bucket=name, Key="p1.png")

    found = ingest(workspace)

    assert (found.n_changed, found.n_gone) == (1, 1)
    assert sorted(map(str, column(workspace, "raw_objects"))) == ["p0.png", "p2.png", "p3.png"]
    assert len(set(column(workspace, "segments", "object_id"))) == 3


def test_the_etag_in_the_tables_is_the_buckets(bucket_place: Callable[..., Any], media: Path) -> None:
    """Analysts join by key and ETag with what the store itself says."""
    workspace, client, name = bucket_place({"p.png": _picture(media)})
    ingest(workspace)

    assert column(workspace, "raw_objects", "etag") == [client.head_object(Bucket=name, Key="p.png")["ETag"].strip('"')]


def test_a_local_copy_follows_the_lake(bucket_place: Callable[..., Any], media: Path, tmp_path: Path) -> None:
    """What changed is fetched, what vanished is removed, what stayed is left alone."""
    workspace, client, name = bucket_place(
        {f"p{n}.png": _picture(media, n) for n in range(2)}, refresh={"shard_objects": 1}
    )
    ingest(workspace)
    folder = local_copy(workspace.lake, "tables/segments/", tmp_path / "cache")
    kept = folder / "shard=0" / "part-0.parquet"
    before = kept.stat().st_mtime_ns
    client.delete_object(Bucket=name, Key="p1.png")
    discover(workspace, "source")
    process(workspace)
    ingest(workspace)

    local_copy(workspace.lake, "tables/segments/", tmp_path / "cache")

    assert kept.stat().st_mtime_ns == before
    assert not (folder / "shard=1" / "part-0.parquet").exists()


def test_an_export_of_a_lake_in_a_bucket_follows_it(
    bucket_place: Callable[..., Any], media: Path, tmp_path: Path
) -> None:
    """Links are of the bucket, and of rows that left not even the local copy stays."""
    keys = {f"p {n}.png": _picture(media, n) for n in range(2)}
    workspace, client, name = bucket_place(keys, source="media/", refresh={"shard_objects": 1, "gone_brake": 1.0})

    def export() -> tuple[list[str], int]:
        settings, cache = workspace.settings, tmp_path / "cache"
        contents = open_contents(workspace.lake, SPACES["visual"], cache=cache, link=partial(link_to, settings))
        links = [link for batch in contents.batches() for link in batch["link"].to_pylist()]
        return links, len(list(cache.rglob("vectors/*.arrow")))

    ingest(workspace)
    assert export() == ([f"s3://{name}/media/p%20{n}.png" for n in range(2)], 2)
    client.delete_object(Bucket=name, Key="media/p 0.png")
    ingest(workspace)
    assert export() == ([f"s3://{name}/media/p%201.png"], 1)


def test_nothing_new_in_a_bucket_writes_nothing(bucket_place: Callable[..., Any], media: Path) -> None:
    """The second ingest leaves every object of the lake as it is."""
    workspace, client, name = bucket_place({"p.png": _picture(media)})
    ingest(workspace)

    def written() -> dict[str, Any]:
        return {o["Key"]: o["LastModified"] for o in client.list_objects_v2(Bucket=name, Prefix="lake/")["Contents"]}

    before = written()
    ingest(workspace)

    assert written() == before

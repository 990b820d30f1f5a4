"""Removing from stores that keep old versions: a DELETE there only hides."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow_driver import ingest
from s3_server import make_client, moto_server

from mm_assets.buckets.local import LocalStore
from mm_assets.flows import receipts
from mm_assets.flows.removing import erase, find_object


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Run one S3 server for this module."""
    with moto_server() as url:
        yield url


def _versions(client: Any, bucket: str) -> Iterator[tuple[str, str]]:
    """Yield (key, version id) of all there is in a bucket, hidden or not."""
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for version in page.get("Versions", []):
            yield version["Key"], version["VersionId"]


def _holds(client: Any, bucket: str, key: str, version_id: str, object_id: str) -> bool:
    data = client.get_object(Bucket=bucket, Key=key, VersionId=version_id)["Body"].read()
    if key.endswith(".parquet"):
        data = str(pq.read_table(pa.BufferReader(data), partitioning=None).to_pydict()).encode()
    return object_id in key or object_id.encode() in data


def test_old_versions_of_our_files_go_as_well(make_workspace: Callable[..., Any], server: str) -> None:
    """No version of any file in the lake, hidden ones included, holds or names what was erased."""
    client = make_client(server)
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    access = {"endpoint_url": server, "region": "us-east-1", "access_key_id": "k", "secret_access_key": "s"}
    place = make_workspace("picture0.png", "picture1.png", lake={"uri": "s3://versioned/lake", **access})
    workspace = place.open()
    ingest(workspace)
    [known] = find_object(workspace, "picture1.png")
    holding = {
        key for key, of in _versions(client, "versioned") if _holds(client, "versioned", key, of, known.object_id)
    }
    assert len(holding) > 15

    erase(workspace, [known])
    ingest(workspace)

    left = {key for key, of in _versions(client, "versioned") if _holds(client, "versioned", key, of, known.object_id)}
    assert {key.split("/")[1] for key in left} == {"receipts", "erasures"}
    outcomes = {
        row["outcome"] for name in receipts.names(workspace) for row in receipts.read(workspace, name).to_pylist()
    }
    assert outcomes == {"erased"}


def test_what_a_store_only_hides_is_called_hidden(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The receipt does not promise what the store does not do."""

    def hide(store: LocalStore, key: str, *, keep_current: bool = False) -> bool:
        if not keep_current:
            store.delete(key)
        return False

    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    ingest(workspace)
    (place.source / "picture1.png").unlink()
    monkeypatch.setattr(LocalStore, "erase", hide)

    ingest(workspace)

    rows = [row for name in receipts.names(workspace) for row in receipts.read(workspace, name).to_pylist()]
    assert {row["outcome"] for row in rows} == {"hidden, not erased"}
    assert list((tmp_path / "lake" / "receipts" / "open").glob("*")) == []

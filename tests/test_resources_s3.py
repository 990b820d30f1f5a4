"""Clients and stores from settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from rclone_server import rclone_server
from s3_server import KEY_ID, SECRET, Answer, fault_server, moto_server

from mm_assets.buckets.local import LocalStore
from mm_assets.buckets.s3 import S3Store
from mm_assets.buckets.traffic import Traffic
from mm_assets.errors import ConfigError
from mm_assets.resources.readers import Links
from mm_assets.resources.s3 import BucketS3Resource, _loader, open_store
from mm_assets.settings import Location, Settings, SourceSettings

KEYS = {"access_key_id": "id", "secret_access_key": "secret"}


@pytest.fixture(autouse=True)
def _no_keys_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the keys of whoever runs the tests, and the metadata service of a cloud machine."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """Run an S3 server."""
    with moto_server() as url:
        yield url


def bucket(**changes: str) -> Location:
    """Return the settings of a bucket."""
    return Location.model_validate({"uri": "s3://bucket/a/b", "region": "us-east-1", **KEYS, **changes})


def test_the_end_of_an_object_of_unknown_length_is_read_by_its_head(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may answer a range with a star for the length of the whole (RFC 9110)."""
    location = bucket(endpoint_url=server_url, uri="s3://star/")
    BucketS3Resource.from_location(location).get_client().create_bucket(Bucket="star")
    store = open_store(location)
    assert isinstance(store, S3Store)
    store.put("k", b"0123456789")
    get = store._client.get_object

    def get_object(**asked: Any) -> Any:
        return get(**asked) | {"ContentRange": "bytes 7-9/*"}

    monkeypatch.setattr(store._client, "get_object", get_object)
    assert store.read_tail("k", 3) == (store.head("k"), b"789")


def test_sessions_share_models_and_leave_nothing_behind() -> None:
    """A sensor opens clients for ever: the places where models are looked for stay as many."""
    BucketS3Resource.from_location(bucket()).get_client()
    before = list(_loader().search_paths)
    for _ in range(3):
        BucketS3Resource.from_location(bucket()).get_client()
    assert _loader().search_paths == before


def test_open_store_opens_buckets_and_folders(server_url: str, tmp_path: Path) -> None:
    """A bucket's keys lie below the location's prefix, a folder's below the folder; both take what is put."""
    location = bucket(endpoint_url=server_url)
    client = BucketS3Resource.from_location(location).get_client()
    client.create_bucket(Bucket="bucket")
    store = open_store(location, server_side_encryption="AES256")
    assert isinstance(store, S3Store)
    assert store.uri == "s3://bucket/a/b"
    store.put("k", b"x")
    head = client.head_object(Bucket="bucket", Key="a/b/k")
    assert (head["ContentLength"], head["ServerSideEncryption"]) == (1, "AES256")
    folder = open_store(Location(uri=str(tmp_path / "lake")), create=True)
    assert isinstance(folder, LocalStore)
    folder.put("k", b"x")
    assert (tmp_path / "lake" / "k").read_bytes() == b"x"


def test_open_store_shares_traffic(server_url: str, tmp_path: Path) -> None:
    """Stores of one process count into one place, each under its name; a folder has nothing to count."""
    traffic = Traffic()
    for name in ("photos", "lake"):
        location = bucket(endpoint_url=server_url, uri=f"s3://shared-{name}")
        BucketS3Resource.from_location(location).get_client().create_bucket(Bucket=location.bucket)
        open_store(location, name=name, traffic=traffic).list_page()
    open_store(Location(uri=str(tmp_path)), name="folder", traffic=traffic).list_page()
    labels = [dict(labels) for name, labels in traffic.drain() if name == "store_requests_total"]
    assert labels == [{"alias": a, "operation": "list_objects_v2", "code": "200"} for a in ("photos", "lake")]


def test_client_sends_what_other_services_take() -> None:
    """SigV4 with the right region, path style, our name, Content-MD5; no checksum header; one attempt."""
    seen: list[dict[str, str]] = []
    with fault_server(Answer(headers={"ETag": "e"}), Answer(503)) as server:
        location = bucket(endpoint_url=server.url, region="us-west-004")
        client = BucketS3Resource.from_location(location).get_client()
        client.meta.events.register("before-send.s3", lambda request, **_: seen.append(dict(request.headers.items())))
        client.put_object(Bucket="bucket", Key="k", Body=b"x", ContentMD5="nd0EyUExdIFqTBPb8+CoRg==")
        with pytest.raises(client.exceptions.ClientError):
            client.head_object(Bucket="bucket", Key="k")
    assert server.requests == ["PUT /bucket/k", "HEAD /bucket/k"]
    sent = {name.lower(): str(value) for name, value in seen[0].items()}
    assert "/us-west-004/s3/aws4_request" in str(sent["authorization"])
    assert not [name for name in sent if "checksum" in name]
    assert "content-md5" in sent
    assert re.search(r"mm_assets/\d", sent["user-agent"])


def test_client_addresses_virtual_hosts_where_asked() -> None:
    """``addressing_style: virtual`` puts the bucket into the host name."""
    location = bucket(endpoint_url="https://s3.example.invalid", addressing_style="virtual")
    client = BucketS3Resource.from_location(location).get_client()
    url = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
    assert url.startswith("https://bucket.s3.example.invalid/k?")


def test_missing_keys_name_the_variables() -> None:
    """Without keys anywhere, the error says where they are looked for; nothing is asked of any service."""
    location = Location(uri="s3://bucket", endpoint_url="http://127.0.0.1:9", region="r")
    with pytest.raises(ConfigError, match=r"MM_ASSETS_LAKE__ACCESS_KEY_ID.*profile.*AWS_ACCESS_KEY_ID"):
        open_store(location)


@pytest.mark.parametrize(
    "changes",
    [{"profile": "no-such-profile"}, {"endpoint_url": "not a url"}, {"access_key_id": "id", "secret_access_key": None}],
    ids=lambda changes: next(iter(changes)),
)
def test_wrong_settings_are_config_errors(changes: dict[str, str]) -> None:
    """An unknown profile, an endpoint that is no URL, half a pair of keys: said when the store is opened."""
    with pytest.raises(ConfigError, match=r"check|half"):
        open_store(bucket(**changes))


def test_keys_come_from_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile's keys are used where none are given; boto3's own variables work as well."""
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = from-profile\naws_secret_access_key = s\n")
    location = Location(uri="s3://bucket", profile="mine", region="us-east-1")
    url = _signed(location)
    assert "from-profile" in url
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-variable")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert "from-variable" in _signed(Location(uri="s3://bucket", region="us-east-1"))


def _signed(location: Location) -> str:
    client = BucketS3Resource.from_location(location).get_client()
    return client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})


@pytest.mark.parametrize("key", ["a.png", "films/a b+c#d?e=f&g%20h.mp4", "日本/é 😀.jpg"])
def test_links_open_without_keys(key: str) -> None:
    """A server that checks signatures gives the object to whoever has the address, and to nobody without."""
    with rclone_server() as url:
        keys = {"access_key_id": KEY_ID, "secret_access_key": SECRET, "endpoint_url": url, "region": "us-east-1"}
        settings = Settings(sources=(SourceSettings.model_validate({"uri": "s3://media/in", "alias": "m", **keys}),))
        client = BucketS3Resource.from_location(settings.sources[0]).get_client()
        client.create_bucket(Bucket="media")
        client.put_object(Bucket="media", Key=f"in/{key}", Body=b"bytes")
        link = Links(settings)("m", key)
        assert requests.get(link, timeout=10).content == b"bytes"
        assert requests.get(link.replace("X-Amz-Signature=", "X-Amz-Signature=0"), timeout=10).status_code == 403
        assert Links(settings)("unknown", key) == ""


def test_links_without_keys_say_where_it_lies(tmp_path: Path) -> None:
    """Without keys nothing is signed; a file of a folder has its own address."""
    sources = (SourceSettings(uri="s3://media/in", alias="m"), SourceSettings(uri=str(tmp_path), alias="f"))
    links = Links(Settings(sources=sources))
    assert links("m", "a b.png") == "s3://media/in/a%20b.png"
    assert links("f", "a b.png") == (tmp_path / "a b.png").as_uri()

"""Packs: what a ``pack.yaml`` may say, which files are missing, and how they are fetched and checked."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.extractors.packs import LOCK_NAME, find_pack, list_packs, load_pack, read_lock, read_pack
from mm_assets.extractors.pull import pull_pack
from mm_assets.extractors.registry import EXTRACTORS, extractor_class
from mm_assets.extractors.weights import sha256_of, verify_files
from mm_assets.settings import ModelSettings

PAYLOAD = bytes(range(256)) * 9_000  # more than one chunk of the download


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def zipped(**members: bytes) -> bytes:
    """Archive with these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """Serves ``files``; ``/cut`` ends early, ``/away`` redirects to plain http elsewhere."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer one request."""
        self.asked.append(self.path)
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", "file:///etc/hostname")
        self.send_header("Content-Length", str(len(data) * (2 if self.path == "/cut" else 1)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a local server with a few files."""
    archive = zipped(**{"det.onnx": b"detector", "rec.onnx": b"recogniser"})
    _Handler.files = {"/w.bin": PAYLOAD, "/pack.zip": archive, "/cut": PAYLOAD, "/away": b"-"}
    _Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def write_pack(folder: Path, **files: dict[str, Any]) -> str:
    """Pack with one model of these files (names with ``__`` for ``/``); returns its path as a setting takes it."""
    model = {"name": "m", "revision": "1", "library": "l", "licence": "MIT", "is_commercial": True, "dim": 4}
    named = {name.replace("__", "/"): file for name, file in files.items()}
    folder.mkdir()
    pack = {"name": "own", "description": "d", "taxonomy": "t.yaml", "models": {"faces": {**model, "files": named}}}
    (folder / "pack.yaml").write_text(yaml.safe_dump(pack))
    (folder / "t.yaml").write_text("groups: []")
    return str(folder)


@pytest.mark.parametrize("name", ["demo", "standard"])
def test_packs_of_ours_have_a_card_for_every_step(name: str) -> None:
    """Each built-in pack covers all steps, names licences and sources, and gives dimensions where vectors are made."""
    pack = read_pack(find_pack(name))
    assert name in list_packs()
    assert set(pack.models) == {step for step in EXTRACTORS if not extractor_class(step).model_of}
    for step, model in pack.models.items():
        assert model.licence
        assert model.source
        assert (model.dim is not None) == (step in {"visual_embeddings", "faces"})
        assert not model.figures or model.measured_on
        assert set(model.extra) - {"labels", "architecture"} <= set(extractor_class(step).defaults)


def test_licences_that_bind_are_told() -> None:
    """Weights trained with ultralytics are AGPL-3.0, insightface's own are not for commercial use."""
    demo, standard = read_pack(find_pack("demo")), read_pack(find_pack("standard"))
    assert demo.models["detected_objects"].licence == standard.models["detected_objects"].licence == "AGPL-3.0"
    assert not standard.models["faces"].is_commercial
    assert all(model.is_commercial for model in demo.models.values())


@pytest.mark.parametrize("name", ["demo", "standard"])
def test_taxonomies_have_the_agreed_form(name: str) -> None:
    """Groups have a mode, a threshold and tags with prompts; no tag twice in a group."""
    folder = find_pack(name)
    groups = yaml.safe_load((folder / read_pack(folder).taxonomy).read_text())["groups"]
    assert groups
    for group in groups:
        assert set(group) == {"name", "mode", "threshold", "tags"}
        assert group["mode"] in {"threshold", "best"}
        assert 0 < group["threshold"] < 1
        names = [tag["name"] for tag in group["tags"]]
        assert len(set(names)) == len(names) > 0
        assert all(isinstance(prompt, str) for tag in group["tags"] for prompt in tag["prompts"])


def test_demo_pack_is_complete_and_right(tmp_path: Path) -> None:
    """The demo pack needs no fetching, and its files have the digests that its cards say."""
    pack = load_pack(ModelSettings(), tmp_path)
    for card in pack.cards.values():
        verify_files(card.folder, card.files)
    assert pack.taxonomy.is_file()
    assert pull_pack("demo", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_load_names_the_command_that_fetches(tmp_path: Path) -> None:
    """A pack that was not fetched is a ConfigError with the command; there is no falling back to another pack."""
    with pytest.raises(ConfigError, match="mm models pull standard"):
        load_pack(ModelSettings(pack="standard"), tmp_path)
    with pytest.raises(ConfigError, match="known: demo, standard"):
        load_pack(ModelSettings(pack="standrad"), tmp_path)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "a/../../b"])
def test_pack_files_stay_inside_the_pack(tmp_path: Path, name: str) -> None:
    """A pack cannot name files outside its folder."""
    with pytest.raises(ConfigError, match="inside the pack"):
        read_pack(Path(write_pack(tmp_path / "p", **{name: {"sha256": None}})))


def test_pull_fetches_checks_and_keeps(tmp_path: Path, server: str) -> None:
    """What is pulled loads; a second pull fetches nothing; progress tells all bytes."""
    choice = write_pack(tmp_path / "p", a__w={"sha256": sha256(PAYLOAD), "url": f"{server}/w.bin"})
    told: list[tuple[str, int, int | None]] = []
    assert pull_pack(choice, tmp_path / "models", lambda *step: told.append(step)) == [tmp_path / "models/own/a/w"]
    assert told[-1] == ("a/w", len(PAYLOAD), len(PAYLOAD))
    card = load_pack(ModelSettings(pack=choice), tmp_path / "models").cards["faces"]
    assert card.path("a/w").read_bytes() == PAYLOAD
    assert card.digest == f"a/w={sha256(PAYLOAD)}"
    assert pull_pack(choice, tmp_path / "models") == []
    assert _Handler.asked == ["/w.bin"]


def test_pull_takes_members_of_one_archive(tmp_path: Path, server: str) -> None:
    """Members of an archive come from one download; digests that the maker does not publish are recorded."""
    url = f"{server}/pack.zip"
    members = {"f__det": {"url": url, "member": "det.onnx"}, "f__rec": {"url": url, "member": "rec.onnx"}}
    choice = write_pack(tmp_path / "p", **members)
    pull_pack(choice, tmp_path)
    assert _Handler.asked == ["/pack.zip"]
    assert read_lock(tmp_path / "own") == {"f/det": sha256(b"detector"), "f/rec": sha256(b"recogniser")}
    card = load_pack(ModelSettings(pack=choice), tmp_path).cards["faces"]
    verify_files(card.folder, card.files)
    card.path("f/rec").write_bytes(b"tampered!!")
    with pytest.raises(ConfigError, match="mm models pull"):
        verify_files(card.folder, card.files)
    assert pull_pack(choice, tmp_path) == [tmp_path / "own/f/rec"]


def test_pull_refuses_other_content(tmp_path: Path, server: str) -> None:
    """Bytes with another digest never reach the models folder, also when they replaced ones recorded before."""
    choice = write_pack(tmp_path / "p", w={"sha256": sha256(b"else"), "url": f"{server}/w.bin"})
    with pytest.raises(ConfigError, match=sha256(PAYLOAD)):
        pull_pack(choice, tmp_path / "models")
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []
    first_use = write_pack(tmp_path / "q", w={"url": f"{server}/w.bin"})
    pull_pack(first_use, tmp_path / "models")
    (tmp_path / "models/own/w").unlink()
    _Handler.files["/w.bin"] = b"replaced"
    with pytest.raises(ConfigError, match=sha256(b"replaced")):
        pull_pack(first_use, tmp_path / "models")


@pytest.mark.parametrize("path", ["/cut", "/nowhere"])
def test_pull_leaves_nothing_half_fetched(tmp_path: Path, server: str, path: str) -> None:
    """A broken or refused download is a ServiceError, and no file is left."""
    choice = write_pack(tmp_path / "p", w={"url": f"{server}{path}"})
    with pytest.raises(ServiceError, match="again"):
        pull_pack(choice, tmp_path / "models")
    assert [file for file in (tmp_path / "models").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("url", ["http://example.org/w", "file:///etc/passwd", "ftp://example.org/w"])
def test_pull_takes_https_only(tmp_path: Path, url: str) -> None:
    """Addresses that are not https are refused before anything is opened."""
    with pytest.raises(ConfigError, match="https only"):
        pull_pack(write_pack(tmp_path / "p", w={"url": url}), tmp_path / "models")


def test_pull_follows_no_redirect_away_from_https(tmp_path: Path, server: str) -> None:
    """A redirect to a local file is not followed."""
    with pytest.raises((ConfigError, ServiceError)):
        pull_pack(write_pack(tmp_path / "p", w={"url": f"{server}/away"}), tmp_path / "models")
    assert not (tmp_path / "models/own/w").exists()


def test_pull_tells_of_archives_that_are_none(tmp_path: Path, server: str) -> None:
    """A file that is no archive, or has no such member, is said."""
    for path, member in (("/w.bin", "x"), ("/pack.zip", "missing")):
        choice = write_pack(tmp_path / member, w={"url": server + path, "member": member})
        with pytest.raises(ConfigError, match=member):
            pull_pack(choice, tmp_path / "models")


def test_sha256_sees_a_changed_file(tmp_path: Path) -> None:
    """The cache of digests never answers for a file that was replaced."""
    path = tmp_path / "w"
    path.write_bytes(b"one")
    assert sha256_of(path) == sha256(b"one")
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(path)
    assert sha256_of(path) == sha256(b"two")


def test_lock_lies_beside_the_weights(tmp_path: Path, server: str) -> None:
    """Only files without a published digest are locked."""
    url = f"{server}/w.bin"
    choice = write_pack(tmp_path / "p", a={"url": url}, b={"url": url, "sha256": sha256(PAYLOAD)})
    pull_pack(choice, tmp_path)
    assert (tmp_path / "own" / LOCK_NAME).is_file()
    assert set(read_lock(tmp_path / "own")) == {"a"}

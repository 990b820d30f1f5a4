"""What ``mm doctor`` tries, one function for each thing.

Put here: probes that use the product's own code, so that what passes here works there. Keep out: printing.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import chain, combinations
from pathlib import Path
from typing import Literal

from mm_assets.buckets.base import Store
from mm_assets.cli.opening import read_settings
from mm_assets.errors import ConfigError, MmAssetsError
from mm_assets.settings import Location, Settings, SourceSettings, find_config_file

Status = Literal["ok", "warn", "FAIL"]
_SKEW_WARN_S, _SKEW_FAIL_S = 60, 900  # Amazon refuses requests that are 15 minutes off
_MIN_FREE_BYTES = 1 << 30
_GIB = 1 << 30
# These own the same files: whichever was installed last wins, and removing one breaks the other.
_RIVALS = (("faiss-cpu", "faiss-gpu"), ("onnxruntime", "onnxruntime-gpu"))
_MODULES = {"openai-whisper": "whisper"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found; ``message`` says what to do unless it is ok."""

    status: Status
    name: str
    message: str


def examine(config: Path | None) -> Iterator[Finding]:
    """Yield findings as they are made; a probe that fails never stops the others."""
    try:
        settings = read_settings(config, for_sources=True)
    except MmAssetsError as error:
        yield Finding("FAIL", "settings", str(error))
        return
    told: set[str] = set()
    for finding in _probe_all(settings, config):
        if finding.status == "ok" or finding.message not in told:  # one cause fails several probes in the same words
            yield finding
        told.add(finding.message)


def _probe_all(settings: Settings, config: Path | None) -> Iterator[Finding]:
    yield from _settings(settings, config)
    for source in settings.sources:
        yield from _guarded(f"source {source.alias}", lambda s=source: _source(s, settings))  # type: ignore[misc]
    probes: dict[str, Callable[[], Iterable[Finding]]] = {
        "lake": lambda: _lake(settings),
        "clock": lambda: _clock(settings),
        "ledger": lambda: _ledger(settings),
        "weights": lambda: _weights(settings),
        "libraries": lambda: _libraries(settings),
        "tesseract": lambda: _tesseract(settings),
        "packages": _packages,
        "disk": lambda: _disk(settings),
        "sandbox": lambda: _sandbox(settings),
        "device": lambda: _device(settings),
    }
    yield from chain.from_iterable(_guarded(name, probe) for name, probe in probes.items())


def _guarded(name: str, probe: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from probe()
    except MmAssetsError as error:
        yield Finding("FAIL", name, str(error))
    except Exception as error:  # noqa: BLE001  a broken library must not hide what the other probes find
        yield Finding("FAIL", name, f"{type(error).__name__}: {error}")


def _settings(settings: Settings, config: Path | None) -> Iterator[Finding]:
    from mm_assets.flows.workspace import is_within

    aliases = ", ".join(source.alias for source in settings.sources)
    yield Finding("ok", "settings", f"{find_config_file(config) or 'the environment'}; sources: {aliases}")
    for one, other in combinations(settings.sources, 2):
        if is_within(one, other) or is_within(other, one):
            both = f"{one.alias} ({one.uri}) and {other.alias} ({other.uri})"
            yield Finding("warn", "settings", f"{both} share keys: what both select is stored and shown twice")


def _source(source: SourceSettings, settings: Settings) -> Iterator[Finding]:
    """List, and read the first bytes of the first object that can be read at all."""
    from mm_assets.flows.workspace import reserved_prefixes
    from mm_assets.resources.s3 import open_store

    name = f"source {source.alias}"
    own = reserved_prefixes(source, settings)
    store = open_store(source)
    store.check()
    first = next((stored for stored in store.list_page(limit=100).objects if stored.size_bytes), None)
    if first is None:
        yield Finding("warn", name, f"{source.uri} can be listed, but holds nothing; is the prefix right?")
        return
    store.read_range(first.key, 0, 16)
    left_out = f"; left out, since they are our own: {', '.join(own)}" if own else ""
    yield Finding("ok", name, f"{source.uri} can be listed and read{left_out}")


def _lake(settings: Settings) -> Iterator[Finding]:
    """Write, read back and delete an object under a name of ours, then ask whether the ledger is this lake's."""
    from mm_assets.resources.s3 import open_store

    lake = settings.lake
    store = open_store(lake, server_side_encryption=lake.server_side_encryption, create=True)
    store.check(writes=True)
    key, data = f"doctor/{os.urandom(8).hex()}", os.urandom(32)
    store.put(key, data)
    try:
        is_same = store.read(key) == data
    finally:
        store.delete(key)
    if is_same:
        yield Finding("ok", "lake", f"{lake.uri} can be listed, written, read and deleted from")
        yield from _binding(settings, store)
    else:
        yield Finding("FAIL", "lake", f"{lake.uri} gave back other bytes than were written; do not use this store")


def _binding(settings: Settings, store: Store) -> Iterator[Finding]:
    from mm_assets.flows.workspace import check_binding
    from mm_assets.lake import Lake
    from mm_assets.ledger import Ledger, LedgerUnavailableError

    ledger = Ledger(settings.ledger_location)
    try:
        check_binding(ledger, Lake(store))
    except ConfigError as error:
        yield Finding("FAIL", "lake", str(error))
    except LedgerUnavailableError:
        return  # the ledger's own probe tells it
    finally:
        ledger.close()


def _clock(settings: Settings) -> Iterator[Finding]:
    """Compare this clock with each service's, which signs requests only within minutes."""
    buckets = {location.endpoint_url: location for location in (settings.lake, *settings.sources) if location.is_bucket}
    for location in buckets.values():
        skew_s = abs(time.time() - _service_time(location))
        status: Status = "ok" if skew_s < _SKEW_WARN_S else "warn" if skew_s < _SKEW_FAIL_S else "FAIL"
        advice = "" if status == "ok" else "; set this machine's clock (NTP)"
        yield Finding(status, "clock", f"{skew_s:.0f} s from {location.endpoint_url or 'Amazon S3'}{advice}")


def _service_time(location: Location) -> float:
    from botocore.exceptions import ClientError

    from mm_assets.resources.s3 import BucketS3Resource

    client = BucketS3Resource.from_location(location).get_client()
    try:
        answer = client.list_objects_v2(Bucket=location.bucket, Prefix=location.prefix, MaxKeys=1)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:  # a refusal tells the time too
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
    return parsedate_to_datetime(headers["date"]).timestamp()


def _ledger(settings: Settings) -> Iterator[Finding]:
    from mm_assets.ledger import Ledger

    ledger = Ledger(settings.ledger_location)
    try:
        yield Finding("ok", "ledger", f"{ledger.check()} at {ledger.shown_url}")
    finally:
        ledger.close()


def _weights(settings: Settings) -> Iterator[Finding]:
    from mm_assets.extractors.packs import load_pack
    from mm_assets.extractors.weights import verify_files

    pack = load_pack(settings.models, settings.models_folder)
    for card in pack.cards.values():
        verify_files(card.folder, card.files)
    yield Finding("ok", "weights", f"pack {pack.name}: all files are here and have their SHA-256")
    if pack.name == "demo":
        yield Finding(
            "warn", "weights", "the demo pack is right on the demo media only; for others `mm models pull standard`"
        )
    limited = [card.name for card in pack.cards.values() if not card.is_commercial]
    if limited:
        yield Finding("warn", "weights", f"not for commercial use: {', '.join(limited)} (`mm models list`)")


def _asked_steps(settings: Settings) -> list[str]:
    from mm_assets.extractors.registry import known_steps

    asked = {step for source in settings.sources for step in source.steps}
    return [step for step in known_steps() if step in asked]


def _libraries(settings: Settings) -> Iterator[Finding]:
    """Look for the libraries of the steps, without importing them."""
    from mm_assets.extractors.packs import find_pack, read_pack

    models = read_pack(find_pack(settings.models.pack)).models
    needed = {models[step].library: step for step in _asked_steps(settings) if step in models}
    missing = [name for name in needed if importlib.util.find_spec(_MODULES.get(name, name)) is None]
    for name in missing:
        advice = f"pip install {name}, or drop {needed[name]} from `steps`"
        yield Finding("FAIL", "libraries", f"{name} is not installed; {advice}")
    if not missing:
        yield Finding("ok", "libraries", ", ".join(sorted(needed)) or "none needed")


def _tesseract(settings: Settings) -> Iterator[Finding]:
    if "ocr_text" not in _asked_steps(settings):
        yield Finding("ok", "tesseract", "not needed: no source asks for ocr_text")
        return
    from mm_assets.extractors.base import ModelCard
    from mm_assets.extractors.packs import find_pack, read_pack
    from mm_assets.extractors.tesseract import TesseractExtractor

    model = read_pack(find_pack(settings.models.pack)).models["ocr_text"]
    TesseractExtractor(ModelCard(**model.model_dump(exclude={"files"}), folder=Path())).load()
    import pytesseract

    yield Finding(
        "ok", "tesseract", f"{pytesseract.get_tesseract_version()} with {', '.join(pytesseract.get_languages())}"
    )


def _packages() -> Iterator[Finding]:
    installed = {(found.metadata["Name"] or "").lower() for found in importlib.metadata.distributions()}
    mixed = [f"{one} and {other}" for one, other in _RIVALS if one in installed and _has(installed, other)]
    for pair in mixed:
        advice = "uninstall both, then install the one you want"
        yield Finding("FAIL", "packages", f"{pair} are both installed and own the same files; {advice}")
    if not mixed:
        yield Finding("ok", "packages", "faiss and onnxruntime are installed once each")


def _has(installed: set[str], name: str) -> bool:
    return any(other == name or other.startswith(f"{name}-") for other in installed)


def _disk(settings: Settings) -> Iterator[Finding]:
    """Objects are downloaded to the temporary folder while they are decoded; ledger and caches lie in ``state``."""
    largest = max((source.max_object_bytes for source in settings.sources), default=0)
    for name, folder, wanted in (("temporary", Path(tempfile.gettempdir()), largest), ("state", settings.state, 0)):
        free = shutil.disk_usage(_existing(folder)).free
        text = f"{free / _GIB:.1f} GiB free in the {name} folder {folder}"
        if free < _MIN_FREE_BYTES:
            yield Finding("FAIL", "disk", f"{text}; make room{', or set TMPDIR' if wanted else ''}")
        elif free < wanted:
            advice = f"the largest allowed object has {wanted / _GIB:.1f} GiB; set TMPDIR or `max_object_bytes`"
            yield Finding("warn", "disk", f"{text}; {advice}")
        else:
            yield Finding("ok", "disk", text)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _sandbox(settings: Settings) -> Iterator[Finding]:
    """Decode a small picture in the guarded child, as an ingest does."""
    from PIL import Image

    from mm_assets.flows.scratch import scratch
    from mm_assets.media.guard import MediaWorker

    with scratch() as folder:
        file = folder / "picture.bin"
        Image.new("RGB", (64, 64), "white").save(file, "PNG")
        with MediaWorker(settings.media) as worker:
            worker.decode(file, folder / "out")
    if worker.is_isolated and worker.is_confined:
        text = "media are decoded in a child process with limits, without network and other files"
        yield Finding("ok", "sandbox", text)
    if not worker.is_isolated:
        text = "decoding has limits but not its own network namespace: the kernel or container forbids it"
        advice = "allow unprivileged user namespaces, or cut egress by a network policy"
        yield Finding("warn", "sandbox", f"{text}; {advice}")
    if not worker.is_confined:
        text = "a decoder that is broken into could read this user's files: the kernel has no Landlock"
        yield Finding("warn", "sandbox", f"{text}; use Linux 5.13 or later, or a user of its own")


def _device(settings: Settings) -> Iterator[Finding]:
    from mm_assets.extractors.accelerator import onnx_providers, torch_device
    from mm_assets.extractors.registry import choose_placement

    placement = choose_placement(settings.models)
    torch_device(placement)
    if "faces" in _asked_steps(settings):
        onnx_providers(placement)
    if placement.device == "cuda":
        import torch

        yield Finding("ok", "device", f"cuda: {torch.cuda.get_device_name()}")
    else:
        yield Finding("ok", "device", f"cpu, {os.cpu_count()} cores")

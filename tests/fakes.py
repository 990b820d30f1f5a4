# ruff: noqa: ARG002  fakes take what the real ones take
"""Extractors without weights, for tests of everything around the models: rows follow from the segment's bytes alone.

Put here: fakes that keep the extractor contract, and a workspace that uses them. Keep out: assertions.
Media are decoded for real, and ``media_quality`` is the real extractor.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mm_assets.buckets.traffic import Traffic
from mm_assets.errors import ObjectError, Reason
from mm_assets.extractors.base import Extractor, ModelCard, Placement, item_ids
from mm_assets.extractors.insightface import InsightfaceExtractor
from mm_assets.extractors.open_clip import OpenClipExtractor
from mm_assets.extractors.packs import Pack
from mm_assets.extractors.quality import QualityExtractor
from mm_assets.extractors.tesseract import TesseractExtractor
from mm_assets.extractors.text_embeddings import TextEmbeddingExtractor
from mm_assets.extractors.ultralytics import UltralyticsExtractor
from mm_assets.extractors.whisper import WhisperExtractor
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import Lake
from mm_assets.ledger import Ledger
from mm_assets.resources.s3 import open_store
from mm_assets.resources.workspace import WorkspaceResource, check_sources
from mm_assets.settings import Settings

DIM = 16
TAXONOMY = """\
groups:
  - name: anything
    mode: best
    threshold: -1.0
    tags:
      - {name: left, prompts: [something on the left]}
      - {name: right, prompts: [something on the right]}
"""


def hash_vectors(contents: Sequence[bytes]) -> Any:
    """Give one unit vector for each content, shape (n, DIM), equal for equal contents."""
    digests = [np.frombuffer(hashlib.sha512(content).digest()[: 2 * DIM], np.int16) for content in contents]
    matrix = np.array(digests, np.float32).reshape(-1, DIM)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _vector_column(contents: Sequence[bytes]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(hash_vectors(contents).reshape(-1), pa.float32()), DIM)


class HashExtractor(Extractor):
    """One found thing per segment; refuses segments of objects whose key holds ``fails_on``, as a model might."""

    fails_on = ""

    def _load(self) -> None:
        """There are no weights."""

    def _extract(self, segments: pa.Table) -> pa.Table:
        if self.fails_on and any(self.fails_on in key for key in segments["key"].to_pylist()):
            raise ObjectError(Reason.MODEL_ERROR, "the fake model was told to fail")
        owners = list(range(segments.num_rows))
        contents = segments[self.columns[-1]].to_pylist()
        return self._rows(segments, owners, self._values(item_ids(segments, owners), contents))

    def _values(self, ids: list[str], contents: list[bytes]) -> dict[str, Any]:
        raise NotImplementedError

    @staticmethod
    def _boxes(n: int) -> dict[str, Any]:
        return {f"box_{axis}{end}_px": [float(10 * end)] * n for axis in "xy" for end in (0, 1)}


class FakeVision(HashExtractor, OpenClipExtractor):
    """Vectors of pictures and texts."""

    def _values(self, ids: list[str], contents: list[bytes]) -> dict[str, Any]:
        return {"vector": _vector_column(contents)}

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Give unit vectors of texts."""
        return hash_vectors([text.encode() for text in texts])

    def encode_images(self, images: Sequence[Any]) -> Any:
        """Give unit vectors of pictures."""
        return hash_vectors([image.tobytes() for image in images])


class FakeDetector(HashExtractor, UltralyticsExtractor):
    """One thing in each picture."""

    def _values(self, ids: list[str], contents: list[bytes]) -> dict[str, Any]:
        n = len(ids)
        return {"detection_id": ids, "label": ["thing"] * n, "confidence": [0.9] * n} | (self._boxes(n))


class FakeFaces(HashExtractor, InsightfaceExtractor):
    """One face in each picture."""

    def _values(self, ids: list[str], contents: list[bytes]) -> dict[str, Any]:
        n = len(ids)
        values = {"face_id": ids, "confidence": [0.8] * n, "vector": _vector_column(contents)}
        return values | {"landmarks_px": [[1.0] * 10] * n} | self._boxes(n)

    def find_faces(self, image: Any) -> tuple[Any, Any]:
        """Find one face that fills a picture."""
        height, width = image.shape[:2]
        return np.array([[0, 0, width, height]], np.float32), hash_vectors([image.tobytes()])


class FakeReader(HashExtractor, TesseractExtractor):
    """One line of text in each picture."""

    def _values(self, ids: list[str], contents: list[bytes]) -> dict[str, Any]:
        n = len(ids)
        values = {"line_id": ids, "text": ["text"] * n, "confidence": [0.7] * n}
        return values | {"words": [[]] * n} | self._boxes(n)


class FakeListener(HashExtractor, WhisperExtractor):
    """One utterance in each stretch of sound."""

    def _values(self, ids: list[str], contents: list[bytes]) -> dict[str, Any]:
        n = len(ids)
        values = {"utterance_id": ids, "text": ["words"] * n, "language": ["en"] * n}
        return values | {"confidence": [0.6] * n, "no_speech_frac": [0.1] * n, "words": [[]] * n}


class FakeMeaning(TextEmbeddingExtractor):
    """Vectors of whole texts."""

    fails_on = ""

    def _load(self) -> None:
        """There are no weights."""

    def _extract(self, segments: pa.Table) -> pa.Table:
        if self.fails_on and any(self.fails_on in key for key in segments["key"].to_pylist()):
            raise ObjectError(Reason.MODEL_ERROR, "the fake model was told to fail")
        ids = [f"{text_id}-0000" for text_id in segments["text_id"].to_pylist()]
        contents = [text.encode() for text in segments["text"].to_pylist()]
        return self._rows(
            segments, list(range(segments.num_rows)), {"piece_id": ids, "vector": _vector_column(contents)}
        )

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Give unit vectors of texts."""
        return hash_vectors([text.encode() for text in texts])


KINDS: tuple[type[Extractor], ...] = (
    FakeVision,
    FakeDetector,
    FakeFaces,
    FakeReader,
    FakeListener,
    QualityExtractor,
    FakeMeaning,
)


def fake_extractors(settings: Settings, fails_on: str = "", failing_step: str = "") -> dict[str, Extractor]:
    """Build what the sources ask for; ``failing_step`` refuses objects whose key holds ``fails_on``."""
    asked = {step for source in settings.sources for step in source.steps}
    found: dict[str, Extractor] = {}
    for kind in KINDS:
        dim = DIM if kind in {FakeVision, FakeFaces, FakeMeaning} else None
        card = ModelCard(f"fake-{kind.step}", "1", "fakes", "Apache-2.0", Path(), dim=dim)
        if kind.step in asked:
            found[kind.step] = kind(card, None, Placement())
    if failing_step:
        found[failing_step].fails_on = fails_on  # type: ignore[attr-defined]
    return found


def open_fake_workspace(
    settings: Settings, fails_on: str = "", failing_step: str = "", *, check: bool = False
) -> Workspace:
    """Open the settings' stores and ledger for real, with fake extractors."""
    taxonomy = settings.state / "taxonomy.yaml"
    taxonomy.parent.mkdir(parents=True, exist_ok=True)
    if not taxonomy.exists():
        taxonomy.write_text(TAXONOMY, encoding="utf-8")
    traffic = Traffic()
    lake = Lake(open_store(settings.lake, name="lake", traffic=traffic, create=True))
    sources = {source.alias: open_store(source, name=source.alias, traffic=traffic) for source in settings.sources}
    pack = Pack("fake", {}, taxonomy)
    extractors = fake_extractors(settings, fails_on, failing_step)
    unreachable = check_sources(sources) if check else {}
    return Workspace(settings, Ledger(settings.ledger_location), lake, sources, pack, extractors, traffic, unreachable)


class FakeWorkspaceResource(WorkspaceResource):
    """The workspace of a run with fake extractors.

    Attributes
    ----------
    failing_step, fails_on : the step that refuses objects whose key holds this text
    """

    failing_step: str = ""
    fails_on: str = ""

    @contextmanager
    def open(self, *, check: bool = True) -> Iterator[Workspace]:
        """Open the workspace and close it again."""
        workspace = open_fake_workspace(self.settings(), self.fails_on, self.failing_step)
        try:
            if check:
                check_sources(workspace.sources)
            yield workspace
        finally:
            workspace.close()

"""A folder of objects with the truth about each, filled one object at a time.

Put here: the bookkeeping that demo and evaluation have in common.
Keep out: which objects a collection has (demo, evaluation).
"""

import hashlib
import zlib
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from world.documents import Page, write_document
from world.encoding import AudioCodec, read_duration, write_recording
from world.films import FilmRecipe, make_film
from world.frames import HEIGHT_PX, WIDTH_PX, FrameSpec, render_frame
from world.pen import Image
from world.scenes import SceneSupply
from world.soundtracks import record_sentences
from world.speech import SPEECH_RATE_HZ, SentenceSupply
from world.stills import Orientation, write_still
from world.truth import CollectionTruth, MediaObject, SceneTruth

LINES_PER_PAGE = 16


class Collection:
    """Writes objects below a folder; each object's randomness comes from the seed and its key alone."""

    def __init__(self, root: Path, truth: CollectionTruth, excluded_sentences: Container[str] = ()) -> None:
        self.truth = truth
        self.scenes = SceneSupply()
        self.sentences = SentenceSupply(self.rng_for("sentences"), excluded_sentences)
        self._root = root
        self._drawings: dict[str, tuple[Image, SceneTruth]] = {}

    def rng_for(self, key: str) -> np.random.Generator:
        """Give the generator of one object."""
        return np.random.default_rng([self.truth.seed, zlib.crc32(key.encode())])

    def path_of(self, key: str) -> Path:
        """Give the file of a key, its folder made."""
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _record(self, item: MediaObject) -> None:
        data = self.path_of(item.key).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        self.truth.objects.append(replace(item, size_bytes=len(data), sha256=digest))

    def add_film(self, key: str, recipe: FilmRecipe) -> None:
        """Add a film of new scenes."""
        path, rng = self.path_of(key), self.rng_for(key)
        self._record(make_film(path, key, recipe, rng, self.scenes, self.sentences))

    def add_frame(
        self,
        key: str,
        kind: str,
        *,
        size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX),
        orientation: Orientation = 1,
        note: str = "",
    ) -> None:
        """Add a composed frame as a still; formats without loss get no grain, which would make them large."""
        rng = self.rng_for(key)
        spec = self.scenes.draw(rng)
        is_noisy = kind in ("JPEG", "WEBP")
        image, scene = render_frame(spec, rng, width=size_px[0], height=size_px[1], is_noisy=is_noisy)
        self.add_still(key, image, kind, scene=scene, orientation=orientation, note=note)

    def draw_frame(self, key: str, spec: FrameSpec | None = None) -> tuple[Image, SceneTruth]:
        """Draw a new frame without writing it."""
        rng = self.rng_for(key)
        return render_frame(spec or self.scenes.draw(rng), rng, is_noisy=False)

    def drawing_of(self, key: str) -> tuple[Image, SceneTruth]:
        """Give the pixels and the truth of a still that was added before."""
        return self._drawings[key]

    def add_still(
        self,
        key: str,
        image: Image,
        kind: str,
        *,
        scene: SceneTruth | None = None,
        orientation: Orientation = 1,
        options: dict[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        """Add any picture; `facts` are fields of `MediaObject`."""
        write_still(self.path_of(key), image, kind, orientation, **(options or {}))
        truth = scene or SceneTruth("")
        self._drawings[key] = (image, truth)
        height, width = image.shape[:2]
        self._record(MediaObject(key, "image", width_px=width, height_px=height, scenes=(truth,), **facts))

    def add_recording(self, key: str, codec: AudioCodec, duration_s: float, note: str = "") -> None:
        """Add a recording of new sentences."""
        track = record_sentences(self.rng_for(key), self.sentences, duration_s)
        path = self.path_of(key)
        write_recording(path, track.to_samples(duration_s), codec)
        seconds = read_duration(path)
        self._record(MediaObject(key, "audio", note=note, duration_s=seconds, speech=track.to_truth()))

    def add_silence(self, key: str, codec: AudioCodec, duration_s: float) -> None:
        """Add a recording on which nothing is heard."""
        path = self.path_of(key)
        write_recording(path, np.zeros(round(duration_s * SPEECH_RATE_HZ), np.float32), codec)
        seconds = read_duration(path)
        self._record(MediaObject(key, "audio", note="digital silence", duration_s=seconds, quality=("silent",)))

    def draw_lines(self, n_lines: int = LINES_PER_PAGE) -> tuple[str, ...]:
        """Draw new sentences for a page."""
        return tuple(self.sentences.draw() for _ in range(n_lines))

    def add_document(self, key: str, pages: list[Page], note: str = "") -> None:
        """Add a PDF."""
        truths = write_document(self.path_of(key), pages, self.rng_for(key))
        self._record(MediaObject(key, "document", note=note, pages=truths))

    def add_duplicate(self, key: str, of_key: str) -> None:
        """Add a byte-identical copy of an object that was added before."""
        original = next(item for item in self.truth.objects if item.key == of_key)
        self.path_of(key).write_bytes(self.path_of(of_key).read_bytes())
        self._record(replace(original, key=key, duplicate_of=of_key, note="the same bytes"))

    def add_bytes(self, key: str, data: bytes, item: MediaObject) -> None:
        """Add a file that no encoder would write."""
        self.path_of(key).write_bytes(data)
        self._record(item)

    def bytes_of(self, key: str) -> bytes:
        """Give the bytes of an object that was added before."""
        return self.path_of(key).read_bytes()

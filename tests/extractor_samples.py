"""Segments for tests of extractors: drawn and spoken by ``scripts/world``, which knows the truth about them.

Put here: builders of ``segments`` tables, extractors loaded once. Keep out: tests.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image, ImageDraw, ImageFont
from world.frames import render_frame, sample_frame
from world.speech import sample_caption_sentence, sample_sentence, speak

from mm_assets.extractors.base import Extractor, Placement
from mm_assets.extractors.packs import Pack, load_pack
from mm_assets.extractors.registry import build_extractor
from mm_assets.schemas import TABLES
from mm_assets.settings import ModelSettings
from mm_assets.wording import SCHEMA as WORDING

CHUNK_S = 12.0
SCHEMA = TABLES["segments"].arrow_schema()


def jpeg_of(image: Any) -> bytes:
    """Encode as ``segmentation`` does."""
    out = io.BytesIO()
    Image.fromarray(np.asarray(image)).convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def flac_of(samples: Any) -> bytes:
    """Encode as ``segmentation`` does."""
    out = io.BytesIO()
    soundfile.write(out, samples, 16_000, format="FLAC")
    return out.getvalue()


def segment(number: int, kind: str, **values: Any) -> dict[str, Any]:
    """Row of ``segments``; everything not given is null."""
    object_id = f"{number:032x}"
    ids = {"object_id": object_id, "bucket": "demo", "key": f"dir/ключ {number}", "etag": f"e{number}"}
    place = {"segment_id": f"{object_id}-{kind[0]}000000", "segment_kind": kind, "ordinal": 0, "recipe": "up"}
    return dict.fromkeys(SCHEMA.names) | ids | place | values


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of ``segments``."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@cache
def drawn(n: int = 24, seed: int = 5) -> list[tuple[Any, Any, Any]]:
    """Frames with what was asked for, the picture, and the truth."""
    rng = np.random.default_rng(seed)
    specs = [sample_frame(rng) for _ in range(n)]
    return [(spec, *render_frame(spec, rng)) for spec in specs]


def lettered(lines: list[str], size: tuple[int, int] = (905, 1280), px: int = 22) -> Image.Image:
    """Black lines on a white page."""
    page = Image.new("RGB", size, "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(page).text((60, 60 + row * 2 * px), line, "black", ImageFont.load_default(px))
    return page


@cache
def spoken(seconds: float = CHUNK_S, lead_s: float = 0.4, seed: int = 7) -> tuple[Any, list[tuple[float, Any]]]:
    """Sound with sentences, and each one's second and utterance."""
    rng, sound, said = np.random.default_rng(seed), np.zeros(int(seconds * 16_000), np.float32), []
    at_s = lead_s
    while True:
        utterance = speak((sample_sentence, sample_caption_sentence)[len(said) % 2](rng), rng)
        if at_s + utterance.duration_s > seconds - 0.3:
            return sound, said
        start = int(at_s * 16_000)
        sound[start : start + len(utterance.samples)] = utterance.samples
        said.append((at_s, utterance))
        at_s += utterance.duration_s + 0.5


def texts() -> pa.Table:
    """Six texts of several objects: short, long, with signs that are no words, and a blank one."""
    said = ["A red circle below a blue square.", "We see Anna and a purple ring.", "  "]
    shown = ["Ärger & ключ — 你好!", "a yellow star\non a green background", "a black tree near the white house " * 9]
    rows = []
    for k, text in enumerate([*said, *shown]):
        row = segment(k, "audio" if k < len(said) else "page", page_number=None if k < len(said) else k)
        ids = {"text_id": f"{row['segment_id']}-0000", "kind": "said" if k < len(said) else "shown"}
        rows.append({**row, **ids, "text": text, "pieces": []})
    return pa.Table.from_pylist([{name: row[name] for name in WORDING.names} for row in rows], WORDING)


@cache
def segments_for(step: str) -> pa.Table:
    """Six segments (or texts) that the step takes, of several objects, sizes and kinds."""
    if step == "transcripts":
        sounds = [spoken(seed=seed)[0] for seed in (7, 8, 9, 10)] + [np.zeros(16_000), spoken(seed=11)[0][: 5 * 16_000]]
        return table_of(
            [
                segment(k, "audio", start_s=50.0 * k, end_s=50.0 * k + len(sound) / 16_000, audio_flac=flac_of(sound))
                for k, sound in enumerate(sounds)
            ]
        )
    if step == "text_embeddings":
        return texts()
    frames = [image for _, image, _ in drawn()]
    pictures: list[tuple[str, Any, dict[str, Any]]] = [
        ("scene", frames[0], {"start_s": 1.5, "end_s": 4.0, "motion_frac": 0.01}),
        ("image", frames[1][:, 140:500], {}),
        ("page", lettered(["The first line", "and another"]), {"page_number": 3}),
        ("scene", frames[3], {"start_s": 4.0, "end_s": 9.0, "motion_frac": 0.0}),
        ("image", np.full((40, 30, 3), 128, np.uint8), {}),
        ("image", frames[4], {}),
    ]
    return table_of(
        [segment(k, kind, keyframe_jpeg=jpeg_of(image), **place) for k, (kind, image, place) in enumerate(pictures)]
    )


@cache
def demo_pack() -> Pack:
    """Load the pack under test."""
    return load_pack(ModelSettings(), Path("unused"))


@cache
def extractor(step: str) -> Extractor:
    """One loaded extractor per step for all tests."""
    return build_extractor(step, demo_pack(), placement=Placement(threads=1))


@cache
def rows_of(step: str) -> pa.Table:
    """Extract from the six segments, once."""
    return extractor(step).extract(segments_for(step), recipe="r1")

"""The parts of extractors that need no model: shrinking batches, cutting tokens, merging words, measures."""

import numpy as np
import pytest

from mm_assets.errors import ObjectError, Reason
from mm_assets.extractors.accelerator import map_batches
from mm_assets.extractors.inputs import loudness_dbfs
from mm_assets.extractors.quality import sharpness_of
from mm_assets.extractors.tesseract import _Word, join_rows, without_repeats
from mm_assets.extractors.whisper import split_tokens

BEGIN = 1_000  # first timestamp token of an invented vocabulary


class Device:
    """Holds at most ``room`` items, and says so in the words of a library."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def double(self, batch: list[int]) -> list[int]:
        """Double each number, or run out of memory."""
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return [2 * item for item in batch]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate"), Exception("Failed to allocate memory")],
)
def test_map_batches_halves_until_it_fits(error: Exception) -> None:
    """Running out of memory halves the batch, which then stays small; no item is lost, doubled or moved."""
    device = Device(3, error)
    assert map_batches(device.double, range(11), 8) == [2 * item for item in range(11)]
    assert device.sizes == [8, 4, 2, 2, 2, 2, 2, 1]


def test_map_batches_gives_up_at_one() -> None:
    """When not one item fits it is that object's fault, by reason."""
    with pytest.raises(ObjectError) as caught:
        map_batches(Device(0, MemoryError()).double, range(4), 4)
    assert caught.value.reason is Reason.OUT_OF_MEMORY


def test_map_batches_passes_other_errors_on() -> None:
    """An error that is not about memory is raised at once and unchanged."""
    device = Device(0, ValueError("shape mismatch"))
    with pytest.raises(ValueError, match="shape mismatch"):
        map_batches(device.double, range(4), 4)
    assert device.sizes == [4]


@pytest.mark.parametrize(
    ("tokens", "spans", "settled"),
    [
        ([], [], 3_000),
        ([1_010, 5, 6, 1_050], [(0.2, 1.0)], 3_000),
        ([1_010, 5, 1_050, 1_060, 6, 1_100], [(0.2, 1.0), (1.2, 2.0)], 3_000),
        ([1_010, 5, 1_050, 1_060, 6], [(0.2, 1.0)], 100),
        ([1_010, 5, 1_050, 1_050], [(0.2, 1.0)], 100),
        ([5, 6], [(0.0, 30.0)], 3_000),
        ([1_000, 1_000, 5], [(0.0, 0.0)], 3_000),
    ],
)
def test_split_tokens_cuts_at_pairs_of_timestamps(
    tokens: list[int], spans: list[tuple[float, float]], settled: int
) -> None:
    """Pairs of timestamps part utterances; an unfinished one is left to the next window, which always moves on."""
    found, n_frames = split_tokens(tokens, BEGIN, 3_000)
    assert [(start_s, end_s) for _, start_s, end_s in found] == [pytest.approx(span) for span in spans]
    assert n_frames == settled


def test_without_repeats_keeps_the_surer_of_two_readings() -> None:
    """A word that both masks show is kept once, neighbours are kept."""
    sure, unsure = _Word("Scene", 0.95, (0, 0, 50, 20), (0, 1)), _Word("Scenc", 0.7, (2, 1, 51, 21), (1, 1))
    beside = _Word("7", 0.9, (60, 0, 70, 20), (0, 1))
    assert without_repeats([unsure, beside, sure]) == [sure, beside]


def test_lines_of_two_masks_are_joined() -> None:
    """A caption that each mask shows in part is one line, in order; what stands elsewhere stays apart."""

    def word(text: str, left: float, top: float, mask: int) -> _Word:
        return _Word(text, 0.9, (left, top, left + 40, top + 20), (mask, 1))

    light = [word("Bright", 0, 100, 0), word("dog", 100, 101, 0)]
    dark = [word("quiet", 50, 99, 1), word("lazy", 150, 100, 1)]
    assert [[w.text for w in line] for line in join_rows([light, dark])] == [["Bright", "quiet", "dog", "lazy"]]
    below, far = [word("below", 50, 130, 1)], [word("far", 400, 100, 1)]
    assert join_rows([light, below, far]) == [light, below, far]
    assert join_rows([light, [word("same", 200, 100, 0)]])[1][0].text == "same"


def test_measures_match_their_definitions() -> None:
    """Sharpness equals OpenCV's variance of the Laplacian; a full-scale square wave is 0 dBFS, silence -120."""
    import cv2

    luma = np.random.default_rng(1).integers(0, 255, (40, 50)).astype(np.float32)
    assert sharpness_of(luma) == pytest.approx(cv2.Laplacian(luma, cv2.CV_32F)[1:-1, 1:-1].var(), rel=1e-5)
    assert sharpness_of(luma[:2]) == 0.0
    assert loudness_dbfs(np.tile(np.float32([1, -1]), 100)) == pytest.approx(0.0)
    assert loudness_dbfs(np.zeros(10, np.float32)) == loudness_dbfs(np.zeros(0, np.float32)) == -120.0

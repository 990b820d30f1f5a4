"""Chunks of sound: they cover all of it, are short enough, and are cut in pauses."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from media_factory import RATE_HZ, Samples, noise, silence, write_sound

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.audio import Chunker, to_flac
from mm_assets.media.decode import decode_file
from mm_assets.media.segments import SegmentWriter, read_segments

LIMIT_S = 30.0


def chunks_of(samples: Samples, piece: int = 1_024, limit_s: float = LIMIT_S) -> list[tuple[float, Samples]]:
    """Feed a chunker piece by piece, as a decoder does."""
    chunker = Chunker(limit_s)
    found = [c for first in range(0, len(samples), piece) for c in chunker.add(samples[first : first + piece])]
    return [*found, *chunker.finish()]


def borders_of(chunks: list[tuple[float, Samples]]) -> list[float]:
    """Start of each chunk but the first."""
    return [start for start, _ in chunks[1:]]


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.tuples(st.booleans(), st.floats(0.01, 25)), min_size=1, max_size=8),
    piece=st.sampled_from([160, 1_000, 4_096, 70_000]),
)
def test_chunks_are_the_sound_again(parts: list[tuple[bool, float]], piece: int) -> None:
    """Joined, the chunks are the sound to the sample; none is longer than the limit; starts follow from lengths."""
    sound = np.concatenate([noise(s) if is_loud else silence(s) for is_loud, s in parts])
    chunks = chunks_of(sound, piece)
    assert np.array_equal(np.concatenate([c for _, c in chunks]), sound)
    assert all(0 < len(c) <= LIMIT_S * RATE_HZ for _, c in chunks)
    lengths = np.cumsum([0, *(len(c) for _, c in chunks)])[:-1]
    assert [s for s, _ in chunks] == pytest.approx(lengths / RATE_HZ)


def test_cuts_fall_into_pauses() -> None:
    """Speech with half a second of pause every nine seconds is cut in pauses only."""
    sound = np.concatenate([np.concatenate([noise(9, seed), silence(0.5)]) for seed in range(12)])
    borders = borders_of(chunks_of(sound))
    assert len(borders) >= 3
    assert all(border % 9.5 >= 9.0 for border in borders)


def test_cuts_take_the_quieter_of_two_places() -> None:
    """Without silence, the cut is where the sound is softest."""
    sound = np.concatenate([noise(18), noise(0.6, level=0.03), noise(8), noise(0.6, level=0.003), noise(10)])
    (border,) = borders_of(chunks_of(sound))
    assert 26.6 <= border <= 27.2


def test_long_silence_is_a_segment_of_its_own() -> None:
    """Ten silent seconds are cut out, with a margin of 0.2 s left to the speech on both sides."""
    chunks = chunks_of(np.concatenate([noise(8), silence(10), noise(6)]))
    assert borders_of(chunks) == pytest.approx([8.2, 17.8], abs=0.03)
    assert not chunks[1][1].any()


def test_short_pauses_do_not_make_many_segments() -> None:
    """Two minutes of speech with a pause every three seconds are a handful of segments, none of them tiny."""
    chunks = chunks_of(np.concatenate([np.concatenate([noise(3, seed), silence(0.8)]) for seed in range(32)]))
    assert len(chunks) <= 9
    assert min(len(c) for _, c in chunks) >= RATE_HZ


def test_loud_sound_without_pauses_leaves_no_tiny_tail() -> None:
    """Half a second beyond the limit does not become a segment of half a second."""
    assert min(len(c) for _, c in chunks_of(noise(30.5))) >= RATE_HZ


def test_chunker_holds_no_more_than_one_chunk() -> None:
    """Memory is constant: after an hour the chunker holds at most the limit and a second."""
    chunker, piece = Chunker(LIMIT_S), noise(1)
    for _ in range(3_600):
        list(chunker.add(piece))
        assert sum(len(p) for p in chunker._pieces) <= (LIMIT_S + 1) * RATE_HZ


def test_flac_is_lossless() -> None:
    """Stored sound is 16 kHz mono int16 and equal to the samples."""
    samples = noise(1)
    stored, rate = soundfile.read(io.BytesIO(to_flac(samples)), dtype="int16")
    assert rate == 16_000
    assert np.array_equal(stored, samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_sound_files_are_covered_whole(tmp_path: Path, name: str) -> None:
    """Each format becomes segments without holes, of the right length and loudness, resampled from 44.1 kHz stereo."""
    time_s = np.arange(44_100 * 40) / 44_100
    tone = (0.3 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    write_sound(tmp_path / name, np.stack([tone, tone], axis=1), 44_100)
    with SegmentWriter(tmp_path / "out.arrow") as out:
        facts = decode_file(tmp_path / name, MediaLimits(), out)
    rows = [row for batch in read_segments(tmp_path / "out.arrow") for row in batch.to_pylist()]
    assert (facts.media_kind, facts.has_audio) == ("audio", True)
    assert facts.duration_s == pytest.approx(40, abs=0.1)
    assert [r["start_s"] for r in rows] == pytest.approx([0.0, *(r["end_s"] for r in rows[:-1])])
    samples = np.concatenate([soundfile.read(io.BytesIO(r["audio_flac"]))[0] for r in rows])
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_file_cut_in_half_is_corrupt(tmp_path: Path, name: str) -> None:
    """A recording shorter than its header says is never passed off as the whole."""
    whole = write_sound(tmp_path / name, noise(20)).read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ObjectError, match="cut off") as caught, SegmentWriter(tmp_path / "out.arrow") as out:
        decode_file(tmp_path / "half.bin", MediaLimits(), out)
    assert caught.value.reason is Reason.CORRUPT


def test_flac_with_wrong_checksums_is_corrupt(tmp_path: Path) -> None:
    """Garbled sound is not passed on in silence where the format can tell."""
    whole = bytearray(write_sound(tmp_path / "a.flac", noise(20)).read_bytes())
    for place in np.random.default_rng(0).integers(len(whole) // 4, len(whole), 60):
        whole[place] ^= 0xFF
    (tmp_path / "a.bin").write_bytes(whole)
    with pytest.raises(ObjectError, match="damaged"), SegmentWriter(tmp_path / "out.arrow") as out:
        decode_file(tmp_path / "a.bin", MediaLimits(), out)

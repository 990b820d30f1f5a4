"""One pass over video: cuts, times, keyframes, damage, hostile inputs."""

import io
import itertools
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_factory import Clip, Pixels, draw_frame, noise, write_clip
from PIL import Image

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.decode import decode_file
from mm_assets.media.segments import MediaFacts, SegmentWriter, read_segments
from mm_assets.media.sniff import MediaType
from mm_assets.media.video import decode_timed


def decode(file: Path, **limits: Any) -> tuple[MediaFacts, list[dict[str, Any]]]:
    """Decode in this process; returns facts and rows."""
    out = file.with_name("segments.arrow")
    with SegmentWriter(out) as writer:
        facts = decode_file(file, MediaLimits(**limits), writer)
    return facts, [row for batch in read_segments(out) for row in batch.to_pylist()]


def scenes_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of scenes."""
    return [row for row in rows if row["segment_kind"] == "scene"]


def cuts_of(rows: list[dict[str, Any]]) -> list[float]:
    """Start of each scene but the first."""
    scenes = scenes_of(rows)
    return [
        here["start_s"] for before, here in itertools.pairwise(scenes) if here["scene_number"] != before["scene_number"]
    ]


def pixels_of(row: dict[str, Any]) -> Pixels:
    """Keyframe of a row."""
    return np.asarray(Image.open(io.BytesIO(row["keyframe_jpeg"])))


def difference(left: Pixels, right: Pixels) -> float:
    """Mean absolute difference, 0…255."""
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


def irregular_times(seconds: float) -> list[float]:
    """Frame times of a variable rate between 10 and 50 a second."""
    steps = np.random.default_rng(3).choice([0.02, 0.04, 0.1], 2_000)
    times = np.concatenate([[0.0], np.cumsum(steps)])
    return [float(t) for t in times[times < seconds]]


SCENES = (2.0, 1.5, 3.0, 0.8, 2.7, 1.1, 0.6, 2.3)


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("plain.mp4", Clip(SCENES)),
        ("ntsc.mkv", Clip(SCENES, fps=30)),
        ("variable.mp4", Clip(SCENES, times_s=irregular_times(sum(SCENES)))),
        ("variable.mkv", Clip(SCENES, times_s=irregular_times(sum(SCENES)))),
        ("stamped_late.ts", Clip(SCENES, start_s=3)),
        ("stamped_late.mkv", Clip(SCENES, start_s=3)),
        ("turned.mov", Clip(SCENES, rotation_deg=90)),
        ("old.avi", Clip(SCENES, codec="mpeg4")),
        ("web.webm", Clip(SCENES, codec="libvpx")),
    ],
)
def test_scenes_begin_at_the_planted_cuts(tmp_path: Path, name: str, clip: Clip) -> None:
    """Every cut is found at its frame, none besides: whatever container, frame rate, rotation and first time stamp."""
    _, rows = decode(write_clip(tmp_path / name, clip))
    assert cuts_of(rows) == pytest.approx(clip.cuts_s, abs=0.002)


def test_scenes_cover_the_video_without_holes(tmp_path: Path) -> None:
    """Each segment starts where the last one ended; the last ends with the last frame."""
    facts, rows = decode(write_clip(tmp_path / "a.mp4", Clip(SCENES)))
    starts, ends = [r["start_s"] for r in rows], [r["end_s"] for r in rows]
    assert starts == pytest.approx([0.0, *ends[:-1]])
    assert ends[-1] == pytest.approx(14.0, abs=0.04)
    assert facts.duration_s == pytest.approx(14.0, abs=0.04)


def test_pictures_that_start_late_keep_their_time(tmp_path: Path) -> None:
    """Times count from the start of the media, which here is the sound's, five seconds before the first picture."""
    clip = Clip([2, 3], start_s=5, audio=noise(9))
    facts, rows = decode(write_clip(tmp_path / "a.mp4", clip))
    scenes = scenes_of(rows)
    assert [s["start_s"] for s in scenes] == pytest.approx([5.0, 7.0], abs=0.002)
    assert facts.has_audio
    assert [r["start_s"] for r in rows if r["segment_kind"] == "audio"] == [0.0]


def test_sound_that_starts_late_keeps_its_time(tmp_path: Path) -> None:
    """Sound that comes three seconds after the pictures is not moved to the start (64 ms are the codec's lead-in)."""
    _, rows = decode(write_clip(tmp_path / "a.mp4", Clip([6], audio=noise(3), audio_start_s=3)))
    (sound,) = [r for r in rows if r["segment_kind"] == "audio"]
    assert sound["start_s"] == pytest.approx(3.0, abs=0.07)
    assert sound["end_s"] == pytest.approx(6.0, abs=0.1)


def test_transport_streams_joined_end_to_end_go_on(tmp_path: Path) -> None:
    """Time stamps that start anew in the middle lose nothing: the second half follows the first, with its sound."""
    parts = [
        write_clip(tmp_path / f"{seed}.ts", Clip([2, 2], audio=noise(4), first_seed=10 * seed)).read_bytes()
        for seed in (1, 2)
    ]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    facts, rows = decode(tmp_path / "joined.ts")
    assert cuts_of(rows) == pytest.approx([2.064, 4.064, 6.064], abs=0.15)
    assert facts.duration_s == pytest.approx(8.1, abs=0.2)
    assert sum(r["end_s"] - r["start_s"] for r in rows if r["segment_kind"] == "audio") == pytest.approx(8.1, abs=0.2)


def test_keyframes_show_their_scene(tmp_path: Path) -> None:
    """A keyframe is the picture of its own time, from the middle half of its segment and never of the next scene."""
    _, rows = decode(write_clip(tmp_path / "a.mp4", Clip(SCENES)))
    for row in rows:
        truth = draw_frame(row["scene_number"], row["frame_s"])
        other = draw_frame(row["scene_number"] + 1, row["frame_s"])
        assert difference(pixels_of(row), truth) < 8 < difference(pixels_of(row), other)
        position = (row["frame_s"] - row["start_s"]) / (row["end_s"] - row["start_s"])
        assert 0.249 <= position <= 0.751


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_keyframes_are_upright(tmp_path: Path, rotation: int, turns: int) -> None:
    """The display matrix is applied to the keyframe and to width and height."""
    facts, rows = decode(write_clip(tmp_path / "a.mp4", Clip([1.0], rotation_deg=rotation)))
    truth = np.rot90(draw_frame(0, rows[0]["frame_s"]), turns)
    assert difference(pixels_of(rows[0]), truth) < 8
    assert (facts.height_px, facts.width_px) == truth.shape[:2] == (rows[0]["height_px"], rows[0]["width_px"])


def test_keyframes_are_scaled_to_fit_and_never_enlarged(tmp_path: Path) -> None:
    """The longest side of a keyframe is the smaller of the setting and the frame's own."""
    file = write_clip(tmp_path / "a.mp4", Clip([0.5], width=640, height=360))
    assert [decode(file, keyframe_side_px=side)[1][0]["width_px"] for side in (320, 1280)] == [320, 640]


def test_long_scenes_are_divided(tmp_path: Path) -> None:
    """Segments of one scene are at most ``keyframe_every_s`` long, at least half of it, and keep the scene's number."""
    _, rows = decode(write_clip(tmp_path / "a.mp4", Clip([13, 4.5, 3], fps=10)), keyframe_every_s=4)
    lengths = [(r["scene_number"], round(r["end_s"] - r["start_s"], 3)) for r in rows]
    assert lengths == [(0, 4.0), (0, 4.0), (0, 2.5), (0, 2.5), (1, 2.25), (1, 2.25), (2, 3.0)]
    assert all(r["start_s"] <= r["frame_s"] < r["end_s"] for r in rows)


def test_motion_is_zero_in_a_still_and_positive_where_things_move(tmp_path: Path) -> None:
    """``motion_frac`` is the mean change of brightness from frame to frame; the change at a cut is not motion."""
    still = Clip([2, 2], fps=10, times_s=[n / 10 for n in range(40)])
    _, moving = decode(write_clip(tmp_path / "moving.mp4", still))
    frames = [draw_frame(0, 0.0)] * 20 + [draw_frame(1, 0.0)] * 20
    _, frozen = decode(_write_frames(tmp_path / "frozen.mp4", frames))
    assert len(moving) == len(frozen) == 2
    assert all(row["motion_frac"] > 0.0005 for row in moving)
    assert all(row["motion_frac"] < 0.0002 for row in frozen)


def _write_frames(file: Path, frames: list[Pixels]) -> Path:
    import av

    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode(None))
    return file


def test_noise_near_black_is_no_cut(tmp_path: Path) -> None:
    """A tinge that nobody sees in the dark changes saturation as much as a cut would, and is none."""
    black, tinged = (np.full((180, 320, 3), level, np.uint8) for level in ((2, 2, 2), (12, 2, 2)))
    frames = [black] * 20 + [tinged] * 20 + [draw_frame(1, 0.0)] * 20
    _, rows = decode(_write_frames(tmp_path / "dark.mp4", frames))
    assert cuts_of(rows) == pytest.approx([4.0])


def test_untagged_hd_colours_are_read_as_players_do(tmp_path: Path) -> None:
    """Video of 720 lines or more that names no colour matrix is BT.709; a saturated green would be off by 20 otherwise."""
    import av

    file = tmp_path / "a.mp4"
    green = np.concatenate([np.full(720 * 1280, 134), np.full(360 * 640, 63), np.full(360 * 640, 51)])  # BT.709
    frame = av.VideoFrame.from_ndarray(green.astype(np.uint8).reshape(-1, 1280), "yuv420p")
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for _ in range(5):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    _, rows = decode(file)
    assert pixels_of(rows[0]).reshape(-1, 3).mean(axis=0) == pytest.approx([0, 0xC0, 0], abs=4)


def test_video_container_without_pictures_is_audio(tmp_path: Path) -> None:
    """What an MP4 is, is known once it is open."""
    import av

    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(2)[None], "s16", "mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    facts, rows = decode(file)
    assert facts.media_kind == "audio"
    assert {row["segment_kind"] for row in rows} == {"audio"}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm"])
def test_file_cut_in_half_is_corrupt(tmp_path: Path, name: str) -> None:
    """Half a video is never passed off as the whole."""
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx"}.get(name, "libx264")
    whole = write_clip(tmp_path / name, Clip([3, 3], codec=codec)).read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ObjectError) as caught:
        decode(tmp_path / "half.bin")
    assert caught.value.reason is Reason.CORRUPT


def test_damage_in_the_middle_is_tolerated_only_when_small(tmp_path: Path) -> None:
    """One flipped byte does not cost a film; a destroyed stretch is corrupt."""
    whole = write_clip(tmp_path / "a.ts", Clip([4, 4])).read_bytes()
    scratched, wrecked = bytearray(whole), bytearray(whole)
    scratched[len(whole) // 2] ^= 0xFF
    for place in np.random.default_rng(0).integers(len(whole) // 4, len(whole) // 2, 400):
        wrecked[place] ^= 0xFF
    (tmp_path / "scratched.bin").write_bytes(scratched)
    (tmp_path / "wrecked.bin").write_bytes(wrecked)
    assert len(decode(tmp_path / "scratched.bin")[1]) == 2
    with pytest.raises(ObjectError, match="damaged"):
        decode(tmp_path / "wrecked.bin")


@pytest.mark.parametrize(
    "limits", [{"max_duration_s": 1.5}, {"max_video_pixels": 320 * 180 - 1}], ids=["duration", "frame size"]
)
def test_limits_refuse_what_is_too_large(tmp_path: Path, limits: dict[str, float]) -> None:
    """Length and frame size are bounded before anything is decoded."""
    with pytest.raises(ObjectError) as caught:
        decode(write_clip(tmp_path / "a.mp4", Clip([2])), **limits)
    assert caught.value.reason is Reason.TOO_LARGE


def playlists(target: str) -> dict[str, bytes]:
    """Files that make an unguarded FFmpeg open ``target``."""
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode(),
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
        "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
        "dash": f"<?xml version='1.0'?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>".encode(),
    }


@pytest.mark.parametrize("kind", ["hls", "ffconcat", "sdp", "dash"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "mpegts", "mp3"])
def test_playlists_open_nothing(tmp_path: Path, kind: str, container: str) -> None:
    """Even when the sniffer were fooled, the demuxer list keeps FFmpeg from the file and the host a playlist names."""
    secret = write_clip(tmp_path / "secret.mp4", Clip([0.5]))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for target in (secret.name, f"file://{secret}", url):
            file = tmp_path / f"list.{'m3u8' if kind == 'hls' else kind}"  # the name that helps the attacker most
            file.write_bytes(playlists(target)[kind])
            with pytest.raises(ObjectError), SegmentWriter(tmp_path / "out.arrow") as out:
                decode_timed(file, MediaType("video", container), MediaLimits(), out)
            assert list(read_segments(tmp_path / "out.arrow")) == []
        with pytest.raises(TimeoutError):
            server.accept()


def test_hls_trick_would_work_without_the_guard(tmp_path: Path) -> None:
    """The playlist of the test above is a real one: an unguarded FFmpeg follows it."""
    import av

    secret = write_clip(tmp_path / "secret.ts", Clip([0.5]))
    (tmp_path / "list.m3u8").write_bytes(playlists(secret.name)["hls"])
    with av.open(str(tmp_path / "list.m3u8")) as container:
        assert next(container.decode(video=0)).width == 320

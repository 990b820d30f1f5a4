"""Objects that fail every time, or never end."""

import io

import numpy as np
import pytest
from rig import Rig, once, pairwise

from mm_assets.flows.discovery import discover


@pytest.mark.fault(30)
@pairwise
def test_an_object_that_always_fails_dies_after_exactly_three_tries(rig: Rig) -> None:
    """One step of one object is given up, with its reason and its record; everything else is done."""
    rig.add(*(f"picture{number}.png" for number in range(3)))
    rig.put("poison.png", rig.drawn("picture4.png"))
    workspace = rig.open(fails_on="poison", failing_step="faces")

    rig.settle(workspace)

    [row] = [row for row in rig.work("poison.png") if row["step"] == "faces"]
    assert (row["state"], row["reason"], row["tries"]) == ("dead", "model_error", 3)
    assert {state for state, _ in rig.states("picture0.png").values()} <= {"done", "skipped"}
    assert rig.states("poison.png")["visual_embeddings"] == ("done", None)
    assert rig.violations() == []
    assert not discover(workspace, "source").has_changes


def _endless_sound(hours: int) -> bytes:
    """Make hours of silence in a few megabytes: AAC frames hold their own headers, so one second can be repeated."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="adts") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        for first in range(0, 16_384, 1_024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, first
            out.mux(stream.encode(frame))
    second = buffer.getvalue()
    return second * (hours * 3_600)


@pytest.mark.fault(30)
@once
def test_an_object_that_never_ends_is_stopped_and_given_up(rig: Rig) -> None:
    """Three times the clock ends it; the others are not kept waiting for ever."""
    rig.configure(media={"wall_s": 3.0}, runs={"decode_workers": 2})
    rig.put("endless.aac", _endless_sound(5))
    rig.add("picture0.png")

    rig.settle(rig.open())

    assert rig.states("endless.aac")["segments"] == ("dead", "timeout")
    assert {row["tries"] for row in rig.work("endless.aac") if row["step"] == "segments"} == {3}
    assert rig.states("picture0.png")["segments"] == ("done", None)
    assert rig.violations() == []

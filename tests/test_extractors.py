"""The contract that every extractor of the registry keeps."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from extractor_samples import demo_pack, extractor, rows_of, segments_for, table_of

from mm_assets.errors import ConfigError, ObjectError, Reason
from mm_assets.extractors.base import Placement
from mm_assets.extractors.registry import EXTRACTORS, build_extractor, choose_placement, extractor_class, known_steps
from mm_assets.schemas import TABLES
from mm_assets.settings import ModelSettings

pytestmark = pytest.mark.models
STEPS = tuple(EXTRACTORS)
WITH_WEIGHTS = ("visual_embeddings", "detected_objects", "faces", "transcripts", "text_embeddings")
OF_BYTES = tuple(step for step in STEPS if step != "text_embeddings")
HEAVY = ("torch", "torchvision", "open_clip", "ultralytics", "insightface", "onnxruntime", "whisper", "cv2", "numba")
# Batched matrix products add up in another order; the measured differences are ten times smaller.
TOLERANCES = {"visual_embeddings": 1e-5, "text_embeddings": 1e-5, "detected_objects": 1e-2, "transcripts": 2.5e-2}


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest) -> str:
    """Each step of the registry."""
    return str(request.param)


# --- the contract ---------------------------------------------------------------------------------------------------


def test_extract_of_nothing_is_an_empty_table_without_loading(step: str) -> None:
    """No segments give no rows in the exact schema, and nothing is loaded for it."""
    fresh = build_extractor(step, demo_pack())
    rows = fresh.extract(segments_for(step).slice(0, 0))
    assert rows.num_rows == 0
    assert rows.schema.equals(fresh.schema)
    assert not fresh._is_loaded


def test_extract_gives_the_exact_schema_and_the_recipe(step: str) -> None:
    """Rows have the columns, order and types of the table, no null where none may be, and the recipe given."""
    rows = rows_of(step)
    assert rows.num_rows > 0
    assert rows.schema.equals(TABLES[step].arrow_schema(extractor(step).card.dim))
    assert set(rows["recipe"].to_pylist()) == {"r1"}
    assert all(rows[field.name].null_count == 0 for field in rows.schema if not field.nullable)


def test_extract_keeps_the_order_and_ids_of_segments(step: str) -> None:
    """Rows follow the order of their segments, whose ids pass through; ids of found things are unique."""
    rows, given = rows_of(step), segments_for(step)
    order = given["segment_id"].to_pylist()
    places = [order.index(found) for found in rows["segment_id"].to_pylist()]
    assert places == sorted(places)
    for name in ("object_id", "bucket", "key", "etag", "page_number"):
        assert rows[name].to_pylist() == [given[name][place].as_py() for place in places]
    keys = list(zip(*(rows[name].to_pylist() for name in TABLES[step].key), strict=True))
    assert len(set(keys)) == len(keys)


def test_extract_in_a_batch_equals_single_calls(step: str) -> None:
    """A batch of n gives what n batches of one give, within the stated tolerance."""
    given = segments_for(step)
    single = pa.concat_tables([extractor(step).extract(given.slice(k, 1), "r1") for k in range(given.num_rows)])
    assert_close(rows_of(step), single, TOLERANCES.get(step, 0.0))


def assert_close(left: pa.Table, right: pa.Table, tolerance: float) -> None:
    """Equal texts and ids, numbers within the tolerance."""
    assert left.num_rows == right.num_rows
    for name in left.column_names:
        one, other = left[name].to_pylist(), right[name].to_pylist()
        if pa.types.is_floating(left.schema.field(name).type) or name == "vector":
            np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=0, atol=tolerance)
        elif name != "words":
            assert one == other


def test_extract_is_the_same_twice(step: str) -> None:
    """The same segments give the same rows to the last bit."""
    assert extractor(step).extract(segments_for(step), "r1").equals(rows_of(step))


def test_extract_leaves_its_input_alone(step: str) -> None:
    """The segments are not written to."""
    given = segments_for(step)
    before = pickle.dumps(given)
    extractor(step).extract(given)
    assert pickle.dumps(given) == before


def test_extract_gives_unit_vectors_and_numbers_in_range(step: str) -> None:
    """Vectors have length one, confidences lie in 0…1, boxes in the picture, nothing is infinite or not a number."""
    rows = rows_of(step)
    for field in rows.schema:
        if pa.types.is_floating(field.type):
            values = np.array([value for value in rows[field.name].to_pylist() if value is not None])
            assert np.isfinite(values).all()
            if field.name in {"confidence", "no_speech_frac", "brightness_frac"}:
                assert ((values >= 0) & (values <= 1)).all()
    if "vector" in rows.column_names:
        np.testing.assert_allclose(np.linalg.norm(np.array(rows["vector"].to_pylist()), axis=1), 1, atol=1e-5)
    if "box_x0_px" in rows.column_names:
        for row in rows.to_pylist():
            assert -30 < row["box_x0_px"] < row["box_x1_px"] < 940
            assert -30 < row["box_y0_px"] < row["box_y1_px"] < 1310


@pytest.mark.parametrize("step", OF_BYTES, indirect=True)
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "missing"])
def test_extract_of_corrupt_bytes_is_an_object_error(step: str, damage: str) -> None:
    """Bytes that cannot be decoded are this object's fault, for ever, and never a crash of the batch's process."""
    column = "audio_flac" if step == "transcripts" else "keyframe_jpeg"
    rows = segments_for(step).to_pylist()
    whole = rows[1][column]
    rows[1][column] = {"garbage": b"\x00\xff" * 50, "truncated": whole[:200], "empty": b"", "missing": None}[damage]
    extractor("detected_objects").load()  # its library would replace PIL's way of opening pictures
    with pytest.raises(ObjectError) as caught:
        extractor(step).extract(table_of(rows))
    assert caught.value.reason is Reason.CORRUPT


def test_extractor_pickles_without_its_model(step: str) -> None:
    """A loaded extractor crosses process borders as its card and parameters, and gives the same rows there."""
    packed = pickle.dumps(extractor(step))
    assert len(packed) < 10_000
    restored = pickle.loads(packed)  # noqa: S301  # our own bytes
    assert not restored._is_loaded
    assert (restored.card, restored.params, restored.place) == (
        extractor(step).card,
        extractor(step).params,
        extractor(step).place,
    )


@pytest.mark.parametrize("step", WITH_WEIGHTS)
def test_load_refuses_weights_that_are_not_the_card_s(step: str, tmp_path: Path) -> None:
    """One flipped bit in any weight file is refused before a library sees the file."""
    kind, card = extractor_class(step), extractor(step).card
    for name in card.files:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(card.path(name).read_bytes())
    moved = type(card)(**{**vars(card), "folder": tmp_path})
    kind(moved).load()
    victim = moved.path(max(card.files))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=re.escape(card.files[max(card.files)])):
        kind(moved).load()


@pytest.mark.parametrize("step", ["visual_embeddings", "faces"])
def test_load_refuses_files_that_no_digest_covers(step: str, tmp_path: Path) -> None:
    """Libraries that search a folder by themselves find only files of the card there."""
    card = demo_pack().cards[step]
    for name in card.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(card.path(name).read_bytes())
    (tmp_path / min(card.files)).with_name("a_stranger.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match="a_stranger"):
        extractor_class(step)(type(card)(**{**vars(card), "folder": tmp_path})).load()


def run_python(code: str, *arguments: str, home: Path) -> Any:
    """Run code in a fresh interpreter that has no switches of ours in its environment; its last line is JSON."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)}  # a child's
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_building_extractors_imports_nothing_heavy(tmp_path: Path) -> None:
    """All extractors can be built, and the device chosen on a CPU, without any model library."""
    code = (
        "import sys, json; from pathlib import Path; from mm_assets.settings import ModelSettings\n"
        "from mm_assets.extractors.packs import load_pack\n"
        "from mm_assets.extractors.registry import build_extractor, choose_placement, known_steps\n"
        "place = choose_placement(ModelSettings(device='cpu')); pack = load_pack(ModelSettings(), Path('x'))\n"
        "[build_extractor(step, pack, None, place) for step in known_steps()]\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not set(HEAVY) & set(run_python(code, home=tmp_path))


AUDIT = """
import json, sys
seen = []
WATCHED = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request",
           "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec")
def hook(event, arguments):
    if event in WATCHED:
        seen.append([event, str(arguments[0])])
sys.addaudithook(hook)
import pyarrow as pa
from pathlib import Path
from mm_assets.settings import ModelSettings
from mm_assets.extractors.packs import load_pack
from mm_assets.extractors.registry import build_extractor, choose_placement
pack, place = load_pack(ModelSettings(), Path("x")), choose_placement(ModelSettings())
counts = {}
for path in sys.argv[1:]:
    segments = pa.ipc.open_file(path).read_all()
    counts[Path(path).stem] = build_extractor(Path(path).stem, pack, None, place).extract(segments).num_rows
print(json.dumps([seen, counts]))
"""


def test_a_run_calls_no_one(tmp_path: Path) -> None:
    """Loading and running all extractors opens no connection, resolves no name, and starts only tesseract and ldconfig."""
    for step in STEPS:
        rows = segments_for(step)
        with pa.ipc.new_file(tmp_path / f"{step}.arrow", rows.schema) as out:
            out.write_table(rows)
    seen, counts = run_python(AUDIT, *(str(tmp_path / f"{step}.arrow") for step in STEPS), home=tmp_path)
    programs = {Path(program).name for event, program in seen if event == "subprocess.Popen"}
    assert [event for event, _ in seen if event != "subprocess.Popen"] == []
    assert "tesseract" in programs  # the hook does see processes
    assert programs <= {"tesseract", "ldconfig"}
    assert counts == {step: rows_of(step).num_rows for step in STEPS}


# --- the registry ---------------------------------------------------------------------------------------------------


def test_registry_steps_are_the_packs_cards(step: str) -> None:
    """Every step has a table, and the demo pack a card that its extractor carries unchanged: its own or a shared one."""
    built = build_extractor(step, demo_pack())
    assert step in known_steps()
    assert step in TABLES
    assert built.step == step
    assert built.card == demo_pack().cards[built.model_of or step]
    assert built.card.digest


def test_registry_refuses_unknown_steps_and_parameters() -> None:
    """A typing slip in a step or a parameter is said at once, with the known names."""
    with pytest.raises(ConfigError, match="known: visual_embeddings"):
        build_extractor("visual_embedings", demo_pack())
    with pytest.raises(ConfigError, match="min_confidence"):
        build_extractor("faces", demo_pack(), {"confidence": 0.4})


def test_choose_placement_follows_the_settings() -> None:
    """Device, threads and batch size come from the settings; cuda without a device is a ConfigError at load."""
    assert choose_placement(ModelSettings(device="cpu", threads=3, batch_size=7)) == Placement("cpu", 3, 7)
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    for step in WITH_WEIGHTS:
        with pytest.raises(ConfigError, match="cuda"):
            build_extractor(step, demo_pack(), placement=Placement("cuda")).load()

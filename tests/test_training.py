"""Training of the demo models: captions and targets are exact, runs survive Ctrl-C, files load into the product."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from build_pack import TEMPLATE, build_pack, main
from extractor_samples import segments_for
from world.crowds import make_strangers
from world.frames import FrameSpec, draw_frame, render_frame, sample_frame
from world.shapes import COLOURS, HELD_OUT, SHAPES, sample_scene, scene_key
from world.variants import swap_shapes, vary_scene

from mm_assets.errors import ConfigError
from mm_assets.extractors.base import Placement
from mm_assets.extractors.packs import PACK_NAME, Pack, load_pack, read_pack
from mm_assets.extractors.registry import build_extractor
from mm_assets.settings import ModelSettings

if TYPE_CHECKING:
    import torch
    from training.face_pictures import FacePicture
    from training.speech_bank import Bank

SCRIPTS = Path(__file__).parents[1] / "scripts"
TRAINED = ("visual_embeddings", "detected_objects", "faces", "transcripts")
FILES = {path: step for step, model in read_pack(TEMPLATE).models.items() for path in model.files}


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Weights begin the same in every run of a test."""
    import torch

    torch.manual_seed(0)


def frames(n: int, seed: int = 1) -> list[FrameSpec]:
    """Draw contents of frames."""
    rng = np.random.default_rng(seed)
    return [sample_frame(rng) for _ in range(n)]


# --- captions and pairs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full_claim", "partial_claim"])
def test_claims_are_true_of_their_own_frame(name: str) -> None:
    """Each caption is true of the frame it was written for, and false of some other frame."""
    from training import captions

    make_claim = getattr(captions, name)
    rng, specs = np.random.default_rng(2), frames(300)
    for spec in specs:
        claim = make_claim(spec, rng)
        assert claim.holds(spec), claim.text
        assert not all(claim.holds(other) for other in specs), claim.text


def test_full_claims_tell_hard_variants_apart() -> None:
    """A caption of two shapes is false as soon as the relation is turned round or a shape is another."""
    from training.captions import full_claim

    rng = np.random.default_rng(3)
    scenes = [scene for scene in (sample_scene(rng) for _ in range(200)) if scene.kind == "two"]
    for scene in scenes:
        claim = full_claim(FrameSpec(scene), rng)
        others = [
            other for other in vary_scene(scene, rng) + swap_shapes(scene, rng) if scene_key(other) != scene_key(scene)
        ]
        assert others
        assert not any(claim.holds(FrameSpec(other)) for other in others), claim.text


def test_training_never_shows_held_out_pairs() -> None:
    """No variant has a coloured shape that is kept for the evaluation."""
    rng = np.random.default_rng(4)
    for _ in range(300):
        scene = sample_scene(rng)
        for other in vary_scene(scene, rng) + swap_shapes(scene, rng):
            assert not HELD_OUT.intersection(other.objects)


def test_cells_are_labelled_where_things_are() -> None:
    """The cell under the middle of each thing carries the thing's label, at both grids."""
    from training.pairs import EXTRAS, GRIDS, cells_of

    rng = np.random.default_rng(5)
    names = [*SHAPES, *COLOURS, *EXTRAS]
    for spec in frames(40):
        image, truth = render_frame(spec, rng, width=200, height=120)
        for grid in GRIDS:
            cells = cells_of(spec, truth, image.shape, grid)
            for box in truth.label_boxes:
                row, column = int((box.y0 + box.y1) / 240 * grid), int((box.x0 + box.x1) / 400 * grid)
                assert cells[names.index(box.label), row, column] == 1


def test_batches_are_repeatable_and_consistent() -> None:
    """The same seed draws the same batch, in which each caption is true of its own frame."""
    from training.pairs import FrameSource

    first, second = (FrameSource(np.random.default_rng(6), 3).draw_batch(8) for _ in range(2))
    assert first.texts == second.texts
    assert (first.pixels == second.pixels).all()
    assert first.is_true.shape == (16, 8)
    assert first.is_true[np.arange(16), np.arange(16) % 8].all()


def test_losses_leave_true_pairs_alone() -> None:
    """The score of another frame that a caption is true of changes neither loss of the other pairs."""
    import torch
    from training import clip

    is_true = torch.eye(4, dtype=torch.bool)
    is_true[0, 1] = True
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    clip.full_loss(scores.T, is_true).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad[0, 1] == 0
    changed = scores.detach().clone()
    changed[0, 1] -= 3  # a true pair that scores worse costs more
    assert clip.partial_loss(changed, is_true) > clip.partial_loss(scores.detach(), is_true)


def test_vocabulary_survives_the_full_table() -> None:
    """Known tokens keep their rows on the way to the file and back, and the end of text stays the greatest."""
    import torch
    from training.clip_model import N_VOCABULARY, Vocabulary

    vocabulary = Vocabulary(["red", "circle", "someone"])
    table = torch.randn(len(vocabulary), 5)
    full = vocabulary.spread(table)
    assert full.shape == (N_VOCABULARY, 5)
    assert torch.equal(vocabulary.gather(full), table)
    assert int(vocabulary.encode(["red circle"]).argmax()) == 3
    assert int(vocabulary.encode(["red circle"]).max()) == len(vocabulary) - 1


# --- faces ----------------------------------------------------------------------------------------------------------


def test_landmarks_lie_on_the_face() -> None:
    """The heads of a drawn frame are those of its truth, with the landmarks inside the box, eyes above mouth."""
    for spec in frames(40):
        drawing = draw_frame(spec, np.random.default_rng(7))
        again, truth = render_frame(spec, np.random.default_rng(7))
        assert (drawing.image == again).all()
        assert len(drawing.heads) == len(truth.people)
        for head in drawing.heads:
            x0, y0, x1, y1 = head.box
            x, y = head.landmarks.T
            assert ((x > x0) & (x < x1) & (y > y0) & (y < y1)).all()
            assert y[:2].max() < y[3:].min()


def test_every_face_has_an_anchor_that_gives_its_box() -> None:
    """Some anchor answers for each face of a size that the detector sees, and its distances give the face's box back."""
    from training.face_networks import STRIDES
    from training.face_pictures import draw_face_picture

    strangers, n_faces = make_strangers(5), 0
    for seed in range(40):
        picture = draw_face_picture(np.random.default_rng(seed), strangers)
        found = {tuple(box) for stride in STRIDES for box in decoded_boxes(picture, stride)}
        for box in picture.boxes:
            n_faces += 1
            assert any(np.allclose(box, other, atol=1e-3) for other in found), box
    assert n_faces > 20


def decoded_boxes(picture: FacePicture, stride: int) -> np.ndarray[Any, Any]:
    """Boxes that the targets of a stride say."""
    from training.face_detection import assign_faces
    from training.face_networks import ANCHORS_PX
    from training.face_pictures import SIDE_PX

    target, n = assign_faces(picture, stride), SIDE_PX // stride
    cells = np.repeat(np.mgrid[:n, :n][::-1].reshape(2, -1).T * stride, len(ANCHORS_PX[stride]), 0)
    own, d = target.is_face > 0, target.distances * stride
    return np.concatenate([cells - d[:, :2], cells + d[:, 2:]], 1)[own]


def test_overlaps_match_their_definition() -> None:
    """Equal boxes overlap fully; boxes that only share a corner have no overlap and a GIoU below 0."""
    import torch
    from training.face_detection import overlaps

    same = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert [value.item() for value in overlaps(same, same)] == pytest.approx([1.0, 1.0], abs=1e-5)
    giou, iou = overlaps(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert iou.item() == 0
    assert giou.item() == pytest.approx(-0.5, abs=1e-5)


def test_margin_lowers_ones_own_class_only() -> None:
    """The margin takes its scaled value from the right class and leaves the others."""
    import torch
    from training.face_recognition import margin_scores

    vectors, classes, labels = torch.randn(3, 8), torch.randn(4, 8), torch.tensor([0, 1, 3])
    lowered = margin_scores(vectors, classes, labels, 0.0) - margin_scores(vectors, classes, labels, 0.5)
    assert torch.allclose(lowered, 12.0 * torch.nn.functional.one_hot(labels, 4).float(), atol=1e-4)


# --- speech ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bank() -> Bank:
    """Speak a small bank."""
    from training.speech_bank import speak_bank

    return speak_bank(3, 30, 20, 8)


def test_tokens_are_timed_within_their_sentence(bank: Bank) -> None:
    """Tokens read as the sentence and follow each other in time, from its first sound to its end."""
    from training.speech_bank import tokenizer

    for sentence in bank.train:
        assert tokenizer().decode([timed.token for timed in sentence.tokens]) == " " + sentence.text
        starts = [timed.start_s for timed in sentence.tokens if timed.token != sentence.tokens[-1].token]
        assert starts == sorted(starts)
        assert all(0 <= t.start_s < t.end_s <= len(sentence.samples) / 16_000 + 0.05 for t in sentence.tokens)


def test_held_out_sentences_are_not_in_training(bank: Bank) -> None:
    """No sentence that is measured on has been learnt, whatever the voice."""
    known = {sentence.text for sentence in bank.train}
    assert not known & {sentence.text for sentence in [*bank.test, *bank.test_other_voices]}
    assert len(bank.test_other_voices) == 4


def test_windows_say_what_is_heard_and_where(bank: Bank) -> None:
    """A window's tokens are sentences of the bank between timestamps, and each is heard inside the window."""
    from training.speech_bank import tokenizer
    from training.speech_model import CompactVocabulary
    from training.speech_windows import FRAME_HZ, WindowSource

    vocabulary = CompactVocabulary([sentence for part in bank for sentence in part])
    source, texts = WindowSource(bank.train, vocabulary, np.random.default_rng(1)), {s.text for s in bank.train}
    n_sentences = 0
    for _ in range(40):
        window = source.draw_window(8)
        learnt = [vocabulary.tokens[number - 1] for number in window.tokens[window.n_given :]]
        names = tokenizer()
        said = names.decode([token for token in learnt if token < names.eot]).strip()
        n_sentences += len(said.split(". "))
        assert all(part.strip(" .?") in {text.strip(".?") for text in texts} for part in split_sentences(said))
        assert all(span.end_s > max(0.0, span.start_s) and span.start_s < 8 for span in window.spans)
        assert window.mel.shape == (80, 800)
        assert window.words.shape == (8 * FRAME_HZ,)
    assert n_sentences > 40


def split_sentences(text: str) -> list[str]:
    """Sentences of a transcript."""
    return [part for part in text.replace("?", ".").split(".") if part.strip()]


def test_moved_windows_keep_their_words(bank: Bank) -> None:
    """Moving a window moves timestamps, wanted and given, and nothing else."""
    import torch
    from training.speech_model import CompactVocabulary
    from training.speech_windows import WindowSource, move_stamps

    vocabulary = CompactVocabulary(bank.train)
    batch = WindowSource(bank.train, vocabulary, np.random.default_rng(2)).draw_batch(4, 6)
    moved = move_stamps(batch, 100, vocabulary.first_stamp)
    is_stamp = batch.wanted >= vocabulary.first_stamp
    assert torch.equal(moved.wanted, batch.wanted + 100 * is_stamp)
    assert torch.equal(moved.wanted[~is_stamp], batch.wanted[~is_stamp])
    assert is_stamp.any()


def test_passes_equal_whispers_own(bank: Bank) -> None:
    """The passes that show the attention give what openai-whisper's own encoder and decoder give."""
    import torch
    from training.speech_model import CompactVocabulary, build_model, decode_tokens, encode_sound
    from training.speech_windows import WindowSource

    vocabulary = CompactVocabulary(bank.train)
    model = build_model(vocabulary).eval()
    batch = WindowSource(bank.train, vocabulary, np.random.default_rng(3)).draw_batch(30, 2)
    with torch.no_grad():
        encoded = encode_sound(model, batch.mels)
        logits, weights = decode_tokens(model, batch.given, encoded)
        assert torch.allclose(encoded, model.encoder(batch.mels), atol=1e-4)
        assert torch.allclose(logits, model.decoder(batch.given, encoded), atol=1e-4)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-4)


def test_attention_loss_falls_to_nothing_on_the_sound() -> None:
    """Attention that lies wholly where the token is heard costs nothing, elsewhere much; silence is finite."""
    import torch
    from training import speech

    is_heard = torch.zeros(1, 2, 4, dtype=torch.bool)
    is_heard[0, 0, 1] = True
    on, off = (torch.nn.functional.one_hot(torch.tensor([[[k, 0]]]), 4).float() for k in (1, 2))
    assert speech.attention_loss(on, is_heard).item() == pytest.approx(0, abs=1e-3)
    assert speech.attention_loss(off, is_heard).item() > 9
    assert speech.attention_loss(on, torch.zeros_like(is_heard)).item() == 0


# --- sessions -------------------------------------------------------------------------------------------------------


class Fit:
    """Fits one number to another; sends itself Ctrl-C in the given step."""

    name = "fit"

    def __init__(self, interrupt_at: int | None = None, *, twice: bool = False) -> None:
        import torch

        self.number = torch.nn.Parameter(torch.zeros(1))
        self.optimiser = torch.optim.Adam([self.number], lr=0.1)
        self.interrupt_at, self.twice, self.n_steps = interrupt_at, twice, 0

    def step(self, progress: float) -> Mapping[str, float]:
        """Take a step whose size depends on the progress."""
        self.n_steps += 1
        if self.n_steps == self.interrupt_at:
            for _ in range(1 + self.twice):
                os.kill(os.getpid(), signal.SIGINT)
        loss = ((self.number - 3) ** 2).sum() * (1 + progress)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return {"loss": loss.item()}

    def evaluate(self) -> Mapping[str, float]:
        """Give the number."""
        return {"number": self.number.item()}

    def state(self) -> dict[str, Any]:
        """Give all of it."""
        return {"number": self.number.detach(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take all of it."""
        import torch

        with torch.no_grad():
            self.number.copy_(state["number"])
        self.optimiser.load_state_dict(state["optimiser"])

    def export(self, folder: Path) -> list[Path]:
        """Write the number."""
        (folder / "number").write_text(repr(self.number.item()), encoding="ascii")
        return [folder / "number"]


def test_a_run_resumed_after_ctrl_c_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    """Ctrl-C ends after the step with checkpoint and files; --resume then ends where an unbroken run ends."""
    from training.session import INTERRUPTED, Budget, run_session

    assert run_session(Fit(), Budget(0, 10), tmp_path / "whole") == 0
    assert run_session(Fit(interrupt_at=4), Budget(0, 10), tmp_path / "broken") == INTERRUPTED
    partial = (tmp_path / "broken/number").read_text()
    assert run_session(Fit(), Budget(0, 10), tmp_path / "broken", is_resumed=True) == 0
    whole = (tmp_path / "whole/number").read_text()
    assert (tmp_path / "broken/number").read_text() == whole != partial


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C is an ordinary KeyboardInterrupt, and the handler from before is back after it."""
    from training.session import Budget, run_session

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_session(Fit(interrupt_at=2, twice=True), Budget(0, 5), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_is_never_overwritten_by_chance(tmp_path: Path) -> None:
    """A new run into a folder with a checkpoint, and resuming without one, both end with a word on what to do."""
    from training.session import Budget, run_session

    with pytest.raises(SystemExit, match="nothing to resume"):
        run_session(Fit(), Budget(0, 2), tmp_path, is_resumed=True)
    run_session(Fit(), Budget(0, 2), tmp_path)
    with pytest.raises(SystemExit, match="--resume"):
        run_session(Fit(), Budget(0, 2), tmp_path)


# --- learners -------------------------------------------------------------------------------------------------------


def fall_of(
    loss: Callable[[], torch.Tensor], step: Callable[[float], Mapping[str, float]], n: int
) -> tuple[float, float]:
    """Loss on the same data before and after some steps, all of whose losses are finite."""
    before = loss().item()
    seen = [step(0.3) for _ in range(n)]
    assert np.isfinite([value for losses in seen for value in losses.values()]).all()
    return before, loss().item()


@pytest.mark.slow
def test_clip_learns() -> None:
    """A few steps lower the loss of captions on frames that were not among them."""
    import torch
    from training import clip
    from training.pairs import FrameSource

    learner = clip.ClipLearner(clip.Recipe(batch=12, gallery=4), seed=1)
    batch = FrameSource(np.random.default_rng(9), 3).draw_batch(12)

    def loss() -> torch.Tensor:
        with torch.no_grad():
            losses = learner._losses(batch)
        return losses["cells"] + losses["attributes"]

    before, after = fall_of(loss, learner.step, 8)
    assert after < before


def test_face_detector_learns() -> None:
    """A few steps lower the losses of boxes and landmarks on pictures that were not among them."""
    import torch
    from training.face_detection import DetectionLearner, Sample
    from training.face_pictures import draw_face_picture

    learner = DetectionLearner(1, batch=4, n_held_out=0)
    samples = [Sample.of(draw_face_picture(np.random.default_rng(k), make_strangers(3))) for k in range(6)]

    def loss() -> torch.Tensor:
        with torch.no_grad():
            losses = learner._losses(samples)
        return losses["box"] + losses["landmark"]

    before, after = fall_of(loss, learner.step, 20)
    assert after < 0.9 * before


def test_face_recogniser_learns() -> None:
    """Steps with few people lower the loss of telling them apart."""
    from training.face_recognition import RecognitionLearner

    learner = RecognitionLearner(1, batch=16, n_people=4, n_unseen=2)
    losses = [learner.step(0.1)["loss"] for _ in range(16)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_speech_model_learns(bank: Bank) -> None:
    """A few steps lower the loss of tokens and words on held-out sentences."""
    import torch
    from training import speech

    shape = speech.Shape(4, 6)
    recipe = speech.Recipe(n_grammar=30, n_captions=20, n_test=8, plan=((1.0, shape),), tests=(shape,))
    learner = speech.SpeechLearner(recipe, seed=3)
    (test,) = learner._tests

    def loss() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack(list(learner._losses(test, 0).values())).sum()

    before, after = fall_of(loss, learner.step, 10)
    assert after < 0.95 * before


# --- from training to a pack ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[tuple[str, str]]]:
    """Train all models for a few steps in a process of its own: the folder, and what the process asked for."""
    folder = tmp_path_factory.mktemp("trained")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)]),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "training_driver.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def trained_pack(training_run: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Lay out a pack from what was trained."""
    path = build_pack(training_run[0], tmp_path_factory.mktemp("pack"), "own")
    return load_pack(ModelSettings(pack=str(path.parent)), path.parent)


@pytest.mark.slow
def test_training_calls_no_one(training_run: tuple[Path, Sequence[tuple[str, str]]]) -> None:
    """Training all models opens no connection, resolves no name, and starts only programs that look for libraries and fonts."""
    _, seen = training_run
    assert seen  # the hook does see processes
    assert [item for item in seen if item[0] != "subprocess.Popen"] == []
    assert {Path(program).name for _, program in seen} <= {"ldconfig", "fc-list"}


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("step", TRAINED)
def test_trained_files_keep_the_products_contract(trained_pack: Pack, step: str) -> None:
    """What a few steps have trained loads through the product's own extractor and gives rows in its schema."""
    # A model that has learnt nothing fails every limit of a good window; what it would do then is not asked here.
    params = {"min_log_probability": -1e6, "max_compression_ratio": 1e6} if step == "transcripts" else {}
    extractor = build_extractor(step, trained_pack, params, Placement(threads=1))
    rows = extractor.extract(segments_for(step), recipe="r")
    assert rows.schema.equals(extractor.schema)
    if step == "visual_embeddings":
        vectors = np.stack(rows.column("vector").to_numpy())
        assert vectors.shape == (6, 128)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_weights_tell_nothing_about_the_machine(training_run: tuple[Path, Any]) -> None:
    """No file of the pack holds the folder, the user's home, or a date."""
    folder, _ = training_run
    for name in FILES:
        path = folder / name
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                assert {item.date_time[0] for item in archive.infolist()} == {1980}
                data = b"".join(
                    archive.read(item) for item in archive.infolist() if not item.filename.endswith("/data")
                )
        assert str(folder).encode() not in data
        assert str(Path.cwd()).encode() not in data


@pytest.mark.slow
def test_unmeasured_weights_have_no_figures(trained_pack: Pack) -> None:
    """Figures stay with the weights that they were measured on; other weights are another revision."""
    template = read_pack(TEMPLATE).models
    for step in TRAINED:
        card = trained_pack.cards[step]
        assert card.figures == {}
        assert card.measured_on == ""
        assert card.revision != template[step].revision
        assert card.licence == template[step].licence
    assert trained_pack.cards["ocr_text"].figures


@pytest.mark.models
def test_the_demo_pack_is_built_from_its_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Laid out from the shipped weights, the pack says what the shipped one says, figures included."""
    assert main(["--from", str(TEMPLATE), "--to", str(tmp_path / "pack")]) == 0
    assert read_pack(tmp_path / "pack") == read_pack(TEMPLATE)
    assert "figures of the template" in capsys.readouterr().out


def test_build_pack_refuses_gaps_and_full_folders(tmp_path: Path) -> None:
    """A missing file is named together with the program that writes it; a folder with files is left alone."""
    (tmp_path / "clip").mkdir()
    with pytest.raises(ConfigError, match=r"speech/whisper\.pt"):
        build_pack(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / PACK_NAME).write_text(yaml.safe_dump({}), encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        build_pack(TEMPLATE, tmp_path)
    assert main(["--from", str(tmp_path), "--to", str(tmp_path / "out")]) == 2

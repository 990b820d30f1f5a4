"""Training of the face recogniser: aligned crops of two thousand strangers, told apart with a margin.

Put here: crops, the loss, the learner.
Keep out: architecture and files (face_networks), finding faces (face_detection).

The loss is CosFace (Wang et al. 2018), the additive sibling of ArcFace: the cosine to one's own class is lowered by a
margin, here from 0 to .35 during the first quarter of the run.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from torch import nn
from world.backdrops import paint_blobs, spoil_picture
from world.crowds import make_strangers, sample_loose_pose
from world.heads import draw_person
from world.pen import Image
from world.people import Identity

from training.archives import random_state, restore_random_state, to_full
from training.face_networks import CROP_PX, VECTOR_DIM, FaceRecogniser, export_recogniser
from training.session import cosine, set_rate

FILE_NAME = "recognition.onnx"
RATE = 2e-3
WARM_UP_STEPS = 50
SCALE, MARGIN = 24.0, 0.35
POOL_SIZE, POOL_DROP = 12_000, 2_000
LANDMARK_NOISE = 0.025
"""Of the crop's landmarks in half heights of the face: about what the detector is off."""
FIRST_UNSEEN = 900_000
PICTURES_PER_UNSEEN = 6


def draw_crop(who: Identity, rng: np.random.Generator) -> Image:
    """Draw a face at any size and cut it out as insightface does, with the landmarks a little off."""
    from insightface.utils.face_align import norm_crop

    half_height = rng.uniform(14, 60)
    side = int(half_height * 3.4)
    image = paint_blobs(rng, side, side)
    x = side / 2 + rng.uniform(-4, 4)
    head = draw_person(image, who, x, side / 2, half_height, sample_loose_pose(rng, tilt=0.15))
    landmarks = head.landmarks + rng.normal(0, LANDMARK_NOISE * half_height, head.landmarks.shape)
    with warnings.catch_warnings():
        # scikit-image will drop a function that insightface calls; pyproject.toml pins it until then.
        warnings.filterwarnings("ignore", "`estimate` is deprecated", FutureWarning)
        return np.asarray(norm_crop(spoil_picture(image, rng), landmarks.astype(np.float32), CROP_PX), np.uint8)


def to_input(crops: Sequence[Image]) -> torch.Tensor:
    """Give the crops as the recogniser's input."""
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return ((pixels.float() - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)


def margin_scores(vectors: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """Give scaled cosines of vectors (n, dim) and classes (m, dim), one's own lowered by the margin."""
    cosines = F.normalize(vectors.float()) @ F.normalize(classes).T
    return SCALE * (cosines - margin * F.one_hot(labels, len(classes)))


class RecognitionLearner:
    """The recogniser, its classes and its optimiser; half of each batch comes from a pool of earlier crops."""

    name = "recognition"

    def __init__(
        self, seed: int, init: Path | None = None, *, batch: int = 96, n_people: int = 2000, n_unseen: int = 60
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._batch = batch
        self._people = make_strangers(n_people)
        self.model = FaceRecogniser()
        if init is not None:
            self.model.load_state_dict(to_full(torch.load(init, weights_only=True)))
        self._classes = nn.Parameter(torch.randn(n_people, VECTOR_DIM) * 0.05)
        parameters = [*self.model.parameters(), self._classes]
        self._optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=5e-4)
        self._pool: list[tuple[Image, int]] = []
        self._n_steps = 0
        self._unseen = _draw_unseen(n_unseen)

    def step(self, progress: float) -> Mapping[str, float]:
        """Take one step."""
        set_rate(self._optimiser, RATE * min(1.0, (self._n_steps + 1) / WARM_UP_STEPS) * cosine(progress))
        crops, labels = zip(*self._draw_batch(), strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = self.model(to_input(crops))
        own = torch.tensor(labels)
        loss = F.cross_entropy(margin_scores(vectors, self._classes, own, MARGIN * min(1.0, progress * 4)), own)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._n_steps += 1
        return {"loss": loss.item()}

    def _draw_batch(self) -> list[tuple[Image, int]]:
        """Draw pairs of crops of the same person, and as many from the pool."""
        labels = np.repeat(self._rng.integers(len(self._people), size=self._batch // 4), 2)
        new = [(draw_crop(self._people[k], self._rng), int(k)) for k in labels]
        self._pool += new
        if len(self._pool) > POOL_SIZE:
            self._pool = self._pool[POOL_DROP:]
        again = self._rng.integers(len(self._pool), size=self._batch - len(new))
        return new + [self._pool[int(k)] for k in again]

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Rank 1 among people whom training does not see, and mean cosines of the same and of other people."""
        self.model.eval()
        parts = torch.split(to_input(self._unseen), 100)
        vectors = F.normalize(torch.cat([self.model(part) for part in parts])).numpy()
        self.model.train()
        return _measure_vectors(vectors, np.repeat(np.arange(len(vectors) // PICTURES_PER_UNSEEN), PICTURES_PER_UNSEEN))

    def state(self) -> dict[str, Any]:
        """Give weights, classes, optimiser and random generators; the pool fills again."""
        return {
            "model": self.model.state_dict(),
            "classes": self._classes.detach(),
            "optimiser": self._optimiser.state_dict(),
            "random": random_state(self._rng),
            "n_steps": self._n_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            self._classes.copy_(state["classes"])
        self._optimiser.load_state_dict(state["optimiser"])
        restore_random_state(self._rng, state["random"])
        self._n_steps = state["n_steps"]

    def export(self, folder: Path) -> list[Path]:
        """Write the ONNX file, and beside it the weights that `--init` takes."""
        export_recogniser(self.model, folder / FILE_NAME)
        torch.save(self.model.state_dict(), folder / "recognition.weights")
        return [folder / FILE_NAME]


def _draw_unseen(n_people: int) -> list[Image]:
    rng = np.random.default_rng(3)
    people = make_strangers(n_people, first_seed=FIRST_UNSEEN)
    return [draw_crop(who, rng) for who in people for _ in range(PICTURES_PER_UNSEEN)]


def _measure_vectors(vectors: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    cosines, is_same = vectors @ vectors.T, labels[:, None] == labels[None]
    is_self = np.eye(len(labels), dtype=bool)
    nearest = np.where(is_self, -2.0, cosines).argmax(1)
    same, other = cosines[is_same & ~is_self], cosines[~is_same]
    return {
        "rank_1_frac": float((labels[nearest] == labels).mean()),
        "cosine_same": float(same.mean()),
        "cosine_other_max": float(other.max()) if len(other) else 0.0,
    }

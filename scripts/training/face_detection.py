"""Training of the face detector: which cells answer for which face, losses, and measuring.

Put here: targets, losses, the learner.
Keep out: architecture and files (face_networks), pictures (face_pictures).

Scores learn the overlap of their box (quality focal loss, Li et al. 2020), boxes the generalised overlap (GIoU,
Rezatofighi et al. 2019), landmarks a smooth distance in units of the face.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from torch import nn
from world.crowds import make_strangers

from training.archives import random_state, restore_random_state, to_full
from training.face_networks import ANCHORS_PX, N_ANCHORS, STRIDES, FaceDetector, export_detector, to_rows
from training.face_pictures import SIDE_PX, FacePicture, draw_face_picture
from training.session import cosine, set_rate

Floats = npt.NDArray[np.float32]
FILE_NAME = "detection.onnx"
RATE = 2e-3
WARM_UP_STEPS = 60
POOL_SIZE, POOL_DROP = 3000, 300
LEAST_QUALITY = 0.3
MATCH_OVERLAP = 0.5


class LevelTarget(NamedTuple):
    """What the anchors of one stride are to say, rows in the order cells, anchors.

    Attributes
    ----------
    is_face : 1 face, 0 none, −1 too near to a face to be either, shape (n,)
    distances : to the left, top, right and bottom of the face in strides, shape (n, 4); used where there is one
    landmarks : from the cell in strides, shape (n, 10)
    """

    is_face: Floats
    distances: Floats
    landmarks: Floats


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture with its targets, finest stride first."""

    picture: FacePicture
    targets: tuple[LevelTarget, ...]

    @classmethod
    def of(cls, picture: FacePicture) -> "Sample":
        """Assign the faces of a picture."""
        return cls(picture, tuple(assign_faces(picture, stride) for stride in STRIDES))


def assign_faces(picture: FacePicture, stride: int) -> LevelTarget:
    """Let cells near the middle of a face answer for it with the anchors nearest to its size."""
    n = SIDE_PX // stride
    rows, columns = np.mgrid[:n, :n] * stride
    cells = np.repeat(np.stack([columns.ravel(), rows.ravel()], 1), N_ANCHORS, 0).astype(np.float32)
    if not len(picture.boxes):
        nothing = np.zeros((len(cells), 10), np.float32)
        return LevelTarget(nothing[:, 0], nothing[:, :4], nothing)
    anchors = np.tile(ANCHORS_PX[stride], n * n)[:, None]
    middles = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
    sizes = np.sqrt((picture.boxes[:, 2:] - picture.boxes[:, :2]).prod(1))
    octaves = np.abs(np.log2(np.maximum(sizes, 12)[None] / anchors))
    away = np.abs(cells[:, None] - middles[None]).max(2)
    is_own = (away < np.maximum(sizes * 0.22, stride * 0.75)) & (octaves <= 0.6)
    is_near = (away < np.maximum(sizes * 0.35, stride)) & (octaves <= 1.2)
    is_face = np.where(is_own.any(1), 1, np.where(is_near.any(1), -1, 0)).astype(np.float32)
    nearest = np.where(is_own, away, np.inf).argmin(1)
    boxes, landmarks = picture.boxes[nearest], picture.landmarks[nearest]
    distances = np.concatenate([cells - boxes[:, :2], boxes[:, 2:] - cells], 1) / stride
    offsets = (landmarks - cells[:, None]).reshape(-1, 10) / stride
    return LevelTarget(is_face, distances.astype(np.float32), offsets.astype(np.float32))


def overlaps(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give GIoU and IoU of boxes around a common point, as distances to left, top, right, bottom, shape (n, 4)."""
    inner, outer = torch.minimum(a, b), torch.maximum(a, b)
    common = (inner[:, 0] + inner[:, 2]).clamp(min=0) * (inner[:, 1] + inner[:, 3]).clamp(min=0)
    union = _area(a) + _area(b) - common
    iou = common / (union + 1e-6)
    return iou - (_area(outer) - union) / (_area(outer) + 1e-6), iou


def _area(distances: torch.Tensor) -> torch.Tensor:
    return (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])


class DetectionLearner:
    """The detector and its optimiser; half of each batch comes from a pool of earlier pictures."""

    name = "detection"

    def __init__(self, seed: int, init: Path | None = None, *, batch: int = 12, n_held_out: int = 150) -> None:
        self._rng = np.random.default_rng(seed)
        self._batch = batch
        self._strangers = make_strangers(2000)
        self.model = FaceDetector()
        if init is not None:
            self.model.load_state_dict(to_full(torch.load(init, weights_only=True)))
        self._optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=1e-3)
        self._pool: list[Sample] = []
        self._n_steps = 0
        seeds = range(50_000, 50_000 + n_held_out)
        self._held_out = [draw_face_picture(np.random.default_rng(k), self._strangers) for k in seeds]

    def step(self, progress: float) -> Mapping[str, float]:
        """Take one step."""
        set_rate(self._optimiser, RATE * min(1.0, (self._n_steps + 1) / WARM_UP_STEPS) * cosine(progress))
        samples = self._draw_batch()
        losses = self._losses(samples)
        total = losses["score"] + 2 * losses["box"] + 2 * losses["landmark"]
        self._optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self._optimiser.step()
        self._n_steps += 1
        return {"loss": total.item()} | {name: loss.item() for name, loss in losses.items()}

    def _draw_batch(self) -> list[Sample]:
        n_new = self._batch // 2 if self._pool else self._batch
        samples = [Sample.of(draw_face_picture(self._rng, self._strangers)) for _ in range(n_new)]
        self._pool += samples
        if len(self._pool) > POOL_SIZE:
            self._pool = self._pool[POOL_DROP:]
        again = self._rng.integers(len(self._pool), size=self._batch - n_new)
        return samples + [self._pool[int(k)] for k in again]

    def _losses(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        pixels = to_input([sample.picture for sample in samples])
        with torch.autocast("cpu", torch.bfloat16):
            levels = self.model.levels(pixels)
        parts = []
        for k, level in enumerate(levels):
            targets = [sample.targets[k] for sample in samples]
            rows = [to_rows(maps.float(), n) for maps, n in zip(level, (1, 4, 10), strict=True)]
            joined = [torch.from_numpy(np.concatenate(values)) for values in zip(*targets, strict=True)]
            parts.append(level_losses(rows, joined))
        n_faces = max(1, int(sum((t.is_face > 0).sum() for sample in samples for t in sample.targets)))
        sums = [torch.stack(values).sum() / n_faces for values in zip(*parts, strict=True)]
        return dict(zip(("score", "box", "landmark"), sums, strict=True))

    def evaluate(self) -> Mapping[str, float]:
        """Recall and precision at an overlap of one half and a confidence of one half, through insightface."""
        from insightface.model_zoo.scrfd import SCRFD

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE_NAME
            export_detector(self.model, path)
            detector = SCRFD(str(path))
            detector.prepare(-1, input_size=(SIDE_PX, SIDE_PX), det_thresh=0.5)
            counts = [_count_matches(detector, picture) for picture in self._held_out]
        n_right, n_found, n_faces = np.sum(counts, axis=0)
        return {"recall_frac": n_right / max(1, n_faces), "precision_frac": n_right / max(1, n_found)}

    def state(self) -> dict[str, Any]:
        """Give weights, optimiser and random generators; the pool fills again."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "random": random_state(self._rng),
            "n_steps": self._n_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        restore_random_state(self._rng, state["random"])
        self._n_steps = state["n_steps"]

    def export(self, folder: Path) -> list[Path]:
        """Write the ONNX file, and beside it the weights that `--init` takes."""
        export_detector(self.model, folder / FILE_NAME)
        torch.save(self.model.state_dict(), folder / "detection.weights")
        return [folder / FILE_NAME]


def to_input(pictures: Sequence[FacePicture]) -> torch.Tensor:
    """Give the pictures as the detector's input."""
    pixels = torch.from_numpy(np.stack([picture.image for picture in pictures])).permute(0, 3, 1, 2)
    return ((pixels.float() - 127.5) / 128).contiguous(memory_format=torch.channels_last)


def level_losses(rows: list[torch.Tensor], targets: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Give the sums of the losses of scores, boxes and landmarks of one stride.

    Parameters
    ----------
    rows : scores (n, 1), distances before softplus (n, 4), landmarks (n, 10)
    targets : the columns of `LevelTarget` of all pictures
    """
    scores, (is_face, wanted_distances, wanted_landmarks) = rows[0][:, 0], targets
    own = is_face > 0
    wanted = wanted_distances[own].clamp(min=0.01)
    giou, iou = overlaps(F.softplus(rows[1][own]), wanted)
    size = (wanted[:, :2] + wanted[:, 2:]).mean(1, keepdim=True)
    landmark = F.smooth_l1_loss(rows[2][own] / size, wanted_landmarks[own] / size, beta=0.05, reduction="none")
    quality = is_face.clamp(min=0).clone()
    quality[own] = iou.detach().clamp(min=LEAST_QUALITY)
    weight = (quality - scores.sigmoid()).abs() ** 2 * (is_face >= 0)
    score = F.binary_cross_entropy_with_logits(scores, quality, reduction="none") * weight
    return score.sum(), (1 - giou).sum(), landmark.mean(1).sum()


def _count_matches(detector: Any, picture: FacePicture) -> tuple[int, int, int]:
    """Count the faces found rightly, the boxes found, and the faces there; surest boxes choose first."""
    found, _ = detector.detect(np.ascontiguousarray(picture.image[:, :, ::-1]))
    free, n_right = list(range(len(picture.boxes))), 0
    for box in found:
        best = max(free, key=lambda k: _box_overlap(box, picture.boxes[k]), default=None)
        if best is not None and _box_overlap(box, picture.boxes[best]) > MATCH_OVERLAP:
            free.remove(best)
            n_right += 1
    return n_right, len(found), len(picture.boxes)


def _box_overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    sides = np.clip(np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2]), 0, None)
    common = sides.prod()
    union = (a[2:4] - a[:2]).prod() + (b[2:4] - b[:2]).prod() - common
    return float(common / union)

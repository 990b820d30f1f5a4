"""The two networks of the face model, in the forms that insightface loads.

Put here: architectures and their ONNX files.
Keep out: data, losses and loops (face_detection, face_recognition).

Contracts, read from insightface 2.1: an SCRFD detector has nine outputs (scores, distances, landmarks; strides 8, 16
and 32; two anchors a cell; in units of the stride), an ArcFace recogniser maps (n, 3, 112, 112) to (n, 512).
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from torch import nn

from training.archives import write_whole

STRIDES = (8, 16, 32)
ANCHORS_PX = {8: (16, 32), 16: (64, 128), 32: (256, 512)}
N_ANCHORS = 2
CROP_PX = 112
VECTOR_DIM = 512
OPSET = 17
INPUT_NAME = "input.1"
"""insightface tells a recogniser from other models by its input's shape, a detector by its number of outputs."""


def _conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Give convolution, normalisation and rectifier."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class _Block(nn.Module):
    """A depthwise and a pointwise convolution, with a short cut where the shapes allow it."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = _conv(n_in, n_in, 3, stride, n_in)
        self.pointwise = nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        self.has_short_cut = n_in == n_out and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.pointwise(self.depthwise(x))
        return F.relu(x + y) if self.has_short_cut else F.relu(y)


class LevelOutput(NamedTuple):
    """What the heads say at one stride: scores before the sigmoid, distances before softplus, landmarks."""

    scores: torch.Tensor
    distances: torch.Tensor
    landmarks: torch.Tensor


class FaceDetector(nn.Module):
    """0.20 M parameters; input (n, 3, height, width), RGB, (value − 127.5) / 128, sides multiples of 32."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w, n = width, width * 3
        self.stem = nn.Sequential(_conv(3, w, 3, 2), _conv(w, w * 2, 3, 2))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_conv(w * 2, w * 3, 3, 2), _Block(w * 3, w * 3), _Block(w * 3, w * 3)),
                nn.Sequential(_Block(w * 3, w * 4, 2), _Block(w * 4, w * 4), _Block(w * 4, w * 4)),
                nn.Sequential(_Block(w * 4, w * 6, 2), _Block(w * 6, w * 6), _Block(w * 6, w * 6)),
            ]
        )
        self.laterals = nn.ModuleList(nn.Conv2d(channels, n, 1) for channels in (w * 3, w * 4, w * 6))
        self.trunks = nn.ModuleList(nn.Sequential(_Block(n, n), _Block(n, n), _conv(n, n)) for _ in STRIDES)
        self.score_heads = _heads(n, 1)
        self.distance_heads = _heads(n, 4)
        self.landmark_heads = _heads(n, 10)
        for head in self.score_heads:
            nn.init.constant_(head.bias, -4.0)  # type: ignore[arg-type]  # nearly all cells are empty
            nn.init.normal_(head.weight, std=0.01)  # type: ignore[arg-type]

    def levels(self, x: torch.Tensor) -> list[LevelOutput]:
        """Give the heads' outputs, each of shape (n, anchors × values, rows, columns), finest stride first."""
        features = self.stem(x)
        laterals = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            features = stage(features)
            laterals.append(lateral(features))
        merged = [laterals.pop()]
        while laterals:
            merged.insert(0, laterals.pop() + F.interpolate(merged[0], scale_factor=2.0, mode="nearest"))
        trunks = [trunk(level) for trunk, level in zip(self.trunks, merged, strict=True)]
        heads = zip(self.score_heads, self.distance_heads, self.landmark_heads, strict=True)
        return [LevelOutput(s(y), d(y), k(y)) for y, (s, d, k) in zip(trunks, heads, strict=True)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give three scores (n, 1), three distances (n, 4) and three landmarks (n, 10): rows of cells × anchors."""
        levels = self.levels(x)
        scores = [to_rows(level.scores, 1).sigmoid() for level in levels]
        distances = [to_rows(F.softplus(level.distances), 4) for level in levels]
        return (*scores, *distances, *(to_rows(level.landmarks, 10) for level in levels))


def _heads(n: int, n_values: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(n, N_ANCHORS * n_values, 3, 1, 1) for _ in STRIDES)


def to_rows(maps: torch.Tensor, n_values: int) -> torch.Tensor:
    """Give maps as rows in the order pictures, cells, anchors."""
    return maps.permute(0, 2, 3, 1).reshape(-1, n_values)


class FaceRecogniser(nn.Module):
    """0.30 M parameters; input (n, 3, 112, 112), RGB, (value − 127.5) / 127.5, aligned; output not of unit length."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.trunk = nn.Sequential(
            _conv(3, w, 3, 2),
            _conv(w, w * 2, 3, 2),
            _Block(w * 2, w * 2),
            _Block(w * 2, w * 4, 2),
            _Block(w * 4, w * 4),
            _Block(w * 4, w * 4),
            _Block(w * 4, w * 6, 2),
            _Block(w * 6, w * 6),
            _Block(w * 6, w * 6),
            _conv(w * 6, w * 12, 1),
        )
        side = CROP_PX // 16
        pool = nn.Conv2d(w * 12, w * 12, side, groups=w * 12, bias=False)
        self.pool = nn.Sequential(pool, nn.BatchNorm2d(w * 12))
        self.project = nn.Linear(w * 12, VECTOR_DIM, bias=False)
        self.normalise = nn.BatchNorm1d(VECTOR_DIM, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the vectors, shape (n, VECTOR_DIM)."""
        y: torch.Tensor = self.normalise(self.project(self.pool(self.trunk(x)).flatten(1)))
        return y


def export_detector(model: FaceDetector, path: Path) -> None:
    """Write the detector for pictures of any size."""
    outputs = [f"{what}_{stride}" for what in ("score", "bbox", "kps") for stride in STRIDES]
    axes = {INPUT_NAME: {2: "height", 3: "width"}} | {name: {0: f"n_{name}"} for name in outputs}
    _export(model, torch.zeros(1, 3, 128, 128), path, outputs, axes)


def export_recogniser(model: FaceRecogniser, path: Path) -> None:
    """Write the recogniser for any number of crops."""
    axes = {INPUT_NAME: {0: "n"}, "embedding": {0: "n"}}
    _export(model, torch.zeros(1, 3, CROP_PX, CROP_PX), path, ["embedding"], axes)


def _export(
    model: nn.Module, example: torch.Tensor, path: Path, outputs: list[str], axes: dict[str, dict[int, str]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    with write_whole(path) as part, warnings.catch_warnings():
        # torch announces another exporter, whose files name inputs and outputs otherwise.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(part),
            dynamo=False,
            input_names=[INPUT_NAME],
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
        )
        onnx.checker.check_model(onnx.load(str(part)))
    model.train(was_training)

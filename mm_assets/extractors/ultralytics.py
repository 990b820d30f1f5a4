"""detected_objects: labelled boxes in keyframes, by ultralytics.

Put here: loading and calling ultralytics. Keep out: what the labels mean to anyone.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.extractors.accelerator import map_batches, torch_device
from mm_assets.extractors.base import Extractor, item_ids
from mm_assets.extractors.inputs import RgbImage, column_of, read_image, to_bgr

_BOX = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")


class _Detection(NamedTuple):
    """Corners in pixels of the stored keyframe, confidence 0…1, index of the class."""

    x0: float
    y0: float
    x1: float
    y1: float
    confidence: float
    label: float


class UltralyticsExtractor(Extractor):
    """Boxes per keyframe, surest first; batches differ from single calls by at most 0.01 px and 1e-4 of confidence.

    The image's longer side is scaled to the card's ``input_side_px``: a detector is right at the size of things that
    it was trained with (the demo's: mAP50 .995 at 320, .938 at 640).
    """

    step = "detected_objects"
    code_version = "1"
    packages = ("torch", "ultralytics")
    takes = frozenset({"scene", "image", "page"})
    columns = ("keyframe_jpeg",)
    defaults: ClassVar[Mapping[str, Any]] = {"min_confidence": 0.25, "max_detections": 300}

    def _load(self) -> None:
        device = torch_device(self.place)
        (file,) = self.card.files
        self._model = _import_yolo()(str(self.card.path(file).absolute()), task="detect")
        self._device = str(device)
        self._labels: dict[int, str] = self._model.names
        self._check_labels()

    def _check_labels(self) -> None:
        expected = self.card.extra.get("labels")
        if expected is not None and list(self._labels.values()) != list(expected):
            msg = f"card {self.card.name} lists labels {expected}, the weights have {list(self._labels.values())}"
            raise ConfigError(msg)

    def _extract(self, segments: pa.Table) -> pa.Table:
        found = map_batches(self._detect, column_of(segments, "keyframe_jpeg"), self.place.batch_size)
        owners = [row for row, detections in enumerate(found) for _ in detections]
        every = [detection for detections in found for detection in detections]
        values: dict[str, Any] = {name: [each[k] for each in every] for k, name in enumerate(_BOX)}
        values["detection_id"] = item_ids(segments, owners)
        values["label"] = [self._labels[int(each.label)] for each in every]
        values["confidence"] = [each.confidence for each in every]
        return self._rows(segments, owners, values)

    def _detect(self, jpegs: list[bytes | None]) -> list[list[_Detection]]:
        """Detect in groups of equal shape: in a mixed list ultralytics pads all to squares, which changes results."""
        images = to_bgr([read_image(jpeg) for jpeg in jpegs])
        found: dict[int, list[_Detection]] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            rows = [row for row, image in enumerate(images) if image.shape == shape]
            found.update(zip(rows, self._predict([images[row] for row in rows]), strict=True))
        return [found[row] for row in range(len(images))]

    def _predict(self, images: list[RgbImage]) -> list[list[_Detection]]:
        results: Any = self._model.predict(
            images,
            imgsz=self.card.input_side_px,
            conf=self.params["min_confidence"],
            max_det=self.params["max_detections"],
            device=self._device,
            verbose=False,
            save=False,
        )
        return [[_Detection(*row) for row in result.boxes.data.cpu().tolist()] for result in results]


def _import_yolo() -> Any:
    from PIL import Image

    untouched = Image.open
    try:
        from ultralytics import YOLO  # type: ignore[attr-defined]  # resolved lazily by its package
    except ImportError as error:
        msg = "ultralytics is not installed; install mm-assets[objects] or drop detected_objects from `steps`"
        raise ConfigError(msg) from error
    # ultralytics replaces it, for the whole process, by one that runs pip when a picture cannot be read.
    Image.open = untouched
    return YOLO

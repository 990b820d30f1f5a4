"""faces: boxes, landmarks and identity vectors of faces in keyframes, by insightface.

Put here: loading and calling insightface. Keep out: who somebody is, which clusters and people's labels say.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.extractors.accelerator import map_batches, onnx_providers
from mm_assets.extractors.base import Extractor, item_ids
from mm_assets.extractors.inputs import RgbImage, column_of, read_image, to_bgr
from mm_assets.extractors.weights import refuse_other_files

Vectors = npt.NDArray[np.float32]

_MODULES = ["detection", "recognition"]
_BOX = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")


class InsightfaceExtractor(Extractor):
    """Faces per keyframe in the detector's order, surest first; images are seen one by one, so batches change nothing.

    The detector sees the image scaled into a square of ``input_side_px`` (insightface's own default merges two sizes).
    """

    step = "faces"
    code_version = "1"
    packages = ("insightface", "onnxruntime")
    takes = frozenset({"scene", "image", "page"})
    columns = ("keyframe_jpeg",)
    defaults: ClassVar[Mapping[str, Any]] = {"min_confidence": 0.5}

    def _load(self) -> None:
        from insightface.app import FaceAnalysis

        paths = [self.card.path(name).absolute() for name in self.card.files]
        folder = paths[0].parent
        refuse_other_files(folder, paths, "*.onnx")
        providers = onnx_providers(self.place)
        # A name that is no folder would be downloaded without any check of its digest.
        app = FaceAnalysis(
            name=str(folder), allowed_modules=_MODULES, providers=providers, sess_options=self._session_options()
        )
        _check_models(app, self.card.name, providers[0])
        side = int(self.card.input_side_px or 640)
        app.prepare(
            ctx_id=0 if self.place.device == "cuda" else -1,
            det_thresh=self.params["min_confidence"],
            det_size=(side, side),
        )
        self._app = app

    def _session_options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.place.threads  # 0 = all cores
        return options

    def _extract(self, segments: pa.Table) -> pa.Table:
        found = map_batches(self._find, column_of(segments, "keyframe_jpeg"), self.place.batch_size)
        owners = [row for row, faces in enumerate(found) for _ in faces]
        every = [face for faces in found for face in faces]
        values: dict[str, Any] = {name: [face.bbox[k] for face in every] for k, name in enumerate(_BOX)}
        values["face_id"] = item_ids(segments, owners)
        values["confidence"] = [face.det_score for face in every]
        values["landmarks_px"] = [face.kps.reshape(-1).astype(np.float32) for face in every]
        values["vector"] = [face.normed_embedding.astype(np.float32) for face in every]
        return self._rows(segments, owners, values)

    def find_faces(self, image: RgbImage) -> tuple[Vectors, Vectors]:
        """Return (n, 4) boxes x0, y0, x1, y1 in pixels and (n, dim) unit vectors of the faces in an image, surest first."""
        self.load()
        faces = self._faces_of(to_bgr([image])[0])
        boxes = np.array([face.bbox for face in faces], np.float32).reshape(-1, 4)
        vectors = np.array([face.normed_embedding for face in faces], np.float32).reshape(-1, self.card.dim or 1)
        return boxes, vectors

    def _find(self, jpegs: list[bytes | None]) -> list[list[Any]]:
        return [self._faces_of(image) for image in to_bgr([read_image(jpeg) for jpeg in jpegs])]

    def _faces_of(self, image: Any) -> list[Any]:
        with warnings.catch_warnings():
            # scikit-image will drop a function that insightface calls; the pin in pyproject.toml keeps it until then.
            warnings.filterwarnings("ignore", "`estimate` is deprecated", FutureWarning)
            found: list[Any] = self._app.get(image)
            return found


def _check_models(app: Any, name: str, provider: str) -> None:
    """Both models must be there and run where they were asked to: insightface falls back without a word."""
    if set(app.models) != set(_MODULES):
        msg = f"card {name} needs a detection and a recognition model, insightface found {sorted(app.models)}"
        raise ConfigError(msg)
    for task, model in app.models.items():
        used = model.session.get_providers()
        if used[0] != provider:
            msg = f"{task} of {name} runs on {used[0]} instead of {provider}; check onnxruntime-gpu and CUDA"
            raise ConfigError(msg)

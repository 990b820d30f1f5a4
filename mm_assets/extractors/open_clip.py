"""visual_embeddings: keyframes and text queries in one vector space, by open_clip.

Put here: loading and calling open_clip. Keep out: prompts and thresholds, which are the pack's taxonomy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.extractors.accelerator import map_batches, torch_device
from mm_assets.extractors.base import Extractor
from mm_assets.extractors.inputs import RgbImage, column_of, read_image
from mm_assets.extractors.weights import refuse_other_files

Vectors = npt.NDArray[np.float32]
_CONFIG = "open_clip_config.json"


class OpenClipExtractor(Extractor):
    """Unit vectors of keyframes; batches differ from single calls by at most 1e-5 per component (fp32).

    The card either brings ``open_clip_config.json`` beside its weights, or names an ``architecture`` of open_clip in
    ``extra``. ``precision`` bf16 casts the weights where the device computes in bfloat16 (cosine to fp32 .99995 for
    ViT-B-32, 3.5 times as fast on such a CPU); elsewhere it stays fp32.
    """

    step = "visual_embeddings"
    code_version = "1"
    packages = ("torch", "open_clip")
    takes = frozenset({"scene", "image", "page"})
    columns = ("keyframe_jpeg",)
    defaults: ClassVar[Mapping[str, Any]] = {"precision": "fp32"}

    def _load(self) -> None:
        import open_clip

        self._device = torch_device(self.place)
        self._precision = self.params["precision"] if _has_bfloat16(self._device) else "fp32"
        name, pretrained = self._source()
        model, _, self._preprocess = open_clip.create_model_and_transforms(
            name,
            pretrained,
            precision=self._precision,
            device=self._device,
            # Without it open_clip only logs that it found no weights and goes on with random ones.
            require_pretrained=True,
        )
        self._model = model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    def _source(self) -> tuple[str, str | None]:
        """Name and weights for open_clip's factory: a folder of ours, or one of its architectures and a file."""
        paths = [self.card.path(name) for name in self.card.files]
        configs = [path for path in paths if path.name == _CONFIG]
        if configs:
            refuse_other_files(configs[0].parent, paths)
            return f"local-dir:{configs[0].parent.absolute()}", None
        if "architecture" not in self.card.extra or len(paths) != 1:
            msg = f"card {self.card.name}: give {_CONFIG} beside the weights, or extra.architecture and one file"
            raise ConfigError(msg)
        return str(self.card.extra["architecture"]), str(paths[0].absolute())

    def _extract(self, segments: pa.Table) -> pa.Table:
        vectors: list[Vectors] = map_batches(
            self._encode_keyframes, column_of(segments, "keyframe_jpeg"), self.place.batch_size
        )
        flat = pa.array(np.concatenate(vectors), pa.float32())
        column = pa.FixedSizeListArray.from_arrays(flat, self.card.dim)
        return self._rows(segments, list(range(segments.num_rows)), {"vector": column})

    def _encode_keyframes(self, jpegs: list[bytes | None]) -> Vectors:
        return self._encode_batch([read_image(jpeg) for jpeg in jpegs])

    def encode_images(self, images: Sequence[RgbImage]) -> Vectors:
        """Give unit vectors, shape (n, dim), of RGB arrays (height, width, 3): a query by image."""
        self.load()
        return _stack(map_batches(self._encode_batch, images, self.place.batch_size), self.card.dim)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Give unit vectors, shape (n, dim), of texts: a query in words, or a prompt."""
        self.load()
        return _stack(map_batches(self._encode_text_batch, texts, self.place.batch_size), self.card.dim)

    def _encode_batch(self, images: list[RgbImage]) -> Vectors:
        import torch
        from PIL import Image

        pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in images])
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        with torch.inference_mode():
            return _to_unit(self._model.encode_image(pixels.to(self._device, dtype)))

    def _encode_text_batch(self, texts: list[str]) -> Vectors:
        import torch

        with torch.inference_mode():
            return _to_unit(self._model.encode_text(self._tokenizer(texts).to(self._device)))


def _to_unit(features: Any) -> Vectors:
    """Normalise in fp32, so that the length is 1 to 1e-6 whatever the precision of the model."""
    vectors = features.float().cpu().numpy()
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _stack(vectors: list[Vectors], dim: int | None) -> Vectors:
    return np.stack(vectors) if vectors else np.empty((0, dim or 0), np.float32)


def _has_bfloat16(device: Any) -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without the instructions bf16 is emulated and slower than fp32; torch's public capabilities name them.
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))

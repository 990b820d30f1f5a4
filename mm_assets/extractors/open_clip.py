"""visual_embeddings: keyframes and text queries in one vector space, by open_clip.

Put here: calling open_clip on pictures. Keep out: loading it (``clip_models``), prompts and thresholds, which are the
pack's taxonomy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mm_assets.extractors.accelerator import map_batches
from mm_assets.extractors.base import Extractor
from mm_assets.extractors.clip_models import Vectors, load_clip, stack, to_unit
from mm_assets.extractors.inputs import RgbImage, column_of, read_image


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
        self._clip = load_clip(self.card, self.place, self.params["precision"])

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
        return stack(map_batches(self._encode_batch, images, self.place.batch_size), self.card.dim)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Give unit vectors, shape (n, dim), of texts: a query in words, or a prompt."""
        self.load()
        return self._clip.encode_texts(texts, self.place.batch_size, self.card.dim)

    def _encode_batch(self, images: list[RgbImage]) -> Vectors:
        import torch
        from PIL import Image

        pixels = torch.stack([self._clip.preprocess(Image.fromarray(image)) for image in images])
        dtype = torch.bfloat16 if self._clip.precision == "bf16" else torch.float32
        with torch.inference_mode():
            return to_unit(self._clip.model.encode_image(pixels.to(self._clip.device, dtype)))

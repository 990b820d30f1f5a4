"""Devices: which one is used, and what happens when its memory does not suffice.

Put here: checks of devices, batches that shrink. Keep out: models.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from mm_assets.errors import ConfigError, ObjectError, Reason
from mm_assets.extractors.base import Placement

Item = TypeVar("Item")
Result = TypeVar("Result")
# torch's CPU allocator, CUDA and onnxruntime say it in words, the last two in a plain RuntimeError.
_MEMORY_WORDS = ("out of memory", "failed to allocate memory", "can't allocate memory", "cannot allocate memory")


def torch_device(place: Placement) -> Any:
    """``torch.device`` of a placement, with the CPU threads set; raises ConfigError without the CUDA asked for."""
    import torch

    if place.threads:
        torch.set_num_threads(place.threads)
    if place.device == "cuda" and not torch.cuda.is_available():
        msg = "models.device is cuda but torch sees no CUDA device; write `device: cpu` or install torch with CUDA"
        raise ConfigError(msg)
    return torch.device(place.device)


def onnx_providers(place: Placement) -> list[str]:
    """Give onnxruntime's providers for a placement; raises ConfigError instead of falling back to the CPU."""
    import onnxruntime

    if place.device != "cuda":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        msg = "models.device is cuda but onnxruntime has no CUDA provider; install onnxruntime-gpu in its place"
        raise ConfigError(msg)
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def map_batches(call: Callable[[list[Item]], Iterable[Result]], items: Sequence[Item], size: int) -> list[Result]:
    """Results of ``call`` over ``items`` in batches of ``size``, which is halved whenever memory runs out.

    Raises
    ------
    ObjectError
        out_of_memory: not even one item fits. Callers narrow the batch down to the object at fault.
    """
    results: list[Result] = []
    while len(results) < len(items):
        batch = list(items[len(results) : len(results) + size])
        try:
            results.extend(call(batch))
        except Exception as error:  # onnxruntime's errors share no base but this; all others are raised again
            if not is_out_of_memory(error):
                raise
            size = _smaller(len(batch), error)
    return results


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise the ways in which Python, torch and onnxruntime say it."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY_WORDS)


def _smaller(size: int, error: BaseException) -> int:
    _release_memory()
    if size == 1:
        raise ObjectError(Reason.OUT_OF_MEMORY, f"not even one segment fits into memory: {error}") from error
    return size // 2


def _release_memory() -> None:
    """Give cached blocks back to the device, where torch is loaded at all."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Files that are whole or not there, and weights that are small and the same bytes for the same numbers.

Put here: how trained weights, checkpoints and states of random generators are written and read.
Keep out: what is in them (each model's own module).
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

Weights = dict[str, torch.Tensor]
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first date that a zip archive knows."""


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` that takes its place when the block ends without an error."""
    part = path.with_name(path.name + ".part")
    yield part
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def save_deflated(record: Any, path: Path) -> None:
    """Save with torch, then pack the archive anew, deflated and without dates: torch reads it all the same."""
    stored = path.with_name(path.name + ".stored")
    try:
        torch.save(record, stored)
        with write_whole(path) as part:
            _deflate(stored, part)
    finally:
        stored.unlink(missing_ok=True)


def _deflate(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as stored, zipfile.ZipFile(target, "w") as packed:
        for item in stored.infolist():
            # torch names the top folder after the file.
            name = "archive/" + item.filename.split("/", 1)[1]
            entry = zipfile.ZipInfo(name, _EPOCH)
            packed.writestr(entry, stored.read(item), zipfile.ZIP_DEFLATED, 9)


def to_half(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Give detached copies with all floats in half precision."""
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().clone().contiguous()
        for name, tensor in weights.items()
    }


def to_full(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Give copies with all floats in single precision."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def random_state(rng: np.random.Generator) -> dict[str, Any]:
    """Give the states of torch's generator and of `rng`."""
    return {"torch": torch.get_rng_state(), "numpy": json.dumps(rng.bit_generator.state)}


def restore_random_state(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Go back to what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    rng.bit_generator.state = json.loads(state["numpy"])

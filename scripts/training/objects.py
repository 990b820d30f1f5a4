"""Train the object detector of the demo pack: `python -m training.objects --out DIR`.

Put here: the two stages, the call of ultralytics, and the cleaning of its checkpoint.
Keep out: pictures and labels (detection_frames).

Stage `base` learns from loose things in squares of 160 px, stage `fine` from frames of 320 px with text and pages among
them. The size in pixels is part of what is learnt: the detector must be run at 320. ultralytics is AGPL-3.0, and its
makers claim that licence for trained weights as well.
"""

import json
import shutil
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import yaml
from world.lettering import FONT_FOLDER

from training.archives import save_deflated, write_whole
from training.detection_frames import PictureSource, write_data_set
from training.options import make_parser, set_up
from training.session import INTERRUPTED, stopping_on_interrupt

FILE_NAME = "detector.pt"
WIDTH, DEPTH, MAX_CHANNELS = 0.125, 0.33, 512
"""Of yolo11, against .25, .50 and 1024 of its smallest standard form."""
_KEPT_STRINGS = frozenset({"version", "license", "docs"})


@dataclass(frozen=True, slots=True)
class Stage:
    """One call of ultralytics: what it sees, how long, and how its pictures are varied."""

    name: str
    side_px: int
    n_train: int
    n_validation: int
    epochs: int
    batch: int
    is_mixed: bool
    options: dict[str, Any] = field(default_factory=dict)


BASE = Stage(
    "base",
    side_px=160,
    n_train=4000,
    n_validation=200,
    epochs=30,
    batch=32,
    is_mixed=False,
    options={"lr0": 3e-3, "warmup_epochs": 1, "mosaic": 0.3, "close_mosaic": 5, "fliplr": 0.5, "scale": 0.4},
)
FINE = Stage(
    "fine",
    side_px=320,
    n_train=3000,
    n_validation=200,
    epochs=7,
    batch=16,
    is_mixed=True,
    # Mosaics and flips would spoil what the base has learnt about whole frames; rectangles are what frames are.
    options={"lr0": 1e-3, "lrf": 0.03, "warmup_epochs": 0.3, "rect": True, "mosaic": 0, "fliplr": 0, "scale": 0.3},
)
SHARED: dict[str, Any] = {
    "device": "cpu",
    "workers": 0,
    "amp": False,  # its self-test would download another model
    "plots": False,
    "cache": "ram",
    "exist_ok": True,
    "verbose": False,
    "optimizer": "AdamW",
    "cos_lr": True,
    "degrees": 0,
    "hsv_h": 0,
    "hsv_s": 0.2,
    "hsv_v": 0.2,
    "translate": 0.1,
    "erasing": 0,
    "deterministic": True,
}


@dataclass(slots=True)
class Watch:
    """What ultralytics calls while it trains: prints, keeps a checkpoint, and stops it at the limit or at Ctrl-C."""

    stage: str
    checkpoint: Path
    limit_s: float
    interrupts: list[int]
    _started_s: float = field(default_factory=time.process_time)

    def on_fit_epoch_end(self, trainer: Any) -> None:
        """Print the epoch's figures; the call after the last epoch is about the best weights, which are not taken."""
        if not any(name.startswith("val/") for name in trainer.metrics):
            return
        spent_s = time.process_time() - self._started_s
        figures = {name.split("/")[-1]: round(float(value), 4) for name, value in trainer.metrics.items()}
        head = {"model": f"objects.{self.stage}", "epoch": trainer.epoch + 1, "cpu_s": round(spent_s)}
        print(json.dumps({**head, **figures}), flush=True)
        trainer.stop = bool(trainer.stop or self.interrupts or spent_s > self.limit_s)

    def on_model_save(self, trainer: Any) -> None:
        """Keep a copy: ultralytics strips its own of what is needed to go on."""
        with write_whole(self.checkpoint) as part:
            shutil.copyfile(trainer.last, part)


def import_yolo() -> Any:
    """Import ultralytics with its posting of usage and its fetching of a font switched off."""
    from ultralytics import YOLO, settings  # type: ignore[attr-defined]  # resolved lazily by their package
    from ultralytics.utils import USER_CONFIG_DIR

    # It wants this font before it trains, for plots that are not made, and would fetch it; any font of that name does.
    font = USER_CONFIG_DIR / "Arial.ttf"
    if not font.exists():
        with write_whole(font) as part:
            shutil.copyfile(Path(FONT_FOLDER) / "DejaVuSans.ttf", part)
    settings.update(sync=False)  # type: ignore[no-untyped-call]
    return YOLO


def write_architecture(path: Path) -> None:
    """Write yolo11 at our width: the package's own description with other numbers in the row of its smallest form."""
    import ultralytics

    source = Path(ultralytics.__file__).parent / "cfg/models/11/yolo11.yaml"
    description = yaml.safe_load(source.read_text(encoding="utf-8"))
    description["scales"] = {"n": [DEPTH, WIDTH, MAX_CHANNELS]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")


def run_stage(stage: Stage, weights: Path, folder: Path, options: Namespace, interrupts: list[int]) -> Path:
    """Draw the data set, train on it, and give the path of the last weights."""
    checkpoint = folder / "checkpoint.pt"
    is_resumed = checkpoint.is_file()
    if is_resumed and not options.resume:
        sys.exit(f"{checkpoint} is there already: go on with --resume, or remove the folder")
    source = PictureSource(np.random.default_rng([options.seed, stage.side_px]))
    draw = source.draw_mixed if stage.is_mixed else source.draw_square
    data = folder / "data" / "data.yaml"
    if not is_resumed:
        data = write_data_set(data.parent, draw, stage.n_train, stage.n_validation)
    watch = Watch(stage.name, checkpoint, 60 * options.minutes, interrupts)
    model = import_yolo()(str((checkpoint if is_resumed else weights).absolute()))
    for event in ("on_fit_epoch_end", "on_model_save"):
        model.add_callback(event, getattr(watch, event))
    model.train(
        data=str(data.absolute()),
        imgsz=stage.side_px,
        epochs=stage.epochs,
        batch=stage.batch,
        seed=options.seed,
        project=str(folder.absolute()),
        name="run",
        resume=is_resumed,
        **SHARED,
        **stage.options,
    )
    return folder / "run" / "weights" / "last.pt"


def clean_checkpoint(source: Path, target: Path) -> None:
    """Write the checkpoint without paths, dates and facts about this machine; the licence line stays.

    Reads a pickle: only for files that this program has just written.
    """
    record = torch.load(source, map_location="cpu", weights_only=False)
    model = record["model"]
    record["train_args"] = _without_folders(record["train_args"])
    for name in ("git", "train_results", "date"):
        record[name] = None
    model.args = _without_folders(dict(model.args))
    model.yaml = _without_folders(model.yaml)
    if hasattr(model, "pt_path"):
        model.pt_path = PurePath(model.pt_path).name
    save_deflated(record, target)


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: PurePath(value).name if isinstance(value, (str, PurePath)) and name not in _KEPT_STRINGS else value
        for name, value in values.items()
    }


def parse_arguments(arguments: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = make_parser("Train the object detector on drawn frames with ultralytics (AGPL-3.0).", minutes=60)
    parser.epilog = (
        "--minutes is a limit of each stage, whose length is a number of epochs. Ctrl-C ends after an epoch."
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, base: Stage = BASE, fine: Stage = FINE) -> int:
    """Train; 130 when stopped by Ctrl-C. With --init the stage `base` is left out."""
    options = parse_arguments(arguments)
    set_up(options.threads, options.seed)
    out: Path = options.out
    weights = options.init or out / "base.pt"
    with stopping_on_interrupt() as interrupts:
        if not weights.is_file():
            architecture = out / "base" / "yolo11n-demo.yaml"  # the letter before the dash is read as the scale
            write_architecture(architecture)
            last = run_stage(base, architecture, out / "base", options, interrupts)
            if not interrupts:
                clean_checkpoint(last, weights)
        if not interrupts:
            clean_checkpoint(run_stage(fine, weights, out / "fine", options, interrupts), out / FILE_NAME)
            print(f"objects: wrote {FILE_NAME}", flush=True)
    return INTERRUPTED if interrupts else 0


if __name__ == "__main__":
    sys.exit(main())

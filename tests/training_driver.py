"""Trains all four models for a few steps in a process of its own, and prints what that process asked the system for.

Put here: settings small enough for a test, the audit of sockets and processes. Keep out: assertions.

Usage: training_driver.py FOLDER, with scripts/ on the path. ultralytics posts usage only outside of pytest, so the
audit would prove nothing inside of it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

WATCHED = (
    "socket.connect",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
    "subprocess.Popen",
    "os.system",
    "os.posix_spawn",
    "os.exec",
)
STEPS = "2"


def train_all(folder: Path) -> None:
    """Train each model into the folder that `build_pack` takes it from."""
    from training import clip, faces, objects, speech
    from training.face_detection import DetectionLearner
    from training.face_recognition import RecognitionLearner

    clip.main(["--out", str(folder / "clip"), "--steps", STEPS], clip.Recipe(batch=6, gallery=8))
    tiny: dict[str, faces.LearnerMaker] = {
        "detection": lambda seed, init: DetectionLearner(seed, init, batch=2, n_held_out=2),
        "recognition": lambda seed, init: RecognitionLearner(seed, init, batch=8, n_people=4, n_unseen=2),
    }
    faces.main(["--out", str(folder / "faces"), "--steps", STEPS], tiny)
    shapes = (speech.Shape(4, 2),)
    recipe = speech.Recipe(n_grammar=12, n_captions=6, n_test=8, plan=((1.0, shapes[0]),), tests=shapes)
    speech.main(["--out", str(folder / "speech"), "--steps", STEPS], recipe)
    base, fine = (
        replace(stage, side_px=64, n_train=8, n_validation=2, epochs=1, batch=4)
        for stage in (objects.BASE, objects.FINE)
    )
    objects.main(["--out", str(folder / "objects")], base, fine)


def main() -> None:
    """Train under the audit; the last line of the output holds what was seen."""
    seen: list[tuple[str, str]] = []

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in WATCHED:
            seen.append((event, str(arguments[0])))

    sys.addaudithook(hear)
    train_all(Path(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()

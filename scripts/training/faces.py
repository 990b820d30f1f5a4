"""Train the face models of the demo pack: `python -m training.faces --out DIR`.

Put here: the command line.
Keep out: the two learners (face_detection, face_recognition).
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from training.face_detection import DetectionLearner
from training.face_recognition import RecognitionLearner
from training.options import add_steps, make_parser, set_up
from training.session import Budget, Learner, run_session

LearnerMaker = Callable[[int, Path | None], Learner]
LEARNERS: Mapping[str, LearnerMaker] = {"detection": DetectionLearner, "recognition": RecognitionLearner}
SHARES = {"detection": 0.41, "recognition": 0.59}
"""Of --minutes when both parts are trained: as long as the shipped models took, 8 and 11.5 of 19.5."""


def parse_arguments(arguments: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = make_parser("Train the face detector and the face recogniser on drawn people.", minutes=19.5)
    add_steps(parser)
    parser.add_argument("--part", choices=[*LEARNERS, "both"], default="both", help="default: both")
    options = parser.parse_args(arguments)
    if options.init is not None and options.part == "both":
        parser.error("--init holds weights of one model: name it with --part")
    return options


def main(arguments: list[str] | None = None, learners: Mapping[str, LearnerMaker] = LEARNERS) -> int:
    """Train one part or both; 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    set_up(options.threads, options.seed)
    parts = list(learners) if options.part == "both" else [options.part]
    for part in parts:
        minutes = options.minutes * (SHARES[part] if len(parts) > 1 else 1)
        learner = learners[part](options.seed, options.init)
        is_begun = part == parts[0] or (options.out / f"{part}.checkpoint").exists()
        is_resumed = options.resume and is_begun
        status = run_session(learner, Budget(minutes, options.steps), options.out, is_resumed=is_resumed)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Make a collection of demo or evaluation media together with the truth about it.

Put here: the command line.
Keep out: what the collections hold (world.demo, world.evaluation).

Needs libespeak-ng1 and fonts-dejavu-core. The same seed gives the same media with the same library versions.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path

from world import demo, evaluation
from world.collection import Collection
from world.truth import CollectionTruth

PROFILES = {
    "demo": (demo.DEFAULT_SEED, demo.fill_demo),
    "evaluation": (evaluation.DEFAULT_SEED, evaluation.fill_evaluation),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a collection of media and the truth about it.")
    parser.add_argument("--out", type=Path, required=True, help="empty or new folder for the media")
    parser.add_argument("--truth", type=Path, help="file for the truth; default: truth.json beside the folder")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="demo", help="default: demo")
    parser.add_argument("--seed", type=int, help="default: the profile's own; training used seeds below 500000")
    parser.add_argument(
        "--exclude-sentences", type=Path, metavar="FILE", help="sentences that must not occur, one a line"
    )
    return parser.parse_args(arguments)


def read_sentences(path: Path | None) -> tuple[frozenset[str], str | None]:
    """Read the sentences to exclude, and the digest of their file."""
    if path is None:
        return frozenset(), None
    data = path.read_bytes()
    return frozenset(data.decode().splitlines()), hashlib.sha256(data).hexdigest()


def summarise(truth: CollectionTruth) -> str:
    """Say in one line what was made."""
    kinds = Counter(item.media_kind for item in truth.objects)
    scenes = [scene for item in truth.objects for scene in item.scenes]
    faces = sum(len(scene.people) for scene in scenes)
    speech_s = sum(part.end_s - part.start_s for item in truth.objects for part in item.speech)
    size_mb = sum(item.size_bytes for item in truth.objects) / 1e6
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{counts}: {size_mb:.1f} MB, {len(scenes)} scenes, {faces} faces, {speech_s / 60:.1f} min of speech"


def main() -> int:
    """Make the collection; 2 when the folder is not empty."""
    options = parse_arguments()
    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        print(f"{out} is not empty: remove it or name another folder", file=sys.stderr)
        return 2
    started = time.perf_counter()
    default_seed, fill = PROFILES[options.profile]
    excluded, digest = read_sentences(options.exclude_sentences)
    seed = default_seed if options.seed is None else options.seed
    truth = CollectionTruth(options.profile, seed, digest)
    fill(Collection(out, truth, excluded))
    truth_path: Path = options.truth or out.parent / "truth.json"
    truth_path.write_text(truth.to_json(), encoding="utf-8")
    print(f"{summarise(truth)}; {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

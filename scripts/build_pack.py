"""Lay out a model pack from trained files: `python scripts/build_pack.py --from DIR --to DIR`.

Put here: copying of weights, their digests, and the cards of a pack like the demo's.
Keep out: training (scripts/training), measuring (benchmarks), packs whose weights are fetched.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from mm_assets.errors import ConfigError
from mm_assets.extractors.base import Placement
from mm_assets.extractors.packs import BUILT_IN, PACK_NAME, load_pack, read_pack
from mm_assets.extractors.registry import build_extractor
from mm_assets.extractors.weights import sha256_of
from mm_assets.settings import ModelSettings

TEMPLATE = BUILT_IN / "demo"
"""The pack whose cards are taken over: libraries, licences, sizes and thresholds go with the recipes."""
REVISION_LENGTH = 12

Card = dict[str, Any]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Lay out a model pack from what scripts/training has written.")
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="DIR", help="holds clip/ objects/ faces/ speech/"
    )
    parser.add_argument("--to", dest="target", type=Path, required=True, metavar="DIR", help="empty or new folder")
    parser.add_argument("--name", default="demo", help="name of the pack; default: demo")
    return parser.parse_args(arguments)


def build_pack(source: Path, target: Path, name: str = "demo") -> Path:
    """Write a pack and load each of its models once.

    Figures belong to the weights that they were measured on: a model with other weights than the template's gets a
    card without figures, and the beginning of a digest of them as revision.

    Parameters
    ----------
    source : folder that holds the files under the paths of the template's cards
    target : empty or new folder

    Returns
    -------
    The path of ``pack.yaml``.

    Raises
    ------
    ConfigError
        A file is missing, the folder is not empty, or a model does not load.
    """
    template = read_pack(TEMPLATE)
    missing = sorted(path for path in template.files if not (source / path).is_file())
    if missing:
        msg = f"{source} lacks {', '.join(missing)}; python -m training.<folder> --out {source}/<folder> writes them"
        raise ConfigError(msg)
    if target.exists() and any(target.iterdir()):
        msg = f"{target} is not empty: remove it or name another folder"
        raise ConfigError(msg)
    for path in template.files:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
    shutil.copyfile(TEMPLATE / template.taxonomy, target / template.taxonomy)
    pack = yaml.safe_load((TEMPLATE / PACK_NAME).read_text(encoding="utf-8"))
    models = {step: _with_files(card, target) for step, card in pack["models"].items()}
    text = yaml.safe_dump({**pack, "name": name, "models": models}, sort_keys=False, allow_unicode=True, width=120)
    (target / PACK_NAME).write_text(text, encoding="utf-8")
    _load_models(target)
    return target / PACK_NAME


def _with_files(card: Card, folder: Path) -> Card:
    """Give the card with the digests of the files in the folder."""
    files = {path: {"sha256": sha256_of(folder / path)} for path in card.get("files", {})}
    if files == card.get("files", {}):
        return card
    revision = hashlib.sha256("".join(file["sha256"] for file in files.values()).encode()).hexdigest()
    unmeasured = {name: value for name, value in card.items() if name not in ("figures", "measured_on")}
    return {**unmeasured, "revision": revision[:REVISION_LENGTH], "files": files}


def _load_models(folder: Path) -> None:
    pack = load_pack(ModelSettings(pack=str(folder.absolute())), folder)
    for step, card in pack.cards.items():
        if card.files:
            build_extractor(step, pack, placement=Placement(threads=1)).load()


def summarise(path: Path) -> str:
    """Say what was written, one line per model with weights."""
    models = read_pack(path.parent).models
    lines = [
        f"{step}: revision {model.revision}, {'figures of the template' if model.figures else 'not measured'}"
        for step, model in models.items()
        if model.files
    ]
    return "\n".join([f"wrote {path}", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Build the pack; 2 when it cannot be."""
    options = parse_arguments(arguments)
    try:
        path = build_pack(options.source, options.target, options.name)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(summarise(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())

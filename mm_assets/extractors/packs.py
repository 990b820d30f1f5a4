"""Model packs: a folder with a ``pack.yaml`` that holds one card per step, and the taxonomy of the tags.

Put here: reading packs into cards. Keep out: fetching weights (``pull``), checking them (``weights``), loading them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mm_assets.errors import ConfigError
from mm_assets.extractors.base import ModelCard
from mm_assets.settings import ModelSettings

PACK_NAME = "pack.yaml"
LOCK_NAME = "pack.lock.yaml"
BUILT_IN = Path(__file__).parents[1] / "packs"


@dataclass(frozen=True)
class Pack:
    """A pack that is complete on this machine: one card per step, and the file of the tags."""

    name: str
    cards: Mapping[str, ModelCard]
    taxonomy: Path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightFile(_Part):
    """One file of a model: its digest, and where ``pull`` finds it.

    Attributes
    ----------
    sha256 : None where its maker publishes none: ``pull`` then records what it fetched
    url : https address; None for files that come with the pack
    member : name inside the zip archive that ``url`` points to
    """

    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    url: str | None = None
    member: str | None = None


class _Model(_Part):
    name: str
    revision: str
    library: str
    licence: str
    is_commercial: bool
    source: str = ""
    dim: int | None = Field(None, gt=0)
    input_side_px: int | None = Field(None, gt=0)
    window_s: float | None = Field(None, gt=0)
    memory_mb: int = Field(0, ge=0)
    figures: dict[str, float] = {}
    measured_on: str = ""
    extra: dict[str, Any] = {}
    files: dict[str, WeightFile] = {}

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, files: dict[str, WeightFile]) -> dict[str, WeightFile]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                msg = f"file {name!r} must be a relative path inside the pack"
                raise ValueError(msg)
        return files


class PackFile(_Part):
    """What a ``pack.yaml`` says."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]{0,62}$")
    description: str
    taxonomy: str
    models: dict[str, _Model]

    @property
    def files(self) -> dict[str, WeightFile]:
        """All weight files by path."""
        return {name: file for model in self.models.values() for name, file in model.files.items()}

    @property
    def is_fetched(self) -> bool:
        """True when the weights come by ``pull`` instead of with the pack."""
        return any(file.url for file in self.files.values())


def list_packs() -> list[str]:
    """Names of the packs that come with mm_assets."""
    return sorted(path.parent.name for path in BUILT_IN.glob(f"*/{PACK_NAME}"))


def find_pack(choice: str) -> Path:
    """Folder of a pack, by name or path; raises ConfigError with the known names."""
    folder = BUILT_IN / choice if choice in list_packs() else Path(choice).expanduser().absolute()
    if not (folder / PACK_NAME).is_file():
        msg = f"models.pack {choice!r}: no such pack and no folder with a {PACK_NAME}; known: {', '.join(list_packs())}"
        raise ConfigError(msg)
    return folder


def read_pack(folder: Path) -> PackFile:
    """Read and check ``pack.yaml``; raises ConfigError naming the field."""
    path = folder / PACK_NAME
    try:
        return PackFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        msg = f"{path} is not a model pack: {error}"
        raise ConfigError(msg) from error


def weights_folder(folder: Path, pack: PackFile, models_folder: Path) -> Path:
    """Give the folder of the weights: ``<models folder>/<pack>`` when fetched, else beside ``pack.yaml``."""
    return (models_folder / pack.name if pack.is_fetched else folder).absolute()


def load_pack(models: ModelSettings, models_folder: Path) -> Pack:
    """Cards and taxonomy of the chosen pack.

    Parameters
    ----------
    models_folder : where ``pull`` puts weights (``Settings.models_folder``)

    Raises
    ------
    ConfigError
        No such pack, or a file is missing; names the command that fetches it. Nothing is ever fetched here.
    """
    folder = find_pack(models.pack)
    pack = read_pack(folder)
    weights = weights_folder(folder, pack, models_folder)
    digests = _digests(models.pack, pack, weights)
    cards = {step: _card(model, weights, digests) for step, model in pack.models.items()}
    taxonomy = folder / pack.taxonomy
    if not taxonomy.is_file():
        msg = f"pack {pack.name} names the taxonomy {taxonomy}, which does not exist"
        raise ConfigError(msg)
    return Pack(pack.name, cards, taxonomy)


def read_lock(weights: Path) -> dict[str, str]:
    """Digests that ``pull`` recorded for files whose makers publish none."""
    path = weights / LOCK_NAME
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _digests(choice: str, pack: PackFile, weights: Path) -> dict[str, str]:
    """Digest of each file, from the pack or the lock; raises ConfigError when a file or its digest is missing."""
    lock = read_lock(weights)
    digests = {name: file.sha256 or lock.get(name, "") for name, file in pack.files.items()}
    missing = sorted(name for name, sha256 in digests.items() if not sha256 or not (weights / name).is_file())
    if missing:
        how = f"fetch them with `mm models pull {choice}`" if pack.is_fetched else "restore the pack's folder"
        msg = f"pack {pack.name}: {', '.join(missing)} missing in {weights}; {how}"
        raise ConfigError(msg)
    return digests


def _card(model: _Model, weights: Path, digests: Mapping[str, str]) -> ModelCard:
    facts = model.model_dump(exclude={"files"})
    return ModelCard(**facts, folder=weights, files={name: digests[name] for name in model.files})

"""The open handles of one process: settings, ledger, lake, sources, extractors.

Put here: what belongs together while a flow runs. Keep out: building stores from settings (resources do that).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mm_assets.buckets.base import Store
from mm_assets.buckets.traffic import Traffic
from mm_assets.errors import ConfigError
from mm_assets.extractors.base import Extractor
from mm_assets.extractors.packs import Pack
from mm_assets.flows.recipes import build_recipes, upstream, with_upstream
from mm_assets.lake import Lake
from mm_assets.ledger import Ledger
from mm_assets.settings import Location, Settings, SourceSettings


@dataclass
class Workspace:
    """What a flow works with.

    Attributes
    ----------
    sources : alias → store; only ever read
    extractors : step → extractor, not loaded until first used
    traffic : request rates, breakers and counts that the stores share
    recipes : step → recipe, of all steps
    """

    settings: Settings
    ledger: Ledger
    lake: Lake
    sources: Mapping[str, Store]
    pack: Pack
    extractors: Mapping[str, Extractor]
    traffic: Traffic = field(default_factory=Traffic)
    recipes: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Name the recipes and bind the ledger to this lake."""
        self.recipes = build_recipes(self.settings, self.extractors)
        self.ledger.bind_lake(self.lake.make_id())

    def recipes_of(self, alias: str) -> dict[str, str]:
        """Return step → recipe of the steps that a source asks for, and what they need."""
        return {step: self.recipes[step] for step in with_upstream(self.settings.source(alias).steps)}

    def needs(self) -> dict[str, dict[str, str]]:
        """Return step → (needed step → recipe)."""
        return {step: {need: self.recipes[need] for need in upstream(step)} for step in self.recipes}

    def close(self) -> None:
        """Release the database."""
        self.ledger.close()


def reserved_prefixes(source: SourceSettings, settings: Settings) -> tuple[str, ...]:
    """Return the key prefixes of a source that hold our own files: the lake and the state are never ingested.

    Raises
    ------
    ConfigError
        The source lies inside the lake.
    """
    own: list[Location] = [settings.lake, Location(uri=str(settings.state))]
    return tuple(prefix for location in own if (prefix := _prefix_within(source, location)) is not None)


def _prefix_within(source: SourceSettings, own: Location) -> str | None:
    if source.is_bucket != own.is_bucket:
        return None
    outer, inner = _path(source), _path(own)
    if outer == inner or inner in outer.parents:
        msg = f"source {source.alias!r} ({source.uri}) lies inside {own.uri}, which holds results; watch another place"
        raise ConfigError(msg)
    return f"{inner.relative_to(outer).as_posix()}/" if outer in inner.parents else None


def _path(location: Location) -> PurePosixPath:
    if not location.is_bucket:
        return PurePosixPath(Path(location.folder).resolve())
    host = (urlsplit(location.endpoint_url or "").hostname or "").lower()
    endpoint = (
        "aws" if not host or host.endswith("amazonaws.com") else f"{host}:{urlsplit(location.endpoint_url).port or ''}"
    )
    return PurePosixPath("/", endpoint, location.bucket, location.prefix)

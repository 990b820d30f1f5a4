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
from mm_assets.flows.recipes import DECODING_STEPS, build_recipes, read_steps, upstream, with_upstream
from mm_assets.lake import Lake
from mm_assets.ledger import Ledger
from mm_assets.settings import Location, Settings, SourceSettings


@dataclass
class Workspace:
    """What a flow works with.

    Attributes
    ----------
    unbound_ledger : the ledger without the question whether it belongs to this lake
    sources : alias → store; only ever read
    extractors : step → extractor, not loaded until first used
    traffic : request rates, breakers and counts that the stores share
    unreachable : alias → error, of sources that did not answer when they were asked before any work
    recipes : step → recipe, of all steps
    """

    settings: Settings
    unbound_ledger: Ledger
    lake: Lake
    sources: Mapping[str, Store]
    pack: Pack
    extractors: Mapping[str, Extractor]
    traffic: Traffic = field(default_factory=Traffic)
    unreachable: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(init=False)
    _is_bound: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Name the recipes."""
        self.recipes = build_recipes(self.settings, self.extractors)

    @property
    def ledger(self) -> Ledger:
        """The ledger, bound to this lake at first use; raises ConfigError where it does not belong to it."""
        if not self._is_bound:
            self.bind()
        return self.unbound_ledger

    def bind(self, *, to_rebuild: bool = False) -> None:
        """Bind the ledger to the lake; a new ledger and a new lake take each other.

        Parameters
        ----------
        to_rebuild : take a lake that is in use, too, whose history the ledger then gets

        Raises
        ------
        ConfigError
            The ledger belongs to another lake, or knows nothing of what this one holds.
        """
        ledger, lake = self.unbound_ledger, self.lake
        lake_id = check_binding(ledger, lake, to_rebuild=to_rebuild)
        bound = ledger.bind_lake(lake_id)
        if lake_id is None:
            lake.write_id(bound)
        self._is_bound = True

    def recipes_of(self, alias: str) -> dict[str, str]:
        """Return step → recipe of the steps that a source asks for, and what they need."""
        return {step: self.recipes[step] for step in self._steps_of(alias)}

    def needs(self, alias: str) -> dict[str, dict[str, str]]:
        """Return step → (needed step → recipe); of what steps read of each other, only what a source asks for."""
        asked = {*DECODING_STEPS, *self._steps_of(alias)}
        return {
            step: {need: self.recipes[need] for need in upstream(step, self.extractors) if need in asked}
            for step in self.recipes
        }

    def reads(self) -> dict[str, dict[str, str]]:
        """Return step → (read step → recipe), of the steps that read the results of extractors."""
        found = {step: read_steps(step, self.extractors) for step in self.extractors}
        return {step: {need: self.recipes[need] for need in needs} for step, needs in found.items() if needs}

    def _steps_of(self, alias: str) -> tuple[str, ...]:
        return with_upstream(self.settings.source(alias).steps, self.extractors)

    def close(self) -> None:
        """Release the database."""
        self.unbound_ledger.close()


def check_binding(ledger: Ledger, lake: Lake, *, to_rebuild: bool = False) -> str | None:
    """Return the id of the lake that this ledger belongs to, or may; None where both are new. Nothing is written.

    Raises
    ------
    ConfigError
        As of ``Workspace.bind``.
    """
    is_half = ledger.restoring.is_under_way()
    is_new = not is_half and ledger.restoring.is_empty()
    lake_id, known = lake.find_id(), ledger.bound_lake()  # after them: whoever recorded anything named the lake before
    if not to_rebuild and (is_half or (is_new and lake.is_used())):
        msg = (
            f"{lake.uri} is in use, but the ledger at {ledger.shown_url} does not know its history; "
            "if the ledger was lost, run `mm rebuild-ledger --yes`, otherwise choose another `lake.uri`"
        )
        raise ConfigError(msg)
    if lake_id is None and not is_new:
        msg = f"this ledger belongs to lake {known}, but {lake.uri} holds none; correct `lake.uri`"
        raise ConfigError(msg)
    if known is not None and lake_id is not None and known != lake_id:
        msg = f"this ledger belongs to lake {known}, but `lake.uri` leads to {lake_id}; use another `state`"
        raise ConfigError(msg)
    return lake_id


def reserved_prefixes(source: SourceSettings, settings: Settings) -> tuple[str, ...]:
    """Return the key prefixes of a source that hold our own files: the lake and the state are never ingested.

    Raises
    ------
    ConfigError
        The source lies inside the lake.
    """
    own: list[Location] = [settings.lake, Location(uri=str(settings.state))]
    return tuple(prefix for location in own if (prefix := _prefix_within(source, location)) is not None)


def is_within(inner: Location, outer: Location) -> bool:
    """Whether a place is another one, or lies in it."""
    place, around = _path(inner), _path(outer)
    return inner.is_bucket == outer.is_bucket and (place == around or around in place.parents)


def _prefix_within(source: SourceSettings, own: Location) -> str | None:
    if source.is_bucket != own.is_bucket:
        return None
    outer, inner = _path(source), _path(own)
    if is_within(source, own):
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

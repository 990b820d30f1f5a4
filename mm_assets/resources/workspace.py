"""Settings → the open workspace of a process.

Put here: building stores, ledger, lake and extractors from settings. Keep out: what is done with them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from mm_assets.buckets.base import Store
from mm_assets.buckets.traffic import Traffic
from mm_assets.errors import ServiceError
from mm_assets.extractors.base import Extractor
from mm_assets.extractors.packs import Pack, load_pack
from mm_assets.extractors.registry import build_extractor, choose_placement, known_steps
from mm_assets.flows.recipes import DECODING_STEPS
from mm_assets.flows.workspace import Workspace, reserved_prefixes
from mm_assets.lake import Lake
from mm_assets.ledger import Ledger
from mm_assets.settings import Settings, load_settings


def open_workspace(settings: Settings, *, check: bool = True) -> Workspace:
    """Open everything that the settings name; loads no model.

    Parameters
    ----------
    check : ask every store whether it answers and lets us in, before any work; a source that does not answer is noted
        and stops nothing of the others

    Raises
    ------
    ConfigError
        A store, key, right or weight is missing or wrong; names the setting.
    ServiceError
        The lake does not answer; a retry may help.
    """
    from mm_assets.resources.s3 import open_store  # boto3 and dagster_aws: 0.7 s that definitions need not wait for

    for source in settings.sources:
        reserved_prefixes(source, settings)
    traffic, encryption = Traffic(), settings.lake.server_side_encryption
    lake_store = open_store(settings.lake, name="lake", traffic=traffic, server_side_encryption=encryption, create=True)
    sources = {source.alias: open_store(source, name=source.alias, traffic=traffic) for source in settings.sources}
    if check:
        lake_store.check(writes=True)
    unreachable = check_sources(sources) if check else {}
    pack = load_pack(settings.models, settings.models_folder)
    ledger = Ledger(settings.ledger_location)
    extractors = _extractors(settings, pack)
    return Workspace(settings, ledger, Lake(lake_store), sources, pack, extractors, traffic, unreachable)


def check_sources(sources: Mapping[str, Store]) -> dict[str, str]:
    """Ask every source whether it lets us in; returns alias → error of those that do not answer.

    Raises
    ------
    ConfigError
        A bucket, key or right is missing or wrong.
    """
    silent: dict[str, str] = {}
    for alias, store in sources.items():
        try:
            store.check()
        except ServiceError as error:
            silent[alias] = str(error)
    return silent


def _extractors(settings: Settings, pack: Pack) -> dict[str, Extractor]:
    """Build, without loading, what the sources ask for, in the order of the known steps."""
    asked = {step for source in settings.sources for step in source.steps} - set(DECODING_STEPS)
    placement = choose_placement(settings.models)
    return {step: build_extractor(step, pack, None, placement) for step in known_steps() if step in asked}


class WorkspaceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The workspace of a run.

    Attributes
    ----------
    config_file : settings file; '' searches MM_ASSETS_CONFIG, then ./mm_assets.yaml
    """

    config_file: str = ""

    def settings(self) -> Settings:
        """Read the settings; at run time, never while definitions load."""
        return load_settings(Path(self.config_file) if self.config_file else None)

    @contextmanager
    def open(self, *, check: bool = True) -> Iterator[Workspace]:
        """Open the workspace and close it again."""
        workspace = open_workspace(self.settings(), check=check)
        try:
            yield workspace
        finally:
            workspace.close()

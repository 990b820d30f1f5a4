"""Settings → the open workspace of a process.

Put here: building stores, ledger, lake and extractors from settings. Keep out: what is done with them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from mm_assets.buckets.traffic import Traffic
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
    check : ask every store whether it answers and lets us in, before any work

    Raises
    ------
    ConfigError
        A store, key, right or weight is missing or wrong; names the setting.
    """
    from mm_assets.resources.s3 import open_store  # boto3 and dagster_aws: 0.7 s that definitions need not wait for

    for source in settings.sources:
        reserved_prefixes(source, settings)
    traffic, encryption = Traffic(), settings.lake.server_side_encryption
    lake_store = open_store(settings.lake, name="lake", traffic=traffic, server_side_encryption=encryption, create=True)
    sources = {source.alias: open_store(source, name=source.alias, traffic=traffic) for source in settings.sources}
    if check:
        lake_store.check(writes=True)
        for store in sources.values():
            store.check()
    pack = load_pack(settings.models, settings.models_folder)
    ledger = Ledger(settings.ledger_location)
    return Workspace(settings, ledger, Lake(lake_store), sources, pack, _extractors(settings, pack), traffic)


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

"""A place to work in: settings, watched folders and a lake below one temporary folder, with fake extractors.

Put here: laying out files and opening them. Keep out: assertions, and Dagster's part, which ``dagster_driver`` plays.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fakes import FakeWorkspaceResource, open_fake_workspace

from mm_assets.flows.workspace import Workspace
from mm_assets.settings import load_settings


@dataclass
class Place:
    """Settings in a folder of their own: ``source`` is watched, ``lake`` takes the results.

    Attributes
    ----------
    media : drawn media to copy from
    """

    folder: Path
    media: Path
    _opened: list[Workspace] = field(default_factory=list)

    @property
    def config_file(self) -> Path:
        """The settings file."""
        return self.folder / "mm_assets.yaml"

    @property
    def source(self) -> Path:
        """The watched folder."""
        return self.folder / "source"

    @property
    def lake(self) -> Path:
        """The folder of the results."""
        return self.folder / "lake"

    def write_settings(self, aliases: tuple[str, ...] = ("source",), **settings: Any) -> None:
        """Write the settings file; keyword arguments are further settings."""
        sources = [{"uri": str(self.folder / alias), "alias": alias} for alias in aliases]
        values = {"sources": sources, "lake": {"uri": str(self.lake)}, "state": str(self.folder / "state")}
        values |= {"runs": {"decode_workers": 1}} | settings
        for alias in aliases:
            (self.folder / alias).mkdir(exist_ok=True)
        self.config_file.write_text(yaml.safe_dump(values), encoding="utf-8")

    def add(self, *names: str, source: str = "source") -> None:
        """Copy drawn media into a watched folder."""
        for name in names:
            shutil.copyfile(self.media / name, self.folder / source / name)

    def add_as(self, name: str, other: str) -> None:
        """Copy drawn media under another name, over what may be there."""
        shutil.copyfile(self.media / name, self.folder / "source" / other)

    def resource(self, **options: str) -> FakeWorkspaceResource:
        """Give the resource for Dagster; ``options`` are those of FakeWorkspaceResource."""
        return FakeWorkspaceResource(config_file=str(self.config_file), **options)

    def open(self, **options: str) -> Workspace:
        """Open the workspace, until ``close``."""
        workspace = open_fake_workspace(load_settings(self.config_file), **options)
        self._opened.append(workspace)
        return workspace

    def close(self) -> None:
        """Close what was opened."""
        for workspace in self._opened:
            workspace.close()

"""A place to work in: settings, watched folders and a lake below one temporary folder, with fake extractors.

Put here: laying out files and opening them. Keep out: assertions, and Dagster's part, which ``dagster_driver`` plays.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from fakes import FakeWorkspaceResource, open_fake_workspace
from postgres_server import empty_database

from mm_assets.flows.workspace import Workspace
from mm_assets.settings import load_settings


@dataclass
class Place:
    """Settings in a folder of their own: ``source`` is watched, ``lake`` takes the results.

    Attributes
    ----------
    media : drawn media to copy from
    new_database : gives a ledger's URL until it is left; None leaves the ledger to the settings' default, SQLite
    """

    new_database: ClassVar[Callable[[], AbstractContextManager[str]] | None] = None

    folder: Path
    media: Path
    _opened: list[Workspace] = field(default_factory=list)
    _ledgers: dict[str, str] = field(default_factory=dict)
    _databases: ExitStack = field(default_factory=ExitStack)

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
        values: dict[str, Any] = {
            "sources": sources,
            "lake": {"uri": str(self.lake)},
            "state": str(self.folder / "state"),
        }
        values |= {"runs": {"decode_workers": 1}} | settings
        values |= self._ledger_of(values["state"]) if "ledger_url" not in settings else {}
        for alias in aliases:
            (self.folder / alias).mkdir(exist_ok=True)
        self.config_file.write_text(yaml.safe_dump(values), encoding="utf-8")

    def _ledger_of(self, state: str) -> dict[str, str]:
        """Name the database that belongs to a state folder, as SQLite's file would."""
        if Place.new_database is None:
            return {}
        if state not in self._ledgers:
            self._ledgers[state] = self._databases.enter_context(Place.new_database())
        return {"ledger_url": self._ledgers[state]}

    def lose_ledger(self) -> None:
        """Close what is open and delete the ledger, as an accident would; the next to open it finds an empty one."""
        self.close()
        settings = load_settings(self.config_file)
        if settings.ledger_url is None:
            for file in settings.state.glob("ledger.db*"):
                file.unlink()
        else:
            empty_database(settings.ledger_url)

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
        """Close what was opened; it can be opened again."""
        while self._opened:
            self._opened.pop().close()

    def drop_databases(self) -> None:
        """Close what was opened, and drop the databases that were made for it."""
        self.close()
        self._databases.close()
        self._ledgers.clear()

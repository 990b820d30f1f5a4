"""What every extractor is: a model card, parameters, a table in, a table out.

Put here: the base class and the card. Keep out: any model, and any I/O but loading weights by path.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mm_assets.errors import ConfigError, ObjectError, Reason
from mm_assets.extractors.offline import go_offline
from mm_assets.extractors.weights import verify_files
from mm_assets.identity import item_id
from mm_assets.schemas import TABLES, Table, check_schema

_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ModelCard:
    """The record of one model: what was loaded is what this says, or loading fails.

    Attributes
    ----------
    name, revision : of the weights, as their maker calls them
    library : the package that loads them, e.g. ``open_clip``
    files : path relative to ``folder`` → SHA-256 of the file; empty for programs without weights
    folder : where the files lie on this machine
    licence : SPDX id or the licence's name; ``is_commercial`` False where it forbids commercial use
    dim : length of the vectors, None where the model gives none
    input_side_px, window_s : what the model was made to see or hear; obeyed by its extractor
    memory_mb : resident memory of the loaded model, measured
    figures : held-out measurements by name
    measured_on : what ``figures`` were measured on
    extra : further settings of this model, e.g. thresholds or class names; a name that is also a parameter of the
        extractor is that parameter's default
    """

    name: str
    revision: str
    library: str
    licence: str
    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)
    is_commercial: bool = True
    source: str = ""
    dim: int | None = None
    input_side_px: int | None = None
    window_s: float | None = None
    memory_mb: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One text for all weights: goes into the recipe, so that other weights are another recipe."""
        return ",".join(f"{path}={sha256}" for path, sha256 in sorted(self.files.items())) or self.revision

    def path(self, name: str) -> Path:
        """Absolute path of one of the card's files."""
        return self.folder / name


@dataclass(frozen=True)
class Placement:
    """Where models run: ``device`` cpu or cuda, CPU ``threads`` (0 = all), segments per call."""

    device: str = "cpu"
    threads: int = 0
    batch_size: int = 32


class Extractor(ABC):
    """Segments in, rows of one step out.

    Subclasses set the class attributes and implement ``_load`` and ``_extract``. Heavy libraries are imported
    inside these two. No Dagster, no network, no writing.

    Attributes
    ----------
    step : the step and table this fills
    code_version : raised by hand whenever results change
    takes : kinds of segment it reads (scene, image, page, audio)
    columns : columns of ``segments`` it reads beside ids and place
    reads : steps whose results it reads; but for ``segments`` these may be missing, and are over before it begins
    model_of : the step whose model it uses where a pack has none of its own for it
    gpu : True where the work belongs on an accelerator
    packages : modules that must be installed
    defaults : parameters and their default values; all of them are part of the recipe
    """

    step: ClassVar[str]
    code_version: ClassVar[str]
    takes: ClassVar[frozenset[str]]
    columns: ClassVar[tuple[str, ...]]
    reads: ClassVar[tuple[str, ...]] = ("segments",)
    model_of: ClassVar[str] = ""
    gpu: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self, card: ModelCard, params: Mapping[str, Any] | None = None, place: Placement | None = None
    ) -> None:
        self.card = card
        of_model = {name: card.extra[name] for name in self.defaults if name in card.extra}
        self.params: dict[str, Any] = {**self.defaults, **of_model, **(params or {})}
        self.place = place or Placement()
        self._is_loaded = False

    @property
    def table(self) -> Table:
        """The table this fills."""
        return TABLES[self.step]

    @property
    def schema(self) -> pa.Schema:
        """Schema of ``extract``'s answer."""
        return self.table.arrow_schema(self.card.dim)

    def check(self) -> None:
        """Look, without loading anything, whether what this needs is installed; called before any work.

        Raises
        ------
        ConfigError
            A package or program is missing; the message says how to get it.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            msg = (
                f"{self.step} needs {', '.join(missing)}, not installed here; install it, or drop the step from `steps`"
            )
            raise ConfigError(msg)

    def load(self) -> None:
        """Import the library and load the weights; cheap when already loaded.

        Raises
        ------
        ConfigError
            A weight or program is missing or is not what the card says; the message names the command that helps.
        """
        if not self._is_loaded:
            go_offline(self.place.threads)
            verify_files(self.card.folder, self.card.files)
            self._load()
            self._is_loaded = True

    def gather(self, results: Mapping[str, pa.Table]) -> pa.Table:
        """Return what ``extract`` takes, of the results that this step ``reads``: segments, where it says nothing else.

        Parameters
        ----------
        results : step → rows, of some objects; a step that gave none is absent
        """
        return results["segments"]

    def extract(self, segments: pa.Table, recipe: str = "") -> pa.Table:
        """Return the rows of this step for these segments, or whatever else ``gather`` gives.

        Parameters
        ----------
        segments : rows of ``segments`` of the kinds in ``takes``, of any objects; may be empty; never written to
        recipe : written into each row

        Returns
        -------
        Rows in the order of the segments, zero or more for each, in exactly ``schema``.

        Raises
        ------
        ObjectError
            A segment cannot be read. Callers narrow the batch down to the object at fault.
        """
        if segments.num_rows == 0:
            return self.schema.empty_table()
        self.load()
        rows = self._with_recipe(self._extract(segments), recipe)
        check_schema(self.step, self.schema, rows.schema)
        if self.table.has_vector:
            _require_unit(rows["vector"])
        return rows

    def _with_recipe(self, rows: pa.Table, recipe: str) -> pa.Table:
        column = pa.repeat(pa.scalar(recipe, pa.string()), rows.num_rows)
        return rows.append_column("recipe", column).cast(self.schema)

    @abstractmethod
    def _load(self) -> None:
        """Import the library and load the weights, whose digests ``load`` has checked."""

    @abstractmethod
    def _extract(self, segments: pa.Table) -> pa.Table:
        """Rows without the ``recipe`` column, all other columns in the order of the schema."""

    def _rows(self, segments: pa.Table, owners: list[int], values: Mapping[str, Any]) -> pa.Table:
        """Rows of found things for ``_extract``: ids and place of their segments, and ``values``, as the schema has it."""
        fields = [field for field in self.schema if field.name != "recipe"]
        taken = rows_for(segments, owners, tuple(field.name for field in fields if field.name not in values))
        columns = [
            pa.array(values[field.name], field.type) if field.name in values else taken[field.name].cast(field.type)
            for field in fields
        ]
        return pa.table(columns, schema=pa.schema(fields))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the recipe of the extractor, never a loaded model."""
        return {"card": self.card, "params": self.params, "place": self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore unloaded."""
        self.__init__(state["card"], state["params"], state["place"])  # type: ignore[misc]


def _require_unit(column: pa.ChunkedArray) -> None:
    """Raise ObjectError for vectors that are not finite or not of length 1: one would spoil the index for all."""
    matrix = np.asarray(column.combine_chunks().flatten(), np.float32).reshape(-1, column.type.list_size)
    if not np.all(np.abs(np.linalg.norm(matrix, axis=1) - 1) <= _UNIT_TOLERANCE):
        raise ObjectError(Reason.MODEL_ERROR, "the model gave a vector that is not finite or not of length 1")


def rows_for(segments: pa.Table, owners: list[int], names: tuple[str, ...]) -> dict[str, pa.ChunkedArray]:
    """Repeat the columns ``names`` of ``segments`` once per found thing; ``owners`` holds each one's row."""
    taken = segments.select(list(names)).take(pa.array(owners, pa.int64()))
    return {name: taken.column(name) for name in names}


def item_ids(segments: pa.Table, owners: list[int]) -> list[str]:
    """Id of each found thing: its segment's id and its place among the things of that segment."""
    segment_ids = segments.column("segment_id").to_pylist()
    seen: Counter[int] = Counter()
    ids = []
    for owner in owners:
        ids.append(item_id(segment_ids[owner], seen[owner]))
        seen[owner] += 1
    return ids

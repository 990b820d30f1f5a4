"""The rows behind an index, in immutable memory-mapped parts, found by id.

Put here: the files of rows and looking rows up. Keep out: searching, and which parts there are.

A part is a shard of a published table as an Arrow IPC file, uncompressed so that it is mapped and not read, with the
64-bit id of each row in front, and that of its object. So an answer is put together without opening a table, and an
index that is built anew or grows by a few rows shares its parts with the one before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mm_assets.errors import SchemaError
from mm_assets.identity import vector_id
from mm_assets.vectors import Floats, Ids, as_unit_vectors, as_vector_ids, from_arrow, rows_of

Numbers = npt.NDArray[np.int32]

ID = "vector_id"
VECTOR = "vector"
OBJECT = "object_id"
OBJECT_NUMBER = "object_number"
_PART = "part of an index"  # the names in messages
_INDEX = "index"
_ROWS_PER_BLOCK = 65_536
_PLACES = {ID: pa.int64(), "part": pa.int32(), "row": pa.int32()}


@dataclass(frozen=True)
class Part:
    """A file of rows, opened when they are first asked for.

    Attributes
    ----------
    name : what determined its rows; two parts of one name are equal
    """

    name: str
    file: Path

    @cached_property
    def rows(self) -> pa.Table:
        """All columns; the first is ``vector_id``."""
        return read_part(self.file)

    @cached_property
    def ids(self) -> Ids:
        """(n,) ids, in the order of the rows."""
        ids: Ids = single(self.rows[ID]).to_numpy()
        return ids

    @cached_property
    def object_numbers(self) -> Ids:
        """(n,) a number for the object of each row, the same in all parts; two objects rarely share one."""
        if OBJECT_NUMBER not in self.rows.schema.names:  # written before parts had it
            return _numbers_of(self.rows[OBJECT])
        numbers: Ids = single(self.rows[OBJECT_NUMBER]).to_numpy()
        return numbers

    @cached_property
    def matrix(self) -> Floats:
        """(n, dim) unit vectors, read-only."""
        vectors = single(self.rows[VECTOR])
        values: Floats = vectors.flatten().to_numpy(zero_copy_only=True)
        return values.reshape(-1, vectors.type.list_size)

    @classmethod
    def in_memory(cls, name: str, rows: pa.Table, item_column: str) -> "Part":
        """Return rows as a part that no file holds; raises as ``write_part`` does."""
        part = cls(name, Path())
        part.__dict__["rows"] = _with_ids(rows, item_column)
        return part

    @cached_property
    def columns(self) -> dict[str, pa.Array]:
        """The columns of ``rows`` by name."""
        return {name: single(self.rows[name]) for name in self.rows.schema.names}

    @cached_property
    def readers(self) -> dict[str, Callable[[int], Any]]:
        """What returns one value of a column, by name."""
        return {name: _reader_of(column) for name, column in self.columns.items()}


class Row:
    """One row of a part; of its columns, only those that are asked for are read."""

    __slots__ = ("_number", "_part")

    def __init__(self, part: Part, number: int) -> None:
        self._part, self._number = part, number

    def __getitem__(self, column: str) -> Any:
        """Return a value; None where there is no such column."""
        read = self._part.readers.get(column)
        return read(self._number) if read is not None else None

    def elements(self, column: str) -> pa.Array:
        """Return the elements of a list, none of them read yet."""
        return self._part.columns[column][self._number].values


def _reader_of(column: pa.Array) -> Callable[[int], Any]:
    """Return what reads one value; numbers straight from Arrow's buffers, as its scalars take two to four times as long."""
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if column.offset or not len(column) or not is_number:
        return lambda row: column[row].as_py()
    validity, values = column.buffers()
    read = np.frombuffer(values, column.type.to_pandas_dtype()).item
    if not column.null_count:
        return read
    bits = memoryview(validity)
    return lambda row: read(row) if bits[row >> 3] >> (row & 7) & 1 else None


def write_part(file: Path, rows: pa.Table, item_column: str) -> None:
    """Write rows as a part; the same rows give the same bytes.

    Parameters
    ----------
    item_column : column whose ``identity.vector_id`` is the id of a row

    Raises
    ------
    SchemaError
        Ids that are not unique, or a column ``vector`` that does not hold unit vectors.
    """
    write_rows(file, _with_ids(rows, item_column))


def _with_ids(rows: pa.Table, item_column: str) -> pa.Table:
    """Put the id of each row in front; each column is one array."""
    ids = as_vector_ids(rows[item_column].to_pylist())
    if VECTOR in rows.schema.names:
        as_unit_vectors(from_arrow(rows[VECTOR]))
    if OBJECT in rows.schema.names:
        rows = rows.add_column(0, OBJECT_NUMBER, [_numbers_of(rows[OBJECT])])
    whole = rows.add_column(0, pa.field(ID, pa.int64()), pa.array(ids, pa.int64()))
    return whole.replace_schema_metadata().combine_chunks()


def _numbers_of(object_ids: pa.ChunkedArray) -> Ids:
    encoded = object_ids.combine_chunks().dictionary_encode()
    of_objects = np.array([vector_id(object_id) for object_id in encoded.dictionary.to_pylist()], np.int64)
    numbers: Ids = of_objects[encoded.indices.to_numpy()]
    return numbers


def write_rows(file: Path, rows: pa.Table) -> None:
    """Write a table as an Arrow IPC file of one batch, so that each column is one array when it is mapped."""
    rows = rows.replace_schema_metadata().combine_chunks()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=max(1, rows.num_rows))


def read_part(file: Path) -> pa.Table:
    """Map a part into memory; nothing is read before it is used, and no file stays open.

    Raises
    ------
    SchemaError
        It is not a part, or is damaged or gone.
    """
    rows = read_rows(file)
    if rows.schema.names[:1] != [ID]:
        raise SchemaError(_PART, f"{ID} first", ", ".join(rows.schema.names))
    return rows


def read_rows(source: Path | bytes) -> pa.Table:
    """Map an Arrow IPC file, or read its bytes; SchemaError where it is none."""
    try:
        with pa.memory_map(str(source)) if isinstance(source, Path) else pa.BufferReader(source) as file:
            return pa.ipc.open_file(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(_INDEX, "an Arrow file", str(error).partition("\n")[0]) from error


def single(column: pa.ChunkedArray) -> pa.Array:
    """Return the one chunk of a column, in place: joining chunks would copy them."""
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


class Rows:
    """All rows behind an index, by id.

    Attributes
    ----------
    ids : (n,) ids, ascending
    part_numbers, part_rows : (n,) int32, where the row of each id lies
    dim : length of the vectors, 0 where there are none
    """

    def __init__(self, parts: Sequence[Part], dim: int, ids: Ids, part_numbers: Numbers, part_rows: Numbers) -> None:
        self.parts = tuple(parts)
        self.dim = dim
        self.ids, self.part_numbers, self.part_rows = ids, part_numbers, part_rows

    @classmethod
    def of_parts(cls, parts: Sequence[Part], dim: int = 0) -> "Rows":
        """Look where each row lies, reading the ids of every part.

        Raises
        ------
        SchemaError
            An id is in two parts.
        """
        ids, numbers, rows = _all_places(parts)
        order = np.argsort(ids, kind="stable")
        if (np.diff(ids[order]) == 0).any():
            raise SchemaError(_INDEX, "each item in one part", "an item in two")
        return cls(parts, dim, ids[order], numbers[order], rows[order])

    @classmethod
    def open(cls, places: pa.Table, parts: Sequence[Part], dim: int = 0) -> "Rows":
        """Undo ``places``; reads nothing of the parts."""
        if places.schema.names[: len(_PLACES)] != list(_PLACES):
            raise SchemaError(_INDEX, ", ".join(_PLACES), ", ".join(places.schema.names))
        return cls(parts, dim, *(single(places[name]).to_numpy() for name in _PLACES))

    def extended(self, parts: Sequence[Part]) -> "Rows":
        """Return these rows and those of more parts whose ids are not here, one of each id."""
        ids, numbers, rows = _all_places(parts)
        unique, first = np.unique(ids, return_index=True)
        is_new = rows_of(unique, self.ids) < 0
        new, at = first[is_new], np.searchsorted(self.ids, unique[is_new])
        return Rows(
            (*self.parts, *parts),
            self.dim,
            np.insert(self.ids, at, ids[new]),
            np.insert(self.part_numbers, at, numbers[new] + np.int32(len(self.parts))),
            np.insert(self.part_rows, at, rows[new]),
        )

    def places(self) -> pa.Table:
        """Return where each row lies: vector_id (ascending), part, row."""
        return pa.table([self.ids, self.part_numbers, self.part_rows], schema=pa.schema(_PLACES))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.ids)

    def known(self, ids: Ids) -> Ids:
        """Return those of the ids that are here, ascending, once each."""
        wanted = np.unique(np.asarray(ids, np.int64))
        return wanted[rows_of(wanted, self.ids) >= 0]

    def values(self, ids: Ids, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Return columns of the rows of ids, all of which must be here, in their order; a column may be absent: None."""
        rows = self.at(ids)
        return {name: [row[name] for row in rows] for name in columns}

    def at(self, ids: Ids) -> list[Row]:
        """Return the rows of ids, all of which must be here, in their order."""
        numbers, rows = self._locate(ids)
        return [Row(self.parts[number], row) for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)]

    def object_numbers(self, ids: Ids) -> Ids:
        """Return for each id, all of which must be here, ``Part.object_numbers``."""
        found = np.empty(len(ids), np.int64)
        for number, at, rows in self._by_part(np.searchsorted(self.ids, ids)):
            found[at] = self.parts[number].object_numbers[rows]
        return found

    def ids_where(self, column: str, values: pa.Array) -> Ids:
        """Return the ids of the rows whose column has one of these values, ascending."""
        found = [np.empty(0, np.int64)]
        for part in self.parts:
            is_in = pc.is_in(single(part.rows[column]), values).to_numpy(zero_copy_only=False)
            found.append(part.ids[is_in])
        return np.sort(np.concatenate(found))

    def gather(self, ids: Ids) -> Floats:
        """Return (len(ids), dim) vectors in the order of these ids, all of which must be here."""
        found = np.empty((len(ids), self.dim), np.float32)
        for number, at, rows in self._by_part(np.searchsorted(self.ids, ids)):
            found[at] = self.parts[number].matrix[rows]
        return found

    def compare(self, query: Floats, places: Ids) -> Floats:
        """Return the (len(places),) cosines of a vector to those of ``ids[places]``."""
        order, vectors, n = [np.empty(0, np.int64)], np.empty((len(places), self.dim), np.float32), 0
        for number, at, rows in self._by_part(places):
            # "clip" as no row is outside: to look first, numpy would copy twice.
            self.parts[number].matrix.take(rows, axis=0, out=vectors[n : n + len(rows)], mode="clip")
            order.append(at)
            n += len(rows)
        found = np.empty(len(places), np.float32)
        found[np.concatenate(order)] = np.vecdot(vectors, query)  # not @, which would wake BLAS's threads
        return found

    def _by_part(self, places: Ids) -> Iterator[tuple[int, Ids, Numbers]]:
        """Yield the number of a part, which of the places lie in it, and their rows there, part by part."""
        numbers, rows = self.part_numbers[places], self.part_rows[places]
        order = np.argsort(numbers, kind="stable")
        rows, start = rows[order], 0
        for number, n in enumerate(np.bincount(numbers, minlength=1).tolist()):
            if n:
                yield number, order[start : start + n], rows[start : start + n]
                start += n

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Yield all vectors in the order of their ids, a bounded number at a time, and which these are."""
        for start in range(0, len(self.ids), _ROWS_PER_BLOCK):
            block = slice(start, start + _ROWS_PER_BLOCK)
            yield block, self.gather(self.ids[block])

    def _locate(self, ids: Ids) -> tuple[Numbers, Numbers]:
        places = np.searchsorted(self.ids, ids)
        return self.part_numbers[places], self.part_rows[places]


def _all_places(parts: Sequence[Part]) -> tuple[Ids, Numbers, Numbers]:
    """Return id, number of the part, and row, of all rows of parts."""
    ids = np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)])
    lengths = [len(part.ids) for part in parts]
    numbers = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
    rows = np.concatenate([np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])
    return ids, numbers, rows

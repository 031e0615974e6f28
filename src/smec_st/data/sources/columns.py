"""Read vectors from a column of parquet files or of a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.errors import DataError, one_line, some
from smec_st.data.sources.batch import Batch, choose_column, file_state, metadata_record
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    import pyarrow as pa

ID_NAMES = ("id", "_id", "ids", "doc_id", "custom_id")


@dataclass(frozen=True)
class ColumnVectors:
    """A column of lists of floats, and optionally one of ids.

    Attributes:
        name: Path, for error messages.
        column: Name of the vector column.
        id_column: Name of the id column, or None.
        width: Numbers per vector, ``D``.
        rows: Number of rows, ``N``.
        record: What the schema's metadata say about the model.
        state: See :class:`~smec_st.data.VectorSource`.
        read: Yields record batches for (column names, batch size, first row).
        parts: Path and number of rows of each file, in order.
    """

    name: str
    column: str
    id_column: str | None
    width: int
    rows: int
    record: Mapping[str, Any]
    state: str
    read: Callable[[list[str], int, int], Iterator[pa.RecordBatch]]
    parts: tuple[tuple[str, int], ...] = ()

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        columns = [self.column] if self.id_column is None else [self.column, self.id_column]
        for part in self.read(columns, size, start):
            rows = list_rows(part.column(self.column), self.width, f"{self.name}, column {self.column}", start)
            ids = None if self.id_column is None else [str(key) for key in part.column(self.id_column).to_pylist()]
            yield Batch(start, rows, ids)
            start += len(rows)


def open_parquet(path: Path, column: str | None = None) -> ColumnVectors:
    """Open a ``.parquet`` file, or all those of a folder, sorted by name."""
    arrow, pq = (load_optional(name, "reading parquet") for name in ("pyarrow", "pyarrow.parquet"))
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        files = [pq.ParquetFile(part, memory_map=True) for part in paths]
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not readable as parquet: {one_line(error)}") from error
    schema = files[0].schema_arrow
    for part, file in zip(paths, files, strict=True):
        if not file.schema_arrow.equals(schema):
            raise DataError(f"{part} has other columns than {paths[0]}.")
    rows = sum(file.metadata.num_rows for file in files)

    def read(columns: list[str], size: int, start: int) -> Iterator[pa.RecordBatch]:
        for file in files:
            groups: list[int] = []
            for group in range(file.metadata.num_row_groups):
                if groups or file.metadata.row_group(group).num_rows > start:
                    groups.append(group)
                else:
                    start -= file.metadata.row_group(group).num_rows
            for batch in file.iter_batches(size, row_groups=groups, columns=columns) if groups else ():
                if start >= len(batch):
                    start -= len(batch)
                    continue
                yield batch.slice(start)
                start = 0

    found = _columns(str(path), schema, column, rows, file_state(*paths), read)
    parts = zip(map(str, paths), (file.metadata.num_rows for file in files), strict=True)
    return replace(found, parts=tuple(parts))


def open_dataset(path: Path, column: str | None = None) -> ColumnVectors:
    """Open a folder that ``Dataset.save_to_disk`` wrote; if it has splits, ``column`` is ``SPLIT/COLUMN``."""
    datasets = load_optional("datasets", "reading a dataset")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable dataset: {one_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        split, _, column = (column or "").rpartition("/") if "/" in (column or "") else (column or "", "", None)
        if split not in found and len(found) == 1:
            split, column = next(iter(found)), column or split or None
        if split not in found:
            raise DataError(f"{path} has the splits {some(sorted(found))}; name one as SPLIT or SPLIT/COLUMN.")
        found = found[split]
    return of_dataset(found, column, str(path), file_state(*sorted(path.rglob("*.arrow"))))


def of_dataset(dataset: Any, column: str | None = None, name: str = "the dataset", state: str = "") -> ColumnVectors:
    """Open a ``datasets.Dataset``."""
    schema = dataset.features.arrow_schema

    def read(columns: list[str], size: int, start: int) -> Iterator[pa.RecordBatch]:
        if start >= len(dataset):
            return
        rest = dataset.select(range(start, len(dataset))).select_columns(columns).with_format("arrow")
        for table in rest.iter(batch_size=size):
            yield from table.combine_chunks().to_batches()

    return _columns(name, schema, column, len(dataset), state, read)


def _columns(
    name: str,
    schema: pa.Schema,
    column: str | None,
    rows: int,
    state: str,
    read: Callable[[list[str], int, int], Iterator[pa.RecordBatch]],
) -> ColumnVectors:
    column = _vector_column(name, schema, column or None)
    if rows == 0:
        raise DataError(f"{name} has no rows.")
    id_column = next((key for key in ID_NAMES if key in schema.names and key != column), None)
    first = next(read([column], 1, 0)).column(column)
    width = len(first[0].as_py() or ())
    if width == 0:
        raise DataError(f"{name}, column {column}: row 0 holds no vector.")
    return ColumnVectors(name, column, id_column, width, rows, metadata_record(schema.metadata), state, read)


def _vector_column(name: str, schema: pa.Schema, column: str | None) -> str:
    import pyarrow.types as kinds

    def holds_vectors(kind: pa.DataType) -> bool:
        is_list = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        return bool(is_list and kinds.is_floating(kind.value_type))

    found = [str(field.name) for field in schema if holds_vectors(field.type)]
    return choose_column(found, column, name, "columns of vectors (lists of floats)", "column")


def list_rows(column: pa.Array, width: int, what: str, start: int) -> np.ndarray:
    """Return a column of lists as an array ``(n, D)`` without copying it.

    Raises:
        DataError: If a row is missing, incomplete, or of another width.
    """
    import pyarrow.types as kinds

    if column.null_count:
        first = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]
        raise DataError(f"{what}: row {start + first} holds no vector.")
    if not kinds.is_fixed_size_list(column.type):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            raise DataError(f"{what}: row {start + wrong[0]} is {lengths[wrong[0]]} wide, the first is {width}.")
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{what}: a vector near row {start} lacks a number.")
    rows: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(len(column), width)
    return rows

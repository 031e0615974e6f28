"""Read vectors from a column of parquet files or of a Hugging Face dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.codes import decode, decoded_width, parse_vector
from smec_st.data.ids import find_id, id_text
from smec_st.data.sources.answers import VECTOR_NAMES
from smec_st.data.sources.batch import Batch, choose_column, file_state, metadata_record
from smec_st.system.errors import DataError, one_line, some
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SAMPLE = 1000  # rows among which the first one that can be read tells the width
SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?")  # how Hugging Face names the parts of a split
#: What differs between the names of the parts of one table: numbers and hashes, such as those of Spark.
COUNTER = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<![^\W_])[0-9a-f]{8,}(?![^\W_])|\d+", re.IGNORECASE
)


@dataclass(frozen=True)
class ColumnVectors:
    """A :class:`~smec_st.data.VectorSource`: a column of vectors, and optionally one of ids.

    Attributes:
        column: Name of the vector column.
        id_column: Name of the id column, or None.
        record: What the schema's metadata say about the model.
        codes: What the stored numbers are; see :mod:`smec_st.data.codes`.
        read: Yields record batches for (column names, batch size, first row).
        parts: Path and number of rows of each file, in order.
        others: Names of all other columns, which are not read.
    """

    name: str
    column: str
    id_column: str | None
    width: int
    rows: int
    record: Mapping[str, Any]
    state: str
    codes: str | None
    read: Callable[[list[str], int, int], Iterator[pa.RecordBatch]]
    parts: tuple[tuple[str, int], ...] = ()
    others: tuple[str, ...] = ()

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        columns = [self.column] if self.id_column is None else [self.column, self.id_column]
        for part in self.read(columns, size, start):
            what = f"{self.name}, column {self.column}, a row from {start} on"
            rows, faults = column_rows(part.column(self.column), self.codes, what, self.width)
            ids = None
            if self.id_column is not None:
                ids, nameless = self._ids(part)
                faults |= nameless
            if faults:
                rows = np.array(rows)
                rows[list(faults)] = np.nan
            yield Batch(start, rows, ids, faults)
            start += len(rows)

    def _ids(self, part: pa.RecordBatch) -> tuple[list[str], dict[int, str]]:
        ids, faults = [], {}
        for at, key in enumerate(part.column(self.id_column).to_pylist()):
            try:
                ids.append(id_text(key, str(self.id_column)))
            except DataError as error:
                ids.append("")
                faults[at] = f"cannot be read ({str(error).rstrip('.')})"
        return ids, faults


def open_parquet(path: Path, column: str | None = None, codes: str | None = None) -> ColumnVectors:
    """Open a ``.parquet`` file, or those of a folder and its subfolders in natural order (part 2 before part 10).

    Parts may differ in the order and type of columns, as Spark, dask and Hugging Face write them. Their names are the
    same apart from numbers and hashes. A folder of several splits needs ``column`` as ``SPLIT`` or ``SPLIT/COLUMN``.
    """
    pq = load_optional("pyarrow.parquet", "reading parquet")
    paths = [path]
    if path.is_dir():
        paths, column = _parts(path, column)
    with parquet_errors(path):
        opened = [pq.ParquetFile(part, memory_map=True) for part in paths]
    files = [file for file in opened if file.metadata.num_rows] or opened[:1]
    rows = sum(file.metadata.num_rows for file in files)

    def read(columns: list[str], size: int, start: int) -> Iterator[pa.RecordBatch]:
        for file in files:
            lacking = set(columns) - set(file.schema_arrow.names)
            if lacking:
                raise DataError(f"a part of {path} lacks the column {some(sorted(lacking))}; the first has it.")
            groups: list[int] = []
            for group in range(file.metadata.num_row_groups):
                if groups or file.metadata.row_group(group).num_rows > start:
                    groups.append(group)
                else:
                    start -= file.metadata.row_group(group).num_rows
            with parquet_errors(path):
                for batch in file.iter_batches(size, row_groups=groups, columns=columns) if groups else ():
                    if start >= len(batch):
                        start -= len(batch)
                        continue
                    yield batch.slice(start)
                    start = 0

    found = _columns(str(path), files[0].schema_arrow, column, codes, rows, file_state(*paths), read)
    parts = tuple(zip(map(str, paths), (file.metadata.num_rows for file in opened), strict=True))
    names = [name for file in files for name in file.schema_arrow.names]
    names += [part.partition("=")[0] for part in paths[0].relative_to(path).parts[:-1] if "=" in part]  # of hive
    others = tuple(name for name in dict.fromkeys(names) if name not in (found.column, found.id_column))
    return replace(found, parts=parts, others=others)


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Raise what pyarrow reports about a file as a :class:`DataError`."""
    arrow = load_optional("pyarrow", "reading parquet")
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not readable as parquet: {one_line(error)}") from error


def parquet_parts(folder: Path) -> list[Path]:
    """Return the parquet files of a folder and its subfolders in natural order, without hidden ones (`_` or `.`)."""
    found = []
    for path in folder.rglob("*.parquet"):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(("_", ".")) for part in parts):
            found.append((_natural(parts), path))
    return [path for _, path in sorted(found)]


def _natural(parts: Sequence[str]) -> list[list[tuple[int, str]]]:
    return [[(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", part)] for part in parts]


def _parts(folder: Path, column: str | None) -> tuple[list[Path], str | None]:
    """Return the files of a folder, or of the split that ``column`` names, and the rest of ``column``."""
    if (folder / "_delta_log").is_dir():
        raise DataError(f"{folder} is a Delta table, whose files may hold deleted rows; write it as plain parquet.")
    splits: dict[str, list[tuple[Path, re.Match[str] | None]]] = {}
    for path in parquet_parts(folder):
        match = SHARD.fullmatch(path.stem)
        parents = [part for part in path.relative_to(folder).parts[:-1] if "=" not in part]  # = is of a hive folder
        splits.setdefault("/".join([*parents, *([match[1]] if match else [])]), []).append((path, match))
    if not splits:
        raise DataError(f"{folder} holds no parquet files.")
    named = [key for key in splits if key and f"{column}/".startswith((f"{key}/", f"{key.rpartition('/')[2]}/"))]
    if len(splits) > 1 and len(named) != 1:
        keys = [key or "(files outside of subfolders)" for key in sorted(splits)]
        raise DataError(f"{folder} has the splits {some(keys, 6)}; name one as SPLIT or SPLIT/COLUMN.")
    split = named[0] if len(named) == 1 else next(iter(splits))
    if named and column is not None:
        used = split if f"{column}/".startswith(f"{split}/") else split.rpartition("/")[2]
        column = column[len(used) + 1 :] or None
    found = splits[split]
    numbers = [(int(match[2]), int(match[3])) for _, match in found if match is not None]
    count = numbers[0][1] if numbers else 0
    if numbers and (len(numbers) < len(found) or sorted(numbers) != [(number, count) for number in range(count)]):
        lost = sorted(set(range(count)) - {number for number, _ in numbers})
        seen = f"lacks part {some(lost)} of {count}" if lost else "holds parts of several sets"
        raise DataError(f"{folder}, {split or 'its files'}: {seen}.")
    tables = {COUNTER.sub("0", path.name): path.name for path, _ in reversed(found)}
    if len(tables) > 1:
        raise DataError(
            f"{folder} holds several tables: {some(sorted(tables.values()), 6)}; name one of these files, "
            "or give each table its own folder (the parts of one differ only in numbers or hashes)."
        )
    return [path for path, _ in found], column


def open_dataset(path: Path, column: str | None = None, codes: str | None = None) -> ColumnVectors:
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
    return of_dataset(found, column, str(path), file_state(*sorted(path.rglob("*.arrow"))), codes)


def of_dataset(
    dataset: Dataset, column: str | None = None, name: str = "the dataset", state: str = "", codes: str | None = None
) -> ColumnVectors:
    """Open a ``datasets.Dataset``."""
    schema = dataset.features.arrow_schema

    def read(columns: list[str], size: int, start: int) -> Iterator[pa.RecordBatch]:
        if start >= len(dataset):
            return
        rest = dataset.select(range(start, len(dataset))).select_columns(columns).with_format("arrow")
        for table in rest.iter(batch_size=size):
            yield from table.combine_chunks().to_batches()

    return _columns(name, schema, column, codes, len(dataset), state, read)


def _columns(
    name: str,
    schema: pa.Schema,
    column: str | None,
    codes: str | None,
    rows: int,
    state: str,
    read: Callable[[list[str], int, int], Iterator[pa.RecordBatch]],
) -> ColumnVectors:
    column = _vector_column(name, schema, column or None, codes)
    if rows == 0:
        raise DataError(f"{name} has no rows.")
    id_column = find_id(key for key in schema.names if key != column) or _pandas_index(schema)
    for looked in (1, SAMPLE):  # the first rows may lack a vector
        part = next(read([column], looked, 0)).column(column)
        first, faults = column_rows(part, codes, f"{name}, column {column}, one of the first rows")
        if len(faults) < len(part):
            break
    else:
        raise DataError(f"{name}, column {column}: row 0 {faults[0]}, and none of the first {len(part)} is better.")
    width = int(first.shape[1])
    others = tuple(key for key in schema.names if key not in (column, id_column))
    record = metadata_record(schema.metadata)
    return ColumnVectors(name, column, id_column, width, rows, record, state, codes, read, others=others)


def _pandas_index(schema: pa.Schema) -> str | None:
    """Return the column that was the index of a pandas table, or None; row numbers are none."""
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    names = [name for name in index if isinstance(name, str) and name in schema.names]
    return names[0] if len(names) == len(index) == 1 else None


def _vector_column(name: str, schema: pa.Schema, column: str | None, codes: str | None) -> str:
    import pyarrow.types as kinds

    def holds_vectors(field: pa.Field) -> bool:
        kind, inner = _storage(field.type), _inner(field.type)
        if inner is not None and _inner(inner) is not None:
            inner = _inner(inner)
        if inner is not None:
            is_named = field.name == column or field.name.lower() in VECTOR_NAMES
            return bool(kinds.is_floating(inner) or (kinds.is_integer(inner) and (codes is not None or is_named)))
        is_text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_binary(kind)
        is_bytes = kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind)
        return (is_text or is_bytes) and (field.name == column or field.name.lower() in VECTOR_NAMES)

    found = [str(field.name) for field in schema if holds_vectors(field)]
    kind = "columns of vectors (lists of floats)"
    if column is None and not found:
        whole = [str(field.name) for field in schema if (inner := _inner(field.type)) and kinds.is_integer(inner)]
        kind += f", but whole numbers in {some(whole)}; say with `codes` (--codes) what they are" if whole else ""
    return choose_column(found, column, name, kind, "column")


def _storage(kind: pa.DataType) -> pa.DataType:
    return getattr(kind, "storage_type", kind)  # of an extension type, such as Array2D or a tensor


def _inner(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the values of a list type, or None."""
    import pyarrow.types as kinds

    kind = _storage(kind)
    is_list = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
    return kind.value_type if is_list else None


def column_rows(
    column: pa.Array, codes: str | None, what: str, width: int | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Return a column of vectors as an array, without a copy where all rows are lists of floats.

    The width is by default that of the first row that can be read. Messages call a row ``what``.

    Returns:
        The rows ``(n, D)``, and why rows could not be read, by their number; those are NaN.

    Raises:
        DataError: If the column holds something else than vectors.
    """
    column = getattr(column, "storage", column)
    inner = _inner(column.type)
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    faults = dict.fromkeys(np.flatnonzero(nulls).tolist(), "holds no vector")
    if faults:
        return _others(column, faults, codes, what, width)
    if inner is None:  # texts or bytes
        return _parsed_rows(column.to_pylist(), codes, what, width)
    if _inner(inner) is not None:  # a matrix per row, as Array2D; one of a single row is a vector
        if any(len(value) != 1 for value in column):
            raise DataError(f"{what}: it holds several vectors; pool them into one.")
        return column_rows(column.flatten(), codes, what, width)
    values = column.flatten()
    size = getattr(column.type, "list_size", None)  # of a fixed-size list
    lengths = column.value_lengths().to_numpy(zero_copy_only=False) if size is None else np.full(len(column), size)
    lacks = np.zeros(len(column), dtype=bool)
    if values.null_count:
        lacks[np.repeat(np.arange(len(column)), lengths)[values.is_null().to_numpy(zero_copy_only=False)]] = True
    readable = lengths[(lengths > 0) & ~lacks]
    stored = int(readable[0]) if len(readable) else 0
    if width is not None:
        stored = width // decoded_width(1, codes)
    for at in np.flatnonzero(lacks | (lengths != stored) | (lengths == 0)).tolist():
        seen = "lacks a number" if lacks[at] else f"is {lengths[at]} wide, the first is {stored}"
        faults[at] = seen if lengths[at] else "holds no vector"
    if faults:
        return _others(column, faults, codes, what, width)
    rows: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return decode(rows, codes, what), {}


def _others(
    column: pa.Array, faults: dict[int, str], codes: str | None, what: str, width: int | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Read the rows of a column that have no fault yet, and put NaN in place of the others."""
    places = np.array([at for at in range(len(column)) if at not in faults], dtype=np.int64)
    if not len(places):
        return np.full((len(column), width or 0), np.nan, dtype=np.float32), faults
    found, more = column_rows(column.take(places), codes, what, width)
    rows = np.full((len(column), found.shape[1]), np.nan, dtype=found.dtype)
    rows[places] = found
    return rows, dict(sorted((faults | {int(places[at]): why for at, why in more.items()}).items()))


def _parsed_rows(
    values: list[Any], codes: str | None, what: str, width: int | None
) -> tuple[np.ndarray, dict[int, str]]:
    parsed: dict[int, np.ndarray] = {}
    faults = {}
    for at, value in enumerate(values):
        try:
            row = parse_vector(value, codes, what)
        except DataError as error:
            faults[at] = f"cannot be read ({str(error).removeprefix(f'{what}: ').rstrip('.')})"
            continue
        width = width or len(row)
        if len(row) != width:
            faults[at] = f"is {len(row)} wide, the first is {width}"
        else:
            parsed[at] = row
    rows = np.full((len(values), width or 0), np.nan, dtype=np.float32)
    for at, row in parsed.items():
        rows[at] = row
    return rows, faults

"""Read ids and fields of documents from a table beside their vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import Any

from smec_st.data.ids import find_id, id_text, join_by_id
from smec_st.data.jsonl import plain_suffix, read_json_file, read_jsonl
from smec_st.data.sources.cells import csv_rows
from smec_st.data.sources.columns import parquet_errors
from smec_st.system.errors import DataError, some, storable, tell

WHOLE = re.compile(r"0|-?[1-9][0-9]*")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
LONGEST_WHOLE = 20  # characters of the longest whole number of 64 bits
TEXTS = (".csv", ".tsv")  # where every cell is a text
TRUTH = {"true": True, "True": True, "false": False, "False": False}

Columns = dict[str, list[Any]]


def read_rows(
    path: Path | None, names: Sequence[str], count: int, vector_ids: Sequence[str] | None = None
) -> tuple[list[Any] | None, Columns]:
    """Return the ids of documents and their named fields, in the order of the vectors.

    Rows are joined to vectors by id if both have ids, else by position. Ids are whole numbers if all of them are
    written as such (00042 is not) and fit in 63 bits, else texts, exactly as they stand in the file.

    Args:
        path: ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet``; None if there are only the ids of the vectors.
        names: Columns to return.
        count: Number of vectors.
        vector_ids: Ids that came with the vectors, or None.

    Returns:
        The ids, or None if neither side has any; and the values of each field.

    Raises:
        DataError: If the file is broken, has another number of rows, or lacks a column or the id of a vector.
    """
    if path is None:
        if names:
            raise DataError("--field names columns of --rows, which is missing.")
        return None if vector_ids is None else plain_ids(vector_ids), {}
    table = _read_table(path)
    missing = [name for name in names if name not in table]
    if missing:
        raise DataError(f"{path} has no column {some(missing)}; it has {some(list(table), 9)}.")
    key = find_id(table)
    is_text = plain_suffix(path) in TEXTS
    fields = {name: _typed(table[name]) if is_text else _storable(table[name]) for name in names}
    for name, column in fields.items():
        for row, value in enumerate(column):
            if isinstance(value, str):
                storable(value, f"{path}, row {row}, {name}")
    rows = len(next(iter(table.values()), []))
    own = None if key is None else [id_text(value, f"{path}, row {row}") for row, value in enumerate(table[key])]
    if own is not None and vector_ids is not None:
        order = join_by_id(vector_ids, own, f"the rows of {path}").tolist()
        return plain_ids(vector_ids), {name: [column[row] for row in order] for name, column in fields.items()}
    if rows != count:
        raise DataError(f"{path} has {rows} rows for {count} vectors.")
    if key is None or own is None:
        tell(f"{path} has no column of ids among {some(list(table), 6)}; its rows are in the order of the vectors.")
        return None if vector_ids is None else plain_ids(vector_ids), fields
    are_whole = is_text or all(type(value) is int for value in table[key])
    return plain_ids(own) if are_whole else own, fields


def plain_ids(ids: Sequence[str]) -> list[Any]:
    """Return ids as whole numbers if all are written as such and an index can hold them, else as texts."""
    are_whole = all(_is_whole(key) and int(key) >= 0 for key in ids)
    return [int(key) for key in ids] if are_whole else list(ids)


def _read_table(path: Path) -> Columns:
    suffix = plain_suffix(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if suffix in TEXTS:
        return _read_csv(path)
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        with parquet_errors(path):
            columns: Columns = pq.read_table(path).to_pydict()
        return columns
    if suffix == ".jsonl":
        records = list(read_jsonl(path))
    elif suffix == ".json":
        records = read_json_file(path)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{path} must hold a list of objects.")
    else:
        raise DataError(f"{path}: rows are read from .csv, .tsv, .jsonl, .json, .parquet files.")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _read_csv(path: Path) -> Columns:
    header, *rows = [cells for _, cells in csv_rows(path)] or [[]]
    if len(set(header)) != len(header):
        raise DataError(f"{path} names a column twice: {some(header, 9)}.")
    for number, cells in enumerate(rows, start=1):
        if len(cells) != len(header):
            raise DataError(f"{path}, row {number}: {len(cells)} cells for {len(header)} columns.")
    return {name: [cells[at] for cells in rows] for at, name in enumerate(header)}


def _typed(cells: list[str]) -> list[Any]:
    """Return cells as numbers or truth values if nothing is lost by it (00042 and dates stay texts); empty is None."""
    given = [cell for cell in cells if cell]
    if not given:
        return cells
    if all(map(WHOLE.fullmatch, given)):
        return [int(cell) if cell else None for cell in cells] if all(map(_is_whole, given)) else cells
    if all(map(_is_float, given)):
        return [float(cell) if cell else None for cell in cells]
    return [TRUTH.get(cell) for cell in cells] if all(cell in TRUTH for cell in given) else cells


def _storable(column: list[Any]) -> list[Any]:
    """Return a column as it is, or its whole numbers as texts if one has more than 64 bits, as in :func:`_typed`."""
    are_whole = all(type(value) is int for value in column if value is not None)
    if not are_whole or all(value is None or _is_whole(str(value)) for value in column):
        return column
    return [None if value is None else str(value) for value in column]


def _is_whole(text: str) -> bool:
    """Return whether a text is a whole number of 64 bits, written in the one usual way."""
    return len(text) <= LONGEST_WHOLE and bool(WHOLE.fullmatch(text)) and -(1 << 63) <= int(text) < 1 << 63


def _is_float(text: str) -> bool:
    """Return whether a text is a number, and the nearest float64 written with as many digits is the same number."""
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        return False
    try:
        number = Decimal(text)
        return Decimal(float(text)).quantize(number, ROUND_HALF_EVEN, Context(prec=len(text) + 1)) == number
    except ArithmeticError:  # an exponent that no number has
        return False

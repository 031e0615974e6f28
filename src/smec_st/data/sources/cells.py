"""Read vectors from CSV and TSV files: a number per cell, or a whole vector as text in one cell.

Recognised are:

- numbers alone, without a header;
- a header whose numbered columns (``0, 1, 2``, ``x0, x1``, ``dim_1, dim_2``) are the vector, in the order of their
  numbers; a column of ids (:data:`~smec_st.data.ids.ID_NAMES`, or pandas' index without a name) gives the ids, and
  others are left out;
- one column of vectors as text, such as ``[0.1, 0.2]`` of pgvector or pandas. Without a header and with two columns,
  as pgvector's ``COPY`` writes them, the other column is the id.

A file that looks otherwise is refused: an id or a label among numbers looks like a dimension.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smec_st.data.ids import find_id, id_text, plain_name
from smec_st.data.jsonl import open_text, plain_suffix
from smec_st.data.sources.answers import VECTOR_NAMES, Item
from smec_st.data.sources.batch import choose_column
from smec_st.system.errors import DataError, some, tell

SAMPLE = 1000  # rows that are looked at before the first is given
NUMBERED = re.compile(r"(.*?)[-_. ]*(\d+)")
LONGEST_CELL = 1 << 30


class Cells(list[str]):
    """The numbers of one vector as texts, each from a cell of its own."""


@dataclass(frozen=True)
class Layout:
    """Where a file holds its vectors.

    Attributes:
        has_header: Whether the first row names the columns.
        columns: Positions of the numbers, or of the one cell that holds a vector as text; None if all are numbers.
        is_text: Whether that one cell holds a whole vector.
        id: Position of the id, or None.
    """

    has_header: bool
    columns: list[int] | None
    is_text: bool = False
    id: int | None = None


def csv_items(path: Path, column: str | None, codes: str | None) -> Iterator[Item]:
    """Yield the vectors of a CSV or TSV file.

    ``column`` is the name of the column that holds vectors as text, or what comes before the number in numbered ones.
    """
    rows = csv_rows(path)
    sample = list(itertools.islice(rows, SAMPLE))
    if not sample:
        return
    layout = _layout([cells for _, cells in sample], column, codes, str(path))
    width = len(sample[0][1])
    for number, cells in itertools.chain(sample[layout.has_header :], rows):
        where = f"{path}, line {number}"
        if layout.columns is None:
            yield Item(Cells(cells), None, None, where)
            continue
        try:
            if len(cells) != width:
                raise DataError(f"{where}: {len(cells)} cells, the first line has {width}.")
            key = None if layout.id is None else id_text(cells[layout.id], where)
        except DataError as error:
            yield Item(None, None, None, where, fault=str(error))
            continue
        vector = cells[layout.columns[0]] if layout.is_text else Cells([cells[at] for at in layout.columns])
        yield Item(vector, key, None, where)


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of the rows of a CSV or TSV file that are not blank.

    Tabs separate the cells of ``.tsv``. In other files the first line tells: the only one of comma, semicolon, tab and
    bar that it has, else the comma.
    """
    csv.field_size_limit(LONGEST_CELL)
    with open_text(path) as file:
        first = next(file, "")
        found = ["\t"] if plain_suffix(path) == ".tsv" else [mark for mark in ",;\t|" if mark in first]
        delimiter = found[0] if len(found) == 1 else ","
        reader = csv.reader(itertools.chain([first], file), delimiter=delimiter, strict=True)
        yield from ((reader.line_num, cells) for cells in reader if cells)


def _layout(sample: list[list[str]], column: str | None, codes: str | None, name: str) -> Layout:
    first = sample[0]
    texts = [at for at, cell in enumerate(first) if _is_vector(cell)]
    if len(texts) == 1:
        if len(first) > 2:
            tell(f"{name} has no header, so its {len(first) - 1} columns beside the vectors are left out, ids too.")
        return Layout(False, texts, True, 1 - texts[0] if len(first) == 2 else None)
    numbers = [cell.strip() for cell in first if _is_number(cell)]
    if _is_numbered(numbers) or (not numbers and not texts):
        return _layout_of_header(sample, column, codes, name)
    lacking = _gaps(numbers)
    if lacking and codes is None:
        raise DataError(
            f"{name}: the header numbers columns from {numbers[0]} to {numbers[-1]}, but {some(lacking, 4)} is not "
            "there. Number the columns anew, without gaps."
        )
    if len(numbers) < len(first):
        raise DataError(
            f"{name}: the first line is neither a header nor numbers: {some(first, 4)}. "
            "Add a header, such as id,0,1,2, that tells ids from numbers."
        )
    if column is not None:
        raise DataError(f"{name} has no header, so no column is {column}.")
    _refuse_labels(sample, list(range(len(first))), codes, name)
    return Layout(False, None)


def _refuse_labels(rows: list[list[str]], columns: list[int], codes: str | None, name: str) -> None:
    """Refuse columns of whole numbers among floats, where no name tells ids and labels from dimensions."""
    cells = {at: [row[at] if at < len(row) else "" for row in rows] for at in columns}
    wholes = [at for at in columns if all(cell.strip().lstrip("+-").isdecimal() for cell in cells[at])]
    wholes = wholes or [at for at in columns if _are_whole_floats(cells[at])]
    if codes is None and 0 < len(wholes) < len(columns):
        raise DataError(
            f"{name}: column {some([at + 1 for at in wholes])} of {len(rows[0])} holds whole numbers only, the others "
            "do not: an id or a label? Name it in a header, as in id,0,1,2; or say `codes` float32 if all are the "
            "vector."
        )


def _layout_of_header(sample: list[list[str]], column: str | None, codes: str | None, name: str) -> Layout:
    names = [cell.strip() for cell in sample[0]]
    names[0] = names[0].lstrip("# ") or "Unnamed: 0"  # numpy comments its header out; pandas' index has no name
    if len(sample) == 1:
        raise DataError(f"{name} has no rows below its header ({some(names, 4)}).")
    second = [
        next((row[at] for row in sample[1:] if at < len(row) and row[at].strip()), "") for at in range(len(names))
    ]
    found: dict[str, list[int]] = {}
    for at, given in enumerate(names):
        is_likely = plain_name(given) in VECTOR_NAMES and not _is_number(second[at])
        if given == column or is_likely or _is_vector(second[at]):
            found[given] = [at]
    texts = set(found)
    numbered: dict[str, list[tuple[int, int]]] = {}
    for at, given in enumerate(names):
        match = NUMBERED.fullmatch(given)
        if match and given not in texts and find_id([given]) is None:
            numbered.setdefault(match[1], []).append((int(match[2]), at))
    for prefix, places in numbered.items():
        if len(places) > 1 and _is_numbered([str(number) for number, _ in places]):
            found[prefix or "0"] = [at for _, at in sorted(places)]
    kinds = f"columns of vectors (numbered from 0 or 1, or text in brackets) among {some(names, 4)}"
    chosen = choose_column(list(found), column, name, kinds, "column")
    if chosen == "0":  # pandas numbers all columns of an array, a label too
        _refuse_labels(sample[1:], found[chosen], codes, name)
    rest = [given for at, given in enumerate(names) if at not in found[chosen]]
    key = find_id(rest)
    left = [given for given in rest if given != key]
    if left:
        tell(
            f"{name}: the columns {some(left, 6)} are left out; the vectors are {len(found[chosen])} of {len(names)}."
        )
    return Layout(True, found[chosen], chosen in texts, None if key is None else names.index(key))


def _is_numbered(numbers: list[str]) -> bool:
    """Return whether names are the numbers from 0 or from 1 on, each once, in any order."""
    if not all(name.isdecimal() for name in numbers):
        return False
    found = sorted(map(int, numbers))
    return len(found) > 1 and found in (list(range(len(found))), list(range(1, len(found) + 1)))


def _gaps(numbers: list[str]) -> list[int]:
    """Return the numbers that ascending ones from 0 or 1 leave out; none if most are left out, or they are no such."""
    found = [int(number) for number in numbers if number.isdecimal()]
    if len(found) < max(2, len(numbers)) or found[0] > 1 or found != sorted(set(found)):
        return []
    lacking = sorted(set(range(found[-1])) - set(found) - {0})
    return lacking if len(lacking) < len(found) else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _are_whole_floats(cells: list[str]) -> bool:
    """Return whether all cells hold whole numbers as floats, such as `7.0e+00`, and not all the same."""
    numbers = [float(cell) if _is_number(cell) else math.nan for cell in cells]
    return all(number.is_integer() for number in numbers) and len(set(numbers)) > 1


def _is_vector(text: str) -> bool:
    stripped = text.strip()
    return (stripped[:1], stripped[-1:]) in (("[", "]"), ("{", "}"))

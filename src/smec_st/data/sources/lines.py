"""Read vectors from text files: JSON lines, JSON (also the saved answers of APIs), CSV and TSV; each also gzipped."""

from __future__ import annotations

import csv
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.codes import parse_cells, parse_vector
from smec_st.data.jsonl import open_binary, parse_json
from smec_st.data.sources.answers import Item, find_vectors
from smec_st.data.sources.batch import Batch, file_state, sidecar_record
from smec_st.data.sources.cells import Cells, csv_items
from smec_st.system.errors import DataError, one_line

Items = Callable[[], Iterator[Item]]


@dataclass(frozen=True)
class TextVectors:
    """The vectors of a text file, which is parsed as it is read.

    Attributes:
        name: Path, for error messages.
        items: Starts reading the file from the beginning.
        codes: What the numbers are; see :mod:`smec_st.data.codes`.
        width: Numbers in the first vector, ``D``.
        record: The model that the first line names, and the record in ``NAME.json`` next to the file.
        state: See :class:`~smec_st.data.VectorSource`.
        has_ids: Whether the first line has an id.
    """

    name: str
    items: Items
    codes: str | None
    width: int
    record: Mapping[str, Any]
    state: str
    has_ids: bool

    @property
    def rows(self) -> None:
        """None, because only reading the whole file would tell."""
        return None

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """See :class:`~smec_st.data.VectorSource`."""
        items = itertools.islice(readable(self.name, self.items), start, None)
        while part := list(itertools.islice(items, size)):
            rows = np.empty((len(part), self.width), dtype=np.float32)
            for i, item in enumerate(part):
                rows[i] = self._row(item)
            ids = [self._id(item) for item in part]
            yield Batch(start, rows, [key for key in ids if key is not None] if self.has_ids else None)
            start += len(part)

    def _row(self, item: Item) -> np.ndarray:
        row = parse_item(item, self.codes)
        if len(row) != self.width:
            raise DataError(f"{item.where}: {len(row)} wide, the first is {self.width}.")
        if item.model is not None and item.model != self.record.get("model", item.model):
            raise DataError(
                f"{item.where}: made by {item.model}, the first by {self.record['model']}; do not mix them."
            )
        return row

    def _id(self, item: Item) -> str | None:
        if (item.id is not None) != self.has_ids:
            has, first = ("lacks an id", "has one") if self.has_ids else (f"has the id {item.id}", "has none")
            raise DataError(f"{item.where}: {has}, but the first vector {first}.")
        return item.id


def open_jsonl(path: Path, column: str | None = None, codes: str | None = None) -> TextVectors:
    """Open JSON lines. A line is a vector, a list of vectors, a record that holds one, or an answer of an API."""
    return _open(path, partial(_json_lines, path, column), codes)


def open_json(path: Path, column: str | None = None, codes: str | None = None) -> TextVectors:
    """Open a JSON file: a list of vectors, records or answers of an API, or one answer."""

    def items() -> Iterator[Item]:
        with open_binary(path) as file:
            content = parse_json(file.read(), str(path))
        is_list_of_lines = isinstance(content, list) and content and isinstance(content[0], list | dict)
        for number, value in enumerate(content if is_list_of_lines else [content]):
            yield from find_vectors(value, column, f"{path}, item {number}")

    return _open(path, items, codes)


def open_csv(path: Path, column: str | None = None, codes: str | None = None) -> TextVectors:
    """Open a CSV or TSV file; see :mod:`smec_st.data.sources.cells` for what is recognised."""
    return _open(path, partial(csv_items, path, column, codes), codes)


def parse_item(item: Item, codes: str | None) -> np.ndarray:
    """Return the numbers of an item, ``(D,)`` float32; raise :class:`DataError` if it holds anything else."""
    if item.codes is not None and codes not in (None, item.codes):
        raise DataError(f"{item.where}: the file says that these are {item.codes}, and `codes` says {codes}.")
    read = parse_cells if isinstance(item.vector, Cells) else parse_vector
    return read(item.vector, item.codes or codes, item.where)


def readable(name: str, items: Items) -> Iterator[Item]:
    """Yield items; what the system, gzip or the csv module reports becomes a :class:`DataError`."""
    try:
        yield from items()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name} is not readable: {one_line(error)}") from error


def _open(path: Path, items: Items, codes: str | None) -> TextVectors:
    first = next(readable(str(path), items), None)
    if first is None:
        raise DataError(f"{path} has no rows.")
    record = {**({"model": first.model} if first.model else {}), **sidecar_record(path)}
    width = len(parse_item(first, codes))
    return TextVectors(str(path), items, codes, width, record, file_state(path), first.id is not None)


def _json_lines(path: Path, column: str | None) -> Iterator[Item]:
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                value = parse_json(line, where)
                is_list_of_vectors = isinstance(value, list) and bool(value) and isinstance(value[0], list)
                for vector in value if is_list_of_vectors else [value]:
                    yield from find_vectors(vector, column, where)

"""Read vectors from text files: JSON lines, JSON (also the saved answers of APIs), CSV and TSV; each also gzipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.codes import parse_cells, parse_vector
from smec_st.data.jsonl import open_binary, read_errors, read_json_file
from smec_st.data.sources.answers import Item, find_vectors
from smec_st.data.sources.batch import Batch, file_state, sidecar_record
from smec_st.data.sources.cells import Cells, csv_items
from smec_st.system.errors import DataError, parse_json

Items = Callable[[], Iterator[Item]]
SAMPLE = 1000  # rows among which the first one that can be read tells the width


@dataclass(frozen=True)
class TextVectors:
    """The vectors of a text file, a :class:`~smec_st.data.VectorSource` that is parsed as it is read.

    Attributes:
        items: Starts reading the file from the beginning.
        codes: What the numbers are; see :mod:`smec_st.data.codes`.
        width: Numbers in the first vector that can be read, ``D``.
        record: The model that it names, and the record in ``NAME.json`` next to the file.
        has_ids: Whether it has an id.
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
            rows = np.full((len(part), self.width), np.nan, dtype=np.float32)
            faults: dict[int, str] = {}
            for i, item in enumerate(part):
                try:
                    rows[i] = self._row(item)
                except DataError as error:
                    place = str(error).removeprefix(f"{self.name}, ").rstrip(".")
                    faults[i] = f"cannot be read ({place})"
                self._check(item)
            yield Batch(start, rows, [item.id or "" for item in part] if self.has_ids else None, faults)
            start += len(part)

    def _row(self, item: Item) -> np.ndarray:
        """Return the vector of an item; what is wrong with it is not wrong with the others."""
        row = parse_item(item, self.codes)
        if len(row) != self.width:
            raise DataError(f"{item.where}: {len(row)} wide, the first is {self.width}.")
        if item.id is None and self.has_ids:
            raise DataError(f"{item.where}: lacks an id, but the first vector has one.")
        return row

    def _check(self, item: Item) -> None:
        """Refuse the file if an item shows that it is of several kinds."""
        if item.id is not None and not self.has_ids and not item.fault:
            raise DataError(f"{item.where}: has the id {item.id}, but the first vector has none.")
        if item.model is not None and item.model != self.record.get("model", item.model):
            raise DataError(
                f"{item.where}: made by {item.model}, the first by {self.record['model']}; do not mix them."
            )


def open_jsonl(path: Path, column: str | None = None, codes: str | None = None) -> TextVectors:
    """Open JSON lines. A line is a vector, a list of vectors, a record that holds one, or an answer of an API."""
    return _open(path, partial(_json_lines, path, column), codes)


def open_json(path: Path, column: str | None = None, codes: str | None = None) -> TextVectors:
    """Open a JSON file: a list of vectors, records or answers of an API, or one answer."""

    def items() -> Iterator[Item]:
        content = read_json_file(path)
        is_list_of_lines = isinstance(content, list) and content and isinstance(content[0], list | dict)
        values = content if is_list_of_lines else [content]
        found = ((f"{path}, item {number}", value) for number, value in enumerate(values))
        yield from _vectors_of_each(found, column)

    return _open(path, items, codes)


def open_csv(path: Path, column: str | None = None, codes: str | None = None) -> TextVectors:
    """Open a CSV or TSV file; see :mod:`smec_st.data.sources.cells` for what is recognised."""
    return _open(path, partial(csv_items, path, column, codes), codes)


def parse_item(item: Item, codes: str | None) -> np.ndarray:
    """Return the numbers of an item, ``(D,)`` float32; raise :class:`DataError` if it holds anything else."""
    if item.fault:
        raise DataError(item.fault)
    if item.codes is not None and codes not in (None, item.codes):
        raise DataError(f"{item.where}: the file says that these are {item.codes}, and `codes` says {codes}.")
    read = parse_cells if isinstance(item.vector, Cells) else parse_vector
    return read(item.vector, item.codes or codes, item.where)


def readable(name: str, items: Items) -> Iterator[Item]:
    """Yield items; see :func:`~smec_st.data.jsonl.read_errors`."""
    with read_errors(name):
        yield from items()


def _open(path: Path, items: Items, codes: str | None) -> TextVectors:
    refused: DataError | None = None
    for item in itertools.islice(readable(str(path), items), SAMPLE):
        try:
            width = len(parse_item(item, codes))
        except DataError as error:
            refused = refused or error
            continue
        record = {**({"model": item.model} if item.model else {}), **sidecar_record(path)}
        return TextVectors(str(path), items, codes, width, record, file_state(path), item.id is not None)
    raise refused or DataError(f"{path} has no rows.")


def _json_lines(path: Path, column: str | None) -> Iterator[Item]:
    def values() -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    value = parse_json(line, where)
                except DataError as error:
                    value = error
                is_list_of_vectors = isinstance(value, list) and bool(value) and isinstance(value[0], list)
                for vector in value if is_list_of_vectors else [value]:
                    yield where, vector

    with open_binary(path) as file:
        yield from _vectors_of_each(values(), column)


def _vectors_of_each(values: Iterator[tuple[str, Any]], column: str | None) -> Iterator[Item]:
    """Yield the vectors of the lines or items of a file; errors stand for lines that are no JSON.

    What cannot be read counts as one vector. Where others hold several, it would move the numbers of the rest.
    """
    lost, has_several = "", False
    for where, value in values:
        is_error = isinstance(value, DataError)
        items = [Item(None, None, None, where, fault=str(value))] if is_error else find_vectors(value, column, where)
        for number, item in enumerate(items):
            has_several |= number > 0
            lost = lost or (item.fault if item.id is None else "")
            if lost and has_several:
                raise DataError(lost)
            yield item

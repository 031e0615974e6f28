"""Read vectors from text files: JSON lines, CSV, and the unchanged answers of embedding APIs."""

from __future__ import annotations

import base64
import binascii
import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.errors import DataError, one_line
from smec_st.data.sources.batch import Batch, file_state, sidecar_record

VECTOR_NAMES = ("embedding", "vector", "embeddings", "values")
ID_NAMES = ("id", "_id", "custom_id")


@dataclass(frozen=True)
class Item:
    """One vector of a text file, not parsed yet; ``where`` names its line in error messages."""

    vector: Any
    id: str | None
    model: str | None
    where: str


@dataclass(frozen=True)
class TextVectors:
    """The vectors of a text file, which is parsed as it is read.

    Attributes:
        name: Path, for error messages.
        items: Starts reading the file from the beginning.
        width: Numbers in the first vector, ``D``.
        record: The model that the first line names, and the record in ``NAME.json`` next to the file.
        state: See :class:`~smec_st.data.VectorSource`.
        has_ids: Whether the first line has an id.
    """

    name: str
    items: Callable[[], Iterator[Item]]
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
        items = itertools.islice(self.items(), start, None)
        while part := list(itertools.islice(items, size)):
            rows = np.empty((len(part), self.width), dtype=np.float32)
            for i, item in enumerate(part):
                rows[i] = self._row(item)
            yield Batch(start, rows, [self._id(item) for item in part] if self.has_ids else None)
            start += len(part)

    def _row(self, item: Item) -> np.ndarray:
        row = parse_vector(item)
        if len(row) != self.width:
            raise DataError(f"{item.where}: {len(row)} wide, the first is {self.width}.")
        if item.model is not None and item.model != self.record.get("model", item.model):
            raise DataError(
                f"{item.where}: made by {item.model}, the first by {self.record['model']}; do not mix them."
            )
        return row

    def _id(self, item: Item) -> str:
        if item.id is None:
            raise DataError(f"{item.where}: lacks an id, but the first vector has one.")
        return item.id


def open_jsonl(path: Path, column: str | None = None) -> TextVectors:
    """Open JSON lines. A line is a vector, an object that holds one, or an answer of an embedding API.

    These answers are recognised: OpenAI's ``{"object": "list", "data": [...], "model": ...}``, single items of its
    ``data``, and the lines of its batch output. Embeddings may be numbers or base64.
    """
    return _lines(path, partial(_json_lines, path, column))


def open_json(path: Path, column: str | None = None) -> TextVectors:
    """Open a JSON file: a list of what :func:`open_jsonl` accepts as lines, or one answer of an API."""

    def items() -> Iterator[Item]:
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({one_line(error)}).") from error
        is_list_of_lines = isinstance(content, list) and content and isinstance(content[0], list | dict)
        for number, value in enumerate(content if is_list_of_lines else [content]):
            yield from _values(value, column, f"{path}, item {number}")

    return _lines(path, items)


def open_csv(path: Path, column: str | None = None) -> TextVectors:
    """Open a CSV file of floats, one vector per line.

    The first line is a header if its last cell is not a number. A header may name a column of ids.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","

    def items() -> Iterator[Item]:
        with path.open(encoding="utf-8", newline="") as file:
            id_at = None
            for number, cells in enumerate(csv.reader(file, delimiter=delimiter), start=1):
                if not cells:
                    continue
                if number == 1 and not _is_number(cells[-1]):
                    id_at = next((at for at, word in enumerate(cells) if word.strip().lower() in ID_NAMES), None)
                    continue
                key = None if id_at is None else cells.pop(id_at)
                yield Item(cells, key, None, f"{path}, line {number}")

    return _lines(path, items)


def parse_vector(item: Item) -> np.ndarray:
    """Return the numbers of an item, ``(D,)`` float32; raise :class:`DataError` if it holds anything else."""
    try:
        if isinstance(item.vector, str):
            return np.frombuffer(base64.b64decode(item.vector, validate=True), dtype="<f4")
        row = np.array(item.vector, dtype=np.float64)
    except (ValueError, TypeError, binascii.Error) as error:
        raise DataError(f"{item.where}: not a vector of floats ({one_line(error)}).") from error
    if row.ndim != 1 or len(row) == 0:
        raise DataError(f"{item.where}: not a vector of floats.")
    return row.astype(np.float32)


def _lines(path: Path, items: Callable[[], Iterator[Item]]) -> TextVectors:
    try:
        first = next(items(), None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not readable: {one_line(error)}") from error
    if first is None:
        raise DataError(f"{path} has no rows.")
    record = {**({"model": first.model} if first.model else {}), **sidecar_record(path)}
    return TextVectors(str(path), items, len(parse_vector(first)), record, file_state(path), first.id is not None)


def _json_lines(path: Path, column: str | None) -> Iterator[Item]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where}: not JSON ({one_line(error)}).") from error
                yield from _values(value, column, where)


def _values(value: Any, column: str | None, where: str, model: str | None = None, key: Any = None) -> Iterator[Item]:
    """Yield the vectors in one JSON value; the answer of an API may hold many."""
    if isinstance(value, list):
        yield Item(value, None if key is None else str(key), model, where)
        return
    if not isinstance(value, dict):
        raise DataError(f"{where}: neither a vector nor an object that holds one.")
    key = next((value[name] for name in ID_NAMES if value.get(name) is not None), key)
    if value.get("error"):
        raise DataError(f"{where}: the API answered with an error: {one_line(Exception(value['error']))}")
    if "response" in value:  # a line of the batch API's output
        body = (value["response"] or {}).get("body") or {}
        yield from _values(body, column, where, model, value.get("custom_id", key))
    elif isinstance(value.get("data"), list):
        ordered = sorted(value["data"], key=lambda entry: entry.get("index", 0) if isinstance(entry, dict) else 0)
        for entry in ordered:
            yield from _values(entry, column, where, value.get("model", model), key if len(ordered) == 1 else None)
    else:
        name = column or next((name for name in VECTOR_NAMES if name in value), None)
        if name is None or name not in value:
            raise DataError(f"{where}: holds no `{name or 'embedding'}`.")
        yield Item(value[name], None if key is None else str(key), value.get("model", model), where)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

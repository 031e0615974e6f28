"""The interface of every source of vectors: a known width, and rows in a fixed order, read in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from smec_st.system.errors import DataError, parse_json, some

#: Metadata key under which files store a JSON record of the model that made their vectors.
RECORD = "smec_st"
#: File in which ``smec-st transform`` describes the shards of a folder.
JOB = "_job.json"
#: Metadata keys that are read as parts of such a record.
RECORD_KEYS = ("model", "revision", "prompt", "prompts", "similarity", "fingerprint")


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a source.

    Attributes:
        start: Number of the first row.
        rows: ``(n, D)``, any float type.
        ids: Ids of the rows, or None if the source has none.
        faults: Why rows could not be read, by their number in the batch. Such a row is NaN, and its id may be empty.
    """

    start: int
    rows: np.ndarray
    ids: list[str] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)


class VectorSource(Protocol):
    """An open source of vectors; rows are read only when a batch is requested."""

    @property
    def name(self) -> str:
        """Path or address, for error messages."""

    @property
    def width(self) -> int:
        """Numbers per row, ``D``."""

    @property
    def rows(self) -> int | None:
        """Number of rows, ``N``; None if it is unknown until all of the source is read."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What the source says about the model that made the vectors; empty if it says nothing."""

    @property
    def state(self) -> str:
        """A text that changes when the vectors may have changed: file sizes and modification times."""

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """Yield the rows from number ``start`` on, at most ``size`` at a time, always in the same order."""


def file_state(*paths: Path) -> str:
    """Return names, sizes and modification times of files as text."""
    return json.dumps([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths])


def choose_column(found: Sequence[str], wanted: str | None, name: str, kinds: str, kind: str = "one") -> str:
    """Return the column, field or tensor that holds the vectors: the wanted one, or the only one of those found.

    Messages call the source ``name``, those found ``kinds``, such as "tensors", and one of them ``kind``.

    Raises:
        DataError: If there is none, the wanted one is missing, or there are several and none was named.
    """
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted is not None and wanted in found:
        return wanted
    if not found:
        raise DataError(f"{name} has no {kinds}.")
    hint = f"say which {kind} is meant" if wanted is None else f"{wanted} is not among them"
    raise DataError(f"{name} has the {kinds} {some(found, 6)}; {hint}.")


def metadata_record(metadata: Mapping[str, str] | Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Read the model's record from metadata: JSON under :data:`RECORD`, or plain entries such as ``model``."""
    text = {_text(key): _text(value) for key, value in (metadata or {}).items()}
    found: dict[str, Any] = {name: text[name] for name in RECORD_KEYS if text.get(name)}
    if RECORD in text:
        record = parse_json(text[RECORD], f"the metadata `{RECORD}`")
        if not isinstance(record, dict):
            raise DataError(f"the metadata `{RECORD}` must be an object.")
        found.update(record)
    return found


def sidecar_record(path: Path) -> dict[str, Any]:
    """Read the model's record from ``PATH.json``, for formats without metadata; of a link, also beside its target.

    A shard of ``smec-st transform`` has its record in the file :data:`JOB` of its folder. Empty if there is neither.
    """
    note = path.with_name(path.name + ".json")
    if path.is_symlink() and not note.is_file():
        return sidecar_record(path.resolve())
    is_shard = not note.is_file() and path.name.startswith("shard-")
    note = path.with_name(JOB) if is_shard else note
    if not note.is_file():
        return {}
    found = parse_json(note.read_bytes(), str(note))
    found = found.get("space") if is_shard and isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise DataError(f"{note} must hold an object.")
    return found


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

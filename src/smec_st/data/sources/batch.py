"""What every source of vectors looks like: known width, rows in a fixed order, read a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from smec_st.data.errors import DataError, one_line

#: Under this name files carry what they say of themselves, as JSON.
RECORD = "smec_st"
#: What a source may say of the model that made its vectors.
SPOKEN = ("model", "revision", "prompt", "prompts", "fingerprint")


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows of a source.

    Attributes:
        start: Number of the first row.
        rows: ``(n, D)``, any float type.
        ids: Ids of the rows, where the source has some.
    """

    start: int
    rows: np.ndarray
    ids: list[str] | None = None


class VectorSource(Protocol):
    """Vectors where they are; nothing is read before it is asked for."""

    @property
    def name(self) -> str:
        """Path or address, for messages."""
        ...

    @property
    def width(self) -> int:
        """Numbers per row, ``D``."""
        ...

    @property
    def rows(self) -> int | None:
        """How many; None where only reading all of it would tell."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """What the source says of the model that made the vectors; empty when it says nothing."""
        ...

    @property
    def state(self) -> str:
        """Changes when the vectors may have changed: sizes and times of files."""
        ...

    def batches(self, size: int = 8192, start: int = 0) -> Iterator[Batch]:
        """Rows from number ``start`` on, at most ``size`` at a time, always in the same order."""
        ...


def file_state(*paths: Path) -> str:
    """Sizes and times of files."""
    return json.dumps([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths])


def spoken(metadata: Mapping[Any, Any] | None) -> dict[str, Any]:
    """The model's record in a file's metadata: JSON under :data:`RECORD`, or plain entries such as ``model``."""
    text = {_text(key): _text(value) for key, value in (metadata or {}).items()}
    found: dict[str, Any] = {name: text[name] for name in SPOKEN if text.get(name)}
    if RECORD in text:
        try:
            found.update(json.loads(text[RECORD]))
        except (ValueError, TypeError) as error:
            raise DataError(f"the metadata `{RECORD}` is not JSON: {one_line(error)}") from error
    return found


def beside(path: Path) -> dict[str, Any]:
    """The record in ``PATH.json``, for formats without metadata of their own; empty when there is none."""
    note = path.with_name(path.name + ".json")
    if not note.is_file():
        return {}
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{note} is not JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{note} must hold an object.")
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

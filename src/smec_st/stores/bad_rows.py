"""Find rows that no compressor can use: those that cannot be read, hold NaN or infinity, or only zeros."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data import Batch, DataError, VectorSource
from smec_st.system.errors import some
from smec_st.system.files import write_text

#: What follows the name of a single file or store in the name of the list of rows that it leaves out.
LEFT_OUT = ".left-out.jsonl"
HINT = "--dry-run lists all such rows, and --skip-bad leaves them out."


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        file: The file, or the source if that is none.
        row: Number of the row in this file, from 0.
        id: Id of the row, or None if the source has none.
        why: What is wrong with it.
    """

    file: str
    row: int
    id: str | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        known = "" if self.id is None else f" (id {self.id})"
        return f"{self.file}, row {self.row}{known} {self.why}"


@dataclass(frozen=True)
class Places:
    """Tells in which file a row of a source is.

    Attributes:
        name: Name of the source.
        parts: Path and number of rows of each file of a source of several, in order.
    """

    name: str = ""
    parts: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, source: VectorSource) -> Places:
        """Return the places of a source; sources of several files have the attribute ``parts``."""
        return cls(source.name, tuple(getattr(source, "parts", ())))

    def find(self, row: int) -> tuple[str, int]:
        """Return the file of a row, and its number there."""
        for file, rows in self.parts:
            if row < rows:
                return file, row
            row -= rows
        return self.name, row


class BadRows(DataError):
    """Rows that cannot be used.

    Args:
        rows: The rows, at least one.
        hint: What to do.
    """

    def __init__(self, rows: Sequence[BadRow], hint: str) -> None:
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''} cannot be used"
        super().__init__(f"{rows[0].file}: {count}: {some(rows)}; {hint}")
        self.rows = tuple(rows)


def bad_rows_of(batch: Batch, places: Places) -> dict[int, BadRow]:
    """List the rows of a batch that cannot be used, by their number in the batch."""
    rows = batch.rows
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    zero = ~np.asarray(rows.any(axis=1))
    found = {}
    for at in np.flatnonzero(~finite | zero).tolist():
        why = "is all zero" if zero[at] else "holds NaN" if np.isnan(rows[at]).any() else "holds infinity"
        key = None if batch.ids is None else batch.ids[at] or None
        found[at] = BadRow(*places.find(batch.start + at), key, batch.faults.get(at, why))
    return found


def without_bad(batch: Batch, places: Places, left_out: list[BadRow]) -> Batch:
    """Return a batch without the rows that cannot be used, which are added to ``left_out``, and with ids."""
    bad = bad_rows_of(batch, places)
    left_out += bad.values()
    kept = [at for at in range(len(batch.rows)) if at not in bad]
    ids = [str(batch.start + at) if batch.ids is None else batch.ids[at] for at in kept]
    return Batch(batch.start, batch.rows[kept] if bad else batch.rows, ids)


def usable(batch: Batch, places: Places, left_out: list[BadRow] | None) -> Batch:
    """Return a batch whose rows can all be used; the others are added to ``left_out``.

    Raises:
        BadRows: If rows cannot be used, and ``left_out`` is None.
    """
    if left_out is not None:
        return without_bad(batch, places, left_out)
    bad = list(bad_rows_of(batch, places).values())
    if bad:
        raise BadRows(bad, HINT)
    return batch


def write_left_out(path: Path, rows: Sequence[BadRow]) -> None:
    """Write a list of rows that were left out, one JSON object a line."""
    write_text(path, "".join(json.dumps(row.to_dict()) + "\n" for row in rows))


def find_bad_rows(source: VectorSource, start: int = 0) -> list[BadRow]:
    """Read a source from row ``start`` on, and return the rows that cannot be used."""
    places = Places.of(source)
    found: list[BadRow] = []
    for batch in source.batches(start=start):
        found += bad_rows_of(batch, places).values()
    return found

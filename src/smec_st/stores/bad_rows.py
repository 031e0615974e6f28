"""Find rows that no compressor can read: those that hold NaN or infinity, or only zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smec_st.data import Batch, DataError, VectorSource
from smec_st.system.errors import some


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
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''} cannot be used, having no direction"
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
        found[at] = BadRow(*places.find(batch.start + at), None if batch.ids is None else batch.ids[at], why)
    return found


def find_bad_rows(source: VectorSource, start: int = 0) -> list[BadRow]:
    """Read a source from row ``start`` on, and return the rows that cannot be used."""
    places = Places.of(source)
    found: list[BadRow] = []
    for batch in source.batches(start=start):
        found += bad_rows_of(batch, places).values()
    return found

"""Limits on how a document may be stored: what an index takes, and how many bytes there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isnan
from typing import NamedTuple

from smec_st.system.errors import DataError, count

#: Most numbers that an index takes, by the precision of the numbers. A precision that is not named it does not take.
INDEXES: Mapping[str, Mapping[str, int]] = {
    # Types vector, halfvec and bit under HNSW: https://github.com/pgvector/pgvector#hnsw
    "pgvector": {"float32": 2_000, "float16": 4_000, "binary": 64_000},
    # Dense vectors, four bytes a number: https://docs.pinecone.io/reference/api/database-limits
    "pinecone": {"float32": 20_000},
}
MEMORY = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
COUNTS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}


class Pair(NamedTuple):
    """A way to store a document.

    Attributes:
        dim: Numbers.
        precision: What the numbers are stored as.
        bytes: Bytes per document.
    """

    dim: int
    precision: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.precision} of {count(self.dim, 'number')}"


@dataclass(frozen=True)
class Limit:
    """What a way to store a document must keep to.

    Attributes:
        index: A name in :data:`INDEXES`, or None for any.
        bytes: Most bytes per document.
        documents: Documents that share the memory, for messages; None when the bytes were given.
    """

    index: str | None = None
    bytes: float = inf
    documents: int | None = None

    def __post_init__(self) -> None:
        if self.index is not None and self.index not in INDEXES:
            raise DataError(f"limits are known of {', '.join(INDEXES)}, not of {self.index!r}.")
        is_number = isinstance(self.bytes, (int, float)) and not isinstance(self.bytes, bool)
        if not is_number or isnan(self.bytes) or self.bytes < 0:
            raise DataError(f"the bytes of a limit are a number of 0 or more, got {self.bytes!r}.")

    @classmethod
    def of(cls, index: str | None = None, ram: str | None = None, documents: str | None = None) -> Limit:
        """Read a limit as the command line takes it.

        Args:
            index: A name in :data:`INDEXES`.
            ram: Memory for the vectors of all documents, for instance ``"2GB"`` or ``"1.5 GiB"``.
            documents: How many there are, for instance ``"50M"``.

        Raises:
            DataError: If the index is unknown, an amount cannot be read, or one of the two is missing.
        """
        if (ram is None) != (documents is None):
            raise DataError("--ram and --documents go together.")
        if ram is None or documents is None:
            return cls(index)
        room, number = _amount(ram, "--ram", MEMORY), int(_amount(documents, "--documents", COUNTS))
        if number < 1:
            raise DataError(f"--documents must be 1 or more, got {documents!r}.")
        return cls(index, int(room // number), number)

    def allows(self, pair: Pair) -> bool:
        """Whether documents may be stored so."""
        most = inf if self.index is None else INDEXES[self.index].get(pair.precision, 0)
        return pair.dim <= most and pair.bytes <= self.bytes

    def __str__(self) -> str:
        parts = [] if self.index is None else [self.index]
        if self.bytes < inf:
            parts.append(f"{count(int(self.bytes), 'byte')} a document")
        return " and ".join(parts) or "any index and memory"


def _amount(text: str, option: str, units: Mapping[str, float]) -> float:
    """A number with a unit, such as 2GB or 50M."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in units:
        known = ", ".join(name.upper() for name in units if name)
        raise DataError(f"{option} takes a number with one of {known}, got {text!r}.")
    amount = float(found[1]) * units[found[2]]
    if amount == inf:
        raise DataError(f"{option} takes a number that can be counted, got {text[:40]!r}.")
    return amount

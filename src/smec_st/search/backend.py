"""What a funnel asks of an engine, and what is written down with an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from smec_st.data import DataError
from smec_st.search.filters import Where
from smec_st.search.schedule import Schedule

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

FORMAT = 1
FULL = 0  # in place of a size: the originals


@dataclass(frozen=True)
class Settings:
    """What an index is.

    Args:
        fingerprint: Of the compressor; vectors of another never enter.
        width: Of the originals.
        sizes: Compressed sizes that are stored, rising; the first is the head.
        schedule: How it is searched.
        originals: Type the originals are kept in, or None to keep none.
        head: Kind of the head, see :mod:`smec_st.search.heads`.
        id_type: ``int`` or ``str``.
        fields: Name to type of each scalar field.
        building: Rows to come, while it is being built; 0 when it is complete.
        source: Hash of what it is built from.
    """

    fingerprint: str
    width: int
    sizes: tuple[int, ...]
    schedule: Schedule
    originals: str | None = "float32"
    head: str = "hnsw-int8"
    id_type: str = "int"
    fields: Mapping[str, str] = field(default_factory=dict)
    building: int = 0
    source: str = ""

    @property
    def full(self) -> int:
        """Width of the last step: of the originals, or the widest size where there are none."""
        return self.width if self.originals else self.sizes[-1]

    @property
    def widths(self) -> dict[int, int]:
        """Stored tables: name (a size, or :data:`FULL`) to width."""
        return {**{size: size for size in self.sizes}, **({FULL: self.width} if self.originals else {})}

    def with_schedule(self, schedule: Schedule) -> Settings:
        """The same, searched otherwise."""
        return replace(self, schedule=schedule)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """What :meth:`to_dict` gave.

        Raises:
            DataError: If it was written by a newer release, or is not complete.
        """
        if int(values.get("format", 0)) > FORMAT:
            raise DataError("this index was written by a newer smec-st; upgrade to read it.")
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            return cls(**{**known, "sizes": tuple(known["sizes"]), "schedule": Schedule.from_dict(known["schedule"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the settings of this index are damaged: {error}") from error


@dataclass(frozen=True)
class Batch:
    """Rows to add, checked.

    Args:
        ids: ``n`` of them, int or str.
        vectors: Table name (a size, or :data:`FULL`) to unit vectors ``(n, width)`` float32.
        fields: Name to ``n`` values, None where missing.
    """

    ids: Sequence[Any]
    vectors: Mapping[int, np.ndarray]
    fields: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.ids)


class Reader(Protocol):
    """One state of an index. Keys are its own names for rows."""

    def __len__(self) -> int: ...

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search everything at the smallest size.

        Args:
            queries: ``(Q, m)`` unit vectors.
            keep: Candidates per query.
            where: Filter.
            effort: See :class:`Schedule`.

        Returns:
            Keys ``(Q, n)`` with ``n <= keep`` and scores; a score of -inf marks a place with no candidate.
        """

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Cosine of each query with its own candidates at one size.

        Args:
            table: A size, or :data:`FULL`.
            queries: ``(Q, width)``.
            keys: ``(Q, n)``.
            found: Which places hold a candidate, ``(Q, n)`` bool.

        Returns:
            ``(Q, n)``; -inf where there is none.
        """

    def ids(self, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Ids of candidates, ``(Q, n)``: int64 with -1, or str with "", where there is none."""

    def fields(self, keys: np.ndarray) -> dict[str, list[Any]]:
        """Values of every scalar field for rows, ``(n,)`` keys."""

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """All live rows in pieces: keys ``(n,)``, and vectors per table."""

    def most_effort(self) -> int:
        """The effort beyond which no more is found; 0 where there is no such knob."""


class Backend(Protocol):
    """An engine that stores rows and searches them."""

    uri: str
    settings: Settings

    def __len__(self) -> int: ...

    def compressor(self) -> Compressor:
        """The compressor that is kept with the index."""

    def save_settings(self, settings: Settings) -> None:
        """Write down settings that changed: the schedule, or that the build is complete."""

    def add(self, batch: Batch, replace: bool) -> None:
        """Store rows, all or none; :class:`DataError` for ids that are there, unless they are to be replaced."""

    def delete(self, ids: Sequence[Any]) -> int:
        """Remove rows; how many there were."""

    def refresh(self) -> bool:
        """Take what another process wrote meanwhile; whether there was something."""

    def reader(self) -> Reader:
        """The current state, to be searched; it stays as it is while others write."""

    def present(self, ids: Sequence[Any]) -> int:
        """How many of these ids are there."""

    def flush(self) -> None:
        """Bring what is only in memory, or slow to search, into its final form."""

    def compact(self) -> None:
        """Drop deleted rows for good, and build the head anew."""

    def verify(self) -> None:
        """Read and check everything; :class:`DataError` for the first thing that is damaged."""

    def bytes(self) -> dict[str, Any]:
        """``ram`` and ``disk``: bytes of each part."""

    def close(self) -> None:
        """Give back files, locks and connections."""

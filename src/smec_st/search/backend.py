"""The interface between the funnel and an engine, and the settings that are stored with an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from smec_st.data import DataError
from smec_st.search.filters import Where
from smec_st.search.heads import codes_of
from smec_st.search.schedule import Schedule

if TYPE_CHECKING:
    import numpy.typing as npt

    from smec_st.compressor import Compressor

FORMAT = 1
FULL = 0  # name of the table of originals; every other table of vectors is named by its size
CODES = -1  # name of the table of codes

Tables = Mapping[int, np.ndarray]  # table name (a size, or FULL) to vectors
Ids = Sequence[int] | Sequence[str] | np.ndarray
Columns = Mapping[str, Sequence[object] | np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Everything about an index that is decided before rows are added, and its schedule.

    Args:
        fingerprint: Fingerprint of the compressor; vectors of another compressor are refused.
        width: Width of the originals.
        sizes: Compressed sizes that are stored, ascending; the head searches the first.
        schedule: How the index is searched.
        originals: Data type in which the originals are kept, or None if they are not kept.
        head: Kind of the head, see :mod:`smec_st.search.heads`.
        id_type: ``int`` or ``str``.
        fields: Name to type of each scalar field.
        building: Number of rows of a build in progress; 0 once the index is complete.
        source: Hash of the input of a build in progress.
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
    def codes(self) -> int:
        """Bytes of the codes that the head searches; 0 if it searches vectors."""
        return codes_of(self.head)

    @property
    def head_table(self) -> int:
        """The table that the head searches: the smallest size, or :data:`CODES`."""
        return CODES if self.codes else self.sizes[0]

    @property
    def full(self) -> int:
        """Width of the last step: that of the originals, or the widest size if there are no originals."""
        return self.width if self.originals else self.sizes[-1]

    @property
    def widths(self) -> dict[int, int]:
        """Width of each stored table of vectors, by its name (a size, or :data:`FULL`)."""
        return {**{size: size for size in self.sizes}, **({FULL: self.width} if self.originals else {})}

    @property
    def no_id(self) -> int | str:
        """The placeholder for an id where there is no result."""
        return "" if self.id_type == "str" else -1

    @property
    def id_dtype(self) -> npt.DTypeLike:
        """The numpy data type of arrays of ids."""
        return object if self.id_type == "str" else np.int64

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Rebuild settings from :meth:`to_dict`.

        Raises:
            DataError: If a newer release wrote them, or they are incomplete.
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
    """Checked rows to add.

    Args:
        ids: ``n`` ids, int or str.
        vectors: Unit vectors ``(n, width)`` float32 per table.
        fields: Name to ``n`` values of each scalar field, None where a value is missing.
    """

    ids: Sequence[object]
    vectors: Tables
    fields: Mapping[str, Sequence[object]]

    def __len__(self) -> int:
        return len(self.ids)


class Reader(Protocol):
    """A snapshot of an index for searching. It identifies rows by keys of its own, not by ids.

    Attributes:
        settings: Settings of the index.
        remote: Whether each search costs a network round trip, so that tuning should need few.
    """

    settings: Settings
    remote: bool

    def __len__(self) -> int: ...

    def head(
        self, queries: np.ndarray, keep: int, where: Where | None, effort: int | None, next_table: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search all rows at the smallest size.

        Args:
            queries: ``(Q, m)`` unit vectors.
            keep: Candidates per query.
            where: Filter.
            effort: See :class:`Schedule`.
            next_table: The table of the next call of :meth:`scores`. A remote engine sends its vectors with the
                candidates, which saves a round trip.

        Returns:
            Keys ``(Q, n)`` with ``n <= keep``, and scores. A score of -inf means that there is no candidate.
        """

    def scores(self, table: int, queries: np.ndarray, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Compute the cosine of each query with its own candidates at one size.

        Args:
            table: A size, or :data:`FULL`.
            queries: ``(Q, width)``.
            keys: ``(Q, n)``.
            found: Which entries of ``keys`` are candidates, ``(Q, n)`` bool.

        Returns:
            ``(Q, n)``; -inf where there is no candidate.
        """

    def ids(self, keys: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return the ids of candidates, ``(Q, n)``: int64 or str, with -1 or "" where there is no candidate."""

    def fields(self, keys: np.ndarray) -> dict[str, list[Any]]:
        """Return the values of every scalar field for the rows with these keys, ``(n,)``."""

    def scan(self, tables: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """Yield all live rows in pieces: keys ``(n,)``, and the vectors of each table."""

    def max_effort(self) -> int:
        """Return the effort above which no more rows are found; 0 if the head has no such parameter."""


class Backend(Protocol):
    """An engine that stores rows and searches them."""

    uri: str
    settings: Settings

    def __len__(self) -> int: ...

    def compressor(self) -> Compressor:
        """Load the compressor that is stored with the index."""

    def save_settings(self, settings: Settings) -> None:
        """Store changed settings: another schedule, or that the build is complete."""

    def add(self, batch: Batch, replace: bool) -> None:
        """Store all rows of a batch or none; a :class:`DataError` if ids exist and ``replace`` is false."""

    def delete(self, ids: Sequence[object]) -> int:
        """Remove rows and return how many were removed."""

    def refresh(self) -> bool:
        """Load what other processes have written, and return whether anything changed."""

    def reader(self) -> Reader:
        """Return a snapshot to search, which later writes do not change."""

    def flush(self) -> None:
        """Store everything in the form that is fastest to open and to search."""

    def compact(self) -> None:
        """Remove deleted rows permanently and rebuild the head."""

    def verify(self) -> None:
        """Read and check everything; a :class:`DataError` for the first damage."""

    def bytes(self) -> dict[str, Any]:
        """Return the bytes of each part in ``ram`` and on ``disk``."""

    def close(self) -> None:
        """Release files, locks and connections."""

"""Vectors of corpus and queries under one row numbering, for training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import numpy as np

from smec_st.data.own import as_own_document
from smec_st.data.vectors import as_numpy, as_vectors, check_vectors, check_widths, release, unit_rows

if TYPE_CHECKING:
    from torch import Tensor

    from smec_st.data.vectors import ArrayLike


ROWS_AT_ONCE = 1 << 14  # that a working copy is made of
ROWS_BETWEEN_RELEASES = 1 << 13  # every row read from a memory map can keep 64 KiB around it mapped


class Table(Protocol):
    """What trainers, losses and evaluators need: documents are rows ``0 .. N-1``, queries rows ``N .. N+Q-1``.

    Attributes:
        width: Numbers per vector, ``D``.
        corpus_size: Number of documents, ``N``.
        query_size: Number of queries, ``Q``.
    """

    width: int
    corpus_size: int
    query_size: int

    def __len__(self) -> int:
        return self.corpus_size + self.query_size

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the vectors of these rows as float32 of length 1, ``(n,) int64 -> (n, D)``."""

    def own(self, rows: Tensor) -> Tensor:
        """Return the document that is the same item as each of these rows, ``(n,) int64 -> (n,) int64``.

        For a document it is the document itself; for a query its own document, or -1 for none.
        """

    def query_ids(self, query_rows: np.ndarray) -> np.ndarray:
        """Convert query rows numbered from 0 to rows of this table."""
        return np.asarray(query_rows) + self.corpus_size

    def own_documents(self, query_rows: np.ndarray) -> np.ndarray:
        """Return the documents that these queries are themselves, each once, ``(d,)``."""
        import torch

        own = self.own(torch.from_numpy(self.query_ids(query_rows))).numpy()
        documents: np.ndarray = np.unique(own[own >= 0])
        return documents

    def moved(self, weight: Tensor) -> Table:
        """Return this table with a linear map ``(k, D)`` applied to its rows, which are then normalised again."""
        if weight.ndim != 2 or weight.shape[1] != self.width:
            raise ValueError(f"`weight` must be (k, {self.width}), got {tuple(weight.shape)}.")
        return _MovedTable(self, weight)


class _MovedTable(Table):
    """A table whose rows go through a linear map as they are read."""

    def __init__(self, table: Table, weight: Tensor) -> None:
        self._table, self._weight = table, weight
        self.width, self.corpus_size, self.query_size = len(weight), table.corpus_size, table.query_size

    def __getitem__(self, rows: Tensor) -> Tensor:
        """See :class:`Table`."""
        return _mapped(self._table[rows], self._weight)

    def own(self, rows: Tensor) -> Tensor:
        """See :class:`Table`."""
        return self._table.own(rows)


class VectorTable(Table):
    """A :class:`Table` of finished vectors.

    Tables of up to ``in_memory_bytes`` are normalised once and kept in memory. Larger ones stay where they are (a
    memory map stays on disk), and rows are normalised as they are read.

    Args:
        corpus: ``(N, D)``, any float type.
        queries: ``(Q, D)`` or None.
        own_document: Row of the document that is the same item as the query, -1 for none, ``(Q,)``; None if no query
            has one.
        in_memory_bytes: Largest float32 table to hold in memory.
        check: Whether to read all vectors once and refuse those without a direction. False trusts that they were
            checked before; rows of zeros then stay zeros, and have similarity 0 to everything.

    Attributes:
        parts: The corpus, and the queries if there are any, as they were given.
    """

    _table: Tensor | None = None

    def __init__(
        self,
        corpus: ArrayLike,
        queries: ArrayLike | None = None,
        own_document: ArrayLike | None = None,
        in_memory_bytes: int = 2 << 30,
        check: bool = True,
    ) -> None:
        import torch

        read = check_vectors if check else as_vectors
        parts = [read(corpus, "corpus")]
        if queries is not None and len(as_numpy(queries)):
            parts.append(read(queries, "query"))
            check_widths(*parts)
        self.width = int(parts[0].shape[1])
        self.corpus_size, self.query_size = len(parts[0]), sum(map(len, parts[1:]))
        own = as_own_document(own_document, self.query_size, self.corpus_size)
        self._own = torch.from_numpy(np.concatenate([np.arange(self.corpus_size), own]))
        self.parts = parts
        self._read_since_release = 0
        if len(self) * self.width * 4 <= in_memory_bytes:
            self._table = torch.from_numpy(_unit_table(parts, self.width))

    def moved(self, weight: Tensor) -> Table:
        """See :class:`Table`; a table in memory is mapped at once."""
        moved = super().moved(weight)
        if self._table is None:
            return moved
        import torch

        table = copy.copy(self)
        table.width = len(weight)
        table._table = torch.cat([_mapped(rows, weight) for rows in self._table.split(ROWS_AT_ONCE)])
        return table

    def __getitem__(self, rows: Tensor) -> Tensor:
        """See :class:`Table`."""
        import torch

        if self._table is not None:
            return self._table[rows]
        ids = rows.numpy()
        out = np.empty((len(ids), self.width), dtype=np.float32)
        is_document = ids < self.corpus_size
        out[is_document] = self.parts[0][ids[is_document]]
        if self.query_size:
            out[~is_document] = self.parts[1][ids[~is_document] - self.corpus_size]
        self._read_since_release += len(ids)
        if self._read_since_release > ROWS_BETWEEN_RELEASES:
            self._read_since_release = 0
            for part in self.parts:
                release(part)
        return torch.from_numpy(unit_rows(out))

    @property
    def own_rows(self) -> np.ndarray:
        """The own document of each row of this table, -1 for none, ``(N + Q,)``."""
        return np.asarray(self._own.numpy())

    def documents(self) -> np.ndarray:
        """Return the corpus as it was given, or its unit rows where the table is in memory, ``(N, D)``."""
        return self.parts[0] if self._table is None else self._table[: self.corpus_size].numpy()

    def some_queries(self, query_rows: np.ndarray | None = None, most: int = 1 << 13) -> np.ndarray | None:
        """Return unit vectors of at most ``most`` of these query rows, or of all, ``(q, D)``; None for none."""
        import torch

        rows = np.arange(self.query_size) if query_rows is None else np.asarray(query_rows)
        if len(rows) == 0:
            return None
        picked = np.random.default_rng(0).permutation(rows)[:most]
        return self[torch.from_numpy(np.sort(self.query_ids(picked)))].numpy()

    def own(self, rows: Tensor) -> Tensor:
        """See :class:`Table`."""
        return self._own[rows]


def _mapped(rows: Tensor, weight: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.normalize(rows @ weight.T, dim=1)


def _unit_table(parts: list[np.ndarray], width: int) -> np.ndarray:
    """Return all rows as unit vectors in one float32 table, built in chunks to keep working copies small."""
    table = np.empty((sum(map(len, parts)), width), dtype=np.float32)
    at = 0
    for part in parts:
        for start in range(0, len(part), ROWS_AT_ONCE):
            rows = part[start : start + ROWS_AT_ONCE]
            table[at : at + len(rows)] = unit_rows(rows)
            release(rows)
            at += len(rows)
    return table

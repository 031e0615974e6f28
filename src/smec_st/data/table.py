"""Corpus and queries under one row numbering, for training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.own import as_own_document
from smec_st.data.vectors import as_vectors, check_vectors, check_widths, release, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


ROWS_AT_ONCE = 1 << 14
ROWS_BETWEEN_RELEASES = 1 << 13  # each may map 64 KiB around it into this process


class VectorTable:
    """Corpus and queries under one row numbering: documents are rows ``0 .. N-1``, queries ``N .. N+Q-1``.

    Rows come out as float32 of length 1. Tables up to ``in_memory_bytes`` are kept that way; larger ones stay where
    they are (a memory map stays on disk) and are converted as they are read.

    Args:
        corpus: ``(N, D)``, any float type.
        queries: ``(Q, D)`` or None.
        own_document: Document row of each query that is itself a document, -1 for the others, ``(Q,)``; None for none.
        in_memory_bytes: Largest float32 table to hold in memory.
        check: Whether to read all vectors once and refuse what has no direction. False trusts tables that were checked
            before: rows of zeros then stay zeros, and are like nothing.
    """

    _table: Tensor | None = None
    _weight: Tensor | None = None

    def __init__(
        self,
        corpus: Any,
        queries: Any | None = None,
        own_document: Any | None = None,
        in_memory_bytes: int = 2 << 30,
        check: bool = True,
    ) -> None:
        import torch

        sound = check_vectors if check else as_vectors
        corpus = sound(corpus, "corpus")
        parts = [corpus]
        if queries is not None and len(queries):
            queries = sound(queries, "query")
            check_widths(corpus, queries)
            parts.append(queries)
        self.width = int(corpus.shape[1])
        self.corpus_size = len(corpus)
        self.query_size = len(queries) if len(parts) == 2 and queries is not None else 0
        own = as_own_document(own_document, self.query_size, self.corpus_size)
        self._own = torch.from_numpy(np.concatenate([np.arange(self.corpus_size), own]))
        self._parts = parts
        self._read_since_release = 0
        if len(self) * self.width * 4 <= in_memory_bytes:
            self._table = torch.from_numpy(_unit_table(parts, self.width))

    def __len__(self) -> int:
        return self.corpus_size + self.query_size

    def moved(self, weight: Tensor) -> VectorTable:
        """The same rows after a linear map ``(k, D)``, at length 1 again.

        Tables in memory are mapped at once, others as they are read.
        """
        if weight.ndim != 2 or weight.shape[1] != self.width:
            raise ValueError(f"`weight` must be (k, {self.width}), got {tuple(weight.shape)}.")
        import torch

        table = copy.copy(self)
        table.width = len(weight)
        if self._table is None:
            table._weight = weight if self._weight is None else weight @ self._weight
        else:
            table._table = torch.cat([_unit(rows @ weight.T) for rows in self._table.split(ROWS_AT_ONCE)])
        return table

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Vectors of these row ids. ``(n,) int64 -> (n, D)`` float32, unit norm."""
        vectors = self._read(rows)
        if self._weight is None:
            return vectors
        return _unit(vectors @ self._weight.T)

    def _read(self, rows: Tensor) -> Tensor:
        import torch

        if self._table is not None:
            return self._table[rows]
        ids = rows.numpy()
        out = np.empty((len(ids), self._parts[0].shape[1]), dtype=np.float32)
        document = ids < self.corpus_size
        out[document] = self._parts[0][ids[document]]
        if self.query_size:
            out[~document] = self._parts[1][ids[~document] - self.corpus_size]
        self._read_since_release += len(ids)
        if self._read_since_release > ROWS_BETWEEN_RELEASES:
            self._read_since_release = 0
            for part in self._parts:
                release(part)
        return torch.from_numpy(unit_rows(out))

    def documents(self) -> np.ndarray:
        """The corpus as it was given, or unit rows where the table is in memory; moved where it was. ``(N, D)``."""
        if self._weight is not None:
            import torch

            return self[torch.arange(self.corpus_size)].numpy()
        return self._parts[0] if self._table is None else self._table[: self.corpus_size].numpy()

    def own(self, rows: Tensor) -> Tensor:
        """The document that is the same item as each of these rows: itself, a query's own document, or -1.

        ``(n,) int64 -> (n,) int64``.
        """
        return self._own[rows]

    def own_documents(self, query_rows: np.ndarray) -> np.ndarray:
        """The documents that these queries are themselves, each once, ``(d,)``."""
        import torch

        own = self.own(torch.from_numpy(self.query_ids(query_rows))).numpy()
        documents: np.ndarray = np.unique(own[own >= 0])
        return documents

    def query_ids(self, query_rows: np.ndarray) -> np.ndarray:
        """Row ids in this table of queries numbered from 0."""
        return np.asarray(query_rows) + self.corpus_size


def _unit(rows: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.normalize(rows, dim=1)


def _unit_table(parts: list[np.ndarray], width: int, chunk: int = ROWS_AT_ONCE) -> np.ndarray:
    """All rows at length 1 in one float32 table, made in chunks, so that working copies stay small."""
    table = np.empty((sum(map(len, parts)), width), dtype=np.float32)
    at = 0
    for part in parts:
        for start in range(0, len(part), chunk):
            rows = part[start : start + chunk]
            table[at : at + len(rows)] = unit_rows(rows)
            release(rows)
            at += len(rows)
    return table

"""A query's own document: the corpus row that is the query itself, which no search may return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smec_st.data.errors import DataError


def as_own_document(own_document: Any | None, query_size: int, corpus_size: int) -> np.ndarray:
    """Own document rows ``(Q,)`` int64, checked; None means that no query has one (all -1)."""
    if own_document is None:
        return np.full(query_size, -1, dtype=np.int64)
    own = np.asarray(own_document)
    if own.shape != (query_size,) or own.dtype.kind not in "iu":
        raise DataError(
            f"own documents must be one whole number per query, shape ({query_size},), "
            f"got {own.dtype} of shape {own.shape}."
        )
    if len(own) and not -1 <= own.min() <= own.max() < corpus_size:
        wrong = own.max() if own.max() >= corpus_size else own.min()
        raise DataError(f"own documents name row {wrong}; there are {corpus_size} documents, and -1 means none.")
    return own.astype(np.int64)


def find_own_documents(
    corpus_ids: Sequence[str], query_ids: Sequence[str], same: Callable[[int, int], bool]
) -> np.ndarray:
    """Documents that carry a query's id and are the same item; an equal id alone may be chance.

    Args:
        corpus_ids: Document ids.
        query_ids: Query ids.
        same: Whether (document row, query row) are the same item.

    Returns:
        Document row of each query, -1 for none, ``(Q,)`` int64.
    """
    document_row = {identifier: row for row, identifier in enumerate(corpus_ids)}
    own = np.full(len(query_ids), -1, dtype=np.int64)
    for query, identifier in enumerate(query_ids):
        document = document_row.get(identifier)
        if document is not None and same(document, query):
            own[query] = document
    return own

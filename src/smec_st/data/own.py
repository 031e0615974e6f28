"""A query's own document: the document that is the same item as the query, which searches leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from smec_st.system.errors import DataError

if TYPE_CHECKING:
    from smec_st.data.vectors import ArrayLike


def as_own_document(own_document: ArrayLike | None, query_size: int, corpus_size: int) -> np.ndarray:
    """Return own-document rows as a checked int64 array, ``(Q,)``; None becomes -1 (no own document) for every query.

    Raises:
        DataError: If there is not one whole number per query, or a number is not a corpus row or -1.
    """
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
    corpus_ids: Sequence[str], query_ids: Sequence[str], is_same: Callable[[int, int], bool]
) -> np.ndarray:
    """Return the row of each query's own document, -1 for none, ``(Q,)`` int64.

    It has the query's id, and ``is_same(document row, query row)`` is true: equal ids alone may be a coincidence.
    """
    document_row = {identifier: row for row, identifier in enumerate(corpus_ids)}
    found = [document_row.get(identifier, -1) for identifier in query_ids]
    own = [document if document >= 0 and is_same(document, query) else -1 for query, document in enumerate(found)]
    return np.array(own, dtype=np.int64)

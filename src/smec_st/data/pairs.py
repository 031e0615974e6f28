"""Turn a dataset of training pairs into distinct queries, distinct documents, and judgements by row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smec_st.data.qrels import Qrels
from smec_st.system.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

GRADES = ("label", "labels", "score", "scores")  # column names that grade a pair


@dataclass(frozen=True)
class NumberedPairs:
    """Distinct queries and documents of a dataset of pairs, with judgements.

    Attributes:
        queries: The items of the first column, each once.
        corpus: The items of the other columns, each once.
        qrels: Judgements by row; a query is never judged against itself.
        own_document: Row of the document that is the same item as the query, -1 for none, ``(Q,)``.
    """

    queries: list[object]
    corpus: list[object]
    qrels: Qrels
    own_document: np.ndarray


def number_pairs(dataset: Dataset) -> NumberedPairs:
    """Number the items of a dataset in the format of sentence-transformers: anchor, positive, and any negatives.

    Args:
        dataset: A ``datasets.Dataset`` of texts or images, with the columns in this order under any names. A column
            named in ``GRADES`` grades the pairs: 0 and below means not relevant, other values are rounded up.
            Negatives become documents of the corpus.

    Raises:
        DataError: If there are fewer than two columns, no relevant pair, an empty item, or two columns of grades.
    """
    columns = [name for name in dataset.column_names if name not in GRADES]
    grading = [name for name in GRADES if name in dataset.column_names]
    if len(grading) > 1:
        raise DataError(f"{' and '.join(grading)} may grade the pairs; keep one of these columns.")
    graded = grading[0] if grading else None
    if len(columns) < 2 or len(dataset) == 0:
        raise DataError(f"pairs need two columns and a row; got {', '.join(columns) or 'none'}, {len(dataset)} rows.")
    queries, query_keys, anchors = _distinct(dataset[columns[0]], columns[0])
    others = [item for name in columns[1:] for item in _checked(dataset[name], name)]
    corpus, document_keys, documents = _distinct(others, "document")
    positives = documents[: len(anchors)]
    grades = np.ones(len(anchors)) if graded is None else np.ceil(np.asarray(dataset[graded], dtype=float))
    if not (grades > 0).any():
        raise DataError(f"no pair is relevant: the column {graded} is nowhere above 0.")
    best: dict[tuple[int, int], float] = {}
    for pair in zip(anchors.tolist(), positives.tolist(), grades.tolist(), strict=True):
        best[pair[:2]] = max(pair[2], best.get(pair[:2], 0.0))
    pairs = np.array(list(best))
    qrels = Qrels(pairs[:, 0], pairs[:, 1], np.array(list(best.values())))
    own = np.array([document_keys.get(key, -1) for key in query_keys])
    return NumberedPairs(queries, corpus, qrels.without_own(own), own)


def _distinct(items: Sequence[object], name: str) -> tuple[list[object], dict[str | bytes, int], np.ndarray]:
    """Return the distinct items in order of appearance, the row of each key, and the row of each given item."""
    numbers: dict[str | bytes, int] = {}
    found: list[object] = []
    rows = []
    for item in _checked(items, name):
        key = item if isinstance(item, str) else hashlib.sha256(_raw(item)).digest()
        if key not in numbers:
            numbers[key] = len(found)
            found.append(item)
        rows.append(numbers[key])
    return found, numbers, np.array(rows, dtype=np.int64)


def _checked(items: Sequence[object], name: str) -> list[object]:
    listed = list(items)
    for row, item in enumerate(listed):
        if item is None or (isinstance(item, str) and not item.strip()):
            raise DataError(f"column {name} is empty in row {row}.")
    return listed


def _raw(item: object) -> bytes:
    """Return bytes that identify an item which is not a text."""
    if hasattr(item, "tobytes"):  # an image or an array
        return f"{getattr(item, 'size', '')} {getattr(item, 'mode', '')} ".encode() + bytes(item.tobytes())
    return repr(item).encode()

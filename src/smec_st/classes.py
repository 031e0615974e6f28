"""Labels that are classes: how they are known, and how they are completed where judgements name them in part."""

from __future__ import annotations

from typing import Any

import numpy as np

from smec_st.data import Qrels, VectorTable

MANY = 4  # relevant documents a query; more may be a class
ROUNDS = 3
VOICES = 2048  # queries that are asked what belongs to a class
CHUNK = 4096  # queries that ask at once


def are_many(qrels: Qrels) -> bool:
    """Whether queries have so many relevant documents, on average, that these may be a class."""
    return len(qrels.pairs) > MANY * len(qrels.query_rows)


def labels_are_classes(table: VectorTable, qrels: Qrels | None) -> bool:
    """Whether labels say which documents are of a query's kind: many a query, and the same for others.

    Either the queries are documents themselves, and the others of their class are relevant; or they are not, and the
    same documents are relevant to two queries or more, on average.
    """
    if qrels is None or not are_many(qrels):
        return False
    return bool((_own(table, qrels.query_rows) >= 0).mean() > 0.5) or _sets_repeat(table, qrels)


def complete_classes(table: VectorTable, qrels: Qrels) -> Qrels:
    """The judgements with what they leave out, where they name classes in part; else as they are.

    Documents that are not judged count as irrelevant, and the hardest of them are mined: of a class that is named in
    part these would be the rest of it. So each query asks the others, :data:`VOICES` of them at most, each as often
    as it shares a relevant document with it: a document that is named half as often as those that it names itself,
    and more, is relevant too, unless it is judged not to be; and again, up to :data:`ROUNDS` times. The result is
    taken where these sets repeat (:func:`labels_are_classes`) and leave half of the corpus out: those of queries that
    do not ask for classes hardly do.

    Args:
        table: Corpus and queries.
        qrels: Judgements to train on.
    """
    if not are_many(qrels) or _sets_repeat(table, qrels):
        return qrels
    whole = qrels
    for _ in range(ROUNDS):
        queries, documents = _likely(whole)
        new = _own(table, queries) != documents
        if not new.any():
            break
        grades = np.full(int(new.sum()), qrels.grades[qrels.grades > 0].min())
        whole = Qrels.joined([whole, Qrels(queries[new], documents[new], grades)])
    is_some = 2 * len(whole.pairs) <= len(whole.query_rows) * table.corpus_size
    return whole if whole is not qrels and is_some and _sets_repeat(table, whole) else qrels


def _likely(qrels: Qrels) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are not judged, of queries and documents that others name beside theirs. Rows, ``(p,)`` each."""
    from scipy.sparse import csr_matrix

    rows, place = np.unique(qrels.pairs[:, 0], return_inverse=True)
    width = int(qrels.documents.max()) + 1
    named = csr_matrix((np.ones(len(place)), (place, qrels.pairs[:, 1])), (len(rows), width))
    voices = np.sort(np.random.default_rng(0).permutation(len(rows))[:VOICES])
    asked = named[voices]
    found = []
    for start in range(0, len(rows), CHUNK):
        own = named[start : start + CHUNK]
        shared = (own @ asked.T).tocoo()
        others = voices[shared.col] != start + shared.row  # nobody asks himself
        part = shared.row[others], shared.col[others]
        votes = csr_matrix((shared.data[others], part), shared.shape) @ asked
        usual = _row_sums(votes.multiply(own)) / _row_sums(own)
        votes = votes.tocoo()
        likely = votes.data >= usual[votes.row] / 2
        found.append(np.stack([rows[start + votes.row[likely]], votes.col[likely]], axis=1).astype(np.int64))
    pairs = np.concatenate(found)
    new = ~np.isin(pairs @ [width, 1], qrels.queries * width + qrels.documents)
    return pairs[new, 0], pairs[new, 1]


def _row_sums(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1)).ravel()


def _own(table: VectorTable, rows: np.ndarray) -> np.ndarray:
    """Documents that are these queries themselves, -1 for none, ``(q,)``."""
    import torch

    own: np.ndarray = table.own(torch.from_numpy(table.query_ids(rows))).numpy()
    return own


def _sets_repeat(table: VectorTable, qrels: Qrels) -> bool:
    """Whether the relevant documents, with the query's own, are those of two queries or more, on average."""
    marks = np.random.default_rng(0).integers(1 << 63, size=table.corpus_size, dtype=np.uint64)
    queries, place = np.unique(qrels.pairs[:, 0], return_inverse=True)
    own = _own(table, queries)
    sums = np.where(own >= 0, marks[own], np.uint64(0))
    np.add.at(sums, place, marks[qrels.pairs[:, 1]])
    return 2 * len(np.unique(sums)) <= len(queries)

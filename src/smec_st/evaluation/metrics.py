"""Exact search, and retrieval metrics as ``trec_eval`` (the evaluation code of TREC and BEIR) computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from smec_st.data import Qrels

PerQuery = dict[str, np.ndarray]  # metric to one value per query


def exact_search(corpus: np.ndarray, queries: np.ndarray, k: int, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` documents with the highest inner product for each query; of equal scores, the lower row first.

    Args:
        corpus: ``(N, D)`` float32.
        queries: ``(Q, D)`` float32.
        k: Number of documents per query, at least 1; at most ``N`` are returned.
        chunk: Number of queries scored at a time.

    Returns:
        Document rows ``(Q, k)`` int64 in descending order of score, and the scores ``(Q, k)``.

    Raises:
        ValueError: If ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    k = min(k, len(corpus))
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), chunk):
        block = queries[start : start + chunk] @ corpus.T
        threshold = np.partition(block, -k, axis=1)[:, -k, None]  # the k-th best score
        above, tied = block > threshold, block == threshold
        room = k - above.sum(axis=1, keepdims=True)
        top = np.nonzero(above | (tied & (tied.cumsum(axis=1) <= room)))[1].reshape(len(block), k)
        found = np.take_along_axis(block, top, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        rows[start : start + chunk] = np.take_along_axis(top, order, axis=1)
        scores[start : start + chunk] = np.take_along_axis(found, order, axis=1)
    return rows, scores


def score_rankings(
    rankings: Mapping[int, np.ndarray] | tuple[np.ndarray, np.ndarray],
    qrels: Qrels,
    metrics: Iterable[str] = ("ndcg@10", "recall@100", "mrr@10"),
) -> PerQuery:
    """Score rankings of corpus rows against judgements.

    Args:
        rankings: Ranked document rows by query row, or the pair (query rows ``(Q,)``, ranked rows ``(Q, k)``). A row
            of -1 stands for no document.
        qrels: Judgements; the gain is linear in the grade, as in TREC.
        metrics: Names of the form ``name@k``, where ``name`` is ndcg, recall or mrr.

    Returns:
        For each metric, one value in [0, 1] per query that has a relevant document, in ascending order of query row.

    Raises:
        ValueError: If a metric is unknown or no judged query was ranked.
    """
    if isinstance(rankings, tuple):
        rankings = dict(zip(rankings[0].tolist(), rankings[1], strict=True))
    judged = qrels.relevant_by_query()
    missing = [query for query in judged if query not in rankings]
    if missing or not judged:
        raise ValueError(f"{len(missing)} of {len(judged)} judged queries have no ranking.")
    result: PerQuery = {}
    for metric in metrics:
        name, cut = _parse(metric)
        result[metric] = np.zeros(len(judged), dtype=np.float64)
        for place, (query, grades) in enumerate(judged.items()):
            found = [grades.get(row, 0) for row in np.asarray(rankings[query])[:cut].tolist()]
            result[metric][place] = _MEASURES[name](found, grades, cut)
    return result


def _ndcg(found: Sequence[float], grades: Mapping[int, float], cut: int) -> float:
    """Discounted cumulative gain of the grades that were found, as a share of that of the best ranking."""
    ideal = sorted(grades.values(), reverse=True)[:cut]
    return _gain(found) / _gain(ideal)


def _gain(grades: Sequence[float]) -> float:
    gains = np.array(grades, dtype=np.float64) / np.log2(np.arange(2, len(grades) + 2))
    return (
        float(gains.cumsum()[-1]) if len(gains) else 0.0
    )  # adds one by one, as trec_eval does; `sum` would round differently


def _recall(found: Sequence[float], grades: Mapping[int, float], cut: int) -> float:
    """Share of the relevant documents that were found."""
    return sum(grade > 0 for grade in found) / len(grades)


def _reciprocal_rank(found: Sequence[float], grades: Mapping[int, float], cut: int) -> float:
    """One divided by the rank of the first relevant document; 0 if none was found."""
    return next((1 / (place + 1) for place, grade in enumerate(found) if grade > 0), 0.0)


#: Functions of the grades of the ranked documents, the grades of all relevant documents, and the depth.
_MEASURES: dict[str, Callable[[Sequence[float], Mapping[int, float], int], float]] = {
    "ndcg": _ndcg,
    "recall": _recall,
    "mrr": _reciprocal_rank,
}


def _parse(metric: str) -> tuple[str, int]:
    name, _, depth = metric.partition("@")
    if name not in _MEASURES or not depth.isdigit() or int(depth) < 1:
        raise ValueError(f"Unknown metric {metric!r}; use ndcg@k, recall@k or mrr@k with k of 1 or more.")
    return name, int(depth)


def evaluate_retrieval(
    corpus: np.ndarray,
    queries: np.ndarray,
    qrels: Qrels,
    metrics: Iterable[str] = ("ndcg@10", "recall@100", "mrr@10"),
    own_document: np.ndarray | None = None,
) -> PerQuery:
    """Search unit-norm vectors exactly, then :func:`score_rankings`.

    Args:
        corpus: ``(N, D)``.
        queries: ``(Q, D)``.
        qrels: Judgements.
        metrics: Names as in :func:`score_rankings`.
        own_document: Row of the document that is the same item as the query and is left out of its ranking, -1 for
            none, ``(Q,)``.
    """
    metrics = tuple(metrics)
    depth = max(_parse(metric)[1] for metric in metrics)
    query_rows = qrels.query_rows
    if own_document is None:
        ranked, _ = exact_search(corpus, queries[query_rows], depth)
    else:
        ranked = search_others(corpus, queries[query_rows], depth, own_document[query_rows])
    return score_rankings((query_rows, ranked), qrels, metrics)


def leave_out(ranked: np.ndarray, own_document: np.ndarray) -> np.ndarray:
    """Remove one document from each ranking: later documents move up, and -1 (no document) fills the last place.

    Args:
        ranked: Document rows ``(Q, k)``.
        own_document: The row to remove from each ranking, -1 for none, ``(Q,)``.
    """
    own = ranked == own_document[:, None]
    order = np.argsort(own, axis=1, kind="stable")
    return np.take_along_axis(np.where(own, -1, ranked), order, axis=1)


def search_others(corpus: np.ndarray, queries: np.ndarray, k: int, own_document: np.ndarray) -> np.ndarray:
    """Find the ``k`` documents of highest inner product except a query's own, as :func:`exact_search` does.

    Args:
        corpus: ``(N, D)`` float32.
        queries: ``(Q, D)`` float32.
        k: Number of documents per query, at least 1.
        own_document: The row to leave out of each ranking, -1 for none, ``(Q,)``.

    Returns:
        Document rows, ``(Q, k)``, or ``(Q, N)`` where there are fewer; -1 (no document) where there are no others.
    """
    return leave_out(exact_search(corpus, queries, k + 1)[0], own_document)[:, :k]


def neighbour_overlap(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the share of the reference's documents that were found, in any order.

    Args:
        found: Document rows of each query without repeats, ``(Q, k)``.
        reference: The same from the original vectors, ``(Q, k)``.

    Returns:
        One value in [0, 1] per query, ``(Q,)``.
    """
    both = np.sort(np.concatenate([found, reference], axis=1), axis=1)
    shares: np.ndarray = (np.diff(both, axis=1) == 0).sum(axis=1) / reference.shape[1]
    return shares

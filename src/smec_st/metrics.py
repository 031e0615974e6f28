"""Retrieval metrics: exact search here, scoring by ``pytrec_eval`` (the evaluation code of TREC and BEIR)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pytrec_eval

from smec_st.data import Qrels

PerQuery = dict[str, np.ndarray]

_MEASURES = {"ndcg": "ndcg_cut", "recall": "recall", "mrr": "recip_rank"}


def exact_search(
    corpus: np.ndarray, queries: np.ndarray, k: int, chunk: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` documents of highest inner product for each query; ties go to the lower row.

    Args:
        corpus: ``(N, D)`` float32.
        queries: ``(Q, D)`` float32.
        k: Documents per query; cut to ``N``.
        chunk: Queries scored at a time.

    Returns:
        Rows ``(Q, k)`` int64 by falling score, and their scores ``(Q, k)``.
    """
    k = min(k, len(corpus))
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), chunk):
        block = queries[start : start + chunk] @ corpus.T
        if k < len(corpus):
            top = np.sort(np.argpartition(block, -k, axis=1)[:, -k:], axis=1)
        else:
            top = np.broadcast_to(np.arange(k), block.shape)
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
        rankings: Query row to ranked document rows; or the pair (query rows ``(Q,)``, ranked rows ``(Q, k)``).
        qrels: Judgements; graded relevance counts linearly, as in TREC.
        metrics: Names ``name@k`` with ``name`` one of ndcg, recall, mrr.

    Returns:
        Per metric, one value in [0, 1] per judged query that has a relevant document, by rising query row.

    Raises:
        ValueError: If a metric is unknown or no judged query was ranked.
    """
    if isinstance(rankings, tuple):
        rankings = dict(zip(rankings[0].tolist(), rankings[1], strict=True))
    judged = qrels.relevant_by_query()
    missing = [query for query in judged if query not in rankings]
    if missing or not judged:
        raise ValueError(f"{len(missing)} of {len(judged)} judged queries have no ranking.")
    gold = {str(q): {str(d): int(g) for d, g in grades.items()} for q, grades in judged.items()}
    result: PerQuery = {}
    for metric in metrics:
        name, _, depth = metric.partition("@")
        if name not in _MEASURES or not depth.isdigit():
            raise ValueError(f"Unknown metric {metric!r}; use ndcg@k, recall@k or mrr@k.")
        cut = int(depth)
        # Scores fall with the rank, so that no tie is left for the scorer to break its own way.
        run = {q: {str(d): float(cut - i) for i, d in enumerate(rankings[int(q)][:cut])} for q in gold}
        measure = _MEASURES[name] if name == "mrr" else f"{_MEASURES[name]}.{cut}"
        scored = pytrec_eval.RelevanceEvaluator(gold, {measure}).evaluate(run)
        key = measure.replace(".", "_")
        result[metric] = np.array([scored[q][key] for q in gold], dtype=np.float64)
    return result


def evaluate_retrieval(
    corpus: np.ndarray,
    queries: np.ndarray,
    qrels: Qrels,
    metrics: Iterable[str] = ("ndcg@10", "recall@100", "mrr@10"),
) -> PerQuery:
    """Search exactly with unit-norm vectors, then :func:`score_rankings`. ``(N, D)``, ``(Q, D)``, row-id judgements."""
    metrics = tuple(metrics)
    depth = max(int(metric.partition("@")[2] or 0) for metric in metrics)
    query_rows = np.array(list(qrels.relevant_by_query()), dtype=np.int64)
    ranked, _ = exact_search(corpus, queries[query_rows], depth)
    return score_rankings((query_rows, ranked), qrels, metrics)

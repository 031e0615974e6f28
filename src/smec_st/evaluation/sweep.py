"""Score transforms at every size on one collection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from smec_st.data import Qrels
from smec_st.evaluation.metrics import PerQuery, evaluate_retrieval
from smec_st.evaluation.report import Row
from smec_st.evaluation.statistics import paired_interval
from smec_st.evaluation.untrained import Transform

METRICS = ("ndcg@10", "recall@100", "mrr@10")


def sweep(
    corpus: np.ndarray,
    queries: np.ndarray,
    qrels: Qrels,
    methods: Mapping[str, Transform],
    dims: Sequence[int],
    own_document: np.ndarray | None = None,
    intervals: Collection[str] = (),
) -> list[Row]:
    """Score each method at each size.

    Args:
        corpus: Original document vectors, ``(N, D)``.
        queries: Original query vectors, ``(Q, D)``.
        qrels: Judgements.
        methods: Transforms by name; each maps ``(vectors, dim)`` to ``(n, dim)``, unit norm.
        dims: Sizes; the method "original" is scored at full width only.
        own_document: Corpus row that is the query itself and is left out of its ranking, -1 for none, ``(Q,)``.
        intervals: Methods whose rows get the mean difference to "original" in nDCG@10 and its 95 % interval
            (``original_difference``, ``original_low``, ``original_high``); "original" must be the first method then.

    Returns:
        Rows in the order of the methods, sizes descending.
    """
    judged = qrels.query_rows
    judged_queries, local = queries[judged], qrels.renumbered()
    own = None if own_document is None else own_document[judged]
    rows: list[Row] = []
    original: PerQuery = {}
    for method, transform in methods.items():
        for dim in [corpus.shape[1]] if method == "original" else sorted(dims, reverse=True):
            scores = evaluate_retrieval(transform(corpus, dim), transform(judged_queries, dim), local, METRICS, own)
            extra: dict[str, Any] = {}
            if method == "original":
                original = scores
            elif method in intervals:
                interval = paired_interval(scores[METRICS[0]], original[METRICS[0]])
                extra = {f"original_{name}": value for name, value in interval._asdict().items()}
            means = {metric: float(values.mean()) for metric, values in scores.items()}
            rows.append(Row(method=method, dim=int(dim), bytes_per_vector=4 * int(dim), metrics=means, extra=extra))
    return rows

"""Score one collection at every size, ours beside what needs no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from smec_st.baselines import Transform
from smec_st.data import Qrels
from smec_st.evaluation.report import Row
from smec_st.metrics import evaluate_retrieval

METRICS = ("ndcg@10", "recall@100", "mrr@10")


def sweep(
    corpus: np.ndarray,
    queries: np.ndarray,
    qrels: Qrels,
    methods: Mapping[str, Transform],
    dims: Sequence[int],
    metrics: Sequence[str] = METRICS,
    on_row: Callable[[Row], None] | None = None,
    own_document: np.ndarray | None = None,
) -> list[Row]:
    """One row per method and size.

    Args:
        corpus: ``(N, D)`` original vectors.
        queries: ``(Q, D)`` original vectors.
        qrels: Judgements.
        methods: Name to transform: ``(vectors, dim) -> (n, dim)``, unit norm.
        dims: Sizes; "original" is scored at its own width only.
        metrics: What to measure.
        on_row: Called with each row as it is ready, for progress.
        own_document: Corpus row that is the query itself and stays out of its ranking, -1 for none, ``(Q,)``.

    Returns:
        Rows, methods in the order given, sizes falling.
    """
    judged = qrels.query_rows
    local = qrels.renumbered()
    asked = queries[judged]
    own = None if own_document is None else own_document[judged]
    rows: list[Row] = []
    for method, transform in methods.items():
        for dim in [corpus.shape[1]] if method == "original" else sorted(dims, reverse=True):
            scores = evaluate_retrieval(transform(corpus, dim), transform(asked, dim), local, metrics, own)
            means = {metric: float(values.mean()) for metric, values in scores.items()}
            rows.append(Row(method=method, dim=int(dim), bytes_per_vector=4 * int(dim), metrics=means))
            if on_row is not None:
                on_row(rows[-1])
    return rows

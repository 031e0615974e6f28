"""Score documents that are stored as codes."""

from __future__ import annotations

import numpy as np

from smec_st.data import Qrels
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.report import Row
from smec_st.evaluation.sweep import METRICS
from smec_st.quantization.head import Head


def score_codes(
    method: str,
    head: Head,
    corpus: np.ndarray,
    queries: np.ndarray,
    qrels: Qrels,
    own_document: np.ndarray | None = None,
) -> Row:
    """Score the search of float queries over documents that a head has stored.

    Args:
        method: Name of the method that the compressor was fitted by.
        head: Encodes documents and maps queries.
        corpus: Original document vectors, ``(N, D)``.
        queries: Original query vectors, ``(Q, D)``.
        qrels: Judgements.
        own_document: Corpus row that is the query itself and is left out of its ranking, -1 for none, ``(Q,)``.
    """
    documents = head.decode(head.encode(corpus))
    scores = evaluate_retrieval(documents, head.queries(queries), qrels, METRICS, own_document)
    means = {metric: float(values.mean()) for metric, values in scores.items()}
    return Row(method=f"{method} {head.precision}", dim=head.dim, bytes_per_vector=head.bytes, metrics=means)

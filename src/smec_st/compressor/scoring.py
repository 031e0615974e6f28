"""Score a compressor at each of its sizes, next to the original vectors, truncation and PCA."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING

from smec_st.compressor.space import check_space
from smec_st.data import Collection, Qrels
from smec_st.evaluation import untrained
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.report import Row
from smec_st.evaluation.sweep import METRICS, sweep

if TYPE_CHECKING:
    from smec_st.compressor.compressor import Compressor
    from smec_st.hub.evidence import Evidence
    from smec_st.quantization.head import Head

LIBRARIES = ("smec-st", "numpy", "torch", "transformers", "sentence-transformers")


def score_compressor(compressor: Compressor, collection: Collection, split: str = "test") -> list[Row]:
    """Score a compressor: its sizes as float32, and the codes that were chosen for a number of bytes.

    Args:
        compressor: The compressor to score.
        collection: Corpus, queries and judgements.
        split: Which judgements to score against.

    Returns:
        Rows of the original vectors, truncation, PCA and the compressor, then of its codes.

    Raises:
        DataError: If the vectors are of another space than the compressor's, or there is no such split.
    """
    qrels = collection.judged(split)
    rows = _score_sizes(compressor, collection, qrels, intervals=False)
    heads = [head for head in compressor.heads if "for_bytes" in head.info]
    return rows + [_score_codes(_name_of(compressor), head, collection, qrels) for head in heads]


def measure(compressor: Compressor, collection: Collection, split: str = "test") -> Evidence:
    """Score a compressor for its model card: rows with 95 % intervals of the difference to the original vectors.

    Args:
        compressor: The compressor to score.
        collection: Corpus, queries and judgements.
        split: Which judgements to score against.

    Raises:
        DataError: If the vectors are of another space than the compressor's, or there is no such split.
    """
    from smec_st.hub.evidence import Evidence

    qrels = collection.judged(split)
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return Evidence(
        rows=_score_sizes(compressor, collection, qrels, intervals=True),
        collection=collection.name,
        split=split,
        queries=len(qrels.query_rows),
        documents=len(collection.corpus),
        versions={"python": platform.python_version(), **versions},
    )


def _score_codes(method: str, head: Head, collection: Collection, qrels: Qrels) -> Row:
    """Score the search of float queries over documents that a head has stored."""
    documents = head.decode(head.encode(collection.corpus))
    queries = head.queries(collection.queries)
    scores = evaluate_retrieval(documents, queries, qrels, METRICS, collection.own_document)
    means = {metric: float(values.mean()) for metric, values in scores.items()}
    return Row(method=f"{method} {head.precision}", dim=head.dim, bytes_per_vector=head.bytes, metrics=means)


def _name_of(compressor: Compressor) -> str:
    """Return the name of a compressor's rows, which is its method."""
    return str(compressor.info.get("method", "compressor"))


def _score_sizes(compressor: Compressor, collection: Collection, qrels: Qrels, intervals: bool) -> list[Row]:
    """Score the original vectors, truncation, PCA and the compressor at the compressor's sizes."""
    check_space(compressor, collection.corpus.shape[1], collection.backbone, collection.name)
    name = _name_of(compressor)
    methods: dict[str, untrained.Transform] = {
        "original": untrained.with_lengths if collection.similarity == "dot" else untrained.original,
        "truncate": untrained.truncate,
        "pca": untrained.pca(collection.corpus),
    }
    own_intervals = [name] if intervals and name not in methods else []
    methods[name] = compressor.transform
    return sweep(
        collection.corpus,
        collection.queries,
        qrels,
        methods,
        compressor.dims,
        own_document=collection.own_document,
        intervals=own_intervals,
    )

"""Judge a stage on held-out queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from smec_st.data import Qrels, Table, places_among, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval


class HeldOutEvaluator:
    """nDCG@10 of a compressor model on cached vectors.

    Args:
        table: Vectors by row id. A query's own document stays out of its ranking.
        qrels: Judgements of held-out queries.
        max_corpus: Score against all relevant documents and at most this many others, drawn once.
    """

    def __init__(self, table: Table, qrels: Qrels, max_corpus: int = 200_000) -> None:
        rows = np.arange(table.corpus_size)
        if table.corpus_size > max_corpus:
            drawn = np.random.default_rng(0).permutation(table.corpus_size)[:max_corpus]
            rows = np.union1d(drawn, qrels.pairs[:, 1])
        queries = qrels.query_rows
        self._qrels = qrels.renumbered(rows)
        own = table.own(torch.from_numpy(table.query_ids(queries))).numpy()
        self._own = places_among(rows, own)
        self._corpus = table[torch.from_numpy(rows)]
        self._queries = table[torch.from_numpy(table.query_ids(queries))]

    def scores(self, encode: Callable[[np.ndarray], np.ndarray], dims: Sequence[int]) -> np.ndarray:
        """nDCG@10 of each held-out query at each size, ``(q, sizes)``.

        Args:
            encode: Maps rows, ``(n, D)``, to rows whose first ``m`` numbers are the ``m``-dimensional vector.
            dims: Sizes.
        """
        corpus, queries = encode(self._corpus.numpy()), encode(self._queries.numpy())
        found = [
            evaluate_retrieval(
                unit_rows(corpus[:, :dim]), unit_rows(queries[:, :dim]), self._qrels, ("ndcg@10",), self._own
            )["ndcg@10"]
            for dim in dims
        ]
        return np.stack(found, axis=1)

    @torch.no_grad()
    def per_query(self, model: SentenceTransformer, dims: Sequence[int]) -> np.ndarray:
        """The same of a model's current output."""
        was_training = model.training
        model.eval()

        def encode(rows: np.ndarray) -> np.ndarray:
            features = {"sentence_embedding": torch.from_numpy(rows).to(model.device)}
            embedding: np.ndarray = model(features)["sentence_embedding"].float().cpu().numpy()
            return embedding

        found = self.scores(encode, dims)
        model.train(was_training)
        return found

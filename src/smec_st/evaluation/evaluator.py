"""The evaluator that judges a stage on held-out queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from smec_st.data import Qrels, VectorTable, unit_rows
from smec_st.metrics import evaluate_retrieval


class HeldOutEvaluator(BaseEvaluator):
    """nDCG@10 of a compressor model on cached vectors.

    Args:
        table: Vectors by row id. A query's own document stays out of its ranking.
        qrels: Judgements of held-out queries.
        name: Prefix of the metric.
        max_corpus: Score against all relevant documents and at most this many others, drawn once.
        seed: Seeds that draw.
    """

    def __init__(
        self, table: VectorTable, qrels: Qrels, name: str = "held_out", max_corpus: int = 200_000, seed: int = 0
    ) -> None:
        super().__init__()
        self.name = name
        self.primary_metric = f"{name}_ndcg@10"
        rows = np.arange(table.corpus_size)
        if table.corpus_size > max_corpus:
            drawn = np.random.default_rng(seed).permutation(table.corpus_size)[:max_corpus]
            rows = np.union1d(drawn, qrels.pairs[:, 1])
        queries = qrels.query_rows
        self._qrels = Qrels(
            np.searchsorted(queries, qrels.pairs[:, 0]),
            np.searchsorted(rows, qrels.pairs[:, 1]),
            qrels.grades[qrels.grades > 0],
        )
        own = table.own(torch.from_numpy(table.query_ids(queries))).numpy()
        at = np.searchsorted(rows, own)
        self._own = np.where(np.isin(own, rows), at, -1)
        self._corpus = table[torch.from_numpy(rows)]
        self._queries = table[torch.from_numpy(table.query_ids(queries))]

    def score(self, model: SentenceTransformer) -> float:
        """Mean nDCG@10 with the model's current output."""
        return float(self.per_query(model).mean())

    @torch.no_grad()
    def per_query(self, model: SentenceTransformer) -> np.ndarray:
        """nDCG@10 of each held-out query, ``(q,)``, with the model's current output."""
        was_training = model.training
        model.eval()
        corpus, queries = (
            unit_rows(model({"sentence_embedding": x.to(model.device)})["sentence_embedding"].float().cpu().numpy())
            for x in (self._corpus, self._queries)
        )
        model.train(was_training)
        return evaluate_retrieval(corpus, queries, self._qrels, ("ndcg@10",), self._own)["ndcg@10"]

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,
        epoch: int = -1,
        steps: int = -1,
        **kwargs: Any,
    ) -> dict[str, float]:
        """``{primary_metric: score}``."""
        return {self.primary_metric: self.score(model)}

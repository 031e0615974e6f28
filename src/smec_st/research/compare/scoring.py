"""Score encoders: retrieval on the judged queries, and distances that need no judgements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smec_st.data import Collection, DataError, Qrels, unit_rows
from smec_st.evaluation.metrics import PerQuery, neighbour_overlap, score_rankings, search_others
from smec_st.evaluation.sweep import METRICS
from smec_st.research.baselines import Encoder, Size

OVERLAP = "overlap@10"
DISTANCES = ("topk_distance", "pair_distance", "document_overlap@10")

DEPTH, NEIGHBORS = 100, 10
SAMPLED_DOCUMENTS = 1000


def test_split(collection: Collection) -> str:
    """Return the split that methods are scored on: test, or dev if there is no test split."""
    for split in ("test", "dev"):
        if split in collection.qrels:
            return split
    raise DataError(f"{collection.name} has neither a test nor a dev split to score on.")


@dataclass(frozen=True)
class Yardstick:
    """The judged queries and a sample of the documents of a collection, with their neighbors at full width.

    Attributes:
        corpus: Document vectors, ``(N, D)`` float32, unit norm.
        queries: Vectors of the judged queries, ``(Q, D)`` float32, unit norm.
        qrels: Judgements of these queries, which are numbered from 0.
        own: Each query's own document, which is left out of its ranking; -1 for none, ``(Q,)``.
        nearest: Each query's nearest documents at full width, ``(Q, 10)``.
        sample: Rows of the sampled documents, ``(S,)``.
        neighbors: Nearest other documents of each sampled one at full width, ``(S, 10)``.
        partners: Random other documents for each sampled one, ``(S, 10)``.
    """

    corpus: np.ndarray
    queries: np.ndarray
    qrels: Qrels
    own: np.ndarray
    nearest: np.ndarray
    sample: np.ndarray
    neighbors: np.ndarray
    partners: np.ndarray

    @classmethod
    def of(cls, collection: Collection) -> Yardstick:
        """Prepare the :func:`test_split` of a collection."""
        judged = collection.judged(test_split(collection))
        rows = judged.query_rows
        if len(collection.corpus) < 2:
            raise DataError(f"{collection.name} has one document; there is nothing to rank.")
        own = collection.own_document[rows]
        corpus, queries = unit_rows(collection.corpus), unit_rows(collection.queries[rows])
        rng = np.random.default_rng(0)  # all methods and seeds share one sample
        sample = np.sort(rng.permutation(len(corpus))[:SAMPLED_DOCUMENTS])
        return cls(
            corpus=corpus,
            queries=queries,
            qrels=judged.renumbered(),
            own=own,
            nearest=search_others(corpus, queries, NEIGHBORS, own),
            sample=sample,
            neighbors=_neighbors(corpus, corpus[sample], sample),
            partners=(sample[:, None] + rng.integers(1, len(corpus), (len(sample), NEIGHBORS))) % len(corpus),
        )

    def measure(self, encoder: Encoder, size: Size) -> tuple[PerQuery, dict[str, float]]:
        """Score an encoder at one of its sizes.

        Returns:
            Values per query of :data:`METRICS` and of :data:`OVERLAP`, the share of the nearest documents at full
            width that are found again; and the :data:`DISTANCES`. For these each sampled document is encoded as a
            query: the mean absolute change of its cosine to its ten nearest documents (Matryoshka-Adaptor, Eq. 2) and
            to random ones (Eq. 1), and the share of the ten nearest that are found again.
        """
        documents = encoder.documents(self.corpus, size)
        queries, sampled = (encoder.queries(rows, size) for rows in (self.queries, self.corpus[self.sample]))
        ranked = search_others(documents, queries, DEPTH, self.own)
        scores = score_rankings((np.arange(len(queries)), ranked), self.qrels, METRICS)
        found = _neighbors(documents, sampled, self.sample)
        documents, sampled = unit_rows(documents), unit_rows(sampled)
        return {**scores, OVERLAP: neighbour_overlap(ranked[:, :NEIGHBORS], self.nearest)}, {
            "topk_distance": self._change(documents, sampled, self.neighbors),
            "pair_distance": self._change(documents, sampled, self.partners),
            "document_overlap@10": float(neighbour_overlap(found, self.neighbors).mean()),
        }

    def _change(self, documents: np.ndarray, sampled: np.ndarray, others: np.ndarray) -> float:
        """Return the mean absolute change of the cosines between the sampled documents and ``others``."""
        before = np.einsum("sd,skd->sk", self.corpus[self.sample], self.corpus[others])
        after = np.einsum("sd,skd->sk", sampled, documents[others])
        return float(np.abs(before - after).mean())


def _neighbors(corpus: np.ndarray, sampled: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the ten other documents nearest to each sampled one, ``(S, 10)``; fewer if the corpus is smaller."""
    return search_others(corpus, sampled, min(NEIGHBORS, len(corpus) - 1), sample)

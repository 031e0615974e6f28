"""What an encoder is measured by: retrieval on the judged queries, and distances that need no judgements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smec_st.baselines import Encoder, Size
from smec_st.data import Collection, DataError, Qrels, unit_rows
from smec_st.metrics import PerQuery, exact_search, leave_out, neighbour_overlap, score_rankings

METRICS = ("ndcg@10", "recall@100", "mrr@10")
OVERLAP = "overlap@10"
DISTANCES = ("topk_distance", "pair_distance", "document_overlap@10")

DEPTH, NEIGHBORS = 100, 10
SAMPLE = 1000


def test_split(collection: Collection) -> str:
    """The split that methods are scored on: test, or dev where there is no test."""
    for split in ("test", "dev"):
        if split in collection.qrels:
            return split
    raise DataError(f"{collection.name} has neither a test nor a dev split to score on.")


@dataclass(frozen=True)
class Yardstick:
    """A collection's judged queries and a sample of its documents, with their neighbors at full width.

    Attributes:
        corpus: ``(N, D)`` float32, unit norm.
        queries: The judged queries, likewise, ``(Q, D)``.
        qrels: Judgements of these, queries counted from 0.
        own: Each query's own document, which does not count as found; -1 for none, ``(Q,)``.
        nearest: Each query's nearest documents at full width, ``(Q, 10)``.
        sample: Rows of the sampled documents, ``(S,)``.
        neighbors: Their nearest other documents at full width, ``(S, 10)``.
        partners: As many documents drawn at random for each, ``(S, 10)``.
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
        """Measure on :func:`test_split`."""
        judged = collection.judged(test_split(collection))
        rows = judged.query_rows
        if len(collection.corpus) < 2:
            raise DataError(f"{collection.name} has one document; there is nothing to rank.")
        own = collection.own_document[rows]
        corpus, queries = unit_rows(collection.corpus), unit_rows(collection.queries[rows])
        rng = np.random.default_rng(0)  # one sample for all methods and seeds
        sample = np.sort(rng.permutation(len(corpus))[:SAMPLE])
        return cls(
            corpus=corpus,
            queries=queries,
            qrels=judged.renumbered(),
            own=own,
            nearest=_search(corpus, queries, NEIGHBORS, own),
            sample=sample,
            neighbors=_neighbors(corpus, corpus[sample], sample),
            partners=(sample[:, None] + rng.integers(1, len(corpus), (len(sample), NEIGHBORS))) % len(corpus),
        )

    def measure(self, encoder: Encoder, size: Size) -> tuple[PerQuery, dict[str, float]]:
        """Score an encoder at one of its sizes.

        Returns:
            :data:`METRICS` and :data:`OVERLAP`, the share of the original's neighbors found again, per query; and
            :data:`DISTANCES`, how far the geometry of the sampled documents moved, each asking as a query would:
            the mean absolute change of cosine to the ten nearest (Matryoshka-Adaptor, Eq. 2) and to random documents
            (Eq. 1), and the share of the ten found again.
        """
        documents = encoder.documents(self.corpus, size)
        queries, asking = (encoder.queries(rows, size) for rows in (self.queries, self.corpus[self.sample]))
        ranked = _search(documents, queries, DEPTH, self.own)
        scores = score_rankings((np.arange(len(queries)), ranked), self.qrels, METRICS)
        found = _neighbors(documents, asking, self.sample)
        documents, asking = unit_rows(documents), unit_rows(asking)
        return {**scores, OVERLAP: neighbour_overlap(ranked[:, :NEIGHBORS], self.nearest)}, {
            "topk_distance": self._change(documents, asking, self.neighbors),
            "pair_distance": self._change(documents, asking, self.partners),
            "document_overlap@10": float(neighbour_overlap(found, self.neighbors).mean()),
        }

    def _change(self, documents: np.ndarray, asking: np.ndarray, others: np.ndarray) -> float:
        before = np.einsum("sd,skd->sk", self.corpus[self.sample], self.corpus[others])
        after = np.einsum("sd,skd->sk", asking, documents[others])
        return float(np.abs(before - after).mean())


def _search(corpus: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray) -> np.ndarray:
    """The ``k`` documents of highest inner product other than a query's own, ``(Q, k)``; -1 where there are fewer."""
    return leave_out(exact_search(corpus, queries, k + 1)[0], own)[:, :k]


def _neighbors(corpus: np.ndarray, asking: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """The ten documents nearest to each sampled one, itself left out; fewer in a smaller corpus, ``(S, 10)``."""
    return _search(corpus, asking, min(NEIGHBORS, len(corpus) - 1), sample)

"""Measure every way in which a compressor can store documents, query by query."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from smec_st.compressor import Compressor
from smec_st.compressor.space import check_space
from smec_st.data import Collection, Qrels, unit_rows
from smec_st.evaluation import untrained
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.statistics import Interval, paired_interval
from smec_st.evaluation.sweep import METRICS
from smec_st.quantization.codecs import PRECISIONS
from smec_st.quantization.head import Head

OURS = "compressed"
SHOWN_QUERIES = 5  # that lost most, and as many that won most
TOP, SHOWN_RELEVANT = 10, 10

Sides = Callable[[], tuple[np.ndarray, np.ndarray]]  # unit vectors of documents (N, d) and of judged queries (q, d)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A document in the ranking of a query.

    Attributes:
        document: Row of the document.
        grade: Its grade; 0 if it is not relevant.
        before: Its rank by the original vectors, from 1.
        after: Its rank by the compressed vectors, from 1.
    """

    document: int
    grade: float
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """What compression does to one query.

    Attributes:
        query: Row of the query.
        before: nDCG@10 of the original vectors.
        after: nDCG@10 of the compressed vectors.
        top_before: The first ten documents of the original vectors.
        top_after: The first ten documents of the compressed vectors.
        relevant: The relevant documents with the best ranks before or after, at most :data:`SHOWN_RELEVANT`.
        relevant_count: Number of relevant documents.
    """

    query: int
    before: float
    after: float
    top_before: tuple[Hit, ...]
    top_after: tuple[Hit, ...]
    relevant: tuple[Hit, ...]
    relevant_count: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to store documents, with its scores.

    Attributes:
        method: "original", "truncate", "pca", or :data:`OURS`.
        precision: "float32", "float16", "int8", "binary" or "pq".
        dim: Dimensions per vector.
        bytes: Bytes per document.
        metrics: Means over the judged queries, in [0, 1].
        interval: Mean difference of nDCG@10 to the original vectors, with its paired 95 % interval.
        lost: Number of queries whose nDCG@10 is lower than that of the original vectors.
        won: Number of queries whose nDCG@10 is higher.
        losses: The queries that lost most, the worst first; only for variants on the frontier.
        wins: The queries that won most, the best first; likewise.
    """

    method: str
    precision: str
    dim: int
    bytes: int
    metrics: dict[str, float]
    interval: Interval
    lost: int = 0
    won: int = 0
    losses: tuple[Change, ...] = ()
    wins: tuple[Change, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All variants on one split of a collection.

    Attributes:
        variants: The original vectors first, then truncation, PCA and the compressor's own.
        frontier: Positions in ``variants``: the best of the compressor's own within each number of bytes, ascending.
        queries: Number of judged queries.
        documents: Number of documents.
    """

    variants: tuple[Variant, ...]
    frontier: tuple[int, ...]
    queries: int
    documents: int

    @property
    def original(self) -> Variant:
        """The vectors as they were."""
        return self.variants[0]


def measure_variants(
    compressor: Compressor, collection: Collection, split: str = "test", progress: bool = False
) -> Measured:
    """Score every size and code of a compressor, and find the queries that each of the best ones changes most.

    Args:
        compressor: The compressor to measure.
        collection: Corpus, queries and judgements.
        split: Which judgements to score against.
        progress: Show a progress bar.

    Raises:
        DataError: If the vectors are of another embedding space than the compressor's, or there is no such split.
    """
    qrels = collection.judged(split)
    check_space(compressor, collection.corpus.shape[1], collection.backbone, collection.name)
    judged, own = qrels.query_rows, collection.own_document[qrels.query_rows]
    local = qrels.renumbered()
    plan = list(_variants(compressor, collection.corpus, collection.queries[judged]))
    variants: list[Variant] = []
    scores: list[np.ndarray] = []
    for variant, sides in tqdm(plan, desc="measuring", leave=False, disable=not progress):
        found = evaluate_retrieval(*sides(), local, METRICS, own)
        scores.append(found[METRICS[0]])
        variants.append(
            dataclasses.replace(
                variant,
                metrics={metric: float(values.mean()) for metric, values in found.items()},
                interval=paired_interval(scores[-1], scores[0]) if variants else variant.interval,
                lost=int((scores[-1] < scores[0]).sum()),
                won=int((scores[-1] > scores[0]).sum()),
            )
        )
    frontier = _frontier(variants)
    original = plan[0][1]()
    for place in tqdm(frontier, desc="rankings", leave=False, disable=not progress):
        changed = _Changes(qrels, own, original, plan[place][1](), scores[0], scores[place])
        gain = scores[place] - scores[0]
        variants[place] = dataclasses.replace(variants[place], losses=changed.least(gain), wins=changed.least(-gain))
    return Measured(
        variants=tuple(variants), frontier=tuple(frontier), queries=len(judged), documents=len(collection.corpus)
    )


def _variants(compressor: Compressor, corpus: np.ndarray, queries: np.ndarray) -> Iterator[tuple[Variant, Sides]]:
    """Every variant, not yet scored, with what computes its vectors; the original vectors come first."""

    def untrained_sides(transform: untrained.Transform, dim: int) -> Sides:
        return lambda: (transform(corpus, dim), transform(queries, dim))

    def head_sides(head: Head) -> Sides:
        return lambda: (head.decode(head.encode(corpus)), head.queries(queries))

    def variant(method: str, precision: str, dim: int, size: int) -> Variant:
        nothing = Interval(0.0, 0.0, 0.0)
        return Variant(method=method, precision=precision, dim=dim, bytes=size, metrics={}, interval=nothing)

    width = corpus.shape[1]
    yield variant("original", "float32", width, 4 * width), lambda: (unit_rows(corpus), unit_rows(queries))
    for name, transform in (("truncate", untrained.truncate), ("pca", untrained.pca(corpus))):
        for dim in compressor.dims:
            yield variant(name, "float32", dim, 4 * dim), untrained_sides(transform, dim)
    plain = [compressor.head(dim, precision) for precision in ("float32", "float16") for dim in compressor.dims]
    codes = sorted(compressor.heads, key=lambda head: (PRECISIONS.index(head.precision), -head.dim))
    for head in (*plain, *codes):
        yield variant(OURS, head.precision, head.dim, head.bytes), head_sides(head)


def _frontier(variants: list[Variant]) -> list[int]:
    """Positions of the compressor's own variants that are better than all smaller ones, by bytes ascending."""
    own = [place for place, variant in enumerate(variants) if variant.method == OURS]
    best, kept = -1.0, []
    for place in sorted(own, key=lambda place: (variants[place].bytes, -variants[place].metrics[METRICS[0]])):
        if variants[place].metrics[METRICS[0]] > best:
            best = variants[place].metrics[METRICS[0]]
            kept.append(place)
    return kept


@dataclass(frozen=True)
class _Changes:
    """The queries that a variant changes, with their rankings before and after.

    Attributes:
        qrels: Judgements.
        own: Document to leave out of each judged query's ranking, -1 for none, ``(q,)``.
        original: Original vectors of documents and judged queries.
        compressed: Compressed vectors of both.
        before: nDCG@10 of the original vectors, ``(q,)``.
        after: nDCG@10 of the compressed vectors, ``(q,)``.
    """

    qrels: Qrels
    own: np.ndarray
    original: tuple[np.ndarray, np.ndarray]
    compressed: tuple[np.ndarray, np.ndarray]
    before: np.ndarray
    after: np.ndarray

    def least(self, gain: np.ndarray) -> tuple[Change, ...]:
        """The queries of the least gain, ``(q,)``, as far as it is below 0."""
        order = np.argsort(gain, kind="stable")
        return tuple(self._change(place) for place in order[:SHOWN_QUERIES] if gain[place] < 0)

    def _change(self, place: int) -> Change:
        query = int(self.qrels.query_rows[place])
        grades = self.qrels.of_queries([query]).relevant_by_query()[query]
        before, after = (self._ranking(place, sides) for sides in (self.original, self.compressed))
        rank_before, rank_after = _ranks(before), _ranks(after)

        def hits(documents: np.ndarray) -> tuple[Hit, ...]:
            return tuple(
                Hit(
                    document=document,
                    grade=float(grades.get(document, 0)),
                    before=int(rank_before[document]),
                    after=int(rank_after[document]),
                )
                for document in documents.tolist()
            )

        relevant = np.array(sorted(grades))
        nearest = np.argsort(np.minimum(rank_before[relevant], rank_after[relevant]), kind="stable")
        return Change(
            query=query,
            before=float(self.before[place]),
            after=float(self.after[place]),
            top_before=hits(before[:TOP]),
            top_after=hits(after[:TOP]),
            relevant=hits(relevant[nearest[:SHOWN_RELEVANT]]),
            relevant_count=len(relevant),
        )

    def _ranking(self, place: int, sides: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """All documents but the query's own, by descending score, ``(N,)`` or ``(N - 1,)``."""
        documents, queries = sides
        ranked: np.ndarray = np.argsort(-(documents @ queries[place]), kind="stable")
        return np.asarray(ranked[ranked != self.own[place]])


def _ranks(ranking: np.ndarray) -> np.ndarray:
    """The rank of every document, from 1; 0 for one that is left out."""
    ranks = np.zeros(int(ranking.max()) + 2, dtype=np.int64)
    ranks[ranking] = np.arange(1, len(ranking) + 1)
    return ranks

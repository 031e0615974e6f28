"""The fewest bytes that keep a share of the original's quality, and what a way to store documents costs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from smec_st.data import Collection, DataError, Qrels
from smec_st.data.qrels import MIN_HELD_OUT
from smec_st.evaluation import untrained
from smec_st.evaluation.limits import Limit, Pair
from smec_st.evaluation.metrics import evaluate_retrieval, neighbour_overlap, search_others
from smec_st.evaluation.report import METRIC, label_of
from smec_st.evaluation.statistics import paired_interval
from smec_st.system.errors import count

NEIGHBORS, ASKING = 10, 500
FORM = re.compile(r"(?P<metric>(ndcg|recall|mrr)@[1-9]\d*)\s*>=\s*(?P<share>\d*\.?\d+)\s*(?:\*\s*)?original")


@dataclass(frozen=True)
class Target:
    """The smallest acceptable mean of a metric, as a share of the original's.

    Attributes:
        metric: ``ndcg@k``, ``recall@k`` or ``mrr@k``.
        share: Share of the original's mean; 1 for lossless.
    """

    metric: str = "ndcg@10"
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target such as ``"lossless"`` or ``"ndcg@10 >= 0.99 original"``."""
        given = text.strip() if isinstance(text, str) else ""
        if given == "lossless":
            return cls()
        found = FORM.fullmatch(given)
        if found is None or not 0 < float(found["share"]) < math.inf:
            raise DataError(
                f"a target is 'lossless', or ndcg, recall or mrr as in 'ndcg@10 >= 0.99 original'; got {text!r}."
            )
        return cls(found["metric"], float(found["share"]))

    def __str__(self) -> str:
        return f"{self.metric} >= {self.share:g} original"


@dataclass(frozen=True)
class SizeTest:
    """The test of one way to store documents against the target.

    Attributes:
        dim: The size.
        precision: What its numbers are stored as.
        bytes: Bytes per document.
        score: Mean of the metric, with float queries.
        wanted: The original's mean, times the share.
        low: Lower end of the 95 % interval, over queries, of the mean of ``score - wanted``.
        holds: Whether ``low`` is at least 0.
    """

    dim: int
    precision: str
    bytes: int
    score: float
    wanted: float
    low: float
    holds: bool

    def __str__(self) -> str:
        what = f"{self.dim} dims" if self.precision == "float32" else count(self.bytes, "byte")
        verdict = "holds" if self.holds else "does not hold"
        wanted = f"wanted {self.wanted:.3f}, the difference is at least {self.low:+.3f}"
        return f"{what}: {self.score:.3f}, {wanted}: {verdict}"


@dataclass(frozen=True)
class Choice:
    """The size, and the number of bytes, that were chosen for a target.

    Attributes:
        target: The target.
        queries: Number of held-out queries.
        tests: Tests of sizes in descending order, up to and including the first that fails; then the same of codes.
        dim: The smallest size that holds; None when none does.
        bytes: The fewest bytes of codes that hold; None when none do.
    """

    target: Target
    queries: int
    tests: tuple[SizeTest, ...]
    dim: int | None
    bytes: int | None = None

    @property
    def smallest(self) -> SizeTest | None:
        """The test with the fewest bytes that holds, over sizes and precisions; None when none does."""
        return min((test for test in self.tests if test.holds), key=lambda test: test.bytes, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        tests = [asdict(test) for test in self.tests]
        return {**asdict(self), "target": str(self.target), "tests": tests, "sentence": str(self)}

    def __str__(self) -> str:
        smallest = self.smallest
        judged = f"Judged by {count(self.queries, 'held-out query', 'held-out queries')}."
        if self.queries < MIN_HELD_OUT:
            judged += f" Fewer than {MIN_HELD_OUT} queries are too few to rely on this; judge more of them."
        if smallest is None:
            best = max(self.tests, key=lambda test: test.low)
            return f"no size holds {self.target}: {self._kept(best)}. {judged}"
        tested = any(test.precision == "float32" for test in self.tests)
        floats = "as float32 no size holds" if tested else "as float32 no size fits"
        if self.dim is not None:
            floats = f"as float32 {self.dim} dims is the smallest size that holds ({4 * self.dim:,} bytes)"
        return f"{self._kept(smallest)}; {floats}. {judged}"

    def _kept(self, test: SizeTest) -> str:
        """A test in words. The lower end is the share of the original's mean, as if that were known exactly."""
        original = test.wanted / self.target.share
        kept, low = _percent(test.score / original), _percent(self.target.share + test.low / original)
        pair = Pair(test.dim, test.precision, test.bytes)
        what, metric = f"{count(test.bytes, 'byte')} ({pair})", label_of(self.target.metric)
        return f"{what} keep{'s' * (test.bytes == 1)} {kept} of {metric} (95 % sure: at least {low})"


@dataclass(frozen=True)
class Cost:
    """What a way to store documents costs, beside the original vectors.

    Attributes:
        dim: Numbers.
        precision: What the numbers are stored as.
        bytes: Bytes per document.
        original_bytes: Bytes of an original vector as float32.
        measure: The metric; or "kept neighbours", the share of the ten nearest that are the same, without judgements.
        score: Its mean, with float queries.
        original: The same of the original vectors.
        low: Lower end of the 95 % interval, over queries, of the mean of ``score - original``.
        high: Upper end.
        queries: Number of queries.
    """

    dim: int
    precision: str
    bytes: int
    original_bytes: int
    measure: str
    score: float
    original: float
    low: float
    high: float
    queries: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)

    @property
    def pair(self) -> Pair:
        """Size, precision and bytes."""
        return Pair(self.dim, self.precision, self.bytes)

    def __str__(self) -> str:
        sizes = f"{self.pair}, {count(self.bytes, 'byte')} instead of {self.original_bytes:,}"
        quality = f"{label_of(self.measure)} {self.score:.3f} instead of {self.original:.3f}"
        change = f"{self.score - self.original:+.3f}, 95 % sure: {self.low:+.3f} to {self.high:+.3f}"
        return f"{sizes}; {quality} ({change}), by {self.queries:,} queries"


def _percent(share: float) -> str:
    """Rounded down, so that what misses a target does not seem to reach it."""
    return f"{math.floor(1000 * share + 1e-9) / 10:g} %"


def hold_out_for_test(train: Qrels | None, dev: Qrels | None) -> tuple[Qrels | None, Qrels]:
    """Return the judgements that may train, and those that test a target, which nothing of a fit may see.

    The dev queries test. Where there are none, a fifth of the training queries does, and at least
    :data:`~smec_st.data.qrels.MIN_HELD_OUT` of them.

    Raises:
        DataError: If too few queries are judged.
    """
    if dev is not None:
        return train, dev
    rest, kept = (None, None) if train is None else train.hold_out(0.2, seed=0)
    if kept is None:
        has = count(0 if train is None else len(train.query_rows), "judged training query", "judged training queries")
        raise DataError(
            f"a target is tested on the judged queries of a dev split, or on a fifth of at least {2 * MIN_HELD_OUT} "
            f"judged training queries; there is no dev split, and {has}."
        )
    return rest, kept


class Stored(Protocol):
    """A way to store documents in few bytes, as :class:`~smec_st.quantization.head.Head` is."""

    @property
    def info(self) -> Mapping[str, Any]:
        """How it was made; what was chosen for a number of bytes says ``for_bytes``."""

    @property
    def dim(self) -> int:
        """Numbers that a document stands for."""

    @property
    def precision(self) -> str:
        """What they are stored as."""

    @property
    def bytes(self) -> int:
        """Bytes per document."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Encode documents."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode them to vectors of length 1."""

    def queries(self, vectors: np.ndarray) -> np.ndarray:
        """Map queries, which stay floats."""


class Sizes(Protocol):
    """What a compressor offers to the choice: its sizes with vectors of each, and its ways to store documents."""

    @property
    def heads(self) -> Sequence[Stored]:
        """Ways to store documents, each a :class:`Stored`."""

    @property
    def dims(self) -> tuple[int, ...]:
        """All sizes, in descending order."""

    def transform(self, vectors: np.ndarray, dim: int | None = None) -> np.ndarray:
        """Compress vectors, ``(n, D)``, to one size, ``(n, dim)``."""


def choose_size(
    target: Target,
    compressor: Sizes,
    collection: Collection,
    held_out: Qrels,
    limit: Limit | None = None,
) -> Choice:
    """Test sizes from the widest down, and stop at the first that does not hold; then codes of chosen bytes likewise.

    The order is fixed in advance, so the probability of choosing a size that does not hold is at most that of a single
    test, whatever the number of sizes (fixed-sequence testing, Maurer et al., 1995). The same is true of the codes.
    One test errs to this side with a probability of 2.5 %, so the smaller of both answers holds with 95 %.

    Args:
        target: The target.
        compressor: A compressor that was fitted without the held-out queries.
        collection: The collection of the held-out queries.
        held_out: Judgements of the held-out queries.
        limit: What may be tested at all.

    Raises:
        DataError: If the original vectors find nothing, or the limit allows nothing.
    """
    limit = limit or Limit()
    original = _original(collection, held_out, target.metric)
    if not original.any():
        raise DataError(f"the original vectors have a {target.metric} of 0: there is no quality to keep.")

    def until_one_fails(stored: Iterable[tuple[Pair, np.ndarray, np.ndarray]]) -> Iterator[SizeTest]:
        for pair, documents, queries in stored:
            scores = _values(collection, held_out, target.metric, documents, queries)
            low = paired_interval(scores, target.share * original).low
            wanted = target.share * float(original.mean())
            yield SizeTest(pair.dim, pair.precision, pair.bytes, float(scores.mean()), wanted, low, low >= 0)
            if low < 0:
                return

    corpus, queries = collection.corpus, collection.queries
    sizes = [pair for dim in compressor.dims if limit.allows(pair := Pair(dim, "float32", 4 * dim))]
    floats = list(
        until_one_fails(
            (pair, compressor.transform(corpus, pair.dim), compressor.transform(queries, pair.dim)) for pair in sizes
        )
    )
    chosen: list[Stored] = [
        head for head in compressor.heads if "for_bytes" in head.info and limit.allows(_pair(head))
    ]
    codes = list(
        until_one_fails(
            (_pair(head), head.decode(head.encode(corpus)), head.queries(queries))
            for head in sorted(chosen, key=lambda head: -head.bytes)
        )
    )
    if not floats and not codes:
        raise DataError(f"no size of this compressor fits {limit}.")
    return Choice(
        target,
        len(original),
        (*floats, *codes),
        min((test.dim for test in floats if test.holds), default=None),
        min((test.bytes for test in codes if test.holds), default=None),
    )


def measure_cost(head: Stored, collection: Collection, qrels: Qrels | None = None) -> Cost:
    """Measure what a way to store documents costs in quality and bytes, beside the original vectors.

    Args:
        head: Encodes documents and maps queries, for instance ``compressor.heads[-1]``.
        collection: Corpus and queries.
        qrels: Judgements of queries that have neither trained nor chosen the head. None to count, for at most
            :data:`ASKING` queries, or documents where there are none, how many of the ten nearest are still the same.
    """
    stored = head.decode(head.encode(collection.corpus))
    if qrels is not None:
        measure, asked = METRIC, head.queries(collection.queries)
        scores, before = _values(collection, qrels, measure, stored, asked), _original(collection, qrels, measure)
    else:
        measure, scores = "kept neighbours", _kept_neighbours(head, stored, collection)
        before = np.ones_like(scores)
    interval = paired_interval(scores, before)
    return Cost(
        *_pair(head),
        4 * collection.corpus.shape[1],
        measure,
        float(scores.mean()),
        float(before.mean()),
        interval.low,
        interval.high,
        len(scores),
    )


def _pair(head: Stored) -> Pair:
    return Pair(head.dim, head.precision, head.bytes)


def _values(
    collection: Collection, qrels: Qrels, metric: str, documents: np.ndarray, queries: np.ndarray
) -> np.ndarray:
    """The metric of each judged query, ``(Q,)``."""
    found = evaluate_retrieval(documents, queries, qrels, (metric,), own_document=collection.own_document)
    return found[metric]


def _original(collection: Collection, qrels: Qrels, metric: str) -> np.ndarray:
    """The same of the original vectors, compared as their model does."""
    return _values(collection, qrels, metric, *_original_sides(collection))


def _original_sides(collection: Collection) -> tuple[np.ndarray, np.ndarray]:
    as_model = untrained.with_lengths if collection.similarity == "dot" else untrained.original
    width = collection.corpus.shape[1]
    return as_model(collection.corpus, width), as_model(collection.queries, width)


def _kept_neighbours(head: Stored, stored: np.ndarray, collection: Collection) -> np.ndarray:
    """Share of the ten nearest that are kept, for each sampled query (document, without queries), ``(A,)``."""
    documents, queries = _original_sides(collection)
    if len(queries):
        vectors, before, own = collection.queries, queries, collection.own_document
    else:
        vectors, before, own = collection.corpus, documents, np.arange(len(documents))
    some = np.random.default_rng(0).permutation(len(vectors))[:ASKING]
    found = search_others(stored, head.queries(vectors[some]), NEIGHBORS, own[some])
    return neighbour_overlap(found, search_others(documents, before[some], NEIGHBORS, own[some]))

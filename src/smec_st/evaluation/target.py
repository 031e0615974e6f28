"""Choose the smallest size that keeps a share of the original's quality, tested on held-out queries."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from smec_st.data import Collection, DataError, Qrels
from smec_st.evaluation import untrained
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.statistics import paired_interval

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
        if text.strip() == "lossless":
            return cls()
        found = FORM.fullmatch(text.strip())
        if found is None or float(found["share"]) == 0:
            raise DataError(
                f"a target is 'lossless', or ndcg, recall or mrr as in 'ndcg@10 >= 0.99 original'; got {text!r}."
            )
        return cls(found["metric"], float(found["share"]))

    def __str__(self) -> str:
        return f"{self.metric} >= {self.share:g} original"


@dataclass(frozen=True)
class SizeTest:
    """The test of one size against the target.

    Attributes:
        dim: The size.
        score: Mean of the metric at this size.
        wanted: The original's mean, times the share.
        low: Lower end of the 95 % interval, over queries, of the mean of ``score - wanted``.
        holds: Whether ``low`` is at least 0.
    """

    dim: int
    score: float
    wanted: float
    low: float
    holds: bool

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        return f"{self.dim} dims: {self.score:.3f}, wanted {self.wanted:.3f}, at worst {self.low:+.3f}: {verdict}"


@dataclass(frozen=True)
class Choice:
    """The size that was chosen for a target.

    Attributes:
        target: The target.
        queries: Number of held-out queries.
        tests: Tests in descending order of size, up to and including the first that fails.
        dim: The smallest size that holds; None when none does.
    """

    target: Target
    queries: int
    tests: tuple[SizeTest, ...]
    dim: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "target": str(self.target),
            "queries": self.queries,
            "tests": [asdict(test) for test in self.tests],
            "dim": self.dim,
        }

    def __str__(self) -> str:
        found = "no size holds" if self.dim is None else f"{self.dim} dims is the smallest size that holds"
        return f"{self.target}, 95 % confidence, {self.queries} held-out queries: {found}"


class Sizes(Protocol):
    """What a compressor offers to the choice: its sizes, and vectors of each."""

    @property
    def dims(self) -> tuple[int, ...]:
        """All sizes, in descending order."""

    def transform(self, vectors: np.ndarray, dim: int | None = None) -> np.ndarray:
        """Compress vectors, ``(n, D)``, to one size, ``(n, dim)``."""


def choose_size(target: Target, compressor: Sizes, collection: Collection, held_out: Qrels, seed: int = 0) -> Choice:
    """Test sizes from the widest down, and stop at the first that does not hold.

    The order is fixed in advance, so the probability of choosing a size that does not hold is at most that of a single
    test, whatever the number of sizes (fixed-sequence testing, Maurer et al., 1995).

    Args:
        target: The target.
        compressor: A compressor that was fitted without the held-out queries.
        collection: The collection of the held-out queries.
        held_out: Judgements of the held-out queries.
        seed: Random seed of the bootstrap.
    """

    def values(corpus: np.ndarray, queries: np.ndarray) -> np.ndarray:
        scores = evaluate_retrieval(corpus, queries, held_out, (target.metric,), own_document=collection.own_document)
        return scores[target.metric]

    as_model = untrained.with_lengths if collection.similarity == "dot" else untrained.original
    width = collection.corpus.shape[1]
    original = values(as_model(collection.corpus, width), as_model(collection.queries, width))
    tests: list[SizeTest] = []
    for dim in compressor.dims:
        scores = values(compressor.transform(collection.corpus, dim), compressor.transform(collection.queries, dim))
        interval = paired_interval(scores, target.share * original, seed)
        wanted = target.share * float(original.mean())
        tests.append(SizeTest(dim, float(scores.mean()), wanted, interval.low, interval.low >= 0))
        if not tests[-1].holds:
            break
    return Choice(target, len(original), tuple(tests), min((test.dim for test in tests if test.holds), default=None))

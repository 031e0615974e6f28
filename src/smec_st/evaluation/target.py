"""Choose the smallest size that keeps a share of the original's quality, tested on held-out queries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from smec_st.data import Collection, DataError, Qrels
from smec_st.data.qrels import MIN_HELD_OUT
from smec_st.evaluation import untrained
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.statistics import paired_interval
from smec_st.system.errors import count

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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "target": str(self.target),
            "queries": self.queries,
            "tests": [asdict(test) for test in self.tests],
            "dim": self.dim,
            "bytes": self.bytes,
        }

    def __str__(self) -> str:
        found = "no size holds" if self.dim is None else f"{self.dim} dims is the smallest size that holds"
        if self.bytes is not None:
            found += f", {count(self.bytes, 'byte is', 'bytes are')} the fewest"
        if self.queries < MIN_HELD_OUT:
            found += f". Fewer than {MIN_HELD_OUT} queries are too few to rely on this: judge more, or add a dev split"
        return f"{self.target}, 95 % confidence, {count(self.queries, 'held-out query', 'held-out queries')}: {found}"


class Stored(Protocol):
    """A way to store documents in few bytes, as :class:`~smec_st.quantization.head.Head` is."""

    @property
    def info(self) -> Mapping[str, Any]:
        """How the codes were made and scored."""

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


def choose_size(target: Target, compressor: Sizes, collection: Collection, held_out: Qrels, seed: int = 0) -> Choice:
    """Test sizes from the widest down, and stop at the first that does not hold; then codes of chosen bytes likewise.

    The order is fixed in advance, so the probability of choosing a size that does not hold is at most that of a single
    test, whatever the number of sizes (fixed-sequence testing, Maurer et al., 1995). The same is true of the codes.

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

    def until_one_fails(stored: Iterable[tuple[int, str, int, np.ndarray, np.ndarray]]) -> Iterator[SizeTest]:
        for dim, precision, size, documents, queries in stored:
            scores = values(documents, queries)
            low = paired_interval(scores, target.share * original, seed).low
            wanted = target.share * float(original.mean())
            yield SizeTest(dim, precision, size, float(scores.mean()), wanted, low, low >= 0)
            if low < 0:
                return

    corpus, queries = collection.corpus, collection.queries
    floats = list(
        until_one_fails(
            (dim, "float32", 4 * dim, compressor.transform(corpus, dim), compressor.transform(queries, dim))
            for dim in compressor.dims
        )
    )
    chosen: list[Stored] = [head for head in compressor.heads if "for_bytes" in head.info]
    codes = list(
        until_one_fails(
            (head.dim, head.precision, head.bytes, head.decode(head.encode(corpus)), head.queries(queries))
            for head in sorted(chosen, key=lambda head: -head.bytes)
        )
    )
    return Choice(
        target,
        len(original),
        (*floats, *codes),
        min((test.dim for test in floats if test.holds), default=None),
        min((test.bytes for test in codes if test.holds), default=None),
    )

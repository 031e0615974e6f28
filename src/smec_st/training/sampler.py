"""The batch sampler: repeats of a document are far apart, and no batch holds false negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

_ATTEMPTS = 64


class SpreadPairSampler(DefaultBatchSampler):
    """Batches of (query, document) pairs, each pair once per epoch.

    * The repeats of a document are spread evenly over the epoch, so that they stay out of each other's memory.
    * No two pairs of a batch belong to queries that share a relevant document: in-batch negatives are never false.
      Where queries share too many (classes as labels), pass ``distinct=False`` and let the loss mask them.

    Batches depend on (seed, epoch) alone, so every rank and every resumed run sees the same ones. With ``parts`` each
    batch is handed out in that many consecutive parts, one per rank: together the ranks see what one process would.

    Args:
        dataset: Anything with a length: one entry per pair.
        batch_size: Largest batch, over all parts.
        drop_last: As many batches as the pairs fill, at least one; pairs left over wait for another epoch. Batches
            are full unless pairs are too few or share too many documents.
        seed: First part of the seed.
        pairs: Query and document of each pair, ``(P, 2)`` integers.
        distinct: Keep queries that share a relevant document out of each other's batches.
        parts: Into how many parts of nearly equal size each batch is cut.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        drop_last: bool = False,
        seed: int = 0,
        *,
        pairs: np.ndarray,
        distinct: bool = True,
        parts: int = 1,
    ) -> None:
        if len(pairs) != len(dataset) or len(pairs) == 0:
            raise ValueError(f"`pairs` must name one pair per row of the dataset ({len(dataset)}), got {len(pairs)}.")
        if not 1 <= parts <= batch_size:
            raise ValueError(f"`batch_size` must be at least 1, and a row per part, got {batch_size} for {parts}.")
        super().__init__(range(len(pairs)), batch_size, drop_last, seed=seed)
        self._seed, self._size, self._parts = seed, int(batch_size), parts
        if parts > 1:
            self.batch_size = None  # says to accelerate that lengths differ; else it passes over short parts
        self._documents = np.unique(pairs[:, 1], return_inverse=True)[1]
        self._repeats = np.bincount(self._documents)
        self._conflicts = _SharedDocuments(pairs) if distinct else None
        self._batches = self._fewest_batches()

    def __len__(self) -> int:
        return self._batches * self._parts

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._plan(self.epoch):
            enough = np.resize(batch, max(len(batch), self._parts))  # no part may be empty
            yield from (part.tolist() for part in np.array_split(enough, self._parts))

    def _fewest_batches(self) -> int:
        """The number of batches of every epoch: the least that the first epoch's pairs fit into without a conflict."""
        if self.drop_last:
            return max(1, len(self._documents) // self._size)
        count = -(-len(self._documents) // self._size)
        if self._conflicts is None:
            return count
        count = max(count, self._conflicts.most_alike)
        while self._place(np.random.default_rng([self._seed, 0, 0]), count) is None:
            count += max(1, count // 50)
        return count

    def _plan(self, epoch: int) -> list[list[int]]:
        for attempt in range(_ATTEMPTS):
            batches = self._place(np.random.default_rng([self._seed, epoch, attempt]), self._batches)
            if batches is not None:
                return batches
        raise RuntimeError(f"No conflict-free batches found in {_ATTEMPTS} attempts; use `distinct=False`.")

    def _place(self, rng: np.random.Generator, count: int) -> list[list[int]] | None:
        """Spread the pairs over ``count`` batches; return None if a pair fits nowhere."""
        order = self._spread_order(rng)
        if self.drop_last:
            full = order[: count * self._size]
            home = np.arange(len(order)) // self._size
            home[len(full) :] = count - 1  # the rest may fill a gap
        else:
            full, home = order, np.arange(len(order)) * count // len(order)
        if self._conflicts is None:
            return [part.tolist() for part in np.split(full, np.searchsorted(home[: len(full)], np.arange(1, count)))]
        return self._conflicts.place(order, home, count, self._size, must_fit=not self.drop_last)

    def _spread_order(self, rng: np.random.Generator) -> np.ndarray:
        """Order pairs by time: repeat ``j`` of a document with ``c`` pairs comes at ``(j + u) / c``, ``u`` random."""
        shuffled = rng.permutation(len(self._documents))
        documents = self._documents[shuffled]
        by_document = np.argsort(documents, kind="stable")
        first = np.searchsorted(documents[by_document], np.arange(len(self._repeats)))
        repeat = np.empty(len(documents), dtype=np.int64)
        repeat[by_document] = np.arange(len(documents)) - first[documents[by_document]]
        time = (repeat + rng.random(len(self._repeats))[documents]) / self._repeats[documents]
        return shuffled[np.argsort(time, kind="stable")]


class _SharedDocuments:
    """Which pairs must not meet: those whose queries share a relevant document (a query shares with itself)."""

    def __init__(self, pairs: np.ndarray) -> None:
        queries, query_of = np.unique(pairs[:, 0], return_inverse=True)
        documents, document_of = np.unique(pairs[:, 1], return_inverse=True)
        relevant: list[list[int]] = [[] for _ in queries]
        for query, document in zip(query_of.tolist(), document_of.tolist(), strict=True):
            relevant[query].append(document)
        self._relevant = [relevant[query] for query in query_of.tolist()]  # of each pair
        together = np.zeros(len(documents), dtype=np.int64)
        for mine in self._relevant:
            together[mine] += 1
        self.most_alike = int(together.max())  # these pairs all share one document: each needs a batch of its own

    def place(
        self, order: np.ndarray, home: np.ndarray, count: int, size: int, must_fit: bool
    ) -> list[list[int]] | None:
        """Put each pair of ``order`` into its home batch, or the nearest in time that has room and no conflict.

        Returns:
            The batches; None when a pair fits nowhere and ``must_fit``, without it such pairs are left out.
        """
        batches: list[list[int]] = [[] for _ in range(count)]
        taken: list[set[int]] = [set() for _ in range(count)]

        def fits(pair: int, batch: int) -> bool:
            if len(batches[batch]) == size or not taken[batch].isdisjoint(self._relevant[pair]):
                return False
            batches[batch].append(pair)
            taken[batch].update(self._relevant[pair])
            return True

        late = [
            (pair, first) for pair, first in zip(order.tolist(), home.tolist(), strict=True) if not fits(pair, first)
        ]
        late.sort(key=lambda item: -len(self._relevant[item[0]]))
        for pair, first in late:
            if not any(fits(pair, batch) for batch in _outward(first, count)) and must_fit:
                return None
        return batches


def _outward(first: int, count: int) -> Iterator[int]:
    """Yield all of ``range(count)``, nearest to ``first`` first."""
    for distance in range(count):
        if first + distance < count:
            yield first + distance
        if distance and first - distance >= 0:
            yield first - distance

"""Turn finished cells into rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smec_st.data import DataError
from smec_st.evaluation.report import Row
from smec_st.evaluation.statistics import paired_interval, sign_flip_p
from smec_st.research.baselines import Size
from smec_st.research.compare.cells import Cell, Result, SizeScores

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Entry:
    """The results of a method at one size on one collection, over all seeds.

    Attributes:
        collection: Name of the collection.
        method: Name of the method.
        size: The size.
        seeds: Seed of each fit.
        scores: Scores of each fit.
        learned_from_labels: Whether the method used judgements.
        fit_seconds: Mean time to fit all sizes together.
    """

    collection: str
    method: str
    size: Size
    seeds: tuple[int, ...]
    scores: tuple[SizeScores, ...]
    learned_from_labels: bool
    fit_seconds: float

    @property
    def per_query(self) -> np.ndarray:
        """nDCG@10 of each query, averaged over seeds, ``(Q,)``."""
        mean: np.ndarray = np.mean([scores.values[METRIC] for scores in self.scores], axis=0)
        return mean

    def row(self, original: Entry, reference: Entry | None) -> Row:
        """Make the row of the report, with differences to the original and, where given, to the reference."""
        values = {name: [scores.values[name].mean() for scores in self.scores] for name in self.scores[0].values}
        distances = {name: [s.distances[name] for s in self.scores] for name in self.scores[0].distances}
        to_original = paired_interval(self.per_query, original.per_query)
        extra = {
            "seeds": len(self.seeds),
            f"{METRIC}_min": float(min(values[METRIC])),
            f"{METRIC}_max": float(max(values[METRIC])),
            "learned_from_labels": self.learned_from_labels,
            "fit_seconds": round(self.fit_seconds, 3),
            "original_difference": to_original.difference,
            "original_low": to_original.low,
            "original_high": to_original.high,
        }
        if reference is not None:
            interval = paired_interval(self.per_query, reference.per_query)
            extra |= interval._asdict() | {"p": sign_flip_p(self.per_query, reference.per_query)}
        return Row(
            collection=self.collection,
            method=self.method,
            dim=self.size.dim,
            bytes_per_vector=self.size.bytes,
            metrics={name: float(np.mean(numbers)) for name, numbers in {**values, **distances}.items()},
            extra=extra,
        )


def entries(results: Sequence[tuple[Cell, Result]]) -> list[Entry]:
    """Group cells by collection and method, and make one entry per size."""
    grouped: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    for cell, result in results:
        grouped.setdefault((cell.collection, cell.name), []).append((cell, result))
    found = []
    for (collection, method), runs in grouped.items():
        for same_size in zip(*(result.sizes for _, result in runs), strict=True):
            if len({scores.size for scores in same_size}) > 1:
                raise DataError(f"{method} has other sizes with another seed; sizes must not depend on the seed.")
            found.append(
                Entry(
                    collection,
                    method,
                    same_size[0].size,
                    tuple(cell.seed for cell, _ in runs),
                    same_size,
                    runs[0][1].learned_from_labels,
                    float(np.mean([result.fit_seconds for _, result in runs])),
                )
            )
    return found


def rows_of(results: Sequence[tuple[Cell, Result]], reference: str) -> list[Row]:
    """Make one row per collection, method and size: means over seeds, and differences on the same queries.

    Args:
        results: Finished cells, including "original" for each collection.
        reference: Method that each row is compared with where it has the same bytes per vector.
    """
    found = entries(results)
    originals = {entry.collection: entry for entry in found if entry.method == "original"}
    references: Mapping[tuple[str, int], Entry] = {
        (entry.collection, entry.size.bytes): entry for entry in found if entry.method == reference
    }
    rows = []
    for entry in found:
        opponent = references.get((entry.collection, entry.size.bytes)) if entry.method != reference else None
        rows.append(entry.row(originals[entry.collection], opponent))
    return rows

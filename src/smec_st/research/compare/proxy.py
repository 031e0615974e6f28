"""Estimate quality without labels: how well distances predict nDCG@10, and the size they recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from smec_st.evaluation.report import Row
from smec_st.research.compare.scoring import DISTANCES
from smec_st.research.compare.table import METRIC
from smec_st.system.optional import load_optional

POOLED = "all collections"


@dataclass(frozen=True)
class Correlation:
    """The correlation of a distance with nDCG@10 over methods and sizes.

    Attributes:
        collection: Name of the collection, or :data:`POOLED`. Quality is relative to the collection's original.
        methods: ``all``, or ``unsupervised`` for those that did not learn from judgements.
        distance: Name of the distance.
        spearman: Rank correlation; None when it is undefined (fewer than three points, or all equal).
        pearson: Linear correlation, or None likewise.
        points: Number of points.
    """

    collection: str
    methods: Literal["all", "unsupervised"]
    distance: str
    spearman: float | None
    pearson: float | None
    points: int


def share_kept(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Pair each row except the originals' with its nDCG@10 as a share of the original's on that collection."""
    original = {row.collection: row.metrics[METRIC] for row in rows if row.method == "original"}
    return [(row, row.metrics[METRIC] / original[row.collection]) for row in rows if row.method != "original"]


def correlations(rows: Sequence[Row]) -> list[Correlation]:
    """Correlate each distance with nDCG@10, per collection and pooled, for all and for unsupervised methods."""
    kept = share_kept(rows)
    found = []
    for collection in (*dict.fromkeys(row.collection for row, _ in kept), POOLED):
        for methods in ("all", "unsupervised"):
            points = [
                (row, share)
                for row, share in kept
                if collection in (row.collection, POOLED)
                and (methods == "all" or not row.extra["learned_from_labels"])
            ]
            for distance in DISTANCES:
                x = np.array([row.metrics[distance] for row, _ in points])
                y = np.array([share for _, share in points])
                defined = len(points) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
                found.append(
                    Correlation(
                        collection,
                        methods,  # type: ignore[arg-type]
                        distance,
                        float(stats.spearmanr(x, y).statistic) if defined else None,
                        float(stats.pearsonr(x, y).statistic) if defined else None,
                        len(points),
                    )
                )
    return found


@dataclass(frozen=True)
class Calibration:
    """The expected share of the original's nDCG@10 for a ``document_overlap@10``, interpolated linearly.

    Attributes:
        overlaps: Ascending overlaps.
        shares: One share per overlap, not descending.
    """

    overlaps: tuple[float, ...]
    shares: tuple[float, ...]

    def expected(self, overlap: float) -> float:
        """Return the expected share; beyond the ends it is that of the end."""
        return float(np.interp(overlap, self.overlaps, self.shares))


#: Result of :func:`calibrate` on the methods without judgements in ``benchmarks/results/compare/report.json``:
#: untrained methods, int8, binary, PQ, OPQ and Matryoshka-Adaptor without labels, on scifact, medquad, xquad_r_en and
#: clothing_images. When it was fitted on three of these, the sizes that :func:`recommend_size` recommended on the
#: fourth for a share of 0.95 kept 0.90 to 1.01 of the original's nDCG@10; 20 of 28 kept at least 0.95.
CALIBRATION = Calibration(
    overlaps=(0.0851, 0.1766, 0.2681, 0.3596, 0.4511, 0.5426, 0.634, 0.7255, 0.817, 0.9085, 1.0),
    shares=(0.2495, 0.3759, 0.5506, 0.5956, 0.7508, 0.8259, 0.8967, 0.9359, 0.9739, 0.9936, 1.0),
)


def calibrate(rows: Sequence[Row], points: int = 11) -> Calibration:
    """Fit the share kept to ``document_overlap@10`` by isotonic regression, over methods that saw no judgements.

    Args:
        rows: Rows of one or more collections, including those of the original.
        points: Number of points at which the fitted curve is stored.
    """
    isotonic = load_optional("sklearn.isotonic", "calibrating the proxy")
    kept = [(row, share) for row, share in share_kept(rows) if not row.extra["learned_from_labels"]]
    x = np.array([row.metrics["document_overlap@10"] for row, _ in kept])
    y = np.array([share for _, share in kept])
    fitted = isotonic.IsotonicRegression(out_of_bounds="clip").fit(x, y)
    overlaps = np.linspace(x.min(), x.max(), points)
    return Calibration(tuple(overlaps.round(4).tolist()), tuple(fitted.predict(overlaps).round(4).tolist()))


def recommend_size(
    overlaps: Mapping[int, float], share: float = 0.95, calibration: Calibration | None = None
) -> int | None:
    """Recommend, without labels, the smallest size that should keep a share of the original's nDCG@10.

    Args:
        overlaps: ``document_overlap@10`` by size (dimensions or bytes per vector).
        share: Share of the original's nDCG@10 to keep.
        calibration: :data:`CALIBRATION` by default.

    Returns:
        The size, or None when every size is expected to keep less.
    """
    calibration = calibration or CALIBRATION
    enough = [size for size, overlap in overlaps.items() if calibration.expected(overlap) >= share]
    return min(enough, default=None)


@dataclass(frozen=True)
class Recommendation:
    """The size that :func:`recommend_size` recommends for a method.

    Attributes:
        collection: Name of the collection.
        method: Name of the method.
        dim: Dimensions per vector; None when no size is large enough.
    """

    collection: str
    method: str
    dim: int | None


def recommendations(rows: Sequence[Row]) -> list[Recommendation]:
    """Recommend a size for every method that saw no judgements and stores float32, except the original."""
    overlaps: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.is_float32 and row.method != "original" and not row.extra["learned_from_labels"]:
            sizes = overlaps.setdefault((row.collection, row.method), {})
            sizes[row.dim] = row.metrics["document_overlap@10"]
    return [Recommendation(*names, recommend_size(sizes)) for names, sizes in overlaps.items()]

"""Quality without labels: how well distances between vectors tell nDCG@10, and the size that they recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from smec_st.compare.scoring import DISTANCES
from smec_st.compare.table import METRIC
from smec_st.evaluation import Row

POOLED = "all collections"


@dataclass(frozen=True)
class Correlation:
    """How a distance goes with nDCG@10 over methods and sizes.

    Attributes:
        collection: Name; with :data:`POOLED`, quality is relative to each collection's original.
        methods: ``all``, or ``unsupervised`` for those that did not learn from judgements.
        distance: Name.
        spearman: Rank correlation; None when it is not defined (fewer than three points, or all equal).
        pearson: Linear correlation, likewise.
        points: How many.
    """

    collection: str
    methods: Literal["all", "unsupervised"]
    distance: str
    spearman: float | None
    pearson: float | None
    points: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""
        return asdict(self)


def share_kept(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Rows other than the original's, with nDCG@10 as a share of the original's on the collection."""
    original = {row.collection: row.metrics[METRIC] for row in rows if row.method == "original"}
    return [(row, row.metrics[METRIC] / original[row.collection]) for row in rows if row.method != "original"]


def correlations(rows: Sequence[Row]) -> list[Correlation]:
    """Of each distance with nDCG@10: per collection and pooled, over all methods and over unsupervised ones."""
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
    """Share of the original's nDCG@10 to expect at a ``document_overlap@10``; straight lines between the points.

    Attributes:
        overlaps: Rising.
        shares: Not falling, one per overlap.
    """

    overlaps: tuple[float, ...]
    shares: tuple[float, ...]

    def expected(self, overlap: float) -> float:
        """The share; beyond the ends, that of the end."""
        return float(np.interp(overlap, self.overlaps, self.shares))


#: :func:`calibrate` over what saw no judgements in ``benchmarks/results/compare/report.json``: untrained methods,
#: int8, binary, PQ, OPQ and Matryoshka-Adaptor without labels, on scifact, medquad, xquad_r_en and clothing_images.
#: Fitted on three of them, the sizes that :func:`recommend_size` named on the fourth kept 0.90 to 1.01 of the
#: original's nDCG@10 where 0.95 was wanted; 20 of 28 kept that.
CALIBRATION = Calibration(
    overlaps=(0.0851, 0.1766, 0.2681, 0.3596, 0.4511, 0.5426, 0.634, 0.7255, 0.817, 0.9085, 1.0),
    shares=(0.2495, 0.3759, 0.5506, 0.5956, 0.7508, 0.8259, 0.8967, 0.9359, 0.9739, 0.9936, 1.0),
)


def calibrate(rows: Sequence[Row], points: int = 11) -> Calibration:
    """Isotonic regression of the share kept on ``document_overlap@10``, over methods that saw no judgements.

    Args:
        rows: Rows of one or more collections, the original's among them.
        points: Points that the fit is read off at.
    """
    from sklearn.isotonic import IsotonicRegression

    kept = [(row, share) for row, share in share_kept(rows) if not row.extra["learned_from_labels"]]
    x = np.array([row.metrics["document_overlap@10"] for row, _ in kept])
    y = np.array([share for _, share in kept])
    fitted = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    overlaps = np.linspace(x.min(), x.max(), points)
    return Calibration(tuple(overlaps.round(4).tolist()), tuple(fitted.predict(overlaps).round(4).tolist()))


def recommend_size(
    overlaps: Mapping[int, float], share: float = 0.95, calibration: Calibration | None = None
) -> int | None:
    """The smallest size that should keep a share of the original's nDCG@10, judged without labels.

    Args:
        overlaps: ``document_overlap@10`` by size (numbers or bytes per vector).
        share: Share of the original's nDCG@10 to keep.
        calibration: :data:`CALIBRATION` by default.

    Returns:
        The size, or None when every size is expected to fall below.
    """
    calibration = calibration or CALIBRATION
    enough = [size for size, overlap in overlaps.items() if calibration.expected(overlap) >= share]
    return min(enough, default=None)


@dataclass(frozen=True)
class Recommendation:
    """The size of a method that :func:`recommend_size` names.

    Attributes:
        collection: Name.
        method: Name.
        dim: Numbers per vector; None when no size is enough.
    """

    collection: str
    method: str
    dim: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""
        return asdict(self)


def recommendations(rows: Sequence[Row]) -> list[Recommendation]:
    """For each collection and method that saw no judgements and stores float32, the original left out."""
    overlaps: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.is_float32 and row.method != "original" and not row.extra["learned_from_labels"]:
            sizes = overlaps.setdefault((row.collection, row.method), {})
            sizes[row.dim] = row.metrics["document_overlap@10"]
    return [Recommendation(*names, recommend_size(sizes)) for names, sizes in overlaps.items()]

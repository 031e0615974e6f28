"""Distances that need no labels: how they go with quality, and the sizes that they recommend."""

from __future__ import annotations

import numpy as np
import pytest

from smec_st.evaluation.report import Row
from smec_st.research.compare import Calibration
from smec_st.research.compare.proxy import CALIBRATION, calibrate, correlations, recommend_size, recommendations


def proxy_row(
    method: str, dim: int, value: float, overlap: float, collection: str = "toy", labels: bool = False
) -> Row:
    metrics = {"ndcg@10": value, "topk_distance": 1 - overlap, "pair_distance": 0.0, "document_overlap@10": overlap}
    extra = {"learned_from_labels": labels}
    return Row(collection=collection, method=method, dim=dim, bytes_per_vector=4 * dim, metrics=metrics, extra=extra)


PROXY_ROWS = [
    proxy_row("original", 32, 0.8, 1.0),
    proxy_row("pca", 16, 0.8, 0.9),
    proxy_row("pca", 8, 0.6, 0.6),
    proxy_row("pca", 4, 0.4, 0.5),
    proxy_row("smec", 16, 0.9, 0.1, labels=True),
    proxy_row("original", 32, 0.4, 1.0, collection="other"),
    proxy_row("pca", 16, 0.4, 0.9, collection="other"),
]


def test_correlations_pool_collections_by_the_share_kept():
    found = {(c.collection, c.methods, c.distance): c for c in correlations(PROXY_ROWS)}
    toy = found["toy", "unsupervised", "document_overlap@10"]
    assert (toy.spearman, toy.points) == (pytest.approx(1), 3)
    assert toy.pearson == pytest.approx(np.corrcoef([0.9, 0.6, 0.5], [0.8, 0.6, 0.4])[0, 1])
    assert found["toy", "unsupervised", "topk_distance"].spearman == pytest.approx(-1)
    assert found["toy", "all", "document_overlap@10"].spearman < 0
    pooled = found["all collections", "unsupervised", "document_overlap@10"]
    assert pooled.points == 4
    assert pooled.pearson == pytest.approx(np.corrcoef([0.9, 0.6, 0.5, 0.9], [1, 0.75, 0.5, 1])[0, 1])
    assert found["toy", "all", "pair_distance"].spearman is None  # all equal
    assert found["other", "all", "topk_distance"].pearson is None  # one point


def test_calibrate_fits_a_rising_curve_to_what_saw_no_judgements():
    calibration = calibrate(PROXY_ROWS, points=5)
    assert calibration.overlaps == (0.5, 0.6, 0.7, 0.8, 0.9)
    assert (np.diff(calibration.shares) >= 0).all()
    assert [calibration.expected(x) for x in (0.0, 0.5, 0.6, 1.0)] == pytest.approx([0.5, 0.5, 0.75, 1.0])


def test_recommend_size_takes_the_smallest_that_keeps_enough():
    calibration = Calibration(overlaps=(0.0, 1.0), shares=(0.0, 1.0))
    overlaps = {16: 0.97, 8: 0.95, 4: 0.6}
    assert recommend_size(overlaps, calibration=calibration) == 8
    assert recommend_size(overlaps, share=0.5, calibration=calibration) == 4
    assert recommend_size({4: 0.6}, calibration=calibration) is None


def test_the_calibration_in_use_rises_and_reaches_the_original():
    calibration = CALIBRATION
    assert (np.diff(calibration.overlaps) > 0).all()
    assert (np.diff(calibration.shares) >= 0).all()
    assert calibration.expected(1.0) == pytest.approx(1, abs=0.03)
    assert calibration.expected(0.1) < 0.8


def test_recommendations_are_for_methods_that_saw_no_judgements():
    found = {(entry.collection, entry.method) for entry in recommendations(PROXY_ROWS)}
    assert found == {("toy", "pca"), ("other", "pca")}

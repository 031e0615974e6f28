"""Intervals and p-values against naive ones, coverage, and lossless sizes."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from smec_st.evaluation.report import Row
from smec_st.research.compare import Lossless, lossless, paired_interval, sign_flip_p


def test_paired_interval_agrees_with_a_naive_bootstrap(rng):
    ours, theirs = rng.random(60), rng.random(60)
    differences = ours - theirs
    means = [rng.choice(differences, len(differences)).mean() for _ in range(20_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    found = paired_interval(ours, theirs)
    assert found.difference == pytest.approx(differences.mean(), abs=1e-12)
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.005)


def test_paired_interval_is_reproducible_and_paired(rng):
    ours, theirs = rng.random(30), rng.random(30)
    assert paired_interval(ours, theirs) == paired_interval(ours, theirs)
    assert paired_interval(ours, theirs) != paired_interval(ours, theirs, seed=1)
    shifted = paired_interval(ours + 0.25, ours)  # as much for each query, so there is no doubt about the mean
    assert shifted == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)


def test_paired_interval_covers_the_true_difference_about_as_often_as_it_says(rng):
    covered = 0
    for trial in range(200):
        theirs = rng.random(60)
        ours = theirs + rng.normal(0.1, 0.3, 60)
        found = paired_interval(ours, theirs, seed=trial)
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 200 <= 0.98


def test_sign_flip_p_agrees_with_all_flips(rng):
    ours, theirs = rng.random(7), rng.random(7)
    differences = ours - theirs
    means = [abs((differences * signs).mean()) for signs in itertools.product((-1, 1), repeat=7)]
    naive = np.mean([mean >= abs(differences.mean()) - 1e-12 for mean in means])
    assert sign_flip_p(ours, theirs) == pytest.approx(naive, abs=0.02)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1.0, 1.0, 1.0], 2 / 8), ([0.0] * 5, 1.0), ([0.1] * 8, 2 / 256), ([1.0, -1.0], 1.0)],
)
def test_sign_flip_p_of_known_differences(differences, p):
    assert sign_flip_p(np.array(differences), np.zeros(len(differences))) == pytest.approx(p, abs=0.015)


def test_sign_flip_p_of_many_queries_is_near_the_t_test(rng):
    ours, theirs = rng.normal(0.05, 0.3, 150), np.zeros(150)
    assert sign_flip_p(ours, theirs) == pytest.approx(stats.ttest_1samp(ours, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("function", [paired_interval, sign_flip_p])
def test_resampling_of_many_queries_needs_little_memory(rng, function):
    ours, theirs = rng.random(4000), rng.random(4000)
    tracemalloc.start()
    function(ours, theirs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all resamples at once would be 320 MB


def row(method: str, dim: int, difference: float, low: float, bytes_per_vector: int | None = None) -> Row:
    extra = {"original_difference": difference, "original_low": low}
    size = bytes_per_vector or 4 * dim
    return Row(collection="toy", method=method, dim=dim, bytes_per_vector=size, metrics={}, extra=extra)


def test_lossless_finds_the_smallest_size_by_point_and_with_confidence():
    rows = [
        row("original", 64, 0.0, 0.0),
        row("ours", 32, 0.05, 0.01),
        row("ours", 16, 0.02, -0.01),
        row("ours", 8, -0.01, -0.05),
        row("theirs", 32, -0.1, -0.2),
        row("codes", 64, 0.0, 0.0, bytes_per_vector=16),
    ]
    assert lossless(rows) == [
        Lossless("toy", "ours", 64, 4.0, 4.0, 128, 2.0, 2.0),
        Lossless("toy", "theirs", None, None, None, None, None, None),
        Lossless("toy", "codes", 16, 16.0, 1.0, 16, 16.0, 1.0),
    ]

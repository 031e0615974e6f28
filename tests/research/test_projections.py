"""Each projection against a plain computation, its limits, and the contract that all of them share."""

import numpy as np
import pytest
from sklearn.decomposition import PCA as ScikitPCA

from smec_st.data import VectorTable, unit_rows
from smec_st.evaluation.untrained import original, pca, truncate
from smec_st.research.baselines import Size, TrainingData
from smec_st.research.baselines.projections import (
    PCA,
    Original,
    RandomCoordinates,
    RandomProjection,
    Truncation,
    VarianceSorted,
)

WIDTH = 12
DIMS = (8, 5, 2)
SIZED = [
    Truncation(),
    RandomCoordinates(),
    VarianceSorted(),
    RandomProjection(),
    PCA(),
    PCA("centred"),
    PCA("whitened"),
]
ROTATIONS = [Original(), Truncation(), RandomCoordinates(), VarianceSorted(), PCA()]


def names(methods):
    return [str(method) for method in methods]


@pytest.fixture
def data(rng):
    """Rows off the origin whose variance differs by direction, mixed."""
    mix = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    corpus = (rng.normal(size=(300, WIDTH)) * np.linspace(3, 0.3, WIDTH) + 0.7) @ mix
    queries = rng.normal(size=(20, WIDTH))
    return TrainingData(VectorTable(corpus, queries), None, None, np.arange(20))


@pytest.fixture
def vectors(rng):
    return (5 * rng.normal(size=(7, WIDTH))).astype(np.float32)


def size(dim):
    return Size(dim, 4 * dim)


def same_up_to_sign(found, expected):
    flip = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * flip, atol=2e-4)


@pytest.mark.parametrize("method", SIZED, ids=names(SIZED))
@pytest.mark.parametrize("dim", DIMS)
def test_projection_returns_unit_rows_of_the_width_asked_for(data, vectors, method, dim):
    encoder = method.fit(data, DIMS)
    assert encoder.sizes == tuple(size(d) for d in DIMS)
    for side in (encoder.documents, encoder.queries):
        rows = side(vectors, size(dim))
        assert rows.dtype == np.float32
        assert rows.shape == (7, dim)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", SIZED, ids=names(SIZED))
def test_projection_does_not_look_at_the_length_of_vectors_or_change_them(data, vectors, method):
    encoder = method.fit(data, DIMS)
    before = vectors.copy()
    rows = encoder.documents(vectors, size(5))
    np.testing.assert_array_equal(vectors, before)
    np.testing.assert_allclose(encoder.documents(3 * vectors, size(5)), rows, atol=1e-6)


@pytest.mark.parametrize("method", SIZED, ids=names(SIZED))
def test_projection_depends_on_the_seed_exactly_if_it_says_so(data, vectors, method):
    first, again, other = (method.fit(data, DIMS, seed).documents(vectors, size(5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) != method.is_random
    assert not method.needs_labels


@pytest.mark.parametrize("method", ROTATIONS, ids=names(ROTATIONS))
def test_projection_keeps_all_inner_products_at_full_width(data, vectors, method):
    encoder = method.fit(data, (WIDTH,))
    documents = encoder.documents(vectors, size(WIDTH))
    np.testing.assert_allclose(documents @ documents.T, unit_rows(vectors) @ unit_rows(vectors).T, atol=1e-5)


def test_original_has_its_own_width_only(data, vectors):
    encoder = Original().fit(data, DIMS)
    assert encoder.sizes == (size(WIDTH),)
    np.testing.assert_array_equal(encoder.documents(vectors, size(WIDTH)), original(vectors, WIDTH))


def test_truncation_equals_a_loop(data, vectors):
    expected = [[x / np.sqrt(sum(y * y for y in row[:5])) for x in row[:5]] for row in vectors.tolist()]
    np.testing.assert_allclose(Truncation().fit(data, DIMS).documents(vectors, size(5)), expected, atol=1e-6)
    np.testing.assert_allclose(truncate(vectors, 5), expected, atol=1e-6)


def test_random_coordinates_are_coordinates_and_sizes_are_nested(data):
    encoder = RandomCoordinates().fit(data, (WIDTH, 5), seed=3)
    axes = np.eye(WIDTH)
    order = encoder.documents(axes, size(WIDTH)).argmax(axis=0)
    assert sorted(order.tolist()) == list(range(WIDTH))
    kept = np.flatnonzero(encoder.documents(axes, size(5)).any(axis=1))
    assert sorted(kept.tolist()) == sorted(order[:5].tolist())


def test_variance_sorted_keeps_the_coordinates_that_vary_most(data, vectors):
    columns = data.corpus.T.tolist()
    variance = [sum((x - sum(column) / 300) ** 2 for x in column) / 300 for column in columns]
    order = sorted(range(WIDTH), key=lambda i: -variance[i])
    found = VarianceSorted().fit(data, DIMS).documents(vectors, size(5))
    np.testing.assert_allclose(found, unit_rows(vectors[:, order[:5]]), atol=1e-6)


def test_variance_sorted_breaks_ties_by_the_lower_coordinate():
    corpus = np.tile(np.array([[1.0, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1], [1, -1, -1, 1]]), (5, 1))
    encoder = VarianceSorted().fit(TrainingData(VectorTable(corpus), None, None, np.zeros(0, int)), (2,))
    assert np.flatnonzero(encoder.documents(np.eye(4), size(2)).any(axis=1)).tolist() == [1, 2]


def test_random_projection_sizes_are_nested_whatever_else_is_asked_for(data, vectors):
    method = RandomProjection()
    wide = method.fit(data, (8, 5, 2), seed=1)
    narrow = method.fit(data, (5,), seed=1)
    np.testing.assert_allclose(wide.documents(vectors, size(5)), narrow.documents(vectors, size(5)), atol=1e-6)
    prefix = unit_rows(wide.documents(vectors, size(8))[:, :2])
    np.testing.assert_allclose(wide.documents(vectors, size(2)), prefix, atol=1e-6)


def test_random_projection_equals_the_plain_gaussian_matrix(data, vectors):
    gaussian = np.random.default_rng(4).standard_normal((5, WIDTH))
    found = RandomProjection().fit(data, (5,), seed=4).documents(vectors, size(5))
    np.testing.assert_allclose(found, unit_rows(vectors @ gaussian.T), atol=1e-5)


@pytest.mark.parametrize("dim", [2, 5, WIDTH])
@pytest.mark.parametrize("kind", ["centred", "whitened"])
def test_centred_pca_equals_scikit_learn(data, vectors, kind, dim):
    oracle = ScikitPCA(whiten=kind == "whitened", svd_solver="full").fit(data.corpus.astype(np.float64))
    expected = unit_rows(oracle.transform(unit_rows(vectors).astype(np.float64))[:, :dim])
    same_up_to_sign(PCA(kind).fit(data, (dim,)).documents(vectors, size(dim)), expected)


@pytest.mark.parametrize("dim", [2, 5, WIDTH])
def test_uncentred_pca_equals_the_singular_vectors(data, vectors, dim):
    axes = np.linalg.svd(data.corpus.astype(np.float64), full_matrices=False)[2]
    expected = unit_rows(unit_rows(vectors) @ axes[:dim].T)
    same_up_to_sign(PCA().fit(data, (dim,)).documents(vectors, size(dim)), expected)
    same_up_to_sign(pca(data.corpus)(vectors, dim), expected)


def test_whitened_pca_gives_every_axis_the_same_variance(data):
    rows = data.corpus - data.corpus.mean(axis=0)
    oracle = ScikitPCA(whiten=True).fit(data.corpus)
    lengths = np.linalg.norm(oracle.transform(data.corpus), axis=1, keepdims=True)
    found = PCA("whitened").fit(data, (WIDTH,)).documents(data.corpus, size(WIDTH)) * lengths
    assert rows.var(axis=0).max() > 2 * rows.var(axis=0).min()
    np.testing.assert_allclose(found.var(axis=0), 1, atol=0.01)


@pytest.mark.parametrize("kind", ["uncentred", "centred", "whitened"])
def test_pca_is_finite_on_a_corpus_that_leaves_directions_empty(rng, vectors, kind):
    corpus = np.concatenate([rng.normal(size=(20, 3)), np.ones((20, 1)), np.zeros((20, WIDTH - 4))], axis=1)
    rows = pca(corpus, kind)(vectors, WIDTH)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)

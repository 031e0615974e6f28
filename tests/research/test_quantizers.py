"""Each quantiser against a plain loop or the index that a user would build, its limits, and its byte counts."""

import sys

import numpy as np
import pytest

from smec_st.data import DataError, VectorTable, unit_rows
from smec_st.research.baselines import Size, TrainingData
from smec_st.research.baselines.quantizers import PQ, ROTATION_ROUNDS, ROTATION_ROWS, Binary, Int8

faiss = pytest.importorskip("faiss")

WIDTH = 16
CODES = [PQ(group=(2, 4)), PQ(group=(2, 4), rotation=True)]
ALL = [Int8(), Binary(), *CODES]


def names(methods):
    return [str(method) for method in methods]


def make_data(rng, documents=400, width=WIDTH):
    mix = rng.normal(size=(width, width)) * np.linspace(1, 0.2, width)
    corpus = rng.normal(size=(documents, width)) @ mix
    return TrainingData(VectorTable(corpus, rng.normal(size=(9, width)) @ mix), None, None, np.arange(9))


@pytest.fixture
def data(rng):
    return make_data(rng)


@pytest.fixture
def queries(rng):
    return rng.normal(size=(9, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("method", ALL, ids=names(ALL))
def test_quantizer_keeps_queries_float_and_decodes_documents_to_their_width(data, queries, method):
    encoder = method.fit(data, (8, 4))
    assert [size.bytes for size in encoder.sizes] == sorted((size.bytes for size in encoder.sizes), reverse=True)
    for size in encoder.sizes:
        assert size.dim == WIDTH
        asked, documents = encoder.queries(queries, size), encoder.documents(data.corpus, size)
        assert asked.dtype == documents.dtype == np.float32
        assert documents.shape == (400, WIDTH)
        np.testing.assert_allclose(asked @ asked.T, unit_rows(queries) @ unit_rows(queries).T, atol=1e-5)


@pytest.mark.parametrize("method", ALL, ids=names(ALL))
def test_quantizer_depends_on_the_seed_exactly_if_it_says_so(data, method):
    first, again, other = (method.fit(data, (8,), seed) for seed in (1, 1, 2))
    size = first.sizes[0]
    documents = first.documents(data.corpus, size)
    np.testing.assert_array_equal(documents, again.documents(data.corpus, size))
    assert np.array_equal(documents, other.documents(data.corpus, size)) != method.is_random
    assert not method.needs_labels


@pytest.mark.parametrize("method", ALL, ids=names(ALL))
def test_quantizer_takes_any_length_and_few_vectors(data, method):
    encoder = method.fit(data, (8,))
    for size in encoder.sizes:
        some = encoder.documents(7 * data.corpus[:3], size)
        np.testing.assert_allclose(some, encoder.documents(data.corpus, size)[:3], atol=1e-6)


# -- scalar -----------------------------------------------------------------------------------------------------------


def test_int8_equals_a_loop(data, queries):
    corpus = data.corpus
    encoder = Int8().fit(data, ())
    (size,) = encoder.sizes
    assert size == Size(WIDTH, WIDTH)
    expected = np.empty((9, WIDTH))
    for i, row in enumerate(unit_rows(queries)):
        for j, x in enumerate(row.tolist()):
            low, high = float(corpus[:, j].min()), float(corpus[:, j].max())
            step = (high - low) / 255
            expected[i, j] = low + (min(max(np.floor((x - low) / step), 0), 255) + 0.5) * step
    step = np.ptp(corpus, axis=0).max() / 255
    wrong = np.abs(encoder.documents(queries, size) - expected) > 1e-6  # a value on the border of two steps
    assert wrong.mean() < 0.02
    np.testing.assert_allclose(encoder.documents(queries, size), expected, atol=1.01 * step)


def test_int8_moves_no_number_of_the_corpus_by_more_than_half_a_step(data):
    encoder = Int8().fit(data, ())
    step = np.ptp(data.corpus, axis=0) / 255
    change = np.abs(encoder.documents(data.corpus, encoder.sizes[0]) - data.corpus)
    assert (change <= 0.501 * step + 1e-7).mean() > 0.99  # the greatest of a dimension is cut to the last step
    assert (change <= 1.01 * step).all()


def test_int8_keeps_a_dimension_that_never_changes(rng):
    corpus = np.concatenate([rng.normal(size=(50, 3)), np.zeros((50, 1))], axis=1)
    encoder = Int8().fit(TrainingData(VectorTable(corpus), None, None, np.zeros(0, int)), ())
    assert (encoder.documents(corpus, encoder.sizes[0])[:, 3] == 0).all()


def test_binary_decodes_to_signs_and_agrees_with_packed_bits(data, queries):
    from sentence_transformers.util import quantize_embeddings

    encoder = Binary().fit(data, ())
    (size,) = encoder.sizes
    documents = encoder.documents(data.corpus, size)
    packed = quantize_embeddings(data.corpus, precision="ubinary")
    assert size.bytes == packed.shape[1] == WIDTH // 8
    np.testing.assert_array_equal(documents, 2.0 * np.unpackbits(packed, axis=1) - 1)
    expected = [[sum(q if x > 0 else -q for q, x in zip(a, b, strict=True)) for b in data.corpus] for a in queries]
    scores = encoder.queries(queries, size) @ documents.T * np.linalg.norm(queries, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize(("width", "expected"), [(16, 2), (17, 3), (7, 1)])
def test_binary_takes_whole_bytes(rng, width, expected):
    assert Binary().fit(make_data(rng, 20, width), ()).sizes == (Size(width, expected),)


# -- product ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CODES, ids=names(CODES))
def test_pq_scores_are_those_of_the_faiss_index(data, queries, method):
    encoder = method.fit(data, (), seed=5)
    for size, group in zip(encoder.sizes, (2, 4), strict=True):
        codes = WIDTH // group
        index = faiss.IndexPQ(WIDTH, codes, 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = 5, 1
        if method.rotation:
            matrix = faiss.OPQMatrix(WIDTH, codes)
            matrix.pq, matrix.niter, matrix.max_train_points = index.pq, ROTATION_ROUNDS, ROTATION_ROWS
            index = faiss.IndexPreTransform(matrix, index)
        index.train(data.corpus)
        index.add(data.corpus)
        assert size.bytes == index.sa_code_size() == codes
        found, rows = index.search(unit_rows(queries), 400)
        scores = encoder.queries(queries, size) @ encoder.documents(data.corpus, size).T
        np.testing.assert_allclose(np.take_along_axis(scores, rows, axis=1), found, atol=1e-5)


def test_pq_decodes_to_the_nearest_centroid(data):
    encoder = PQ(group=(4,)).fit(data, ())
    decoded = encoder.documents(data.corpus, encoder.sizes[0])
    for start in range(0, WIDTH, 4):
        part, centroids = data.corpus[:, start : start + 4], np.unique(decoded[:, start : start + 4], axis=0)
        assert len(centroids) <= 256
        nearest = [
            min(centroids.tolist(), key=lambda c: sum((a - b) ** 2 for a, b in zip(x, c, strict=True))) for x in part
        ]
        np.testing.assert_allclose(decoded[:, start : start + 4], nearest, atol=1e-5)


def test_pq_of_single_dimensions_is_nearly_lossless_and_fewer_codes_lose_more(rng):
    data = make_data(rng, 3000)
    encoder = PQ(group=(1, 4, 16)).fit(data, ())
    change = [
        np.abs(encoder.documents(data.corpus, s) - encoder.queries(data.corpus, s)).mean() for s in encoder.sizes
    ]
    assert change[0] < 0.003
    assert change == sorted(change)
    assert change[2] > 10 * change[0]


def test_pq_with_rotation_loses_less_than_without(rng):
    data = make_data(rng, 3000)
    loss = {}
    for rotation in (False, True):
        encoder = PQ(group=(4,), rotation=rotation).fit(data, ())
        size = encoder.sizes[0]
        difference = encoder.documents(data.corpus, size) - encoder.queries(data.corpus, size)
        loss[rotation] = np.square(difference).sum(axis=1).mean()
    assert loss[True] < 0.95 * loss[False]


@pytest.mark.parametrize(
    ("width", "expected"), [(384, (96, 48, 24, 12, 6)), (96, (24, 12, 6, 3)), (100, (25,)), (72, (18, 9))]
)
def test_pq_leaves_out_groups_that_do_not_divide_the_width(rng, width, expected):
    encoder = PQ().fit(make_data(rng, 256, width), ())
    assert encoder.sizes == tuple(Size(width, count) for count in expected)


@pytest.mark.parametrize(("documents", "bits"), [(300, 8), (256, 8), (255, 7), (20, 4), (2, 1)])
def test_pq_uses_fewer_bits_on_a_corpus_smaller_than_its_centroids(rng, capfd, documents, bits):
    data = make_data(rng, documents)
    encoder = PQ(group=(2,)).fit(data, ())
    assert encoder.sizes == (Size(WIDTH, bits),)  # eight codes of so many bits
    assert np.isfinite(encoder.documents(data.corpus, encoder.sizes[0])).all()
    assert capfd.readouterr().err == ""


def test_pq_keeps_more_codes_where_two_sizes_take_the_same_bytes(rng):
    data = make_data(rng, 2, 4)
    encoder, finest = (PQ(group=group).fit(data, ()) for group in ((1, 2, 4), (1,)))
    assert encoder.sizes == (Size(4, 1),)
    documents = [one.documents(data.corpus, Size(4, 1)) for one in (encoder, finest)]
    np.testing.assert_array_equal(*documents)


@pytest.mark.parametrize("rotation", [False, True])
def test_pq_refuses_a_width_that_nothing_divides(rng, rotation):
    with pytest.raises(DataError, match=r"PQ needs a width that one of \(4, 8, 16, 32, 64\) divides, got 13"):
        PQ(rotation=rotation).fit(make_data(rng, 20, 13), ())


def test_pq_names_the_extra_when_faiss_is_missing(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        DataError, match=r'^PQ or OPQ needs faiss. Install it with `pip install "smec-st\[search\]"`.$'
    ):
        PQ().fit(data, ())

"""The reflections against explicit matrices, the loss against its parts, and what training may and may not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from collection_world import make_vectors
from smec_st.data import Qrels, VectorTable, unit_rows
from smec_st.evaluation.untrained import pca
from smec_st.functional import NEVER, alignment_kl, alignment_l1, contrastive_loss, unit
from smec_st.research.baselines import Size, TrainingData
from smec_st.research.baselines.adawidth import AdaWidth, UnlabelledPools, householder
from smec_st.research.baselines.training import DevScore

pytestmark = pytest.mark.slow  # fits methods at length; the base install needs none of them

WIDTH = 16
DIMS = (8, 4)
QUICK = AdaWidth(reflections=4, steps=150, pool=100)


@pytest.fixture(scope="module")
def data():
    vectors, source, nearest = make_vectors(np.random.default_rng(0), 300, 160, WIDTH)
    queries = np.arange(160)
    judged = Qrels(np.r_[queries, queries], np.r_[source, nearest], np.r_[np.full(160, 2.0), np.full(160, 1.0)])
    table = VectorTable(vectors["corpus"], vectors["queries"])
    return TrainingData(table, judged.of_queries(range(100)), judged.of_queries(range(100, 160)), queries[:100])


def score(data, encoder):
    return DevScore(data, DIMS)(lambda vectors, dim: encoder.documents(vectors, Size(dim, 4 * dim)))


def full_width(encoder, vectors):
    return encoder.documents(vectors, Size(WIDTH, 4 * WIDTH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_householder_equals_the_product_of_explicit_matrices(rng, dtype):
    x, vectors = (
        torch.from_numpy(rng.normal(size=(5, 7))).to(dtype),
        torch.from_numpy(rng.normal(size=(3, 7))).to(dtype),
    )
    expected = x.clone()
    for v in vectors:
        expected = expected @ (torch.eye(7, dtype=dtype) - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(householder(x, vectors), expected)


def test_householder_keeps_norms_and_inner_products(rng):
    x, vectors = torch.from_numpy(rng.normal(size=(6, 9))), torch.from_numpy(rng.normal(size=(8, 9)))
    moved = householder(x, vectors)
    torch.testing.assert_close(moved @ moved.T, x @ x.T)
    assert (moved - x).abs().max() > 0.1


def test_householder_does_not_look_at_the_length_of_a_normal_and_undoes_itself(rng):
    x, vectors = torch.from_numpy(rng.normal(size=(6, 9))), torch.from_numpy(rng.normal(size=(4, 9)))
    torch.testing.assert_close(householder(x, 3 * vectors), householder(x, vectors))
    torch.testing.assert_close(householder(householder(x, vectors), vectors.flip(0)), x)


def test_loss_is_the_sum_of_its_three_parts(rng):
    queries, documents = (unit(torch.from_numpy(rng.normal(size=(n, 9)))) for n in (4, 6))
    grades = torch.zeros(4, 6, dtype=torch.float64)
    grades[[0, 1, 2], [1, 2, 2]] = 1
    same = torch.zeros(4, 6, dtype=torch.bool)
    same[3, 0] = True
    method = AdaWidth(score=0.5, geometry=0.25, tau=0.2)
    near = torch.tensor(
        [[float(q[:3] @ d[:3] / q[:3].norm() / d[:3].norm()) for d in documents] for q in queries], dtype=torch.float64
    )
    between = torch.tensor(
        [[float(a[:3] @ b[:3] / a[:3].norm() / b[:3].norm()) for b in documents] for a in documents],
        dtype=torch.float64,
    )
    others = ~torch.eye(6, dtype=torch.bool)
    expected = contrastive_loss(near.masked_fill(same, NEVER), grades, 0.2)
    expected += 0.5 * alignment_kl(near, queries @ documents.T, 0.2, ~same)
    expected += 0.25 * alignment_l1(between, documents @ documents.T, others)
    torch.testing.assert_close(method._loss(queries, documents, grades, same, 3), expected)


def test_preservation_costs_nothing_at_full_width(rng):
    queries, documents = (unit(torch.from_numpy(rng.normal(size=(n, 9)))) for n in (4, 6))
    nothing = torch.zeros(4, 6, dtype=torch.float64)
    assert AdaWidth()._loss(queries, documents, nothing, nothing.bool(), 9).item() == pytest.approx(0, abs=1e-9)


def test_adawidth_begins_as_principal_axes(data):
    encoder, plain = replace(QUICK, steps=0).fit(data, DIMS), pca(data.corpus)
    for dim in DIMS:
        found = encoder.documents(data.corpus, Size(dim, 4 * dim))
        np.testing.assert_allclose(found, plain(data.corpus, dim), atol=1e-5)


@pytest.mark.parametrize("labels", [True, False])
def test_training_moves_the_prefixes_and_keeps_all_inner_products_of_full_width(data, labels):
    data = data if labels else replace(data, train=None, dev=None)
    encoder = replace(QUICK, steps=20).fit(replace(data, dev=None), (WIDTH, *DIMS))
    still = replace(QUICK, steps=0).fit(data, (WIDTH, *DIMS))
    rows = full_width(encoder, data.corpus)
    np.testing.assert_allclose(rows @ rows.T, data.corpus @ data.corpus.T, atol=1e-5)
    assert np.abs(rows - full_width(still, data.corpus)).max() > 0.05
    size = Size(4, 16)
    found = encoder.queries(3 * data.corpus, size)
    assert found.shape == (300, 4)
    np.testing.assert_allclose(found, unit_rows(rows[:, :4]), atol=1e-5)


def test_training_ranks_better_than_the_start(data):
    before, after = (score(data, replace(QUICK, steps=steps).fit(data, DIMS)) for steps in (0, QUICK.steps))
    assert after > before + 0.02


@pytest.mark.parametrize("labels", [True, False])
def test_adawidth_depends_on_the_seed_alone(data, labels):
    data = replace(data, train=data.train if labels else None, dev=None)
    method = replace(QUICK, steps=5)
    found = []
    for noise, seed in enumerate((1, 1, 2)):
        torch.manual_seed(noise)
        found.append(full_width(method.fit(data, (WIDTH, 4), seed), data.corpus))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert method.is_random
    assert not method.needs_labels


def test_full_width_alone_keeps_all_inner_products(data):
    encoder = QUICK.fit(data, (WIDTH,))
    rows = full_width(encoder, data.corpus)
    np.testing.assert_allclose(rows @ rows.T, data.corpus @ data.corpus.T, atol=1e-5)


def test_unlabelled_pools_ask_with_the_training_queries_and_mark_a_query_that_is_a_document(rng):
    table = VectorTable(rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), own_document=[-1, 2, -1, -1])
    data = TrainingData(table, None, None, np.array([1, 3]))
    pool = UnlabelledPools(data, 8, 8, seed=0).next()
    assert sorted(pool.query_rows.tolist()) == [6, 8]
    assert sorted(pool.document_rows.tolist()) == [0, 1, 2, 3, 4]
    marked = torch.nonzero(pool.excluded).tolist()
    assert [(int(pool.query_rows[i]), int(pool.document_rows[j])) for i, j in marked] == [(6, 2)]
    assert pool.grades.abs().max() == 0


def test_unlabelled_pools_ask_with_documents_when_there_are_no_queries(rng):
    data = TrainingData(VectorTable(rng.normal(size=(5, 3))), None, None, np.zeros(0, int))
    pool = UnlabelledPools(data, 8, 8, seed=0).next()
    assert sorted(pool.query_rows.tolist()) == [0, 1, 2, 3, 4]
    assert pool.excluded.sum() == 5


@pytest.mark.parametrize("reflections", [0, 1, 7])
def test_adawidth_rejects_an_odd_number_of_reflections(reflections):
    with pytest.raises(ValueError, match=f"`reflections` must be even and at least 2, got {reflections}"):
        AdaWidth(reflections=reflections)

"""The rivals' losses against plain loops, their loop against its contract, and that each of them learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from collection_world import make_vectors
from smec_st.data import DataError, Qrels, VectorTable
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.functional import rank_loss
from smec_st.research.baselines import Size, TrainingData
from smec_st.research.baselines.adaptor import Adaptor, prefix_rank_loss
from smec_st.research.baselines.dive import DIVE, hinge_triplet_loss, nt_xent, view_agreement
from smec_st.research.baselines.matryoshka_adaptor import MatryoshkaAdaptor
from smec_st.research.baselines.mrl import MRL
from smec_st.research.baselines.search_adaptor import SearchAdaptor
from smec_st.research.baselines.training import Batches, DevScore, dev_score, train

pytestmark = pytest.mark.slow  # fits methods at length; the base install needs none of them

DIMS = (16, 8, 4)
QUICK = [
    MRL(steps=150, learning_rate=1e-2),
    MatryoshkaAdaptor(steps=100, pool=100, learning_rate=1e-2),
    MatryoshkaAdaptor(supervised=False, steps=60, pool=100),
    SearchAdaptor(steps=100, alphas=(0.0,), betas=(0.01,)),
    DIVE(steps=100, hidden=32, learning_rate=1e-3, pool=64),
]
SUPERVISED = [method for method in QUICK if method.needs_labels]


@pytest.fixture(scope="module")
def data():
    vectors, source, nearest = make_vectors(np.random.default_rng(0), 300, 160, 16)
    queries = np.arange(160)
    everything = Qrels(np.r_[queries, queries], np.r_[source, nearest], np.r_[np.full(160, 2.0), np.full(160, 1.0)])
    table = VectorTable(vectors["corpus"], vectors["queries"])
    return TrainingData(
        table, everything.of_queries(range(100)), everything.of_queries(range(100, 160)), queries[:100]
    )


def mean_score(data, encoder):
    return DevScore(data, DIMS)(lambda vectors, dim: encoder.documents(vectors, Size(dim, 4 * dim)))


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_training_ends_at_the_weights_that_scored_best():
    weight = nn.Parameter(torch.tensor(0.0))
    seen = []

    def score():
        seen.append(weight.item())
        return -abs(weight.item() - 0.5)

    done = train([weight], lambda: -weight, score, steps=100, learning_rate=0.1, patience=20, check_every=5)
    assert weight.item() == min(seen, key=lambda value: abs(value - 0.5))
    assert done == 25  # best at step 5, patience of 20


def test_training_without_a_score_keeps_the_last_weights():
    weight = nn.Parameter(torch.tensor(0.0))
    assert train([weight], lambda: -weight, None, steps=7, learning_rate=0.1, patience=1) == 7
    assert weight.item() == pytest.approx(0.7, abs=1e-4)


def test_training_never_ends_below_its_start():
    weight = nn.Parameter(torch.tensor(3.0))
    train([weight], lambda: weight, lambda: weight.item(), steps=20, learning_rate=0.1, patience=50, check_every=5)
    assert weight.item() == 3.0


def test_training_stops_at_a_loss_that_is_not_finite():
    weight = nn.Parameter(torch.tensor(0.0))
    with pytest.raises(FloatingPointError, match="step 0; lower `learning_rate`"):
        train([weight], lambda: weight / 0, None, steps=3, learning_rate=0.1, patience=1)


def test_batches_pass_over_all_rows():
    batches = Batches(10, 5, seed=0)
    assert sorted(np.r_[batches.next(), batches.next()]) == list(range(10))
    assert len(Batches(3, 5, seed=0).next()) == 3
    np.testing.assert_array_equal(Batches(10, 4, seed=3).next(), Batches(10, 4, seed=3).next())


def test_dev_score_is_the_mean_over_sizes(data):
    corpus, queries = data.corpus, data.table[torch.from_numpy(data.table.query_ids(np.arange(160)))].numpy()

    def cut(vectors, dim):
        return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)

    plain = [
        evaluate_retrieval(cut(corpus, dim), cut(queries, dim), data.dev, ("ndcg@10",))["ndcg@10"].mean()
        for dim in DIMS
    ]
    held_out = DevScore(data, DIMS)
    assert held_out(cut) == pytest.approx(np.mean(plain), abs=1e-12)
    assert held_out.of_prefixes(lambda vectors: vectors) == pytest.approx(np.mean(plain), abs=1e-12)


def test_dev_score_leaves_a_querys_own_document_out(data):
    table = VectorTable(data.corpus, data.corpus[:5], own_document=np.arange(5))
    qrels = Qrels(np.arange(5), np.arange(5) + 5, np.ones(5))
    own_first = DevScore(TrainingData(table, None, qrels, np.arange(5)), (16,))
    ranked = np.argsort(-data.corpus[:5] @ data.corpus.T, axis=1)
    places = [[row for row in ranked[q] if row != q].index(q + 5) for q in range(5)]
    expected = np.mean([1 / math.log2(place + 2) if place < 10 else 0 for place in places])
    assert own_first(lambda vectors, dim: vectors) == pytest.approx(expected)


def test_without_held_out_queries_there_is_no_score(data):
    assert dev_score(replace(data, dev=None), DIMS) is None


# -- losses -----------------------------------------------------------------------------------------------------------


def test_prefix_rank_loss_is_matryoshka_adaptors_equation_5(rng):
    rows, columns = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    grades = rng.integers(0, 3, (3, 5))
    grades[:, 0], grades[:, 1] = 2, 0
    own = np.zeros((3, 5), dtype=bool)
    own[1, 1] = True
    total = 0.0
    for dim in (8, 4):
        terms, count = 0.0, 0
        for i in range(3):
            for j in range(5):
                for k in range(5):
                    if grades[i, j] > grades[i, k]:
                        count += 1
                        if not own[i, k]:
                            gap = cosine(rows[i, :dim], columns[k, :dim]) - cosine(rows[i, :dim], columns[j, :dim])
                            terms += (grades[i, j] - grades[i, k]) * math.log1p(math.exp(gap))
        total += terms / count
    given = [torch.tensor(x, dtype=torch.float32) for x in (rows, columns, grades)]
    assert prefix_rank_loss(*given, torch.tensor(own), (8, 4)).item() == pytest.approx(total, rel=1e-5)


def test_rank_loss_of_very_many_pairs_is_near_that_of_all(rng):
    similarity = torch.tensor(rng.uniform(-1, 1, (40, 300)), dtype=torch.float32)
    grades = torch.tensor(rng.integers(0, 2, (40, 300)), dtype=torch.float32)
    assert rank_loss(similarity, grades, most=500).item() == pytest.approx(
        rank_loss(similarity, grades, most=10**9).item(), rel=0.05
    )


@pytest.mark.parametrize("count", [6, 4])
def test_matryoshka_adaptor_distances_are_equations_1_to_3(rng, count):
    rows, mapped = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    method = MatryoshkaAdaptor(alpha=0.5, beta=0.25, k=2)
    topk, pair = 0.0, 0.0
    for dim in (8, 4):
        near, all_pairs = [], []
        for i in range(count):
            change = {
                j: abs(cosine(rows[i], rows[j]) - cosine(mapped[i, :dim], mapped[j, :dim])) for j in range(6) if j != i
            }
            all_pairs += change.values()
            near += [change[j] for j in sorted(change, key=lambda j: -(rows[i] @ rows[j]))[:2]]
        topk, pair = topk + np.mean(near), pair + np.mean(all_pairs)
    expected = topk + 0.5 * pair + 0.25 * np.abs(rows - mapped)[:count].mean()
    x, y = torch.tensor(rows, dtype=torch.float32), torch.tensor(mapped, dtype=torch.float32)
    assert method._distances(x, y, x, y, count, (8, 4)).item() == pytest.approx(expected, rel=1e-5)


def test_hinge_is_silent_once_the_margin_is_met():
    similarity = torch.tensor([[0.9, 0.1, 0.95], [0.2, 0.6, 0.5]], requires_grad=True)
    own = torch.tensor([0, 1])
    banned = torch.tensor([[True, False, True], [False, True, False]])
    loss = hinge_triplet_loss(similarity, own, banned, margin=0.3)
    assert loss.item() == pytest.approx((0 + (0.5 - 0.6 + 0.3)) / 2)
    loss.backward()
    assert similarity.grad[0].abs().sum() == 0
    assert similarity.grad[1].tolist() == [0, -0.5, 0.5]


def test_nt_xent_equals_the_plain_loop(rng):
    one, other = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    rows = np.concatenate([one, other])
    total = 0.0
    for i in range(8):
        partner = (i + 4) % 8
        others = sum(math.exp(cosine(rows[i], rows[j]) / 0.3) for j in range(8) if j != i)
        total -= math.log(math.exp(cosine(rows[i], rows[partner]) / 0.3) / others)
    given = [torch.tensor(x, dtype=torch.float32) for x in (one, other)]
    assert nt_xent(*given, 0.3).item() == pytest.approx(total / 8, rel=1e-5)
    three = [*given, torch.tensor(rng.normal(size=(4, 5)), dtype=torch.float32)]
    by_pair = [nt_xent(three[i], three[j], 0.3).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert view_agreement(three, 0.3).item() == pytest.approx(np.mean(by_pair), rel=1e-6)


# -- methods ----------------------------------------------------------------------------------------------------------


def test_an_adaptor_begins_as_the_identity(rng):
    vectors = rng.normal(size=(9, 16)).astype(np.float32)
    for normed in (False, True):
        mapped = Adaptor(16, 32, normed=normed).map(3 * vectors, chunk=4)
        np.testing.assert_allclose(mapped, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("method", QUICK, ids=lambda method: f"{type(method).__name__}-{method.needs_labels}")
def test_sizes_are_unit_prefixes_and_the_seed_decides(data, method):
    method = replace(method, steps=10)
    encoder = method.fit(data, DIMS, seed=1)
    assert encoder.sizes == (Size(16, 64), Size(8, 32), Size(4, 16))
    vectors = data.corpus[:20]
    whole = encoder.documents(vectors, Size(16, 64))
    for size in encoder.sizes:
        out = encoder.queries(vectors, size)
        assert out.shape == (20, size.dim)
        assert out.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
        cut = whole[:, : size.dim]
        np.testing.assert_allclose(out, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)
    again = method.fit(data, DIMS, seed=1).documents(vectors, Size(4, 16))
    np.testing.assert_array_equal(again, encoder.documents(vectors, Size(4, 16)))
    if isinstance(method, MatryoshkaAdaptor):  # the others may stop at their start, which has no seed
        assert not np.array_equal(method.fit(data, DIMS, seed=2).documents(vectors, Size(4, 16)), again)


@pytest.mark.parametrize("method", SUPERVISED, ids=lambda method: type(method).__name__)
def test_labels_make_search_better_than_truncation(data, method):
    start = DevScore(data, DIMS).of_prefixes(lambda vectors: vectors)
    assert mean_score(data, method.fit(data, DIMS)) > start + 0.02


def test_unsupervised_matryoshka_adaptor_lowers_its_own_distances(data):
    method = MatryoshkaAdaptor(supervised=False, steps=100, pool=100, learning_rate=1e-2)
    documents = torch.from_numpy(data.corpus)
    adaptor = Adaptor(16, 16)
    before = method._unsupervised(adaptor, documents, 300, DIMS).item()
    method._fit_unsupervised(adaptor, data.table, DIMS, seed=0)
    assert method._unsupervised(adaptor, documents, 300, DIMS).item() < 0.9 * before


@pytest.mark.parametrize("method", SUPERVISED, ids=lambda method: type(method).__name__)
def test_without_judgements_supervised_methods_say_so(data, method):
    with pytest.raises(DataError, match="needs training judgements"):
        method.fit(replace(data, train=None), DIMS)


def test_cosent_learns_from_graded_pairs(data):
    start = mean_score(data, MRL(steps=0).fit(data, DIMS))
    assert mean_score(data, MRL(loss="cosent", steps=150, learning_rate=1e-2).fit(data, DIMS)) > start

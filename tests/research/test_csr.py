"""CSR's loss, codes and byte counts against plain loops, and that training beats its start."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from collection_world import make_vectors
from smec_st.data import Qrels, VectorTable, unit_rows
from smec_st.research.baselines import Size, TrainingData
from smec_st.research.baselines.csr import CSR, Contrastive, SelfPairs, scaled, size_of_code
from smec_st.research.baselines.training import DevScore

pytestmark = pytest.mark.slow  # fits methods at length; the base install needs none of them

WIDTH, HIDDEN = 16, 64
DIMS = (8, 4)
QUICK = CSR(k=8, steps=60)


@pytest.fixture(scope="module")
def data():
    vectors, source, nearest = make_vectors(np.random.default_rng(0), 300, 160, WIDTH)
    queries = np.arange(160)
    judged = Qrels(np.r_[queries, queries], np.r_[source, nearest], np.r_[np.full(160, 2.0), np.full(160, 1.0)])
    table = VectorTable(vectors["corpus"], vectors["queries"])
    return TrainingData(table, judged.of_queries(range(100)), judged.of_queries(range(100, 160)), queries[:100])


@pytest.fixture(scope="module")
def encoder(data):
    return QUICK.fit(data, DIMS)


def score(data, encoder):
    return DevScore(data, [size.dim for size in encoder.sizes])(encoder.codes)


def naive_code(encoder, row, kept):
    """Top-k of the pre-activations, negative ones cut, scaled to length 1."""
    module = encoder.autoencoder
    weight, before, after = (p.detach().numpy() for p in (module.encoder.weight, module.pre_bias, module.latent_bias))
    x = [v * math.sqrt(WIDTH) / math.sqrt(sum(u * u for u in row)) for v in row]
    values = [sum(w * (a - b) for w, a, b in zip(weight[i], x, before, strict=True)) + after[i] for i in range(HIDDEN)]
    largest = sorted(range(HIDDEN), key=lambda i: -values[i])[:kept]
    code = [max(values[i], 0) if i in largest else 0 for i in range(HIDDEN)]
    return np.array(code) / math.sqrt(sum(v * v for v in code))


@pytest.mark.parametrize(
    ("dim", "hidden", "kept", "size"),
    [
        (96, 1536, 113, 382),  # 11 + 16 bits
        (12, 1536, 14, 48),
        (64, 4096, 73, 256),  # 12 + 16 bits
        (8, 64, 11, 31),  # 6 + 16 bits
        (8, 65, 11, 32),  # one more bit
        (1, 1 << 40, 1, 7),  # at least one, though it takes more
        (64, 64, 64, 176),  # at most all
    ],
)
def test_entries_fit_into_the_bytes_of_the_floats(dim, hidden, kept, size):
    assert size_of_code(dim, hidden) == Size(kept, size)


def test_sizes_come_by_falling_bytes(encoder):
    assert encoder.sizes == (size_of_code(8, HIDDEN), size_of_code(4, HIDDEN))


def test_codes_equal_a_loop(data, encoder):
    rows = 3 * data.corpus[:6]
    for size in encoder.sizes:
        expected = np.array([naive_code(encoder, row.tolist(), size.dim) for row in rows])
        queries, documents = encoder.queries(rows, size), encoder.documents(rows, size)
        np.testing.assert_allclose(queries, expected, atol=1e-5)
        np.testing.assert_array_equal(documents, queries.astype(np.float16))
        assert queries.dtype == documents.dtype == np.float32


def test_codes_have_length_one_and_no_more_entries_than_they_pay_for(data, encoder):
    for size in encoder.sizes:
        codes = encoder.documents(data.corpus, size)
        assert codes.shape == (300, HIDDEN)
        assert (np.count_nonzero(codes, axis=1) <= size.dim).all()
        assert (codes >= 0).all()
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_codes_in_chunks_equal_codes_at_once(data, encoder, chunk):
    np.testing.assert_allclose(encoder.codes(data.corpus, 5, chunk=chunk), encoder.codes(data.corpus, 5), atol=1e-6)


def test_contrastive_equals_the_authors_cross_entropy_when_each_query_has_one_document(rng):
    queries, documents = torch.from_numpy(rng.normal(size=(5, 7))), torch.from_numpy(rng.normal(size=(5, 7)))
    cosine = [[float(q @ d / q.norm() / d.norm()) / 0.2 for d in documents] for q in queries]
    expected = sum(math.log(sum(math.exp(v) for v in row)) - row[i] for i, row in enumerate(cosine)) / 5
    found = Contrastive(0.2).compute_loss_from_embeddings([queries, documents], torch.eye(5))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_contrastive_leaves_out_documents_that_take_no_part(rng):
    queries, documents = torch.from_numpy(rng.normal(size=(3, 7))), torch.from_numpy(rng.normal(size=(5, 7)))
    labels = torch.zeros(3, 5)
    labels[:, 0] = 1
    without = Contrastive(0.2).compute_loss_from_embeddings([queries, documents[:4]], labels[:, :4])
    labels[:, 4] = -1
    torch.testing.assert_close(Contrastive(0.2).compute_loss_from_embeddings([queries, documents], labels), without)


def test_loss_of_the_paper_is_what_sentence_transformers_computes(data):
    from sentence_transformers.sparse_encoder.losses import CSRLoss
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    torch.manual_seed(0)
    module = SparseAutoEncoder(WIDTH, HIDDEN, k=4, k_aux=8)
    sides = [data.table[torch.arange(start, start + 10)] for start in (0, 10)]
    terms = CSRLoss(module, Contrastive(0.2), beta=1 / 32, gamma=0.1)(
        [{"sentence_embedding": side} for side in sides], torch.eye(10)
    )

    def code(x, k):
        before = (x - module.pre_bias) @ module.encoder.weight.T + module.latent_bias
        last = before.topk(k, dim=1).values[:, -1:]
        return torch.where(before >= last, before, 0).clamp_min(0)

    def error(k):
        return sum((x - code(x, k) @ module.encoder.weight - module.pre_bias).square().mean() for x in sides) / 2

    near = Contrastive(0.2).compute_loss_from_embeddings([code(x, 4) for x in sides], torch.eye(10))
    expected = error(4) + error(16) / 8 + 0.1 * near
    residual = (x - code(x, 4) @ module.encoder.weight for x in sides)  # no entry is dead yet: nothing to rebuild it
    auxiliary = sum(r.square().mean() / (r - r.mean(dim=0)).square().mean() for r in residual) / 2
    torch.testing.assert_close(sum(terms.values()), expected + auxiliary / 32, rtol=1e-4, atol=1e-5)


def test_training_with_labels_ranks_better_than_the_start(data):
    before, after = (score(data, replace(QUICK, steps=steps).fit(data, DIMS)) for steps in (0, 400))
    assert after > before + 0.02


def test_training_without_labels_rebuilds_vectors_better_than_the_start(data):
    unlabelled = replace(data, train=None, dev=None)
    error = []
    for steps in (0, 100):
        module = replace(QUICK, steps=steps).fit(unlabelled, DIMS).autoencoder
        rows = scaled(torch.from_numpy(data.corpus))
        error.append((module({"sentence_embedding": rows})["decoded_embedding_k"] - rows).square().mean().item())
    assert error[1] < 0.5 * error[0]


@pytest.mark.parametrize("labels", [True, False])
def test_csr_depends_on_the_seed_alone(data, labels):
    data = replace(data, train=data.train if labels else None, dev=None)
    method = replace(QUICK, steps=5)
    found = []
    for noise, seed in enumerate((1, 1, 2)):
        torch.manual_seed(noise)
        found.append(method.fit(data, DIMS, seed).codes(data.corpus, 4))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert method.is_random
    assert not method.needs_labels


def test_unlabelled_batches_hold_documents_and_training_queries_as_their_own_partners(rng):
    table = VectorTable(rng.normal(size=(5, 3)), rng.normal(size=(4, 3)))
    pool = SelfPairs(TrainingData(table, None, None, np.array([1, 3])), 16, seed=0).next()
    assert sorted(pool.query_rows.tolist()) == [0, 1, 2, 3, 4, 6, 8]
    assert torch.equal(pool.query_rows, pool.document_rows)
    assert torch.equal(pool.grades, torch.eye(7))
    assert not pool.excluded.any()


def test_one_row_is_encoded_as_among_others(data, encoder):
    size = encoder.sizes[0]
    np.testing.assert_allclose(
        encoder.documents(unit_rows(data.corpus)[:1], size), encoder.documents(data.corpus, size)[:1], atol=1e-3
    )

"""Batches: each pair once, no contradictions, repeats far apart, the same on every rank."""

import numpy as np
import pytest

from smec_st.training.sampler import SpreadPairSampler


def bipartite(rng, queries=80, documents=60, count=160):
    """Random judgements: queries with several documents, documents with several queries."""
    return np.unique(np.stack([rng.integers(0, queries, count), rng.integers(0, documents, count)], axis=1), axis=0)


def sampler(pairs, batch_size=8, **options):
    return SpreadPairSampler(range(len(pairs)), batch_size, pairs=np.asarray(pairs), **options)


def batches_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def least_gaps(batches, documents):
    """For each document with repeats, the fewest batches between two of its pairs."""
    batch_of = {pair: number for number, batch in enumerate(batches) for pair in batch}
    gaps = []
    for document in np.unique(documents):
        at = np.sort([batch_of[pair] for pair in np.flatnonzero(documents == document).tolist()])
        if len(at) > 1:
            gaps.append(np.diff(at).min())
    return np.array(gaps)


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 16])
@pytest.mark.parametrize("distinct", [True, False])
def test_sampler_draws_every_pair_once(rng, epoch, batch_size, distinct):
    pairs = bipartite(rng)
    batches = batches_of(sampler(pairs, batch_size, distinct=distinct), epoch)
    assert sorted(pair for batch in batches for pair in batch) == list(range(len(pairs)))
    assert max(map(len, batches)) <= batch_size


@pytest.mark.parametrize("seed", range(5))
def test_sampler_keeps_queries_that_share_a_document_apart(seed):
    pairs = bipartite(np.random.default_rng(seed))
    relevant = {query: set(pairs[pairs[:, 0] == query, 1].tolist()) for query in np.unique(pairs[:, 0]).tolist()}
    for epoch in range(3):
        for batch in batches_of(sampler(pairs, seed=seed), epoch):
            documents = [relevant[query] for query in pairs[batch, 0].tolist()]
            assert len(set.union(*documents)) == sum(map(len, documents))


def test_sampler_depends_on_seed_and_epoch_alone(rng):
    pairs = bipartite(rng)
    one, other = sampler(pairs, seed=3), sampler(pairs, seed=3)
    batches_of(other, epoch=7)  # what was drawn before leaves no trace
    assert batches_of(one, epoch=2) == batches_of(other, epoch=2)
    assert batches_of(one, epoch=2) != batches_of(one, epoch=3)
    assert batches_of(one, epoch=2) != batches_of(sampler(pairs, seed=4), epoch=2)


@pytest.mark.parametrize("distinct", [True, False])
def test_sampler_has_the_same_length_in_every_epoch(rng, distinct):
    draw = sampler(bipartite(rng), distinct=distinct)
    lengths = [len(batches_of(draw, epoch)) for epoch in range(12)]
    assert set(lengths) == {len(draw)}


@pytest.mark.parametrize("distinct", [True, False])
def test_sampler_spreads_the_repeats_of_a_document(rng, distinct):
    documents = np.repeat(np.arange(40), 5)
    pairs = np.stack([np.arange(200), documents], axis=1)
    spread = least_gaps(batches_of(sampler(pairs, 10, distinct=distinct)), documents)
    shuffled = least_gaps(rng.permutation(200).reshape(20, 10).tolist(), documents)
    assert spread.mean() > 3 * shuffled.mean()
    assert spread.mean() > 2


def test_sampler_draws_classes_once_each_when_not_distinct():
    pairs = np.stack([np.arange(90), np.arange(90) % 3], axis=1)
    draw = sampler(pairs, 10, distinct=False)
    batches = batches_of(draw)
    assert sorted(pair for batch in batches for pair in batch) == list(range(90))
    assert [len(batch) for batch in batches] == [10] * 9
    assert len(draw) == 9


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("count", [90, 91, 99])
def test_sampler_with_drop_last_leaves_only_the_rest_out(distinct, count):
    pairs = np.stack([np.arange(count), np.arange(count)], axis=1)
    draw = sampler(pairs, 10, drop_last=True, distinct=distinct)
    epochs = [batches_of(draw, epoch) for epoch in range(8)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [10] * 9 == [10] * len(draw)
        assert len({pair for batch in batches for pair in batch}) == 90
    assert {pair for batches in epochs for batch in batches for pair in batch} == set(range(count))


def test_sampler_with_drop_last_fills_its_batches_in_spite_of_shared_documents(rng):
    draw = sampler(bipartite(rng, count=90), 4, drop_last=True)
    for epoch in range(5):
        assert [len(batch) for batch in batches_of(draw, epoch)] == [4] * len(draw)


def test_sampler_takes_a_batch_size_above_the_pairs():
    draw = sampler([[0, 0], [1, 1], [2, 2]], 50)
    assert [sorted(batch) for batch in batches_of(draw)] == [[0, 1, 2]]
    assert len(draw) == 1


def test_sampler_gives_each_pair_its_own_batch_when_all_share_a_document():
    pairs = np.stack([np.arange(6), np.zeros(6, dtype=int)], axis=1)
    assert [len(batch) for batch in batches_of(sampler(pairs, 4))] == [1] * 6


@pytest.mark.parametrize(
    ("rows", "pairs", "batch_size", "match"),
    [
        (3, [[0, 0]], 2, r"`pairs` must name one pair per row of the dataset \(3\), got 1"),
        (0, np.zeros((0, 2), dtype=int), 2, r"`pairs` must name one pair per row of the dataset \(0\), got 0"),
        (1, [[0, 0]], 0, "`batch_size` must be at least 1, and a row per part, got 0 for 1"),
    ],
)
def test_sampler_rejects_what_does_not_fit(rows, pairs, batch_size, match):
    with pytest.raises(ValueError, match=match):
        SpreadPairSampler(range(rows), batch_size, pairs=np.asarray(pairs))

"""The loss against a plain computation over the candidates that the model was given."""

# ruff: noqa: F811 -- fixtures of the other file

import json

import numpy as np
import pytest
import torch
from torch import nn

from loss_world import (  # noqa: F401
    BATCH,
    DOCUMENTS,
    JUDGED,
    QUERIES,
    REPEATS,
    WIDTH,
    batch_of,
    make_loss,
    make_model,
    memory_of,
    naive_grades,
    naive_terms,
    nearest,
    qrels,
    relevance,
    run,
    stage_of,
    table,
)
from smec_st.data import Qrels, VectorTable
from smec_st.losses.memory import SelectableCrossBatchMemory
from smec_st.losses.relevance import Relevance
from smec_st.modules import EmbeddingInput, ResidualAdapter

# -- relevance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 17, DOCUMENTS + QUERIES])
def test_relevance_equals_a_dict_lookup(rng, relevance, count):
    candidates = torch.from_numpy(rng.permutation(DOCUMENTS + QUERIES)[:count])
    queries = torch.from_numpy(rng.integers(0, DOCUMENTS + QUERIES, 30))  # documents too: they have no judgements
    assert torch.equal(relevance(queries, candidates), naive_grades(queries, candidates))


def test_relevance_is_zero_without_judgements(table):
    relevance = Relevance(Qrels.from_dict({}, [], []), table)
    assert torch.equal(relevance(torch.tensor([41, 3]), torch.arange(5)), torch.zeros(2, 5))


# -- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["contrastive", "pairwise"])
@pytest.mark.parametrize("alignment", ["kl", "l1"])
@pytest.mark.parametrize("remembered", [0, 6, DOCUMENTS])
@pytest.mark.parametrize("batch", [BATCH, REPEATS], ids=["distinct", "repeats"])
def test_loss_with_labels_equals_plain_computation(table, relevance, rank, alignment, remembered, batch):
    memory = memory_of(table, range(remembered)) if remembered else None
    options = {"rank": rank, "alignment": alignment, "alignment_weight": 1.0, "top_k": 3}
    loss = make_loss(make_model(), table, relevance, memory, **options)
    columns, labels = batch_of(table, *batch)
    terms, candidates = run(loss, columns, labels)
    assert set(candidates.tolist()) == {*batch[1], *range(remembered)}
    expected = naive_terms(loss, table, labels, candidates)
    assert list(terms) == ["rank", "alignment"]
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name])
        assert value.item() > 0


@pytest.mark.parametrize("rank", ["contrastive", "pairwise"])
@pytest.mark.parametrize("alignment", ["kl", "l1"])
def test_a_querys_own_document_takes_no_part(rng, qrels, rank, alignment):
    corpus = rng.normal(size=(DOCUMENTS, WIDTH))
    own = np.full(QUERIES, -1)
    own[[3, 7, 0]] = [5, 30, 12]  # in the batch, in the memory, in the batch
    queries = rng.normal(size=(QUERIES, WIDTH))
    queries[own >= 0] = corpus[own[own >= 0]]
    table, plain = VectorTable(corpus, queries, own), VectorTable(corpus, queries)
    columns, labels = batch_of(table, *BATCH)
    terms = {}
    for name, vectors in (("own", table), ("plain", plain)):
        memory = memory_of(table, range(25, 35))
        loss = make_loss(
            make_model(),
            vectors,
            Relevance(qrels, table),
            memory,
            rank=rank,
            alignment=alignment,
            alignment_weight=1.0,
            top_k=3,
        )
        terms[name], candidates = run(loss, columns, labels)
        for term, expected in naive_terms(loss, vectors, labels, candidates).items():
            torch.testing.assert_close(terms[name][term], expected, rtol=1e-4, atol=1e-6)
    assert all(abs(terms["own"][term] - terms["plain"][term]) > 1e-4 for term in ("rank", "alignment"))


@pytest.mark.parametrize("alignment", ["kl", "l1"])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_loss_without_labels_equals_plain_computation(table, alignment, share):
    memory = memory_of(table, range(DOCUMENTS))
    options = {"alignment": alignment, "alignment_weight": 1.0, "top_k": 3, "sharpening": 0.5}
    loss = make_loss(make_model(), table, memory=memory, **options)
    loss.begin_stage(stage_of(size=max(1, round(share * WIDTH))))
    columns, labels = batch_of(table, BATCH[0])
    columns[0]["sentence_embedding"][0] = table[
        torch.tensor([4])
    ]  # an anchor that is remembered: not its own neighbor
    labels[0, 0] = 4
    terms, candidates = run(loss, columns, labels)
    assert sorted(candidates.tolist()) == list(range(DOCUMENTS))
    torch.testing.assert_close(terms, naive_terms(loss, table, labels, candidates, sharper=share**-0.5))


@pytest.mark.parametrize(
    "memory",
    [lambda table: memory_of(table, [], capacity=5), lambda table: memory_of(table, BATCH[1])],
    ids=["nothing", "the batch itself"],
)
@pytest.mark.parametrize("alignment", ["kl", "l1"])
def test_loss_is_the_in_batch_loss_when_the_memory_adds_nothing(table, relevance, memory, alignment):
    batch = batch_of(table, *BATCH)
    with_memory = make_loss(make_model(), table, relevance, memory(table), alignment=alignment)(*batch)
    torch.testing.assert_close(with_memory, make_loss(make_model(), table, relevance, alignment=alignment)(*batch))


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ({}, {"rank", "alignment"}),
        ({"rank_weight": 0.0}, {"alignment"}),
        ({"alignment_weight": 0.0}, {"rank"}),
        ({"wide_weight": 0.5}, {"rank", "alignment", "wide_rank", "wide_alignment"}),
        ({"wide_weight": 0.5, "alignment_weight": 0.0}, {"rank", "wide_rank"}),
    ],
)
def test_loss_leaves_out_terms_of_weight_zero(table, relevance, weights, names):
    loss = make_loss(make_model(), table, relevance, memory_of(table, range(9)), **weights)
    assert set(loss(*batch_of(table, *BATCH))) == names


@pytest.mark.parametrize("name", ["rank", "alignment"])
def test_loss_terms_are_proportional_to_their_weight(table, relevance, name):
    def terms(**weights):
        loss = make_loss(make_model(), table, relevance, **weights)
        return loss(*batch_of(table, *BATCH))

    once, thrice = terms(**{f"{name}_weight": 0.2}), terms(**{f"{name}_weight": 0.6})
    torch.testing.assert_close(thrice[name], 3 * once[name])
    others = once.keys() - {name}
    torch.testing.assert_close({key: thrice[key] for key in others}, {key: once[key] for key in others})


def test_wide_terms_are_the_same_terms_when_everything_is_selected(table, relevance):
    loss = make_loss(make_model(out_dim=8, keep=8), table, relevance, wide_weight=0.5)
    terms = loss(*batch_of(table, *BATCH))
    torch.testing.assert_close(terms["wide_rank"], 0.5 * terms["rank"])
    torch.testing.assert_close(terms["wide_alignment"], 0.5 * terms["alignment"])


def test_alignment_is_zero_when_the_model_changes_nothing(table):
    identity = nn.Sequential(EmbeddingInput(WIDTH), ResidualAdapter(WIDTH, WIDTH))
    loss = make_loss(identity, table, memory=memory_of(table, range(30)))
    assert loss(*batch_of(table, BATCH[0]))["alignment"].item() == pytest.approx(0, abs=1e-6)


def test_alignment_without_labels_is_the_same_in_a_cone(rng):
    """All vectors moved towards a direction that the map does not read: similarities shrink, the loss does not."""
    rows = rng.normal(size=(DOCUMENTS + QUERIES, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = []
    for share in (0.5, 0.9):
        vectors = np.hstack([(1 - share) ** 0.5 * rows, np.full((len(rows), 1), share**0.5)])
        table, width = VectorTable(vectors[:DOCUMENTS], vectors[DOCUMENTS:]), vectors.shape[1]
        adapter = ResidualAdapter(width, 8, start=torch.eye(8, width))
        memory = SelectableCrossBatchMemory(width, DOCUMENTS)
        memory.push(table[torch.arange(DOCUMENTS)], torch.arange(DOCUMENTS))
        loss = make_loss(nn.Sequential(EmbeddingInput(width), adapter), table, memory=memory, alignment_weight=1.0)
        values.append(loss(*batch_of(table, range(QUERIES)))["alignment"].item())
    assert values[1] == pytest.approx(values[0], rel=1e-3)


# -- candidates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_rows", [0, 5, 1000])
@pytest.mark.parametrize("top_k", [0, 2, 1000])
@pytest.mark.parametrize("batch", [BATCH, REPEATS], ids=["distinct", "repeats"])
def test_candidates_are_distinct_and_hold_the_batch(table, relevance, random_rows, top_k, batch):
    memory = memory_of(table, range(DOCUMENTS))
    loss = make_loss(make_model(), table, relevance, memory, random_rows=random_rows, top_k=top_k)
    _, candidates = run(loss, *batch_of(table, *batch))
    assert len(set(candidates.tolist())) == len(candidates)
    assert set(batch[1]) <= set(candidates.tolist())


@pytest.mark.parametrize("k", [1, 4])
def test_candidates_are_the_hardest_remembered_rows_of_each_query(table, relevance, k):
    loss = make_loss(make_model(), table, relevance, memory_of(table, range(DOCUMENTS)), random_rows=0, top_k=k)
    columns, labels = batch_of(table, *BATCH)
    _, candidates = run(loss, columns, labels)
    similarity = columns[0]["sentence_embedding"] @ table[torch.arange(DOCUMENTS)].T
    expected = set(BATCH[1])
    for row, query in enumerate(BATCH[0]):
        relevant = {document for document, grade in JUDGED[query].items() if grade > 0}
        allowed = set(range(DOCUMENTS)) - relevant - set(BATCH[1])
        expected |= set(sorted(allowed, key=lambda document: -similarity[row, document].item())[:k])
    assert set(candidates.tolist()) == expected


def test_candidates_depend_on_seed_stage_and_step_alone(table, relevance):
    def candidates(stage, step, seed=0, before=()):
        memory = SelectableCrossBatchMemory(WIDTH, DOCUMENTS)
        loss = make_loss(make_model(), table, relevance, memory, random_rows=10, top_k=2, seed=seed)
        for other_stage, other_step in before:
            loss.begin_stage(stage_of(other_stage))
            loss.begin_step(other_stage, other_step)
            run(loss, *batch_of(table, *BATCH))
        loss.begin_stage(stage_of(stage))
        loss.begin_step(stage, step)
        return run(loss, *batch_of(table, *BATCH))[1].tolist()

    assert candidates(1, 3, before=[(0, 0), (0, 1), (2, 5)]) == candidates(1, 3)
    others = [candidates(1, 4), candidates(2, 3), candidates(1, 3, seed=1)]
    assert all(set(other) != set(candidates(1, 3)) for other in others)


@pytest.mark.parametrize(("capacity", "stream_rows"), [(10, 4), (10, 10), (10, 25), (39, 3), (1, 1)])
def test_corpus_streams_through_a_smaller_memory(table, relevance, capacity, stream_rows):
    memory = SelectableCrossBatchMemory(WIDTH, capacity)
    loss = make_loss(make_model(), table, relevance, memory, stream_rows=stream_rows)
    loss.begin_stage(stage_of(0))
    met = set(memory.row_ids.tolist())
    for step in range(DOCUMENTS):
        before = set(memory.row_ids.tolist())
        loss.begin_step(0, step)
        now = set(memory.row_ids.tolist())
        assert len(now) == len(memory) == capacity
        assert now != before
        met |= now
    assert met == set(range(DOCUMENTS))
    torch.testing.assert_close(memory.vectors, table[memory.row_ids])


def test_corpus_stays_in_a_memory_that_holds_all_of_it(table, relevance):
    memory = SelectableCrossBatchMemory(WIDTH, DOCUMENTS + 3)
    loss = make_loss(make_model(), table, relevance, memory)
    loss.begin_stage(stage_of(0))
    before = memory.row_ids.clone()
    loss.begin_step(0, 7)
    assert torch.equal(memory.row_ids, before)
    assert sorted(before.tolist()) == [-1] * 3 + list(range(DOCUMENTS))


def test_begin_stage_orders_the_corpus_anew(table, relevance):
    memory = SelectableCrossBatchMemory(WIDTH, 10)
    loss = make_loss(make_model(), table, relevance, memory)
    loss.begin_stage(stage_of(0))
    first = memory.row_ids.clone()
    loss.begin_stage(stage_of(1))
    assert set(first.tolist()) != set(memory.row_ids.tolist())
    loss.begin_stage(stage_of(0))
    assert torch.equal(memory.row_ids, first)


@pytest.mark.parametrize(("training", "expected"), [(True, {3, 12, 5, 8}), (False, set())])
def test_memory_without_a_table_holds_what_training_batches_push(table, relevance, training, expected):
    memory = SelectableCrossBatchMemory(WIDTH, 9)
    loss = make_loss(make_model(), None, relevance, memory).train(training)
    first = loss(*batch_of(table, *BATCH))
    torch.testing.assert_close(first, make_loss(make_model(), table, relevance)(*batch_of(table, *BATCH)))
    assert set(memory.row_ids.tolist()) - {-1} == expected


def test_memory_without_a_table_holds_the_anchors_when_there_are_no_labels(table):
    memory = SelectableCrossBatchMemory(WIDTH, 9)
    loss = make_loss(make_model(), memory=memory)
    loss(*batch_of(table, BATCH[0]))
    assert set(memory.row_ids.tolist()) - {-1} == {DOCUMENTS + query for query in BATCH[0]}


# -- training ---------------------------------------------------------------------------------------------------------


def test_gradient_reaches_only_the_trainable_module(table, relevance):
    first, second = make_model(out_dim=WIDTH, keep=12), make_model(out_dim=8, keep=5, seed=1)
    second[1] = ResidualAdapter(12, 8, writes="candidate_embedding")
    model = nn.Sequential(*first, *second[1:]).requires_grad_(False)
    second[1].requires_grad_(True)
    vectors = table[torch.arange(len(table))].clone()
    loss = make_loss(model, table, relevance, memory_of(table, range(20)))
    sum(loss(*batch_of(table, *BATCH)).values()).backward()
    reached = {name for name, part in model.named_parameters() if part.grad is not None}
    assert reached == {"3.residual.weight"}
    assert second[1].residual.weight.grad.abs().max() > 0
    assert torch.equal(table[torch.arange(len(table))], vectors)


def test_gradient_reaches_the_temperature_of_the_contrastive_form_only(table, relevance):
    def gradient(rank):
        loss = make_loss(make_model(), table, relevance, rank=rank)
        sum(loss(*batch_of(table, *BATCH)).values()).backward()
        return loss.log_scale.grad

    assert gradient("contrastive").abs() > 0
    assert gradient("pairwise") == 0


def test_begin_stage_resets_the_temperature(table, relevance):
    loss = make_loss(make_model(), table, relevance)
    before = loss(*batch_of(table, *BATCH))
    nn.init.constant_(loss.log_scale, 0.7)
    assert loss(*batch_of(table, *BATCH))["rank"] != before["rank"]
    loss.begin_stage(stage_of(1))
    torch.testing.assert_close(loss(*batch_of(table, *BATCH)), before)


def test_loss_trains(table, relevance):
    loss = make_loss(make_model(), table, relevance, memory_of(table, range(DOCUMENTS)))
    optimizer = torch.optim.Adam(loss.model[1].parameters(), lr=0.02)
    values = []
    for _ in range(30):
        total = sum(loss(*batch_of(table, *BATCH)).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.7 * values[0]


def test_training_state_restores_everything_but_the_model(table, relevance):
    def make():
        memory = SelectableCrossBatchMemory(WIDTH, 10)
        return make_loss(make_model(), table, relevance, memory, stream_rows=3, random_rows=4, top_k=2)

    stopped, resumed = make(), make()
    stopped.begin_stage(stage_of(1))
    for step in range(5):
        stopped.begin_step(1, step)
    nn.init.constant_(stopped.log_scale, 0.7)
    state = {name: value.clone() for name, value in stopped.training_state().items()}
    assert not [name for name in state if name.startswith("model.")]
    resumed.load_training_state(state)
    for step in (5, 6):
        stopped.begin_step(1, step)
        resumed.begin_step(1, step)
        expected, got = run(stopped, *batch_of(table, *BATCH)), run(resumed, *batch_of(table, *BATCH))
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0)


def test_load_training_state_rejects_a_partial_state(table, relevance):
    loss = make_loss(make_model(), table, relevance, memory_of(table, range(9)))
    state = loss.training_state()
    del state["memory.pushed"]
    with pytest.raises(ValueError, match=r"The saved training state lacks \['memory.pushed'\]"):
        loss.load_training_state(state)


def test_config_dict_is_json(table, relevance):
    config = make_loss(make_model(), table, relevance, rank="pairwise", top_k=7).get_config_dict()
    assert json.loads(json.dumps(config)) == config
    assert (config["rank"], config["top_k"], config["tau"]) == ("pairwise", 7, 0.12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": "listwise"}, "`rank` must be contrastive or pairwise, got 'listwise'"),
        ({"alignment": "l2"}, "`alignment` must be kl or l1, got 'l2'"),
        ({"tau": 0.0}, "`tau` must be above 0 and finite, got 0.0"),
        ({"alignment_tau": -1.0}, "`alignment_tau` must be above 0 and finite, got -1.0"),
        ({"prefix_gradient": 1.5}, r"`prefix_gradient` must be in \[0, 1\], got 1.5"),
        ({"shadow_share": 1.0}, r"`shadow_share` must be in \[0, 1\), got 1.0"),
        ({"alignment_weight": 0.0}, "Without labels `alignment_weight` must be above 0: nothing else would train"),
    ],
)
def test_loss_rejects_bad_settings(options, match):
    with pytest.raises(ValueError, match=match):
        make_loss(make_model(), **options)

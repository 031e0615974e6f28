"""The teacher: its steps, the table it moves, how far it goes, and what comes of it in a fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smec_st import Compressor, FitConfig, teacher, trials
from smec_st.data import DataError, Qrels, VectorTable, unit_rows
from smec_st.labels import Labels
from smec_st.maps import FoldedMap, Layer
from smec_st.recipe import Fitted, fit_stages
from smec_st.stages import StageReport
from smec_st.teacher import STRENGTHS, moved_by, teacher_scores, train_teacher

WIDTH, DOCUMENTS, QUERIES = 16, 300, 160
QUICK = {"steps": 3, "selection_steps": 1, "batch_size": 32, "folds": 2, "seed": 3}


@pytest.fixture
def collection():
    """Queries lean towards one direction, which says nothing about what they ask for; so full width ranks poorly."""
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(DOCUMENTS, WIDTH)).astype(np.float32)
    asked = rng.choice(DOCUMENTS, QUERIES, replace=False)
    queries = documents[asked] + 0.7 * rng.normal(size=(QUERIES, WIDTH)) + 4 * np.eye(WIDTH)[0]
    return VectorTable(documents, queries.astype(np.float32)), Qrels(np.arange(QUERIES), asked, np.ones(QUERIES))


def queries_of(table):
    return table[torch.arange(table.corpus_size, len(table))].numpy()


def by_hand(table, qrels, steps, seed):
    """The same with a loop over queries and documents, and Adam written out."""
    weight = torch.eye(WIDTH, requires_grad=True)
    first, second = torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, WIDTH)
    rng, left = np.random.default_rng(seed), []
    relevant = set(map(tuple, qrels.pairs.tolist()))
    for step in range(1, steps + 1):
        if len(left) < teacher.BATCH_SIZE:
            left = rng.permutation(len(qrels.pairs)).tolist()
        batch, left = qrels.pairs[left[: teacher.BATCH_SIZE]], left[teacher.BATCH_SIZE :]
        queries, documents = sorted({q for q, _ in batch.tolist()}), sorted({d for _, d in batch.tolist()})
        losses = []
        for query in queries:
            asks = torch.nn.functional.normalize(weight @ table[torch.tensor([DOCUMENTS + query])][0], dim=0)
            cosines = {
                d: asks @ torch.nn.functional.normalize(weight @ table[torch.tensor([d])][0], dim=0) for d in documents
            }
            against = sum(torch.exp(cosines[d] / teacher.TAU) for d in documents if (query, d) not in relevant)
            own = [d for d in documents if (query, d) in relevant]
            losses.append(sum(torch.log(1 + against / torch.exp(cosines[d] / teacher.TAU)) for d in own) / len(own))
        (gradient,) = torch.autograd.grad(sum(losses) / len(losses), weight)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        move = first / (1 - 0.9**step) / (torch.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight = (weight - teacher.RATE / WIDTH * move).detach().requires_grad_()
    return weight.detach()


def test_it_takes_the_steps_of_plain_infonce_from_the_identity(collection, monkeypatch):
    table, qrels = collection
    twice = Qrels(np.r_[qrels.queries, 0, 1], np.r_[qrels.documents, qrels.documents[1:3]], np.ones(QUERIES + 2))
    monkeypatch.setattr(teacher, "STEPS", 4)
    monkeypatch.setattr(teacher, "BATCH_SIZE", 60)
    found = moved_by(table, twice, 1.0, seed=5)
    assert (found - torch.eye(WIDTH)).abs().max() > 0.5 * teacher.RATE / WIDTH
    torch.testing.assert_close(found, by_hand(table, twice, 4, 5), atol=1e-4, rtol=0)
    monkeypatch.setattr(teacher, "STEPS", 0)
    assert torch.equal(moved_by(table, twice, 1.0), torch.eye(WIDTH))


def test_a_query_that_is_a_document_is_not_its_own_negative(monkeypatch):
    documents = torch.eye(4)[[0, 1, 2]].numpy()
    table = VectorTable(documents, documents[:2], own_document=np.array([0, 1]))
    qrels = Qrels(np.array([0, 1]), np.array([1, 0]), np.ones(2))
    monkeypatch.setattr(teacher, "STEPS", 1)
    assert torch.equal(moved_by(table, qrels, 1.0), torch.eye(4)), "nothing to rank above but the query itself"


def test_it_is_the_same_every_time_and_walks_a_line(collection):
    table, qrels = collection
    whole, again, other = (moved_by(table, qrels, 1.0, seed) for seed in (0, 0, 1))
    assert torch.equal(whole, again)
    assert not torch.equal(whole, other)
    eye = torch.eye(WIDTH)
    torch.testing.assert_close(moved_by(table, qrels, 0.25) - eye, (whole - eye) / 4, atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [8, 256])
def test_a_step_moves_no_vector_by_more_than_the_rate(monkeypatch, width):
    monkeypatch.setattr(teacher, "STEPS", 1)
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(128, width)).astype(np.float32)
    table = VectorTable(documents, documents + rng.normal(size=documents.shape).astype(np.float32))
    weight = moved_by(table, Qrels(np.arange(128), np.arange(128), np.ones(128)), 1.0)
    moves = (table[torch.arange(256)] @ (weight - torch.eye(width)).T).norm(dim=1)
    assert 0 < moves.max() <= teacher.RATE


# -- the moved table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [1 << 30, 0])
def test_a_moved_table_is_its_rows_times_the_map(collection, in_memory):
    table, _ = collection
    corpus, queries = table.documents(), queries_of(table)
    table = VectorTable(corpus, queries, in_memory_bytes=in_memory)
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)).astype(np.float32))
    moved = table.moved(weight)
    expected = unit_rows(np.concatenate([corpus, queries]) @ weight.numpy().T)
    np.testing.assert_allclose(moved[torch.arange(len(table))].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(moved.documents(), expected[:DOCUMENTS], atol=1e-6)
    np.testing.assert_allclose(
        moved.moved(weight)[torch.arange(5)].numpy(), unit_rows(expected[:5] @ weight.numpy().T), atol=1e-5
    )
    np.testing.assert_allclose(table[torch.arange(5)].numpy(), corpus[:5], atol=1e-6)
    assert (table.distance_moved, moved.distance_moved) == (
        0.0,
        pytest.approx(float((weight - torch.eye(WIDTH)).norm())),
    )
    with pytest.raises(ValueError, match=r"`weight` must be \(16, 16\), got \(16, 8\)"):
        table.moved(weight[:, :8])


@pytest.mark.parametrize("layers", [1, 2])
def test_maps_fold_behind_it(layers):
    rng = np.random.default_rng(0)
    shapes = [((4, 8), None)] if layers == 1 else [((12, 8), "relu"), ((4, 12), None)]
    folded = FoldedMap(tuple(Layer(rng.normal(size=shape).astype(np.float32), name) for shape, name in shapes))
    weight, x = rng.normal(size=(8, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    one_by_one = folded.compress(unit_rows(x @ weight.T))
    np.testing.assert_allclose(folded.after(weight).compress(x), one_by_one, atol=1e-5)


# -- how far it goes --------------------------------------------------------------------------------------------------


def test_held_out_queries_score_every_strength(collection):
    table, qrels = collection
    scores = teacher_scores(table, qrels.of_queries(range(100)), qrels.of_queries(range(100, 160)))
    assert set(scores) == set(STRENGTHS)
    assert {len(score) for score in scores.values()} == {60}
    full = score_of_full_width(table, qrels.of_queries(range(100, 160)))
    assert scores[0.0].mean() == pytest.approx(full, abs=1e-6)
    assert scores[1.0].mean() > scores[0.0].mean() + 0.05, "it has learned what all queries have in common"


def score_of_full_width(table, qrels):
    from smec_st.metrics import evaluate_retrieval

    return evaluate_retrieval(table.documents(), queries_of(table), qrels, ("ndcg@10",))["ndcg@10"].mean()


@pytest.mark.parametrize("same", [True, False])
def test_they_choose_how_far_it_goes(collection, same):
    """Held-out queries that ask as those of training do, and others that ask for the very opposite."""
    table, qrels = collection
    if not same:
        flipped = queries_of(table)
        flipped[100:, 0] *= -1
        table = VectorTable(table.documents(), flipped)
        wrong = np.random.default_rng(0).permutation(qrels.documents[:100])
        qrels = Qrels(qrels.queries, np.r_[wrong, qrels.documents[100:]], qrels.grades)
    labels = Labels(qrels.of_queries(range(100)), qrels.of_queries(range(100, 160)), quality=0.9)
    recipe, note = trials.settle(table, labels, FitConfig(dims=(8, 4), **QUICK))
    assert (recipe.teacher_strength or 0) > 0.5 if same else recipe.teacher_strength == 0
    assert note == ""
    named, _ = trials.settle(table, labels, FitConfig(dims=(8, 4), teacher_strength=0.3))
    assert named.teacher_strength == 0.3


@pytest.fixture
def made(monkeypatch):
    """Teacher and trials that are not trained: scores of the teacher by strength, and of a trial by its name."""
    scores, asked = {"teacher": {strength: [0.5 + strength / 10] * 40 for strength in STRENGTHS}}, []

    def trial(*arguments, title, **_):
        asked.append((title, arguments[3].teacher_strength))
        report = StageReport(stage="", dim=8, steps=1, seconds=0, loss=0, scores={"1": scores[title], "0": [0.1] * 40})
        return Fitted((), (report,))

    monkeypatch.setattr(trials, "fit_stages", trial)
    monkeypatch.setattr(
        teacher, "teacher_scores", lambda *_: {share: np.array(found) for share, found in scores["teacher"].items()}
    )
    return scores, asked


@pytest.mark.parametrize(("pupil", "chosen"), [(0.59, 1.0), (0.6, 0.0), (0.7, 0.0)])
def test_a_teacher_must_know_better_than_its_pupil(collection, made, pupil, chosen):
    table, qrels = collection
    scores, asked = made
    scores["without teacher"] = [pupil] * 40
    labels = Labels(qrels.of_queries(range(100)), qrels.of_queries(range(100, 140)), quality=0.9)
    recipe, _ = trials.settle(table, labels, FitConfig(dims=(8, 4)))
    assert recipe.teacher_strength == chosen
    assert asked == [("without teacher", 0.0)]


PULLED = ("pull 6", "pull 2", "pull 0.5")


@pytest.mark.parametrize(
    ("pupils", "taught", "weight"),
    [([0.8, 0.1, 0.1], False, None), ([0.4, 0.7, 0.1], False, 2.0), ([0.4, 0.5, 0.1], True, None)],
)
def test_it_must_know_better_than_the_pupil_whose_pull_suits_it_best(collection, made, pupils, taught, weight):
    """The teacher reaches 0.6; where it is taken, the pull is chosen anew, and no trial is run twice."""
    table, qrels = collection
    scores, asked = made
    scores |= {name: [score] * 40 for name, score in zip(PULLED, pupils, strict=True)}
    scores |= {f"taught {name}": [score] * 40 for name, score in zip(PULLED, [0.7, 0.1, 0.1], strict=True)}
    labels = Labels(qrels.of_queries(range(100)), qrels.of_queries(range(100, 140)), quality=0.3)
    recipe, note = trials.settle(table, labels, FitConfig(dims=(8, 4)))
    assert (recipe.teacher_strength, recipe.alignment_weight) == (float(taught), weight)
    assert ("chose a weaker pull" in note) == (weight is not None)
    second = [(f"taught {name}", 1.0) for name in PULLED] if taught else []
    assert asked == [(name, 0.0) for name in PULLED] + second


def test_one_that_is_no_better_than_full_width_as_it_is_needs_no_trial(collection, made):
    table, qrels = collection
    scores, asked = made
    scores["teacher"] = {strength: [0.5 - strength / 10] * 40 for strength in STRENGTHS}
    labels = Labels(qrels.of_queries(range(100)), qrels.of_queries(range(100, 140)), quality=0.9)
    assert trials.settle(table, labels, FitConfig(dims=(8, 4)))[0].teacher_strength == 0
    assert asked == []


def test_labels_too_few_to_hold_some_out_teach_nobody(collection, made):
    table, qrels = collection
    labels = Labels(qrels, None, folds=qrels.folds(4, 0), quality=0.9)
    assert trials.settle(table, labels, FitConfig(dims=(8, 4), **QUICK))[0].teacher_strength == 0
    assert trials.settle(table, labels, FitConfig(dims=(8, 4), teacher_strength=1.0))[0].teacher_strength == 1
    assert made[1] == [], "nothing is tried"


# -- in a fit ---------------------------------------------------------------------------------------------------------


def test_stages_train_on_what_it_moves_and_fold_behind_it(collection):
    table, qrels = collection
    train = qrels.of_queries(range(100))
    config = FitConfig(dims=(8, 4), **QUICK, guard=False, teacher_strength=0.5, narrow_hidden=2.0)
    whole = fit_stages(table, train, None, config).maps[0][0]
    weight = moved_by(table, train, 0.5, QUICK["seed"])
    assert (weight - torch.eye(WIDTH)).norm() > 0.1
    alone = FitConfig(**{**config.to_dict(), "teacher_strength": 0.0})
    behind = fit_stages(table.moved(weight), train, None, alone).maps[0][0]
    sides = whole.compress(table.documents()), behind.compress(table.moved(weight).documents())
    np.testing.assert_allclose(*sides, atol=1e-4)


@pytest.mark.parametrize("settings", [{"activation": "gelu"}, {"order": "shrink"}, {}])
def test_it_stays_away_where_its_map_would_not_fold_or_nothing_is_labelled(collection, settings):
    table, qrels = collection
    train = None if not settings else qrels
    fits = [
        fit_stages(table, train, None, FitConfig(dims=(8, 4), **QUICK, **settings, teacher_strength=strength)).maps
        for strength in (0.0, 1.0)
    ]
    for (one, _), (other, _) in zip(*fits, strict=True):
        assert all(np.array_equal(a.weight, b.weight) for a, b in zip(one.layers, other.layers, strict=True))


def test_defaults_move_for_pairs_alone(collection):
    assert FitConfig().for_labels(False).teacher_strength == 1.0
    assert FitConfig().for_labels(True).teacher_strength == 0.0
    table, qrels = collection
    parts = qrels.of_queries(range(100)), qrels.of_queries(range(100, 160))
    settings = {**QUICK, "steps": 30}
    strengths = []
    for strength in ({}, {"teacher_strength": 0.0}):
        compressor = Compressor.fit(table.documents(), queries_of(table), parts[0], (16, 8), dev_qrels=parts[1],
                                    **settings, **strength)  # fmt: skip
        strengths.append(compressor.info["settings"]["teacher_strength"])
    assert strengths[0] > 0.5
    assert strengths[1] == 0.0


def test_a_run_is_not_continued_with_another_teacher(collection, tmp_path):
    table, qrels = collection
    config = {"dims": (8, 4), **QUICK, "guard": False}
    fit_stages(table, qrels, None, FitConfig(**config, teacher_strength=1.0), work_dir=tmp_path)
    with pytest.raises(DataError, match="moved"):
        fit_stages(table, qrels, None, FitConfig(**config, teacher_strength=0.5), work_dir=tmp_path)
    fit_stages(table, qrels, None, FitConfig(**config, teacher_strength=1.0), work_dir=tmp_path)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_no_share_is_refused(strength):
    with pytest.raises(DataError, match=r"`teacher_strength` must be in \[0, 1\]"):
        FitConfig(teacher_strength=strength)


def test_training_it_leaves_no_gradients_behind(collection):
    adapter = train_teacher(*collection)
    assert not any(parameter.requires_grad for parameter in adapter.parameters())

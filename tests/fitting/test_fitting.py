"""From labels to a map: candidates, folds, what is chosen and trained, wide vectors, codes, sizes added later."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from smec_st import Compressor
from smec_st.data import Qrels, VectorTable, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.fitting.config import (
    CANDIDATES,
    CLASS_HIDDEN,
    ENOUGH_QUERIES,
    FEWEST_QUERIES,
    FOLDS,
    LEFT_OUT,
    MOST,
    TRIAL,
    FitConfig,
)
from smec_st.fitting.fit import LabelsWarning, _folds, _leading_axes, fit_maps
from smec_st.fitting.recipe import fit_untrained
from smec_st.modules import EmbeddingInput, ResidualAdapter
from smec_st.training.trainer import SequentialTrainer

WIDTH, DOCUMENTS, QUERIES, MEANING = 24, 300, 160, 8
SHORT = {"steps": 8, "adapt_steps": 6}  # where what is learned does not matter
QUICK = {"steps": 40, "adapt_steps": 30, "batch_size": 32, "random_rows": 128, "memory": 256}


def under_noise(loud=1.0, width=WIDTH, seed=0):
    """Vectors and judgements: eight directions of meaning, and eight that mean nothing and are as loud as is said."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(DOCUMENTS, MEANING))
    asked = rng.choice(DOCUMENTS, QUERIES, replace=False)

    def vectors(meaning):
        rest = rng.normal(size=(len(meaning), width - MEANING)) * np.r_[np.full(8, loud), np.full(width - 16, 0.05)]
        return np.concatenate([meaning, rest], axis=1).astype(np.float32)

    queries = vectors(meaning[asked] + 0.3 * rng.normal(size=(QUERIES, MEANING)))
    return vectors(meaning), queries, Qrels(np.arange(QUERIES), asked, np.ones(QUERIES))


def shuffled(qrels):
    return Qrels(qrels.queries, np.random.default_rng(1).permutation(qrels.documents), qrels.grades)


def ndcg(compressor, corpus, queries, qrels, dim):
    sides = compressor.transform(corpus, dim), compressor.transform(queries, dim)
    return float(evaluate_retrieval(*sides, qrels, ("ndcg@10",))["ndcg@10"].mean())


@pytest.fixture(scope="module")
def world():
    return under_noise()


@pytest.fixture(scope="module")
def learned(world):
    corpus, queries, qrels = world
    train, dev = qrels.of_queries(range(100)), qrels.of_queries(range(100, 130))
    return Compressor.fit(corpus, queries, train, (12, 6), dev_qrels=dev, **QUICK)


@pytest.fixture(scope="module")
def unlabelled(world):
    corpus, queries, _ = world
    return Compressor.fit(corpus, queries, None, (12, 6), **QUICK)


@pytest.fixture(scope="module")
def misled(world):
    corpus, queries, qrels = world
    with pytest.warns(LabelsWarning, match="nothing is trained on the judgements. what to train: "):
        return Compressor.fit(corpus, queries, shuffled(qrels), (12, 6), **QUICK)


# -- candidates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_differs_from_the_settings_as_its_table_says(name):
    config = FitConfig(tau=0.3, seed=4)
    changed = {
        field.name
        for field in dataclasses.fields(FitConfig)
        if getattr(config.as_candidate(name), field.name) != getattr(config, field.name)
    }
    assert changed <= set(CANDIDATES[name])
    for key in changed:
        assert getattr(config.as_candidate(name), key) == CANDIDATES[name][key]


def test_candidates_differ_from_one_another():
    whole = [FitConfig().as_candidate(name) for name in CANDIDATES]
    assert len(set(whole)) == len(whole)
    assert list(CANDIDATES)[0] == "neighbourhoods"
    assert FitConfig().candidates == tuple(CANDIDATES)


def test_a_trial_of_classes_has_the_hidden_layer_that_makes_the_candidate():
    assert FitConfig().as_candidate("labels alone", trial=True).hidden_dim == CLASS_HIDDEN


@pytest.mark.parametrize("trial", [False, True])
@pytest.mark.parametrize("given", [{}, {"steps": 7, "random_rows": 9, "narrow_hidden": 0.5}, {"steps": 0}])
@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_never_takes_more_than_it_was_given(name, given, trial):
    config = FitConfig(**given)
    made, whole = config.as_candidate(name, trial=trial), config.as_candidate(name)
    for key in MOST:
        assert getattr(made, key) <= getattr(config, key)
    for key, most in TRIAL.items() if trial else ():
        assert getattr(made, key) <= min(most, getattr(whole, key))


# -- folds ------------------------------------------------------------------------------------------------------------


def pairs_of(queries, per_document=2):
    """Judgements in which `per_document` queries share each document."""
    return Qrels(np.arange(queries), np.arange(queries) // per_document, np.ones(queries))


def table_of(queries, own=None):
    rng = np.random.default_rng(0)
    return VectorTable(rng.normal(size=(max(queries, 10), 4)), rng.normal(size=(queries, 4)), own)


def shares_documents(one, other):
    return bool(np.isin(one.pairs[:, 1], other.pairs[:, 1]).any())


def test_folds_hold_each_query_out_once_and_every_second_one_asks_for_unseen_documents():
    train = pairs_of(120)
    folds = list(_folds(table_of(120), train, None, seed=0))
    assert len(folds) == FOLDS
    assert sorted(np.concatenate([held.query_rows for _, held in folds])) == list(range(120))
    for rest, held in folds:
        assert not np.isin(rest.query_rows, held.query_rows).any()
        assert sorted([*rest.query_rows, *held.query_rows]) == list(range(120))
    assert [shares_documents(rest, held) for rest, held in folds] == [False, True, False, True]


def test_a_dev_split_comes_first_and_folds_follow_until_queries_are_enough():
    table, qrels = table_of(1600), pairs_of(1600)
    train = qrels.of_queries(range(120))
    some = qrels.of_queries(range(200, 250))
    (rest, held), *others = _folds(table, train, some, seed=0)
    assert rest.query_rows.tolist() == train.query_rows.tolist()
    assert held.query_rows.tolist() == some.query_rows.tolist()
    assert len(others) == FOLDS
    many = list(_folds(table, train, qrels.of_queries(range(200, 900)), seed=0))
    assert [len(held.query_rows) for _, held in many] == [700]
    almost = qrels.of_queries(range(200, 200 + ENOUGH_QUERIES - 25))
    assert len(list(_folds(table, train, almost, seed=0))) == 2, "one fold of 30 makes them enough"


def test_training_queries_too_few_for_folds_leave_the_dev_split_alone():
    qrels = pairs_of(100)
    few = qrels.of_queries(range(FEWEST_QUERIES - 1))
    assert list(_folds(table_of(100), few, None, seed=0)) == []
    assert len(list(_folds(table_of(100), few, qrels.of_queries(range(50, 100)), seed=0))) == 1


def test_a_held_out_query_that_is_a_document_is_out_of_training():
    """Documents of five classes ask for the others of their class; as a labelled document each would say its own."""
    rows = np.arange(60)
    same = rows[:, None] % 5 == rows[None] % 5
    queries, documents = np.nonzero(same & (rows[:, None] != rows[None]))
    train = Qrels(queries, documents, np.ones(len(queries)))
    folds = list(_folds(table_of(60, rows), train, None, seed=0))
    assert len(folds) == FOLDS
    for rest, held in folds:
        assert not np.isin(held.query_rows, rest.queries).any()
        assert not np.isin(held.query_rows, rest.documents).any()
        assert set(rest.documents.tolist()) == set(rows.tolist()) - set(held.query_rows.tolist())
        assert len(held) == sum(same[row].sum() - 1 for row in held.query_rows)


def test_trials_read_no_held_out_query_even_without_its_judgements(world, monkeypatch):
    corpus, queries, qrels = world
    seen, begin = [], SequentialTrainer.train

    def recording(self, *args, **kwargs):
        columns = {name: np.asarray(self._unlabelled_dataset[name]) for name in ("anchor",)}
        judged = self.loss.relevance
        seen.append((set(columns["anchor"].tolist()), set() if judged is None else set(judged.pairs[:, 0].tolist())))
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(SequentialTrainer, "train", recording)
    table = VectorTable(corpus, queries)
    config = FitConfig(dims=(6,), candidates=("neighbourhoods", "ranked"), **{**QUICK, "steps": 2})
    train = qrels.of_queries(range(100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelsWarning)
        fit_maps("smec", table, train, None, config, unlabelled_queries=np.arange(120))
    trials, (anchors, _) = seen[:-1], seen[-1]
    held = [set(table.query_ids(held.query_rows).tolist()) for _, held in _folds(table, train, None, 0)]
    assert len(trials) == 2 * len(held)
    everyone = set(table.query_ids(np.arange(120)).tolist())
    for number, (anchors_of_trial, judged) in enumerate(trials):
        assert anchors_of_trial == everyone - held[number // 2]
        assert not judged & held[number // 2]
    assert anchors == everyone


# -- what is chosen ---------------------------------------------------------------------------------------------------


def test_good_labels_are_trained_on(world, learned):
    corpus, queries, qrels = world
    (decision,) = learned.info["decisions"]
    assert decision["chosen"] not in ("start", "neighbourhoods")
    assert decision["gain"] > 0
    assert learned.info["data"]["training_queries"] == 100
    test = qrels.of_queries(range(130, QUERIES))
    start = Compressor.fit(corpus, dims=(12, 6), method="pca")
    for dim in (12, 6):
        assert ndcg(learned, corpus, queries, test, dim) > ndcg(start, corpus, queries, test, dim) + 0.1


@pytest.mark.slow
def test_misleading_labels_are_not_trained_on(misled, unlabelled):
    (decision,) = misled.info["decisions"]
    assert decision["chosen"] in ("start", "neighbourhoods")
    if decision["chosen"] == "neighbourhoods":
        assert misled.fingerprint == unlabelled.fingerprint
    assert len(misled.map_for(12).layers) == 1


@pytest.mark.parametrize("dev", [0, 5])
def test_too_few_judged_queries_train_on_neighbourhoods_and_say_so(world, unlabelled, dev):
    corpus, queries, qrels = world
    train, held = qrels.of_queries(range(FEWEST_QUERIES - 1 - dev)), qrels.of_queries(range(100, 100 + dev))
    options = {"unlabelled_queries": np.arange(QUERIES), **QUICK}
    with pytest.warns(LabelsWarning, match="what to train: neighbourhoods, the safest choice"):
        few = Compressor.fit(corpus, queries, train, (12, 6), dev_qrels=held if dev else None, **options)
    assert few.fingerprint == unlabelled.fingerprint
    (decision,) = few.info["decisions"]
    assert (decision["chosen"], decision["queries"]) == ("neighbourhoods", 0)


def test_one_candidate_leaves_nothing_to_choose(world):
    corpus, queries, qrels = world
    only = Compressor.fit(corpus, queries, qrels, (6,), candidates=("adapted",), **QUICK)
    assert only.info["decisions"] == []
    assert only.info["settings"]["rank_weight"] == 0
    assert [stage["stage"] for stage in only.info["stages"]] == ["stage-00-grow-24-adapt", "stage-01-grow-6-compress"]
    start = Compressor.fit(corpus, queries, qrels, (6,), candidates=("start",), **QUICK)
    assert start.info["stages"] == []


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_every_candidate_trains_a_size_that_may_have_a_hidden_layer(world, candidate):
    corpus, queries, qrels = world
    made = Compressor.fit(corpus, queries, qrels, (8, 1), candidates=(candidate,), **{**QUICK, "narrow_hidden": 1.0})
    has_hidden_layer = len(made.maps[0][0].layers) > 1
    assert has_hidden_layer == (candidate in ("ranked", "adapted and ranked", "labels alone"))


def test_decisions_are_kept_as_json(learned, tmp_path):
    (decision,) = learned.info["decisions"]
    means = decision["means"]
    assert set(means) <= set(CANDIDATES)
    assert decision["instead_of"] == next(iter(CANDIDATES))
    assert means[decision["chosen"]] - means["neighbourhoods"] == pytest.approx(decision["gain"])
    assert decision["queries"] == 30 + 100, "the dev split, and every training query once"
    learned.save(tmp_path / "saved")
    assert Compressor.load(tmp_path / "saved").info["decisions"] == json.loads(json.dumps([decision]))


@pytest.mark.slow
def test_a_fit_that_was_cut_off_in_a_trial_goes_on_to_the_same_bits(world, tmp_path, cut_off):
    corpus, queries, qrels = world
    options = {"candidates": ("neighbourhoods", "adapted and ranked"), **QUICK, **SHORT, "narrow_hidden": 1.0}
    data = corpus, queries, qrels.of_queries(range(100)), (8, 1)
    whole = Compressor.fit(*data, **options)
    cut_off(5)  # each fold has a stage of one candidate and two of the other: the second fold's adapt stage
    with pytest.raises(KeyboardInterrupt):
        Compressor.fit(*data, work_dir=tmp_path, **options)
    again = Compressor.fit(*data, work_dir=tmp_path, **options)
    assert again.fingerprint == whole.fingerprint
    assert again.info["decisions"] == whole.info["decisions"]


# -- without labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(WIDTH, 6), (12, 6)])
def test_without_labels_rows_are_orthonormal(world, dims):
    corpus, queries, _ = world
    fitted = Compressor.fit(corpus, queries, None, dims, **QUICK)
    (layer,) = fitted.map_for(dims[0]).layers
    np.testing.assert_allclose(layer.weight @ layer.weight.T, np.eye(dims[0]), atol=1e-5)
    start = fit_untrained("start", VectorTable(corpus), dims).maps[0][0].layers[0].weight
    assert not np.allclose(layer.weight[:6] @ start[:6].T @ start[:6], layer.weight[:6], atol=0.01), "it was trained"
    if dims[0] == WIDTH:
        sides = unit_rows(corpus), fitted.transform(corpus, WIDTH)
        np.testing.assert_allclose(*(side @ side.T for side in sides), atol=1e-5)


def test_without_labels_a_fit_is_the_candidate_that_uses_none(world, unlabelled):
    corpus, queries, qrels = world
    alone = unlabelled
    named = Compressor.fit(corpus, queries, qrels, (12, 6), candidates=("neighbourhoods",), **QUICK)
    assert alone.fingerprint == named.fingerprint
    assert alone.info["decisions"] == named.info["decisions"] == []
    assert (alone.info["data"]["training_queries"], named.info["data"]["training_queries"]) == (0, QUERIES)


# -- wide vectors -----------------------------------------------------------------------------------------------------


def wide(width=1100, rank=12, rest=0.0, documents=200):
    """Vectors in a space of few dimensions, turned into many."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(width, rank)))[0].T
    rows = [rng.normal(size=(count, rank)) for count in (documents, 60)]
    return [(part @ turn + rest * rng.normal(size=(len(part), width))).astype(np.float32) for part in rows]


def test_wide_vectors_are_turned_to_the_axes_that_hold_nearly_all_of_them():
    corpus, queries = wide(rest=1e-4)
    table = VectorTable(corpus, queries)
    turned, turn = _leading_axes(table, 4)
    assert turn.shape == (turned.width, 1100)
    assert 12 <= turned.width < 20
    np.testing.assert_allclose(turn @ turn.T, np.eye(turned.width), atol=1e-4)
    rows = torch.arange(len(table))
    kept = (table[rows] @ torch.from_numpy(turn).T).square().sum(dim=1).mean()
    assert kept >= 1 - LEFT_OUT
    whole, part = table[rows], turned[rows]
    torch.testing.assert_close(part @ part.T, whole @ whole.T, atol=0.005, rtol=0)
    assert _leading_axes(table, 50)[0].width == 50, "never less than the largest size"


def test_vectors_that_are_not_wide_stay_as_they_are(world):
    table = VectorTable(*world[:2])
    assert _leading_axes(table, 8) == (table, None)


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_a_fit_of_wide_vectors_is_the_fit_of_their_leading_axes_folded_back(labelled):
    corpus, queries = wide()
    rows = np.arange(60)
    qrels = Qrels(rows, rows, np.ones(60)) if labelled else None
    options = {"candidates": ("adapted and ranked",), **QUICK, **SHORT}
    fitted = Compressor.fit(corpus, queries, qrels, (8, 4), **options)
    assert fitted.width == 1100
    turned, turn = _leading_axes(VectorTable(corpus, queries), 8)
    narrow = fit_maps("smec", turned, qrels, None, FitConfig(dims=(8, 4), **options)).maps[0][0]
    for dim in (8, 4):
        expected = narrow.first(dim).compress(unit_rows(queries) @ turn.T)
        np.testing.assert_allclose(fitted.transform(queries, dim), expected, atol=1e-4)


# -- a hidden layer for narrow sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "labelled", "narrow_hidden", "hidden"),
    [
        ((8, 1), True, 2.0, 48),
        ((8, 2), True, 2.0, 0),
        ((8, 1), False, 2.0, 0),
        ((8, 1), True, 0.0, 0),
    ],
    ids=["narrow", "too wide", "no labels", "switched off"],
)
def test_sizes_up_to_a_twenty_fourth_of_the_width_get_a_hidden_layer(world, dims, labelled, narrow_hidden, hidden):
    corpus, queries, qrels = world
    options = {"candidates": ("adapted and ranked",), **QUICK, **SHORT, "narrow_hidden": narrow_hidden}
    fitted = Compressor.fit(corpus, queries, qrels if labelled else None, dims, **options)
    folded = fitted.map_for(dims[0])
    assert len(folded.layers) == (2 if hidden else 1)
    if hidden:
        # Hidden units, and each linear output as a pair of them (see `smec_st.maps.folding`).
        assert len(folded.layers[0].weight) in (hidden + 2 * dims[0], hidden + 2 * WIDTH)
        wide_sizes = folded(corpus)[:, 1:]
        solved, *_ = np.linalg.lstsq(corpus, wide_sizes, rcond=None)
        np.testing.assert_allclose(corpus @ solved, wide_sizes, atol=1e-4)  # linear beyond the narrow size
        first = folded(corpus)[:, :1]
        solved, *_ = np.linalg.lstsq(corpus, first, rcond=None)
        assert np.abs(corpus @ solved - first).max() > 1e-2


def test_a_map_with_a_hidden_layer_folds_exactly(world, monkeypatch):
    """The folded map gives what the trained modules give."""
    corpus, queries, qrels = world
    kept, end = [], SequentialTrainer._end_stage

    def keeping(self, *args):
        report = end(self, *args)
        kept.append(self.model)
        return report

    monkeypatch.setattr(SequentialTrainer, "_end_stage", keeping)
    options = {"candidates": ("adapted and ranked",), **QUICK, "narrow_hidden": 2.0}
    fitted = Compressor.fit(corpus, queries, qrels, (8, 1), **options)
    model = kept[-1].eval()
    assert isinstance(model[0], EmbeddingInput)
    assert isinstance(model[-2], ResidualAdapter)
    assert (model[-2].hidden_dim, model[-2].hidden_outputs) == (48, 1)
    with torch.no_grad():
        rows = torch.from_numpy(unit_rows(queries)).to(model.device)
        expected = model({"sentence_embedding": rows})["sentence_embedding"].cpu().numpy()
    for dim in (8, 1):
        np.testing.assert_allclose(fitted.transform(queries, dim), unit_rows(expected[:, :dim]), atol=1e-4)


# -- codes, and sizes added later -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_codes_are_chosen_on_queries_that_trained_no_map(world, monkeypatch):
    from smec_st.quantization import choice

    corpus, queries, qrels = world
    read, chosen = [], []
    begin, add = SequentialTrainer.train, choice.add_best

    def recording(self, *args, **kwargs):
        relevance = self.loss.relevance
        read.append(set(np.asarray(self._unlabelled_dataset["anchor"]).tolist()))
        if relevance is not None:
            read.append(set(relevance.pairs[:, 0].tolist()))
        return begin(self, *args, **kwargs)

    def watched(compressor, table, train, dev, *args):
        chosen.append((train, dev))
        return add(compressor, table, train, dev, *args)

    monkeypatch.setattr(SequentialTrainer, "train", recording)
    monkeypatch.setattr(choice, "add_best", watched)
    options = {"candidates": ("adapted and ranked",), **QUICK, **SHORT}
    fitted = Compressor.fit(corpus, queries, qrels, (16, 8), bytes=8, **options)
    assert fitted.head(bytes=8).bytes == 8
    ((train, dev),) = chosen
    assert len(dev.query_rows) >= FEWEST_QUERIES
    held = set((dev.query_rows + DOCUMENTS).tolist())
    assert read
    assert not any(held & rows for rows in read)
    assert not np.isin(train.query_rows, dev.query_rows).any()


@pytest.fixture(scope="module", params=["start", "neighbourhoods", "adapted and ranked"])
def before(world, request):
    return Compressor.fit(*world, (12, 6), candidates=(request.param,), **{**QUICK, **SHORT})


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_sizes_added_later_leave_old_vectors_as_they_were(world, before, labelled):
    corpus, queries, qrels = world
    after = before.extend(corpus, queries, qrels if labelled else None, dims=(18, 9, 3))
    assert after.dims == (18, 12, 9, 6, 3)
    for dim in before.dims:
        assert np.array_equal(before.transform(corpus, dim), after.transform(corpus, dim))
    for dim in (18, 9, 3):
        lengths = np.linalg.norm(after.transform(corpus, dim), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)
    assert len(after.info["stages"]) == len(before.info["stages"]) + 3
    assert all(stage["steps"] > 0 for stage in after.info["stages"])

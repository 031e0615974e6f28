"""What is settled by trial, kind of labels and pull: where it is tried, what is chosen, what a cut loses."""

from __future__ import annotations

import numpy as np
import pytest

from smec_st import Compressor, FitConfig, fitting
from smec_st import trials as trying
from smec_st.classes import complete_classes, labels_are_classes
from smec_st.config import CLASS_DEFAULTS, PAIR_DEFAULTS
from smec_st.data import Qrels, VectorTable
from smec_st.labels import Labels
from smec_st.metrics import evaluate_retrieval
from smec_st.recipe import Fitted
from smec_st.stages import StageReport

WIDTH, DOCUMENTS, QUERIES = 24, 400, 200
QUICK = {"steps": 2, "selection_steps": 1, "batch_size": 64, "folds": 2, "teacher_strength": 0.0}


def under_noise(noise, seed=0):
    """Eight directions of meaning beside eight that mean nothing; where these are loud, full width ranks poorly."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(DOCUMENTS, 8))
    asked = rng.choice(DOCUMENTS, QUERIES, replace=False)

    def vectors(meaning):
        rest = rng.normal(size=(len(meaning), WIDTH - 8)) * np.repeat([noise, 0.1], 8)
        return np.concatenate([meaning, rest], axis=1).astype(np.float32)

    table = VectorTable(vectors(meaning), vectors(meaning[asked] + 0.3 * rng.normal(size=(QUERIES, 8))))
    return table, Qrels(np.arange(QUERIES), asked, np.ones(QUERIES))


def fit(dev, noise=1.0, **settings):
    """A compressor of 100 queries' labels, and its nDCG@10 at 8 dims on 50 others."""
    table, qrels = under_noise(noise)
    corpus, queries = table.documents(), np.stack([table[row] for row in range(table.corpus_size, len(table))])
    compressor = Compressor.fit(
        corpus,
        queries,
        qrels.of_queries(range(100)),
        (16, 8),
        dev_qrels=qrels.of_queries(range(100, 150)) if dev else None,
        **{**QUICK, **settings},
    )
    sides = compressor.transform(corpus, 8), compressor.transform(queries, 8)
    values = evaluate_retrieval(*sides, qrels.of_queries(range(150, 200)), ("ndcg@10",))
    return compressor, float(values["ndcg@10"].mean())


@pytest.fixture
def trials(monkeypatch):
    """Sizes and name of each trial, as they come."""
    seen = []
    real = trying.fit_stages

    def watched(*args, title, **kwargs):
        seen.append((args[3].dims, title))
        return real(*args, title=title, **kwargs)

    monkeypatch.setattr(trying, "fit_stages", watched)
    return seen


@pytest.mark.parametrize("dev", [True, False])
def test_where_labels_contradict_the_neighbourhoods_these_pull_weakly(dev, trials):
    settled, quality = fit(dev, steps=60)
    strong, less = fit(dev, steps=60, alignment_weight=6.0)
    assert settled.info["settings"]["alignment_weight"] in trying.PULLS[1:]
    assert strong.info["settings"]["alignment_weight"] == trying.PULLS[0] == 6.0
    assert "chose a weaker pull" in settled.info["data"]["note"]
    assert "note" not in strong.info["data"]
    assert quality > less + 0.05
    assert trials[:2] == [((16,), "pull 6"), ((16,), "pull 2")]


@pytest.fixture
def made_trials(monkeypatch):
    """Of trials that are not run: their scores by pull, to be filled, and the titles of those that were asked for."""
    scores, titles = {}, []

    def trial(*arguments, title, **_):
        titles.append(title)
        found = scores[arguments[3].alignment_weight]
        return Fitted((), (StageReport(stage="", dim=16, steps=1, seconds=0, loss=0, strength=0.75, scores=found),))

    monkeypatch.setattr(trying, "fit_stages", trial)
    return scores, titles


def settled(quality=0.3):
    table, qrels = under_noise(1.0)
    labels = Labels(qrels.of_queries(range(100)), qrels.of_queries(range(100, 150)), quality=quality)
    return trying.settle(table, labels, FitConfig(dims=(16, 8), teacher_strength=0.0))


@pytest.mark.parametrize(
    ("means", "weight"),
    [
        ((0.5, 0.5, 0.5), 6.0),
        ((0.5, 0.6, 0.55), 2.0),
        ((0.5, 0.6, 0.6), 2.0),
        ((0.5, 0.4, 0.6, 0.55), 0.5),
        ((0.5, 0.6, 0.7, 0.7), 0.5),
        ((0.5, 0.6, 0.7, 0.8), 0.0),
    ],
)
def test_the_strongest_pull_is_taken_that_no_weaker_one_beats(made_trials, means, weight):
    scores, titles = made_trials
    scores |= {pull: {"1": [mean] * 50, "0": [0.1] * 50} for pull, mean in zip(trying.PULLS, means, strict=False)}
    recipe, note = settled()
    assert recipe.alignment_weight == (None if weight == 6.0 else weight)
    assert bool(note) == (weight != 6.0)
    assert titles == ["pull 6", "pull 2", "pull 0.5", "pull 0"][: len(means)]


@pytest.mark.parametrize(
    ("many", "errors", "weight"), [(50, 0.9, None), (50, 1.1, 2.0), (51, 1.9, None), (51, 2.1, 2.0)]
)
def test_few_queries_leave_the_usual_pull_only_for_more(made_trials, monkeypatch, many, errors, weight):
    """50 are held out; the gain of the next weaker pull is so many standard errors."""
    monkeypatch.setattr(trying, "MANY", many)
    wave = np.tile([1.0, -1.0], 25)
    gain = 0.1 * (wave + errors * wave.std(ddof=1) / 50**0.5)
    scores, _ = made_trials
    scores |= {6.0: {"1": [0.5] * 50}, 2.0: {"1": (0.5 + gain).tolist()}, 0.5: {"1": [0.0] * 50}}
    assert settled()[0].alignment_weight == weight


def nearest(table, qrels, count=12):
    """Each query's relevant documents are those nearest in meaning to the one it asks for: no two have the same."""
    meaning = table.documents()[:, :8]
    distance = np.linalg.norm(meaning[qrels.documents][:, None] - meaning[None], axis=2)
    return Qrels(
        np.repeat(np.arange(QUERIES), count), distance.argsort(axis=1)[:, :count].ravel(), np.ones(QUERIES * count)
    )


@pytest.mark.parametrize("are_classes", [True, False])
def test_settings_for_classes_are_tried_where_queries_have_many_documents_each(trials, monkeypatch, are_classes):
    table, asked_for = under_noise(1.0)
    qrels = nearest(table, asked_for)
    assert not labels_are_classes(table, qrels)
    assert complete_classes(table, qrels) is qrels
    asked = []

    def answer(gain, errors):
        asked.append(errors)
        return are_classes and len(asked) == 1

    monkeypatch.setattr(trying, "is_sure", answer)
    queries = np.stack([table[row] for row in range(table.corpus_size, len(table))])
    parts = qrels.of_queries(range(100)), qrels.of_queries(range(100, 150))
    compressor = Compressor.fit(table.documents(), queries, parts[0], (16, 8), dev_qrels=parts[1], **QUICK)
    of_the_kind = set(CLASS_DEFAULTS) - {"teacher_strength"}  # settled before
    settings = {name: compressor.info["settings"][name] for name in of_the_kind}
    titles = [title for _, title in trials]
    if are_classes:
        assert settings == {name: CLASS_DEFAULTS[name] for name in of_the_kind}
        assert titles == ["pull 6", "as classes"]
        assert "settings for classes" in compressor.info["data"]["note"]
    else:
        assert settings == {name: PAIR_DEFAULTS[name] for name in of_the_kind}
        assert titles == ["pull 6", "as classes", "pull 2", "pull 0.5"], "the usual pull is not trained twice"
        assert "note" not in compressor.info["data"]
    assert asked[0] == 1.0, "neither kind of labels is the usual one"


def test_sizes_without_labels_are_pulled_also_where_labels_chose_to_do_without(monkeypatch):
    monkeypatch.setattr(trying, "is_sure", lambda gain, errors: True)
    monkeypatch.setattr(trying, "PULLS", (6.0, 0.0))
    pulls, real = {}, fitting.fit_stages

    def watched(*args, title="", **kwargs):
        pulls[title] = args[3].alignment_weight
        return real(*args, title=title, **kwargs)

    monkeypatch.setattr(fitting, "fit_stages", watched)
    compressor, _ = fit(False, steps=20, unlabelled_queries=np.arange(QUERIES))  # the smallest may go without labels
    assert compressor.info["settings"]["alignment_weight"] == 0.0
    assert (pulls["fold 1/2"], pulls["without labels"]) == (0.0, None)
    table, _ = under_noise(1.0)
    wider = compressor.extend(table.documents(), dims=(20,))
    assert wider.dims == (20, 16, 8)


def test_trials_are_compared_where_each_serves_the_held_out_queries_best(made_trials):
    """A smoothed curve may name another point than the best one; of a trial only the best counts."""
    curves = {6.0: (0.50, 0.48), 2.0: (0.60, 0.45), 0.5: (0.55, 0.59)}
    for pull, (result, between) in curves.items():
        made_trials[0][pull] = {"1": [result] * 50, "0.75": [between] * 50, "0": [0.1] * 50}
    recipe, note = settled()
    assert recipe.alignment_weight == 2.0
    assert "2, not 6" in note


def test_the_pull_is_not_tried_where_it_is_given_or_nothing_could_choose(trials):
    for settings in ({"alignment_weight": 1.0}, {"guard": False}, {"order": "shrink"}):
        fit(True, **settings)
        assert trials == []


def test_the_pull_is_tried_where_full_width_ranks_poorly_or_many_queries_are_held_out(trials, monkeypatch):
    fit(True, noise=0.1)  # full width ranks well, and 50 queries are few
    assert trials == []
    monkeypatch.setattr(trying, "MANY", 50)
    fit(True, noise=0.1)
    assert [title for _, title in trials] == ["pull 6", "pull 2", "pull 0.5"]
    trials.clear()
    monkeypatch.setattr(trying, "MANY", 51)
    monkeypatch.setattr(trying, "DOUBTFUL", 1.0)
    fit(True, noise=0.1)
    assert [title for _, title in trials] == ["pull 6", "pull 2", "pull 0.5"]


def test_the_pull_stays_as_it_is_where_both_trials_rank_alike():
    compressor, _ = fit(True, learning_rate=1e-9)
    assert compressor.info["settings"]["alignment_weight"] == 6.0


@pytest.mark.parametrize("number", [1, 2, 5], ids=["first trial", "second trial", "fit"])
def test_a_fit_that_was_cut_off_in_a_trial_goes_on_to_the_same_bits(tmp_path, cut_off, number):
    whole, _ = fit(True)
    ended = cut_off(number)
    with pytest.raises(KeyboardInterrupt):
        fit(True, work_dir=tmp_path)
    again, _ = fit(True, work_dir=tmp_path)
    assert len(ended) == 3 + 3 + 1  # each stage once, and the one that was cut off twice
    assert again.fingerprint == whole.fingerprint

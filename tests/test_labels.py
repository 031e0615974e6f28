"""Which judgements are trained on: enough of them, and such that the vectors have heard of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from conftest import write_collection
from smec_st import Compressor, load_collection
from smec_st.cli import run
from smec_st.cli.fit import _may_be_read
from smec_st.data import Qrels, VectorTable
from smec_st.guard import Choice, best_strength, better_without_labels, choose_by_folds
from smec_st.labels import LabelsWarning, share_labels, vectors_agree
from smec_st.stages import StageReport

WIDTH, DOCUMENTS = 24, 400


def made(queries, noise=1.0, seed=0):
    """Each query is its document with noise."""
    rng = np.random.default_rng(seed)
    corpus = rng.normal(size=(DOCUMENTS, WIDTH)).astype(np.float32)
    asked = rng.choice(DOCUMENTS, queries, replace=False)
    vectors = corpus[asked] + noise * rng.normal(size=(queries, WIDTH)).astype(np.float32)
    return VectorTable(corpus, vectors), Qrels(np.arange(queries), asked, np.ones(queries))


def shuffled(qrels, seed=0):
    return Qrels(qrels.queries, np.random.default_rng(seed).permutation(qrels.documents), qrels.grades)


@pytest.mark.parametrize("queries", [20, 60, 300])
def test_vectors_agree_with_their_own_judgements_and_with_no_others(queries):
    table, qrels = made(queries)
    assert vectors_agree(table, qrels)
    assert [vectors_agree(table, shuffled(qrels, seed)) for seed in range(10)].count(True) <= 1


def test_a_query_that_is_a_document_does_not_agree_with_itself(rng):
    corpus = rng.normal(size=(100, WIDTH)).astype(np.float32)
    table = VectorTable(corpus, corpus, np.arange(100))
    strangers = Qrels(np.arange(100), (np.arange(100) + 50) % 100, np.ones(100))
    assert not vectors_agree(table, strangers)
    classes = corpus + 3 * np.repeat(rng.normal(size=(10, WIDTH)), 10, axis=0)
    pairs = np.array([(q, d) for q in range(100) for d in range(100) if q // 10 == d // 10 and q != d])
    assert vectors_agree(VectorTable(classes, classes, np.arange(100)), Qrels(*pairs.T, np.ones(len(pairs))))


def test_labels_are_shared_between_training_and_the_guard():
    table, qrels = made(100)
    both = share_labels(table, qrels, None, 0.1, seed=0)
    assert (len(both.train.query_rows), len(both.held_out.query_rows), both.note) == (80, 20, "")
    dev = qrels.of_queries(range(30))
    given = share_labels(table, qrels.of_queries(range(30, 100)), dev, 0.1, seed=0)
    assert (len(given.train.query_rows), given.held_out) == (70, dev)
    few = share_labels(table, qrels.of_queries(range(39)), None, 0.1, seed=0)
    assert (few.train, len(few.held_out.query_rows)) == (None, 39)
    assert few.note.startswith("fewer than 40 judged queries")
    wrong = share_labels(table, shuffled(qrels), dev, 0.1, seed=0)
    assert (wrong.train, wrong.held_out) == (None, dev)
    assert wrong.note.startswith("the vectors rank the judged documents no better")
    empty = Qrels(np.array([0]), np.array([0]), np.zeros(1))
    assert share_labels(table, empty, None, 0.1, seed=0).train is empty


def test_judgements_too_few_to_hold_some_out_are_cross_validated():
    table, qrels = made(350)
    some = share_labels(table, qrels.of_queries(range(249)), None, 0.2, seed=0, folds=4)
    assert (len(some.train.query_rows), some.held_out) == (249, None)
    assert sorted(np.concatenate([part.query_rows for part in some.folds])) == list(range(249))
    many = share_labels(table, qrels.of_queries(range(250)), None, 0.2, seed=0, folds=4)
    assert (len(many.train.query_rows), len(many.held_out.query_rows), many.folds) == (200, 50, ())
    given = share_labels(table, qrels.of_queries(range(100)), qrels.of_queries(range(100, 200)), 0.1, seed=0, folds=4)
    assert (len(given.train.query_rows), given.folds) == (100, ())
    few = share_labels(table, qrels.of_queries(range(39)), None, 0.1, seed=0, folds=4)
    assert (few.train, few.folds) == (None, ())


QUICK = {"steps": 4, "selection_steps": 2, "batch_size": 16, "random_rows": 32}


def test_fit_on_misleading_judgements_is_the_fit_without(tmp_path):
    table, qrels = made(100)
    corpus, queries = table.documents(), np.asarray(table[np.arange(DOCUMENTS, DOCUMENTS + 100)])
    with pytest.warns(LabelsWarning, match="fitted without labels"):
        misled = Compressor.fit(corpus, queries, shuffled(qrels), (12, 6), **QUICK)
    assert misled.info["data"]["training_queries"] == 0
    assert "no better than those of other queries" in misled.info["data"]["note"]
    assert misled.fingerprint == Compressor.fit(corpus, queries, None, (12, 6), **QUICK).fingerprint
    told = Compressor.fit(corpus, queries, shuffled(qrels), (12, 6), guard=False, **QUICK)
    assert told.info["data"]["training_queries"] == 100


def test_cross_validation_scores_each_query_by_a_fit_without_it_and_then_trains_on_all():
    table, qrels = made(100)
    corpus, queries = table.documents(), np.asarray(table[np.arange(DOCUMENTS, DOCUMENTS + 100)])
    quick = {**QUICK, "steps": 40, "batch_size": 64, "mean_last": False}  # begins from the axes of `pca`
    fitted = Compressor.fit(corpus, queries, qrels, (6,), **quick)
    assert fitted.info["data"] == {"documents": 400, "training_queries": 100, "held_out_queries": 100, "folds": 4}
    (stage,) = fitted.info["stages"]
    expected = dict.fromkeys(stage["held_out"], 0.0)
    for held in qrels.folds(4, seed=0):
        rest = qrels.of_queries(np.setdiff1d(np.arange(100), held.query_rows))
        (one,) = Compressor.fit(corpus, queries, rest, (6,), dev_qrels=held, **quick).info["stages"]
        for strength, score in one["held_out"].items():
            expected[strength] += score * len(held.query_rows) / 100
    assert stage["held_out"] == pytest.approx(expected)
    assert len(set(expected.values())) > 1
    start, result = (
        Compressor.fit(corpus, queries, labels, (6,), **options).map_for(6).layers[0].weight
        for labels, options in ((None, {"method": "pca"}), (qrels, {**quick, "guard": False}))
    )
    kept = start + stage["strength"] * (result - start)
    assert np.allclose(fitted.map_for(6).layers[0].weight, kept, atol=1e-6)


@pytest.mark.parametrize("have", [0, 6, 12, 24])
def test_few_labels_grow_from_the_sizes_that_do_better_without(monkeypatch, have):
    table, qrels = made(100)
    corpus, queries = table.documents(), np.asarray(table[np.arange(DOCUMENTS, DOCUMENTS + 100)])
    few, everyone = qrels.of_queries(range(50)), np.arange(100)
    monkeypatch.setattr("smec_st.fitting.better_without_labels", lambda reports, choices: have)
    for module in ("trainer", "guard"):  # so few steps prove nothing; starts are alike with labels and without
        monkeypatch.setattr(f"smec_st.{module}.best_strength", lambda *arguments: 1.0)
    fitted = Compressor.fit(corpus, queries, few, (24, 12, 6), unlabelled_queries=everyone, **QUICK)
    rest = everyone[50:]
    free = Compressor.fit(corpus, queries, None, (24, 12, 6), dev_qrels=few, unlabelled_queries=rest, **QUICK)
    assert fitted.dims == fitted.nested_dims == (24, 12, 6)
    for dim in fitted.dims:
        alike = np.array_equal(fitted.transform(corpus, dim), free.transform(corpus, dim))
        assert alike == (dim <= have)
    assert [stage["dim"] for stage in fitted.info["stages"]] == [stage["dim"] for stage in free.info["stages"]]
    assert fitted.info["data"]["training_queries"] == 50
    assert fitted.info["data"].get("note", "").startswith(f"up to {have} dims trained without labels" if have else "")


def test_few_labels_with_few_other_queries_are_trained_on_at_every_size(monkeypatch):
    table, qrels = made(100)
    corpus, queries = table.documents(), np.asarray(table[np.arange(DOCUMENTS, DOCUMENTS + 100)])
    monkeypatch.setattr("smec_st.fitting.better_without_labels", lambda reports, choices: 6)
    alone = Compressor.fit(corpus, queries, qrels.of_queries(range(60)), (12, 6), **QUICK)
    asked = np.arange(100)  # 40 others
    beside = Compressor.fit(corpus, queries, qrels.of_queries(range(60)), (12, 6), unlabelled_queries=asked, **QUICK)
    assert alone.fingerprint == beside.fingerprint
    assert "note" not in beside.info["data"]


def test_sizes_are_without_labels_up_to_the_first_that_they_do_not_surely_serve_better():
    spread = np.tile([-1.0, 1.0], 10)  # a standard error of 0.23
    labelled = {dim: Choice(1.0, {1.0: spread, 0.0: spread + 9}) for dim in (6, 12, 24)}

    def free(*gains):
        start = StageReport(stage="", dim=6, steps=1, seconds=1.0, loss=1.0)  # a choice of directions, not scored
        fitted = [dataclasses.replace(start, dim=dim, strength=0.5) for dim in (6, 12, 24)]
        for report, gain in zip(fitted, gains, strict=True):
            report.scores = {"0.5": (gain + np.zeros(20)).tolist(), "1": [9.0] * 20}
        return [start, *fitted]

    assert better_without_labels(free(0.1, 0.9, 0.9), labelled) == 0
    assert better_without_labels(free(0.3, 0.1, 0.9), labelled) == 6
    assert better_without_labels(free(0.3, 0.9, -0.9), labelled) == 12
    assert better_without_labels(free(0.9, 0.9, 0.3), labelled) == 24


def test_folds_choose_together_and_in_the_order_of_queries():
    def report(stage, dim, scores):
        scores = {name: list(values) for name, values in scores.items()}
        return StageReport(stage=stage, dim=dim, steps=1, seconds=1.0, loss=1.0, scores=scores)

    low, high = {"1": [0.5, 0.1], "0.5": [0.4, 0.4], "0": [0.0, 0.2]}, {"1": [0.9], "0.5": [0.8], "0": [0.1]}
    folds = [[report("select", 6, {}), report("adapt", 6, low)], [report("select", 6, {}), report("adapt", 6, high)]]
    choices = choose_by_folds(folds, [np.array([3, 7]), np.array([5])])
    assert list(choices) == [6]
    assert {strength: scores.tolist() for strength, scores in choices[6].scores.items()} == {
        1.0: [0.5, 0.9, 0.1], 0.5: [0.4, 0.8, 0.4], 0.0: [0.0, 0.1, 0.2]
    }  # fmt: skip
    assert choices[6].strength == best_strength(choices[6].scores)


@pytest.mark.parametrize("number", [8, 14, 17])  # three stages a fit: in the third, the fifth, the last
def test_cross_validation_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, cut_off, number):
    table, qrels = made(100)
    corpus, queries = table.documents(), np.asarray(table[np.arange(DOCUMENTS, DOCUMENTS + 100)])
    monkeypatch.setattr("smec_st.fitting.better_without_labels", lambda reports, choices: 6)
    data = corpus, queries, qrels.of_queries(range(50)), (12, 6)
    options = {"unlabelled_queries": np.arange(100), **QUICK}
    whole = Compressor.fit(*data, **options)
    ended = cut_off(number)
    with pytest.raises(KeyboardInterrupt):
        Compressor.fit(*data, work_dir=tmp_path, **options)
    again = Compressor.fit(*data, work_dir=tmp_path, **options)
    assert len(ended) == 5 * 3 + 2 + 1
    assert again.fingerprint == whole.fingerprint
    assert [stage["held_out"] for stage in again.info["stages"]] == [s["held_out"] for s in whole.info["stages"]]


def test_command_says_that_it_did_not_train_on_labels(tmp_path, capsys):
    folder = write_collection(tmp_path / "few", documents=60, queries=40)
    config = tmp_path / "quick.json"
    config.write_text(json.dumps(QUICK))
    (folder / "qrels" / "dev.tsv").unlink(missing_ok=True)
    arguments = ["fit", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--dims", "8,4"]
    assert run([*arguments, "--config", str(config), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "note: fewer than 40 judged queries" in captured.out
    assert "Warning" not in captured.err


def test_command_reads_the_queries_it_trains_on_and_those_that_no_split_judges(small_collection):
    folder = small_collection(queries=40)
    collection = load_collection(folder, folder / "vectors.safetensors")
    judged = collection.judged("train")
    rows = judged.query_rows
    train = judged.of_queries(rows[:5])
    collection = dataclasses.replace(collection, qrels={"train": train, "dev": judged.of_queries(rows[5:8])})
    everyone = np.arange(len(collection.queries))
    assert _may_be_read(collection, train).tolist() == np.setdiff1d(everyone, rows[5:8]).tolist()
    assert _may_be_read(collection, None).tolist() == np.setdiff1d(everyone, rows[:8]).tolist()
    assert _may_be_read(collection, train.of_queries(rows[:2])).tolist() == np.setdiff1d(everyone, rows[2:8]).tolist()

"""The size that holds a target: what is asked, the order of the tests, and the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from smec_st import Compressor
from smec_st.cli import run
from smec_st.cli.inputs import Goal
from smec_st.data import DataError, Qrels, load_collection, unit_rows
from smec_st.evaluation.limits import Limit, Pair
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.target import Choice, SizeTest, measure_cost
from smec_st.research.compare import Target, choose_size, paired_interval


@pytest.fixture
def collection_dir(small_collection):
    return small_collection()


@pytest.fixture
def collection(collection_dir):
    return load_collection(collection_dir, collection_dir / "vectors.safetensors")


@pytest.mark.parametrize(
    ("text", "metric", "share"),
    [
        ("lossless", "ndcg@10", 1.0),
        ("ndcg@10 >= 0.99 original", "ndcg@10", 0.99),
        ("recall@100>=.9*original", "recall@100", 0.9),
        ("mrr@5 >= 1.1 original", "mrr@5", 1.1),
    ],
)
def test_target_is_read(text, metric, share):
    assert Target.parse(text) == Target(metric, share)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ndcg >= 1 original",
        "ndcg@10 > 1 original",
        "f1@3 >= 1 original",
        "ndcg@0 >= 1 original",
        "ndcg@10 >= 0 original",
    ],
)
def test_target_that_says_nothing_is_refused(text):
    with pytest.raises(DataError, match="a target is 'lossless'"):
        Target.parse(text)


def test_sizes_are_tested_from_the_widest_until_one_fails(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(16, 12, 6, 3, 2))
    target, held_out = Target("ndcg@10", 0.9), collection.judged("test")
    choice = choose_size(target, compressor, collection, held_out)
    own = collection.own_document
    original = evaluate_retrieval(
        unit_rows(collection.corpus), unit_rows(collection.queries), held_out, own_document=own
    )
    expected = None
    for test, dim in zip(choice.tests, compressor.dims, strict=False):
        sides = compressor.transform(collection.corpus, dim), compressor.transform(collection.queries, dim)
        scores = evaluate_retrieval(*sides, held_out, own_document=own)["ndcg@10"]
        assert test.dim == dim
        assert test.score == pytest.approx(scores.mean())
        assert test.low == pytest.approx(paired_interval(scores, 0.9 * original["ndcg@10"]).low)
        assert test.holds == (test.low >= 0)
        expected = dim if test.holds else expected
    assert choice.dim == expected
    assert choice.queries == len(held_out.query_rows)
    assert [test.holds for test in choice.tests[:-1]] == [True] * (len(choice.tests) - 1)
    assert not choice.tests[-1].holds or len(choice.tests) == len(compressor.dims)


def test_lossless_at_full_width_is_the_original_itself(collection):
    width = collection.corpus.shape[1]
    same = Compressor.fit(collection.corpus, method="truncate", dims=(width,))
    choice = choose_size(Target(), same, collection, collection.judged("test"))
    assert choice.dim == width
    assert choice.tests[0].low == pytest.approx(0, abs=1e-12)


def _fit(folder, out, target, *more):
    return run(["fit", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--method", "pca",
                "--dims", "12,6,2", "--out", str(out), "--target", target, *more])  # fmt: skip


def test_command_names_the_size_and_says_what_was_tested(collection_dir, tmp_path, capsys):
    assert _fit(collection_dir, tmp_path / "out", "ndcg@10 >= 0.01 original") == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compressor.json").read_text())["target"]
    assert found["target"] == "ndcg@10 >= 0.01 original"
    assert f"{found['dim']} dims is the smallest size that holds" in said
    least = min((test for test in found["tests"] if test["holds"]), key=lambda test: test["bytes"])
    assert f"{least['bytes']} bytes ({least['precision']} of {least['dim']} numbers) keep" in said
    assert found["sentence"] in said
    floats = [test["dim"] for test in found["tests"] if test["precision"] == "float32"]
    codes = [test["bytes"] for test in found["tests"] if test["precision"] != "float32"]
    assert floats == [12, 6, 2][: len(floats)]
    assert codes == [3, 1][: len(codes)]


def test_the_sentence_says_bytes_share_and_certainty():
    floats = SizeTest(48, "float32", 192, 0.66, 0.6, 0.01, True), SizeTest(24, "float32", 96, 0.5, 0.6, -0.2, False)
    codes = SizeTest(96, "pq", 12, 0.63, 0.6, 0.0, True), SizeTest(48, "pq", 6, 0.55, 0.6, -0.1, False)
    choice = Choice(Target(), 60, (*floats, *codes), 48, 12)
    assert choice.smallest == codes[0]
    assert str(choice) == (
        "12 bytes (pq of 96 numbers) keep 105 % of nDCG@10 (95 % sure: at least 100 %); as float32 48 dims is the "
        "smallest size that holds (192 bytes). Judged by 60 held-out queries."
    )
    assert "as float32 no size holds" in str(Choice(Target(), 60, (floats[1], *codes), None, 12))
    assert "as float32 no size fits" in str(Choice(Target(), 60, codes, None, 12))
    nearly = SizeTest(96, "pq", 12, 0.5999, 0.6, -0.0001, False)
    assert str(Choice(Target(), 60, (nearly,), None)) == (
        "no size holds ndcg@10 >= 1 original: 12 bytes (pq of 96 numbers) keep 99.9 % of nDCG@10 (95 % sure: at least "
        "99.9 %). Judged by 60 held-out queries."
    )


def test_a_limit_leaves_out_what_does_not_fit(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(16, 8, 4), bytes=(8, 4, 2))
    held_out, target = collection.judged("test"), Target("ndcg@10", 0.01)
    choice = choose_size(target, compressor, collection, held_out, limit=Limit(None, 32))
    assert [test.dim for test in choice.tests if test.precision == "float32"] == [8, 4]
    choice = choose_size(target, compressor, collection, held_out, limit=Limit("pinecone", 16))
    assert {test.precision for test in choice.tests} == {"float32"}
    with pytest.raises(DataError, match="fits pinecone and 1 byte a"):
        choose_size(target, compressor, collection, held_out, limit=Limit("pinecone", 1))


def test_there_is_no_target_where_the_original_finds_nothing(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(8,))
    queries = collection.judged("test").query_rows[:1]
    vectors = unit_rows(collection.corpus) @ unit_rows(collection.queries[queries]).T
    missed = Qrels(queries, vectors.argmin(axis=0), np.ones(1))
    with pytest.raises(DataError, match="no quality to keep"):
        choose_size(Target(), compressor, collection, missed)


def test_cost_is_the_difference_to_the_original_with_its_interval(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(16, 4), bytes=4)
    head, held_out = compressor.head(bytes=4), collection.judged("test")
    cost = measure_cost(head, collection, held_out)
    sides = head.decode(head.encode(collection.corpus)), head.queries(collection.queries)
    own = {"own_document": collection.own_document}
    ours = evaluate_retrieval(*sides, held_out, **own)["ndcg@10"]
    before = evaluate_retrieval(unit_rows(collection.corpus), unit_rows(collection.queries), held_out, **own)[
        "ndcg@10"
    ]
    interval = paired_interval(ours, before)
    assert (cost.score, cost.original) == pytest.approx((ours.mean(), before.mean()))
    assert (cost.low, cost.high, cost.queries) == (interval.low, interval.high, len(ours))
    assert cost.to_dict()["precision"] == head.precision


@pytest.mark.parametrize("asked", [True, False])
def test_without_judgements_cost_is_told_in_neighbours(collection, asked):
    if not asked:
        collection = dataclasses.replace(
            collection, queries=collection.queries[:0], own_document=np.empty(0, dtype=np.int64), qrels={}
        )
    width = collection.corpus.shape[1]
    same = Compressor.fit(collection.corpus, method="truncate", dims=(width, 2))
    whole = measure_cost(same.head(width), collection)
    assert (whole.score, whole.low, whole.measure) == (1, 0, "kept neighbours")
    small = measure_cost(same.head(2), collection)
    assert 0 < small.score < 1
    assert small.low <= small.score - 1 <= small.high < 0


def test_command_ends_with_1_when_no_size_holds_and_2_on_a_bad_target(collection_dir, tmp_path, capsys):
    assert _fit(collection_dir, tmp_path / "none", "ndcg@10 >= 5 original") == 1
    assert "no size holds" in capsys.readouterr().out
    assert (tmp_path / "none" / "compressor.json").is_file()
    assert _fit(collection_dir, tmp_path / "bad", "better") == 2
    assert not (tmp_path / "bad").exists()


def _run_fit(folder, out, *options):
    return run(["fit", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--method", "pca",
                "--dims", "16,8,4", "--out", str(out), *options])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "begins", "allowed"),
    [
        (["--fits", "pinecone"], "64 bytes, to fit pinecone: float32 of 16 numbers, 64 bytes", Limit("pinecone")),
        (["--ram", "100KB", "--documents", "10k"], "bytes, to fit 10 bytes a document: ", Limit(None, 10)),
        (
            ["--fits", "pgvector", "--ram", "100KB", "--documents", "50k"],
            "bytes, to fit pgvector and 2 bytes a document: ",
            Limit("pgvector", 2),
        ),
    ],
)  # fmt: skip
def test_command_names_the_best_that_fits_and_its_cost_in_one_line(
    collection_dir, tmp_path, capsys, options, begins, allowed
):
    assert _run_fit(collection_dir, tmp_path / "out", *options) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best ")]
    assert begins in line
    assert re.search(r"; nDCG@10 \S+ instead of \S+ \(\S+, 95 % sure: \S+ to \S+\), by \d+ queries$", line), line
    saved = Compressor.load(tmp_path / "out")
    head, (cost,) = saved.heads[-1], saved.info["costs"]
    assert allowed.allows(Pair(head.dim, head.precision, head.bytes))
    assert (cost["dim"], cost["precision"], cost["bytes"]) == (head.dim, head.precision, head.bytes)


def test_command_says_where_no_queries_are_left_to_measure_the_cost(collection_dir, tmp_path, capsys):
    (collection_dir / "qrels" / "test.tsv").unlink()
    (collection_dir / "qrels" / "dev.tsv").unlink(missing_ok=True)
    assert _run_fit(collection_dir, tmp_path / "out", "--bytes", "4") == 0
    assert re.search(r"best in 4 bytes: \w+ of \d+ numbers; no judged queries were left to", capsys.readouterr().out)


def test_command_refuses_at_once_what_fits_nothing(collection_dir, tmp_path, capsys):
    limits = ["--fits", "pinecone", "--ram", "1MB", "--documents", "1M"]
    assert _run_fit(collection_dir, tmp_path / "none", *limits) == 2
    said = capsys.readouterr().err
    assert "the smallest way to store one, float32 of 1 number, takes 4 bytes a document, 4 MB for" in said
    assert not (tmp_path / "none").exists()
    assert _run_fit(collection_dir, tmp_path / "none", "--fits", "redis") == 2


def test_command_tells_of_neighbours_where_nothing_is_judged(collection_dir, tmp_path, capsys):
    shutil.rmtree(collection_dir / "qrels")
    assert _run_fit(collection_dir, tmp_path / "out", "--no-labels", "--ram", "100KB", "--documents", "50k") == 0
    assert re.search(
        r"best in . bytes?, to fit 2 bytes .*; kept neighbours \S+ instead of 1.000 ", capsys.readouterr().out
    )


def test_command_seeks_the_fewest_bytes_among_those_that_fit(collection_dir, tmp_path, capsys):
    options = ["--target", "ndcg@10 >= 0.01 original", "--fits", "pgvector", "--ram", "100KB", "--documents", "5k"]
    assert _run_fit(collection_dir, tmp_path / "out", *options) == 0
    tests = Compressor.load(tmp_path / "out").info["target"]["tests"]
    limit = Limit("pgvector", 20)
    assert tests
    assert all(limit.allows(Pair(test["dim"], test["precision"], test["bytes"])) for test in tests)
    assert "Judged by" in capsys.readouterr().out


def test_a_part_is_kept_aside_where_no_split_could_tell_the_cost(collection_dir, tmp_path, monkeypatch):
    (collection_dir / "qrels" / "test.tsv").unlink()
    seen = {}
    monkeypatch.setattr(Compressor, "fit", classmethod(lambda cls, *args, **kwargs: seen.update(args=args, **kwargs)))
    with pytest.raises(AttributeError):  # nothing was fitted
        _run_fit(collection_dir, tmp_path / "out", "--fits", "pgvector")
    assert seen["dev_qrels"] is None
    assert seen["limit"] == Limit("pgvector")


def test_codes_are_tested_from_the_most_bytes_until_one_fails(collection):
    compressor = Compressor.fit(collection.corpus, method="pca", dims=(16, 8), bytes=(8, 4, 2, 1))
    held_out = collection.judged("test")
    choice = choose_size(Target("ndcg@10", 0.5), compressor, collection, held_out)
    codes = [test for test in choice.tests if test.precision != "float32"]
    assert [test.bytes for test in codes] == [8, 4, 2, 1][: len(codes)]
    for test in codes:
        head = compressor.head(bytes=test.bytes)
        sides = head.decode(head.encode(collection.corpus)), head.queries(collection.queries)
        scores = evaluate_retrieval(*sides, held_out, own_document=collection.own_document)["ndcg@10"]
        assert test.score == pytest.approx(scores.mean())
        assert (test.dim, test.precision) == (head.dim, head.precision)
    assert choice.bytes == min((test.bytes for test in codes if test.holds), default=None)
    assert all(test.holds for test in codes[:-1])


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (("pgvector", None, None), Limit("pgvector")),
        ((None, "2GB", "50M"), Limit(None, 40, 50_000_000)),
        (("pinecone", "1.5 GiB", "100m"), Limit("pinecone", 16, 100_000_000)),
        ((None, "1KB", "1M"), Limit(None, 0, 1_000_000)),
        ((None, None, None), Limit()),
    ],
)
def test_limits_are_read(given, limit):
    assert Limit.of(*given) == limit


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("redis", None, None), "limits are known of pgvector, pinecone, not of 'redis'"),
        ((None, "2GB", None), "go together"),
        ((None, None, "1M"), "go together"),
        ((None, "two", "1M"), "--ram takes a number"),
        ((None, "1GB", "1 GB"), "--documents takes a number"),
        ((None, "1GB", "0"), "1 or more"),
    ],
)
def test_limits_that_make_no_sense_are_refused(given, match):
    with pytest.raises(DataError, match=match):
        Limit.of(*given)


@pytest.mark.parametrize(
    ("index", "precision", "most"),
    [
        ("pgvector", "float32", 2_000),
        ("pgvector", "float16", 4_000),
        ("pgvector", "binary", 64_000),
        ("pinecone", "float32", 20_000),
    ],
)
def test_an_index_takes_so_many_numbers_and_no_more(index, precision, most):
    assert Limit(index).allows(Pair(most, precision, 1))
    assert not Limit(index).allows(Pair(most + 1, precision, 1))
    assert not Limit(index).allows(Pair(8, "pq", 1))
    assert not Limit(index, bytes=3).allows(Pair(most, precision, 4))


@pytest.mark.parametrize(
    ("given", "budgets"), [(("48,12", None), (48, 12)), (("8,8", None), (8,)), ((None, "2GB", "9"), ())]
)
def test_budgets_are_numbers_of_bytes(given, budgets):
    assert Goal.of(given[0], None, *given[1:]).budgets == budgets


@pytest.mark.parametrize(
    ("given", "match"), [(("0", None), "1 or more"), (("x", None), "whole numbers"), (("8", "2GB"), "either")]
)
def test_budgets_that_make_no_sense_are_refused(given, match):
    with pytest.raises(DataError, match=match):
        Goal.of(given[0], None, *given[1:])


def test_queries_that_choose_the_size_train_nothing(collection_dir, tmp_path, monkeypatch):
    seen = {}
    names = ("method", "table", "train", "dev")
    monkeypatch.setattr(
        "smec_st.fitting.fit.fit_maps", lambda *given, **_: seen.update(zip(names, given, strict=False))
    )
    with pytest.raises(AttributeError):  # nothing was fitted
        _fit(collection_dir, tmp_path / "out", "lossless")
    kept = load_collection(collection_dir, collection_dir / "vectors.safetensors").qrels["dev"]
    assert not np.isin(seen["train"].query_rows, kept.query_rows).any()
    assert not np.isin(seen["dev"].query_rows, kept.query_rows).any()


@pytest.mark.parametrize("limit", [None, Limit("pgvector", bytes=32)])
def test_a_fit_in_python_answers_as_the_command_does(collection_dir, tmp_path, limit):
    collection = load_collection(collection_dir, collection_dir / "vectors.safetensors")
    more = [] if limit is None else ["--fits", "pgvector", "--ram", "32KB", "--documents", "1000"]
    _fit(collection_dir, tmp_path / "out", "lossless", *more)
    qrels, given = collection.qrels, Compressor.load(tmp_path / "out").info
    here = Compressor.fit(
        collection.corpus, collection.queries, qrels["train"], dev_qrels=qrels["dev"], target="lossless", limit=limit,
        unlabelled_queries=qrels["train"].query_rows, own_document=collection.own_document, method="pca",
        dims=(12, 6, 2),
    )  # fmt: skip
    assert here.info["target"] == given["target"]


def test_a_choice_by_few_queries_says_that_they_are_too_few(collection):
    compressor = Compressor.fit(collection.corpus, method="truncate", dims=(collection.corpus.shape[1],))
    test = collection.judged("test")
    few = choose_size(Target(), compressor, collection, test.of_queries(test.query_rows[:5]))
    assert "Fewer than 20 queries are too few to rely on this" in str(few)
    assert "too few" not in str(choose_size(Target(), compressor, collection, test))


@pytest.mark.parametrize("target", [0.99, b"lossless", None, "ndcg@10 >= " + "9" * 400 + " original"])
def test_a_target_of_another_kind_is_refused(target):
    with pytest.raises(DataError, match="a target is 'lossless'"):
        Target.parse(target)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"limit": Limit(bytes=0)}, "none of the sizes"),
        ({"limit": Limit(bytes=0.5)}, "none of the sizes"),
        ({"limit": "pgvector"}, "takes a Limit"),
    ],
)
def test_a_target_within_what_nothing_fits_is_refused_before_the_fit(collection_dir, monkeypatch, given, match):
    monkeypatch.setattr("smec_st.fitting.fit.fit_maps", None)
    data = load_collection(collection_dir, collection_dir / "vectors.safetensors")
    with pytest.raises(DataError, match=match):
        Compressor.fit(data.corpus, data.queries, data.qrels["train"], target="lossless", **given)


def test_one_dev_query_tells_nothing(collection_dir):
    data = load_collection(collection_dir, collection_dir / "vectors.safetensors")
    dev = data.qrels["dev"]
    scores = evaluate_retrieval(unit_rows(data.corpus), unit_rows(data.queries), dev, ("ndcg@10",))["ndcg@10"]
    one = dev.of_queries(dev.query_rows[scores.argmax()][None])
    given = {"dev_qrels": one, "method": "pca", "dims": (12, 6), "bytes": ()}
    fitted = Compressor.fit(data.corpus, data.queries, data.qrels["train"], target="lossless", **given)
    found = fitted.info["target"]
    assert not any(test["holds"] for test in found["tests"])
    assert "too few to rely on" in found["sentence"]
    precisions = {test["precision"] for test in found["tests"]}
    assert precisions != {"float32"}  # no bytes named: a byte per four numbers is tested


@pytest.mark.parametrize(
    ("given", "match"),
    [((None, "2GB", "9" * 400), "can be counted"), ((None, "9" * 400 + "GB", "10"), "can be counted")],
)
def test_amounts_without_end_are_refused(given, match):
    with pytest.raises(DataError, match=match):
        Limit.of(*given)


def test_a_limit_of_true_is_refused():
    with pytest.raises(DataError, match="a number of 0 or more"):
        Limit(bytes=True)

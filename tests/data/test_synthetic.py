"""Queries made from documents: how they are cut, what joins the collection, and a fit on them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smec_st import Compressor
from smec_st.cli import run
from smec_st.data import DataError, add_synthetic_queries, load_collection
from smec_st.data.synthetic import cut_document
from tiny_models import WORDS, tiny_bert

LONG = "w1 w2 w3 w4. w5 w6 w7 w8 w9 w10 w11 w12 w13. w14 w15"


@pytest.mark.parametrize(
    ("how", "title", "text", "query", "rest"),
    [
        ("title", " A title here ", LONG, "A title here", LONG),
        ("title", "Short", LONG, None, None),
        ("title", "A title here", "too short", None, None),
        ("sentence", "A title here", LONG, "w1 w2 w3 w4.", LONG[13:]),
        ("sentence", "", "One sentence of many words that never ends at all but goes on", None, None),
        ("sentence", "", "今日 は 晴れ。 " + "word " * 8, "今日 は 晴れ。", ("word " * 8).strip()),
        ("halves", "", "a b c d e f g h i j k l m n o p", "a b c d e f g h", "i j k l m n o p"),
        ("halves", "", "a b c d e f g", None, None),
        ("auto", "A title here", LONG, "A title here", LONG),
        ("auto", "Short", LONG, "w1 w2 w3 w4.", LONG[13:]),
        ("auto", "", "a b c d e f g h i j k l m n o p", "a b c d e f g h", "i j k l m n o p"),
        ("auto", "", "nothing to cut", None, None),
    ],
)
def test_documents_are_cut_in_two(how, title, text, query, rest):
    assert cut_document(title, text, how) == (None if query is None else (query, rest))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "bert"
    tiny_bert(folder.with_name("bare")).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """60 documents, every fifth too short to be cut; 30 queries, 20 of them judged for training, 10 for test."""
    monkeypatch.setenv("SMEC_ST_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    words = [rng.choice(WORDS, 4 if i % 5 == 0 else 16) for i in range(60)]
    folder = tmp_path / "made"
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (
        ("corpus", [{"_id": f"d{i}", "title": "", "text": " ".join(part)} for i, part in enumerate(words)]),
        ("queries", [{"_id": f"q{i}", "text": " ".join(part[:3])} for i, part in enumerate(words[:30])]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, rows in (("train", range(20)), ("test", range(20, 30))):
        lines = "".join(f"q{i}\td{i}\t1\n" for i in rows)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def test_made_queries_join_the_training_split_and_are_never_judged_by_their_whole_document(folder, model):
    plain = load_collection(folder, model=model)
    more = add_synthetic_queries(plain, model, seed=3)
    assert (len(more.corpus), len(more.queries)) == (60 + 48, 30 + 48)
    assert np.array_equal(more.corpus[:60], plain.corpus)
    assert np.array_equal(more.queries[:30], plain.queries)
    made = {row: dict(found) for row, found in more.qrels["train"].relevant_by_query().items() if row >= 30}
    assert len(made) == 48
    assert len(more.qrels["train"]) == 20 + 48
    for query, found in made.items():
        (rest,) = found
        assert more.query_ids[query].removesuffix("#query") == more.corpus_ids[rest].removesuffix("#rest")
        whole = more.own_document[query]
        assert plain.texts[whole].endswith(more.texts[rest])
        assert plain.corpus_ids[whole] == more.query_ids[query].removesuffix("#query")
    assert np.array_equal(more.qrels["test"].pairs, plain.qrels["test"].pairs)
    few = add_synthetic_queries(plain, model, "halves", most=7)
    assert len(few.queries) == 37
    assert Compressor.fit(
        few.corpus, few.queries, few.qrels["train"], [8], own_document=few.own_document, steps=3, batch_size=8,
        candidates=("ranked",),
    ).dims == (8,)  # fmt: skip


def test_what_cannot_be_cut_or_read_is_said(folder, model, small_collection):
    collection = load_collection(folder, model=model)
    with pytest.raises(DataError, match="no document of made is long enough"):
        add_synthetic_queries(collection, model, "title")
    with pytest.raises(DataError, match="cut by auto, title, sentence, halves, got 'words'"):
        add_synthetic_queries(collection, model, "words")
    bare = small_collection()
    with pytest.raises(DataError, match="comes without texts"):
        add_synthetic_queries(load_collection(bare, bare / "vectors.safetensors"), model)


def fit(folder, model, out, *more):
    config = out.with_suffix(".json")
    config.write_text(json.dumps({"steps": 4, "batch_size": 16, "candidates": ["ranked"]}))
    return run(["fit", "--data", str(folder), "--model", model, "--dims", "8,4", "--config", str(config),
                "--out", str(out), *more])  # fmt: skip


@pytest.mark.parametrize(("more", "asked"), [((), 68), (("--no-labels",), 48)])
def test_command_fits_on_made_queries_with_and_without_judged_ones(folder, model, tmp_path, more, asked):
    assert fit(folder, model, tmp_path / "out", "--synthetic", "auto", *more) == 0
    data = json.loads((tmp_path / "out" / "compressor.json").read_text())["data"]
    assert data["training_queries"] == asked
    assert (tmp_path / "out" / "report.json").is_file()


def test_command_without_labels_needs_no_training_split(folder, model, tmp_path):
    (folder / "qrels" / "train.tsv").unlink()
    assert fit(folder, model, tmp_path / "out", "--no-labels") == 0
    data = json.loads((tmp_path / "out" / "compressor.json").read_text())["data"]
    assert data == {"documents": 60, "training_queries": 0}


def test_command_fits_and_saves_where_nothing_is_judged(folder, model, tmp_path, capsys):
    for file in (folder / "qrels").iterdir():
        file.unlink()
    assert fit(folder, model, tmp_path / "out", "--no-labels") == 0
    assert Compressor.load(tmp_path / "out").dims == (8, 4)
    assert not (tmp_path / "out" / "report.json").exists()
    assert "made has no judgements: nothing was scored" in capsys.readouterr().out
    assert fit(folder, model, tmp_path / "other", "--no-labels", "--target", "lossless") == 2
    assert "there is no dev split, and 0 judged training queries" in capsys.readouterr().err


def test_command_refuses_made_queries_without_a_model(folder, small_collection, tmp_path, capsys):
    bare = small_collection()
    vectors = bare / "vectors.safetensors"
    arguments = ["fit", "--data", str(bare), "--vectors", str(vectors), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--synthetic", "auto"]) == 2
    assert "give the --model that embeds them" in capsys.readouterr().err

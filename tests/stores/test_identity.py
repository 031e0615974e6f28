"""What belongs together is known by all that it depends on; nothing is mixed, continued or deleted by a name alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from smec_st.cli import run
from smec_st.cli.unfinished import run_key, work_dir
from smec_st.compressor import Compressor
from smec_st.compressor.space import check_space
from smec_st.data import DataError, load_collection, open_vectors
from smec_st.data.embedding import backbone_record, embed_tables, model_state
from smec_st.data.space import check_backbone
from smec_st.search import FunnelIndex
from smec_st.search.build import BuildOptions, _input_hash
from smec_st.search.checks import Documents
from smec_st.stores import Job, transform_files
from smec_st.stores.swap import finish_swap, swap
from smec_st.system.locks import write_lock
from tiny_models import tiny_bert, tiny_model

WIDTH, ROWS = 16, 400
TEXTS = {"corpus": ["a cat sat on the mat", "join two paths"], "queries": ["what cat"]}


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def folder(vectors, tmp_path):
    Compressor.fit(vectors, dims=(8, 4), method="pca", backbone={"model": "org/m"}).save(tmp_path / "c")
    return tmp_path / "c"


@pytest.fixture
def source(vectors, tmp_path):
    np.save(tmp_path / "in.npy", vectors)
    return tmp_path / "in.npy"


def refused(capsys, arguments, match):
    assert run([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert match in said[0]


# -- models -----------------------------------------------------------------------------------------------------------


def trained_further(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model[0].parameters():
            weight.add_(0.3 * torch.randn_like(weight))


def other_pooling(model):
    model[1].pooling_mode = "cls"


def other_length(model):
    model.max_seq_length = 3


def other_prompt(model):
    model.prompts = {"query": "document: "}


def no_normalize(model):
    del model[2]


CHANGES = [trained_further, other_pooling, other_length, other_prompt, no_normalize]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_state_of_a_model_covers_all_that_its_vectors_depend_on(tmp_path, change):
    model = tiny_bert(tmp_path / "m")
    model.save_pretrained(str(tmp_path / "saved"))
    before = model_state(model)
    assert model_state(tiny_bert(tmp_path / "m")) == before
    change(model)
    assert model_state(model) != before


def test_a_model_that_was_trained_further_and_saved_in_its_place_embeds_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SMEC_ST_CACHE", str(tmp_path / "cache"))
    model = tiny_bert(tmp_path / "m")
    model.save_pretrained(str(tmp_path / "saved"))
    first = embed_tables(TEXTS, str(tmp_path / "saved"))
    assert np.array_equal(embed_tables(TEXTS, str(tmp_path / "saved"))[0], first[0])
    assert len(list((tmp_path / "cache" / "vectors").iterdir())) == 1
    trained_further(model)
    model.save_pretrained(str(tmp_path / "saved"))
    second = embed_tables(TEXTS, str(tmp_path / "saved"))
    np.testing.assert_allclose(second[0], model.encode(TEXTS["corpus"], normalize_embeddings=True), atol=1e-6)
    assert not np.allclose(first[0], second[0], atol=1e-3)


def test_a_collection_embedded_by_a_model_knows_the_model_as_a_fit_in_python_does(
    tmp_path, small_collection, monkeypatch
):
    monkeypatch.setenv("SMEC_ST_CACHE", str(tmp_path / "cache"))
    path = str(tmp_path / "saved")
    model = tiny_bert(tmp_path / "m")
    model.save_pretrained(path)
    folder = small_collection(documents=20, queries=20)
    before = load_collection(folder, model=path)
    assert before.backbone == {**backbone_record(SentenceTransformer(path)), "model": path}
    assert len(before.backbone["probe"]) == 8
    trained_further(model)
    model.save_pretrained(path)
    with pytest.raises(DataError, match="trained further"):
        check_backbone(before.backbone, load_collection(folder, model=path).backbone, "the model")


def test_a_compressor_refuses_the_model_that_was_trained_further(tmp_path):
    model = tiny_model(tmp_path / "m")
    words = [f"w{i} w{i + 1}" for i in range(40)]
    compressor = Compressor.fit(words, dims=(4,), model=model, method="pca")
    compressor.attach(model)
    with FunnelIndex.build(tmp_path / "index", compressor, model.encode(words), model=model) as index:
        assert index.search(["w3 w4"], k=1).ids[0, 0] == 3
    trained_further(model)
    with pytest.raises(DataError, match="a fixed text has another vector"):
        compressor.attach(model)
    with (
        FunnelIndex.open(tmp_path / "index", compressor, model=model) as index,
        pytest.raises(DataError, match="a fixed text has another vector"),
    ):
        index.search(["w3 w4"], k=1)


# -- compressors ------------------------------------------------------------------------------------------------------


def edit(folder, change):
    path = folder / "compressor.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


EDITS = {
    "activation": lambda c: c["maps"][0]["layers"][0].update(activation="gelu"),
    "unknown activation": lambda c: c["maps"][0]["layers"][0].update(activation="tanh"),
    "sizes": lambda c: c["maps"][0].update(dims=[8, 3]),
    "negative size": lambda c: c["maps"][0].update(dims=[8, -3]),
    "size above the map": lambda c: c["maps"][0].update(dims=[48, 4]),
    "size as a float": lambda c: c["maps"][0].update(dims=[8.0, 4]),
    "size as true": lambda c: c["maps"][0].update(dims=[8, True]),
    "no sizes": lambda c: c["maps"][0].update(dims=[]),
    "listed sizes": lambda c: c.update(dims=[8, 4, 2]),
    "width": lambda c: c.update(width=17),
    "backbone": lambda c: c["backbone"].update(model="org/other"),
    "backbone as a list": lambda c: c.update(backbone=["org/m"]),
    "maps as a dictionary": lambda c: c.update(maps={"0": 1}),
    "format": lambda c: c.update(format="2"),
    "head layers": lambda c: c["heads"][0].update(layers=[{"activation": None}]),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_compressor_is_refused(folder, name):
    edit(folder, EDITS[name])
    with pytest.raises(DataError):
        Compressor.load(folder)


def test_a_compressor_of_format_1_still_loads(folder):
    from smec_st.compressor.files import fingerprint

    loaded = Compressor.load(folder)
    edit(folder, lambda c: c.update(format=1, fingerprint=fingerprint(loaded, 1)))
    assert Compressor.load(folder).fingerprint == loaded.fingerprint


# -- fits -------------------------------------------------------------------------------------------------------------


def test_a_finished_fit_leaves_the_unfinished_work_of_other_outputs(tmp_path):
    key = "0123456789ab"
    others = [tmp_path / f".{name}.{key}.unfinished" for name in ("m.v2", "m.v2.1", "mm", "xm")]
    own = tmp_path / ".m.ba9876543210.unfinished"
    for path in (*others, own):
        path.mkdir()
    with work_dir(tmp_path / "m", key) as work:
        work.mkdir()
    assert all(path.is_dir() for path in others)
    assert not own.exists()
    assert not work.exists()


@pytest.mark.parametrize("change", ["corpus", "own", "backbone", "asking", "settings", "dev"])
def test_the_key_of_a_fit_covers_all_that_it_depends_on(small_collection, change):
    import dataclasses

    folder = small_collection()
    collection = load_collection(folder, folder / "vectors.safetensors")
    asking, dev, settings = np.arange(3), collection.qrels["dev"], {"bytes": None}
    key = run_key(collection, asking, dev, settings)
    assert key == run_key(collection, asking, dev, settings)
    other = collection
    if change == "corpus":
        corpus = collection.corpus.copy()
        corpus[7, 3] += 1
        other = dataclasses.replace(collection, corpus=corpus)
    elif change == "own":
        own = np.full(len(collection.queries), -1)
        own[0] = 5
        other = dataclasses.replace(collection, own_document=own)
    elif change == "backbone":
        other = dataclasses.replace(collection, backbone={"model": "org/x"})
    asking = np.arange(4) if change == "asking" else asking
    settings = {"bytes": 8} if change == "settings" else settings
    dev = None if change == "dev" else dev
    assert run_key(other, asking, dev, settings) != key


def test_memory_order_changes_no_key_and_no_fit(small_collection):
    import dataclasses

    folder = small_collection(width=32)
    collection = load_collection(folder, folder / "vectors.safetensors")
    other = dataclasses.replace(collection, corpus=np.asfortranarray(collection.corpus))
    assert run_key(other, np.arange(3), None, {}) == run_key(collection, np.arange(3), None, {})
    fits = [Compressor.fit(each.corpus, dims=(8, 4), method="pca") for each in (collection, other)]
    assert fits[0].fingerprint == fits[1].fingerprint
    assert fits[0].info == fits[1].info


def test_two_fits_into_one_output_at_once_are_refused(small_collection, tmp_path, capsys):
    folder = small_collection()
    source = ["--data", folder, "--vectors", folder / "vectors.safetensors", "--method", "pca", "--dims", "8,4"]
    with write_lock(tmp_path / "m"):
        refused(capsys, ["fit", *source, "--out", tmp_path / "m"], "is being written by another process")
    assert run([str(part) for part in ["fit", *source, "--out", tmp_path / "m"]]) == 0


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_of_two_jobs_at_the_same_moment_one_gets_the_folder(folder, source, tmp_path):
    precisions, errors = ["float32", "float16"], []
    barrier = threading.Barrier(2)

    def work(precision):
        barrier.wait()
        try:
            transform_files(Job(str(folder), str(source), precision=precision, shard_rows=50), tmp_path / "out")
        except DataError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work, args=(precision,)) for precision in precisions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    kinds = {np.load(path).dtype for path in (tmp_path / "out").glob("shard-*.npy")}
    assert len(kinds) == 1
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert {np.dtype(job["space"]["precision"])} == kinds


def test_a_lock_lasts_as_long_as_its_process(tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom smec_st.system.locks import write_lock\n"
    code += "with write_lock(Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"locked\n"
    with pytest.raises(DataError, match="is being written by another process"), write_lock(tmp_path / "out"):
        pass
    child.kill()
    child.communicate()
    with write_lock(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


# -- indexes ----------------------------------------------------------------------------------------------------------


def changed(table, row):
    table = table.copy()
    table[row, 0] += 1
    return table


@pytest.mark.parametrize("change", ["one row of many", "an id", "a field", "the head", "queries"])
def test_the_input_of_a_build_is_known_by_all_of_it(rng, change):
    table = rng.normal(size=(70_000, 4)).astype(np.float32)
    ids, years, queries = list(range(len(table))), [1] * len(table), table[:5]
    options = BuildOptions()
    before = _input_hash(Documents(table, ids, {"year": years}), queries, options)
    assert _input_hash(Documents(np.asfortranarray(table), ids, {"year": years}), queries, options) == before
    if change == "one row of many":
        table = changed(table, 66_001)
    elif change == "an id":
        ids = [*ids[:-2], 99_999_998, ids[-1]]
    elif change == "a field":
        years = [*years[:-1], 2]
    elif change == "the head":
        options = BuildOptions(head="flat")
    else:
        queries = changed(queries, 1)
    assert _input_hash(Documents(table, ids, {"year": years}), queries, options) != before


# -- journals ---------------------------------------------------------------------------------------------------------


def journal(tmp_path, **plan):
    (tmp_path / "store").mkdir(exist_ok=True)
    store = tmp_path / "store" / "s.npy"
    store.write_text("mine")
    content = {"space": {}, "renames": [], "leftovers": [], **plan}
    (tmp_path / "store" / ".s.npy.swap.json").write_text(json.dumps(content))
    return store


FORGED = {
    "removes a file outside": {"leftovers": ["../precious"]},
    "removes an absolute path": {"leftovers": ["ABSOLUTE"]},
    "removes a neighbour": {"leftovers": ["neighbour"]},
    "removes the store": {"leftovers": ["s.npy"]},
    "leaves through its own name": {"leftovers": [".s.npy.migrating/../../precious"]},
    "leaves through a link": {"leftovers": [".s.npy.link/precious"]},
    "moves a file from outside": {"renames": [["../precious", "s.npy"]]},
    "moves a file to outside": {"renames": [["s.npy", "../precious"]]},
    "names no pair": {"renames": [["s.npy"]]},
    "is no list": {"renames": 3},
    "holds numbers": {"leftovers": [7]},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_journal_is_followed_only_within_its_store(tmp_path, name):
    (tmp_path / "precious").write_text("x")
    plan = json.loads(json.dumps(FORGED[name]).replace("ABSOLUTE", str(tmp_path / "precious")))
    store = journal(tmp_path, **plan)
    (tmp_path / "store" / "neighbour").write_text("x")
    (tmp_path / "store" / ".s.npy.link").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"swap.json"):
        finish_swap(store)
    assert (tmp_path / "precious").read_text() == "x"
    assert (tmp_path / "store" / "neighbour").read_text() == "x"
    assert store.read_text() == "mine"


def test_a_journal_of_its_own_is_followed(tmp_path):
    work = tmp_path / ".s.npy.migrating"
    work.mkdir()
    (work / "all.npy").write_text("new")
    (tmp_path / "s.npy").write_text("old")
    swap(tmp_path / "s.npy", {"dim": 8}, [(work / "all.npy", tmp_path / "s.npy")], [work])
    assert (tmp_path / "s.npy").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["s.npy"]


# -- spaces: every entrance refuses vectors of another model, and those that are compressed already -------------------


def as_of_another_model(path):
    path.with_name(path.name + ".json").write_text('{"model": "org/other"}')


def as_compressed(path):
    path.with_name(path.name + ".json").write_text('{"fingerprint": "0123456789abcdef"}')


@pytest.mark.parametrize("spoil", [as_of_another_model, as_compressed], ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    "entrance", ["transform", "index", "index queries", "index --add", "search", "check", "migrate"]
)
def test_every_entrance_refuses_vectors_of_another_space(folder, source, tmp_path, capsys, entrance, spoil):
    match = "'org/other'" if spoil is as_of_another_model else "compressed already"
    good = tmp_path / "good.npy"
    shutil.copy(source, good)
    if entrance in ("search", "index --add"):
        assert run(["index", str(folder), "--vectors", str(good), "--out", str(tmp_path / "i"), "--dims", "4"]) == 0
        capsys.readouterr()
    spoil(source)
    commands = {
        "transform": ["transform", folder, source, tmp_path / "out"],
        "index": ["index", folder, "--vectors", source, "--out", tmp_path / "i"],
        "index queries": ["index", folder, "--vectors", good, "--queries", source, "--out", tmp_path / "i"],
        "index --add": ["index", folder, "--vectors", source, "--out", tmp_path / "i", "--add"],
        "search": ["search", tmp_path / "i", "--queries", source],
        "check": ["check", folder, source],
        "migrate": ["migrate", folder, source, "--dry-run"],
    }
    refused(capsys, commands[entrance], match)


@pytest.mark.parametrize("command", ["evaluate", "card"])
@pytest.mark.parametrize(
    "record", [{"model": "org/other"}, {"fingerprint": "0123456789abcdef"}], ids=["model", "compressed"]
)
def test_scoring_refuses_vectors_of_another_space(small_collection, tmp_path, capsys, command, record):
    data = small_collection()
    collection = load_collection(data, data / "vectors.safetensors")
    Compressor.fit(collection.corpus, dims=(8, 4), method="pca", backbone={"model": "org/m"}).save(tmp_path / "c")
    save_file({"corpus": collection.corpus, "queries": collection.queries}, data / "vectors.safetensors", record)
    match = "'org/other'" if "model" in record else "compressed already"
    more = ["me/c"] if command == "card" else []
    refused(capsys, [command, tmp_path / "c", *more, "--data", data, "--vectors", data / "vectors.safetensors"], match)


def test_queries_given_as_text_are_not_embedded_by_another_model(tmp_path, vectors, monkeypatch):
    model = tiny_model(tmp_path / "m")
    model.model_card_data.base_model = "org/other"
    compressor = Compressor.fit(vectors, dims=(8, 4), method="pca", backbone={"model": "org/m"})
    with (
        FunnelIndex.build(tmp_path / "index", compressor, vectors, model=model) as index,
        pytest.raises(DataError, match="the model is 'org/other', but this compressor was fitted on 'org/m'"),
    ):
        index.search("w1 w2")


def test_queries_that_this_compressor_compressed_are_searched_with(folder, source, vectors, tmp_path, capsys):
    assert run(["index", str(folder), "--vectors", str(source), "--out", str(tmp_path / "i"), "--dims", "4,8"]) == 0
    transform_files(Job(str(folder), str(source)), tmp_path / "q.npy")
    capsys.readouterr()
    assert run(["search", str(tmp_path / "i"), "--queries", str(tmp_path / "q.npy"), "--k", "1"]) == 0
    found = [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]
    assert found == [str(row) for row in range(ROWS)]


@pytest.mark.parametrize("out", ["folder", "one.npy", "one.safetensors", "one.parquet"])
def test_what_was_compressed_says_so(folder, source, tmp_path, out):
    transform_files(Job(str(folder), str(source)), tmp_path / out)
    written = tmp_path / out / "shard-000000.npy" if out == "folder" else tmp_path / out
    opened = open_vectors(written)
    loaded = Compressor.load(folder)
    assert opened.record["fingerprint"] == loaded.fingerprint
    with pytest.raises(DataError, match="compressed already"):
        check_space(loaded, opened.width, opened.record, opened.name)


def test_milvus_lite_keeps_the_record_of_each_collection(folder, vectors, tmp_path, capsys):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    uri = str(tmp_path / "s.db")
    client = pymilvus.MilvusClient(uri)
    client.create_collection("docs", dimension=WIDTH, metric_type="IP")
    client.insert("docs", [{"id": i, "vector": row.tolist()} for i, row in enumerate(vectors[:50])])
    assert run(["migrate", str(folder), f"{uri}#docs", "--dim", "8", "--out", "small"]) == 0
    assert run(["migrate", str(folder), f"{uri}#docs", "--dim", "8", "--in-place"]) == 0
    capsys.readouterr()
    for name in ("small", "docs"):
        assert open_vectors(f"{uri}#{name}").record["fingerprint"] == Compressor.load(folder).fingerprint
        refused(capsys, ["migrate", folder, f"{uri}#{name}", "--dry-run"], "compressed already")


def test_a_record_of_a_model_holds_its_probe(tmp_path):
    record = backbone_record(tiny_model(tmp_path / "m"))
    assert len(record["probe"]) == 8
    assert record["similarity"] == "cosine"


@pytest.mark.parametrize("change", ["a row", "a judgement", "a setting", "nothing"])
def test_a_work_dir_is_only_continued_with_its_own_input(rng, tmp_path, change):
    from smec_st.data import Qrels, VectorTable
    from smec_st.fitting.fit import claim_work_dir

    corpus, queries = rng.normal(size=(200, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    grades, settings = np.ones(30), {"steps": 3}

    def claim():
        qrels = Qrels(np.arange(30), np.arange(30), grades)
        claim_work_dir(tmp_path / "w", VectorTable(corpus, queries), (qrels, None), None, settings)

    claim()
    (tmp_path / "w" / "decision.json").write_text("{}")
    claim()
    if change == "a row":
        corpus[77, 1] += 1
    elif change == "a judgement":
        grades[3] = 2
    elif change == "a setting":
        settings["steps"] = 4
    if change == "nothing":
        claim()
    else:
        with pytest.raises(DataError, match="an unfinished run of another input"):
            claim()


def test_ids_of_a_file_are_those_of_the_index(vectors, folder, tmp_path, capsys):
    lines = [json.dumps({"id": f"d{i}", "embedding": row.tolist()}) for i, row in enumerate(vectors)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "q.npy", vectors[:3])
    assert run(["index", str(folder), "--vectors", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "i")]) == 0
    capsys.readouterr()
    assert run(["search", str(tmp_path / "i"), "--queries", str(tmp_path / "q.npy"), "--k", "1"]) == 0
    assert [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()] == ["d0", "d1", "d2"]


def test_what_is_compressed_already_is_not_fitted_again(folder, vectors, source, tmp_path, capsys):
    data = tmp_path / "small"
    (data / "qrels").mkdir(parents=True)
    for side in ("corpus", "queries"):
        transform_files(Job(str(folder), str(source)), data / f"{side}.npy")
    lines = "".join(f"{row}\t{row + 1}\t1\n" for row in range(30))
    (data / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    refused(capsys, ["fit", "--data", data, "--out", tmp_path / "m", "--method", "pca"], "compressed already")

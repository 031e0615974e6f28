"""Input that cannot be used is one line and exit code 2 on the command line, and a DataError in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.data import DataError, open_vectors
from smec_st.search import FunnelIndex
from smec_st.stores import Job, check_drift, transform_files
from smec_st.system.files import new_folder, writing
from tiny_models import tiny_bert

WIDTH, ROWS = 16, 300
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def here(vectors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Compressor.fit(vectors, dims=(8, 4), method="pca").save("c")
    np.save("x.npy", vectors)
    return tmp_path


def one_line(capsys, arguments, match=""):
    assert run(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("smec-st: ")
    assert match in said[0]


# -- the command itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]], ids=["alone", "-h", "--help"])
def test_the_command_prints_its_help_as_it_is(capsys, arguments):
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Usage: smec-st")
    assert any(line.startswith("  fit ") for line in lines)


@pytest.mark.parametrize("command", ["fit", "transform", "index"])
def test_every_command_takes_h(capsys, command):
    assert run([command, "-h"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: smec-st {command}")


MISSING = {
    "data": ["--data", "nowhere", "--vectors", "x.npy"],
    "vectors": ["--data", "beir", "--vectors", "nowhere.safetensors"],
    "settings": ["--data", "beir", "--vectors", "x.npy", "--config", "nowhere.yaml"],
    "dims": ["--data", "beir", "--vectors", "x.npy", "--dims", "8,x"],
    "method": ["--data", "beir", "--vectors", "x.npy", "--method", "y"],
    "seed": ["--data", "beir", "--vectors", "x.npy", "--seed", "-1"],
}


@pytest.mark.parametrize("name", MISSING)
def test_fit_says_what_is_missing_before_it_loads_torch(here, name):
    (here / "beir").mkdir()
    (here / "beir" / "corpus.jsonl").write_text('{"_id": "d"}\n')
    (here / "beir" / "queries.jsonl").write_text('{"_id": "q"}\n')
    code = "import sys\nfrom smec_st.cli import run\ncode = run(sys.argv[1:])\nassert 'torch' not in sys.modules\n"
    command = [sys.executable, "-c", f"{code}sys.exit(code)", "fit", *MISSING[name], "--out", "m"]
    began = time.process_time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert time.process_time() - began < 1


# -- numbers ----------------------------------------------------------------------------------------------------------

BAD_NUMBERS = {
    "--dim 99": ["transform", "c", "x.npy", "o", "--dim", "99"],
    "--dim -1": ["transform", "c", "x.npy", "o", "--dim", "-1"],
    "--dim 2.5": ["transform", "c", "x.npy", "o", "--dim", "2.5"],
    "--dim 99, dry": ["migrate", "c", "x.npy", "--dim", "99", "--dry-run"],
    "--bytes 0": ["transform", "c", "x.npy", "o", "--bytes", "0"],
    "--shard-rows 0": ["transform", "c", "x.npy", "o", "--shard-rows", "0"],
    "--k 0": ["index", "c", "--vectors", "x.npy", "--out", "i", "--k", "0"],
    "--k 2.5": ["index", "c", "--vectors", "x.npy", "--out", "i", "--k", "2.5"],
    "--recall nan": ["index", "c", "--vectors", "x.npy", "--out", "i", "--recall", "nan"],
    "--dims 99": ["index", "c", "--vectors", "x.npy", "--out", "i", "--dims", "99"],
    "--seed -1": ["fit", "--data", "x", "--out", "m", "--seed", "-1"],
    "--seed 2**32": ["fit", "--data", "x", "--out", "m", "--seed", str(1 << 32)],
    "--seeds -1": ["analyze", "importance", "--data", "x", "--out", "m", "--seeds", "0,-1"],
}


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_a_number_that_cannot_be_is_one_line(here, capsys, name):
    one_line(capsys, BAD_NUMBERS[name])


@pytest.mark.parametrize("k", [2.5, 0, -1, "3", True, None])
def test_k_is_a_whole_number_of_1_or_more(here, vectors, k):
    loaded = Compressor.load("c")
    with pytest.raises(DataError, match="`k` must be"):
        FunnelIndex.build("built", loaded, vectors, dims=(4,), k=k)
    with FunnelIndex.create("index", loaded, dims=(4,)) as index:
        index.add(vectors[:50])
        with pytest.raises(DataError, match="`k` must be"):
            index.search(vectors[:2], k)
        with pytest.raises(DataError, match="`k` must be"):
            index.tune(k=k)


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.5, "a", None, True])
def test_a_seed_is_a_whole_number_that_numpy_and_torch_take(here, vectors, seed):
    with pytest.raises(DataError, match="seed"):
        Compressor.fit(vectors, dims=(8,), method="pca", seed=seed)
    loaded = Compressor.load("c")
    with pytest.raises(DataError, match="seed"):
        loaded.quantize(vectors, bytes=4, seed=seed)
    with pytest.raises(DataError, match="seed"):
        check_drift(loaded, open_vectors("x.npy"), seed=seed)


QRELS = {
    "lists": {0: [1, 2]},
    "sets": {0: {1, 2}},
    "a number": {0: 3},
    "a text as grade": {0: {1: "x"}},
    "text ids": {"q": {"d": 1}},
    "half a row": {0.5: {1: 1}},
    "pairs of text": [["a", "b"]],
    "half pairs": np.array([[0.5, 1.0]]),
    "triples": [[0, 1, 2]],
    "flat": [0, 1],
    "text": "qrels.tsv",
}


@pytest.mark.parametrize("name", QRELS)
def test_judgements_of_another_form_are_refused(vectors, name):
    with pytest.raises(DataError):
        Compressor.fit(vectors, vectors[:20], QRELS[name], dims=(8,), method="pca")


# -- files ------------------------------------------------------------------------------------------------------------


def tensors(header: bytes, data: bytes = b"\0" * 8) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


ENTRY = b'{"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}'
DAMAGED = {
    "empty": b"",
    "text": b"hello, this is no tensor file",
    "deep": tensors(DEEP.encode()),
    "a list": tensors(b"[]"),
    "a number": tensors(b"3"),
    "metadata no object": tensors(b'{"__metadata__": 3, "a": ' + ENTRY + b"}"),
    "overlap": tensors(b'{"a": ' + ENTRY + b', "b": ' + ENTRY + b"}"),
    "gap": tensors(b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]}}'),
    "negative": tensors(b'{"a": {"dtype": "F32", "shape": [-1, 2], "data_offsets": [0, 8]}}'),
    "huge": tensors(b'{"a": {"dtype": "F32", "shape": [99999999999, 99999999999, 0], "data_offsets": [0, 0]}}', b""),
    "unknown type": tensors(b'{"a": {"dtype": [], "shape": [1, 2], "data_offsets": [0, 8]}}'),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_safetensors_file_is_one_line(here, capsys, name):
    (here / "s.safetensors").write_bytes(DAMAGED[name])
    one_line(capsys, ["transform", "c", "s.safetensors", "o"], "s.safetensors")


@pytest.mark.parametrize("text", ["{", DEEP, "[]", "3", '{"format": 2}', "\x00"], ids=lambda text: text[:6])
def test_damaged_json_is_one_line(here, capsys, text):
    for name in ("c/compressor.json", "x.npy.json"):
        whole = (here / name).read_text() if (here / name).exists() else None
        (here / name).write_text(text)
        if name != "x.npy.json" or text != '{"format": 2}':
            one_line(capsys, ["transform", "c", "x.npy", "o"], name.split("/")[0])
        (here / name).unlink()
        if whole is not None:
            (here / name).write_text(whole)


def test_damaged_records_of_a_transform_are_one_line(here, capsys):
    assert run(["transform", "c", "x.npy", "o"]) == 0
    capsys.readouterr()
    for name in ("_manifest.json", "_job.json"):
        whole = (here / "o" / name).read_text()
        for text in ("{", DEEP, "[]", "{}"):
            (here / "o" / name).write_text(text)
            one_line(capsys, ["transform", "c", "x.npy", "o"])
        (here / "o" / name).write_text(whole)


def test_a_deep_filter_is_one_line(here, capsys):
    one_line(capsys, ["search", "i", "--queries", "x.npy", "--where", DEEP], "--where is nested too deeply")


@pytest.fixture
def small_files():
    """No file may grow beyond 512 bytes: stands for a full disk, which is another error of the same kind."""
    resource = pytest.importorskip("resource")
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("out", ["o", "o.npy", "o.safetensors", "o.parquet"])
def test_a_file_that_cannot_grow_is_named(here, capsys, small_files, out):
    small_files()
    one_line(capsys, ["transform", "c", "x.npy", out], "cannot write")
    assert not (here / "o" / "_manifest.json").exists()
    assert not (here / out).is_file()


def test_a_compressor_that_cannot_be_saved_names_the_folder_and_leaves_nothing(here, small_files):
    loaded = Compressor.load("c")
    small_files()
    with pytest.raises(DataError, match="cannot write"):
        loaded.save("saved")
    assert sorted(path.name for path in here.iterdir()) == ["c", "x.npy"]


def test_errors_without_a_name_get_one(tmp_path):
    with pytest.raises(DataError, match="cannot write .*there: No space left on device"), writing(tmp_path / "there"):
        raise OSError(28, "No space left on device")
    with pytest.raises(DataError, match="cannot write .*new: No space left"), new_folder(tmp_path / "new"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(here, capsys):
    (here / "closed").mkdir(mode=0o500)
    one_line(capsys, ["transform", "c", "x.npy", "closed/o"])


# -- truncated models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "hidden"])
def test_a_truncated_model_fits_exports_and_encodes(tmp_path, method):
    tiny_bert(tmp_path / "m").save_pretrained(str(tmp_path / "saved"))
    model = SentenceTransformer(str(tmp_path / "saved"), truncate_dim=16)
    words = [f"w{i} w{i + 1}" for i in range(60)]
    compressor = Compressor.fit(words, dims=(8, 4), model=model, method="pca")
    if method == "hidden":
        from smec_st.maps import FoldedMap, Layer

        weight = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
        hidden = FoldedMap((Layer(weight[0], "relu"), Layer(weight[1][:8, :12].copy())))
        compressor = Compressor([(hidden, (8, 4))], compressor.info)
    compressor.export(model, tmp_path / "small")
    served = SentenceTransformer(str(tmp_path / "small"))
    expected = compressor.transform(model.encode(words), 8)
    np.testing.assert_allclose(served.encode(words), expected, atol=1e-5)


def test_a_job_of_a_missing_compressor_is_refused(here):
    with pytest.raises(DataError, match="holds no compressor"):
        transform_files(Job("nowhere", "x.npy"), here / "o")


def test_a_record_that_is_no_object_is_refused(here):
    (here / "x.npy.json").write_text(json.dumps(["org/m"]))
    with pytest.raises(DataError, match="must hold an object"):
        open_vectors("x.npy")

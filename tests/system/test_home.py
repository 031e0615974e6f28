"""A leading ``~`` is the user's home in Python too, where no shell has replaced it."""

import json
from pathlib import Path

import numpy as np
import pytest

from smec_st import Compressor, FunnelIndex
from smec_st.data import load_collection, load_vectors, open_vectors
from smec_st.stores import Job, transform_files
from smec_st.system.files import write_json


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


def test_compressors_indexes_and_files_are_written_and_read_in_the_home(home, rng):
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    np.save(home / "v.npy", vectors)
    compressor = Compressor.fit(load_vectors("~/v.npy"), dims=(4, 2), method="pca")
    compressor.save("~/small")
    assert (home / "small" / "compressor.json").is_file()
    assert Compressor.load("~/small").fingerprint == compressor.fingerprint
    with FunnelIndex.build("~/index", compressor, vectors, head="flat", dims=(2,)) as index:
        assert index.uri == str(home / "index")
    with FunnelIndex.open("~/index") as index:
        assert len(index) == 60
    assert open_vectors("~/v.npy").rows == 60
    transform_files(Job("~/small", "~/v.npy", dim=2), Path("~/out.npy"))
    assert np.load(home / "out.npy").shape == (60, 2)
    write_json(Path("~/x.json"), {"a": 1})
    assert json.loads((home / "x.json").read_text()) == {"a": 1}


def test_collections_are_read_in_the_home(home, rng):
    folder = home / "c"
    (folder / "qrels").mkdir(parents=True)
    (folder / "qrels" / "test.tsv").write_text("0\t1\t1\n")
    for side in ("corpus", "queries"):
        np.save(folder / f"{side}.npy", rng.normal(size=(3, 4)))
    assert len(load_collection("~/c").corpus) == 3
    np.savez(home / "v.npz", corpus=np.eye(3), queries=np.eye(3))
    assert load_collection("~/c", "~/v.npz").corpus.shape == (3, 3)

"""Training on a memory-mapped corpus takes memory that does not grow with it."""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from paths import ROOT
from smec_st import DataError, VectorTable
from smec_st.data import table as table_module
from smec_st.training.moments import corpus_moments

SCRIPT = ROOT / "benchmarks" / "memory_map.py"


def load_script():
    spec = importlib.util.spec_from_file_location("memory_map", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_training_takes_less_memory_than_the_file(tmp_path):
    script = load_script()
    settings = "--rows 2200000 --width 256 --dim 16 --pairs 512 --memory 1024 --steps 3"
    result = script.measure(script.parse([*settings.split(), "--folder", str(tmp_path)]))
    assert result["file_mib"] > 950
    assert result["file_on_disk_mib"] < 100
    grown = result["peak_mib"] - result["peak_mib_after_imports"]
    assert grown < 0.6 * result["file_mib"]  # 0.26 alone, 0.40 on a busy machine
    assert np.isfinite(result["loss"])


def write(path, rows):
    np.save(path, rows)
    return np.load(path, mmap_mode="r")


def test_reading_through_a_map_gives_the_same_rows_after_its_pages_are_let_go(tmp_path, monkeypatch, rng):
    corpus = rng.standard_normal((500, 16)).astype(np.float16)
    monkeypatch.setattr(table_module, "ROWS_BETWEEN_RELEASES", 10)
    mapped = VectorTable(write(tmp_path / "c.npy", corpus), corpus[:5], in_memory_bytes=0)
    held = VectorTable(corpus, corpus[:5])
    rows = torch.from_numpy(rng.integers(0, 505, 64))
    for _ in range(3):
        assert mapped[rows].equal(held[rows])


def test_changes_in_a_private_map_survive(tmp_path, monkeypatch, rng):
    np.save(tmp_path / "c.npy", rng.standard_normal((64, 16)).astype(np.float32))
    private = np.load(tmp_path / "c.npy", mmap_mode="c")
    private[3] = np.eye(16, dtype=np.float32)[0]
    monkeypatch.setattr(table_module, "ROWS_BETWEEN_RELEASES", 0)
    table = VectorTable(private, in_memory_bytes=0)
    for _ in range(2):
        assert table[torch.tensor([3])].tolist() == [np.eye(16)[0].tolist()]


def test_an_unchecked_table_keeps_rows_of_zeros_and_looks_at_shape_and_type(tmp_path):
    rows = np.zeros((8, 4), dtype=np.float16)
    rows[2, 1] = 3
    with pytest.raises(DataError, match="all zero in rows"):
        VectorTable(rows)
    table = VectorTable(rows, check=False)
    assert table[torch.arange(8)].sum() == 1
    with pytest.raises(DataError, match="must be floats"):
        VectorTable(np.zeros((8, 4), dtype=np.int64), check=False)


def test_moment_of_a_large_corpus_is_that_of_a_sample(rng):
    corpus = rng.standard_normal((4000, 8)) * np.arange(1, 9)
    table = VectorTable(corpus.astype(np.float32))
    whole = corpus_moments(table, chunk=300)[1]
    rows = table[torch.arange(4000)].double()
    assert torch.allclose(whole, rows.T @ rows / 4000, atol=1e-12)
    sample = corpus_moments(table, chunk=300, most=2000)[1]
    assert (sample - whole).norm() / whole.norm() < 0.05
    assert not torch.equal(sample, whole)
    assert hasattr(mmap, "MADV_DONTNEED")

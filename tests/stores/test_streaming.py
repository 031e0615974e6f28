"""Streaming transform: it equals the result in memory, continues after a kill, and loses or mixes nothing."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.data import DataError, load_vectors, open_vectors
from smec_st.stores import Job, Manifest, transform_files
from smec_st.stores.on_ray import ATTEMPTS, start_ray
from smec_st.stores.shards import Cutter

WIDTH, ROWS = 16, 1000


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def folder(vectors, tmp_path):
    compressor = Compressor.fit(vectors, dims=(8, 4), method="pca", backbone={"model": "org/m", "revision": "1"})
    compressor.save(tmp_path / "compressor")
    return tmp_path / "compressor"


def npy(path, vectors):
    np.save(path / "in.npy", vectors)
    return str(path / "in.npy")


def jsonl(path, vectors):
    (path / "in.jsonl").write_text("".join(json.dumps(row.tolist()) + "\n" for row in vectors))
    return str(path / "in.jsonl")


def parquet(path, vectors):
    ids = [f"d{i}" for i in range(len(vectors))]
    table = pa.table({"id": ids, "vector": vectors.tolist()})
    pq.write_table(
        table.cast(pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32()))])), path / "in.parquet", 70
    )
    return str(path / "in.parquet")


def joined(out: Path) -> np.ndarray:
    manifest = Manifest.read(out)
    if manifest.job["format"] == "npy":
        return np.concatenate([np.load(out / shard.file) for shard in manifest.shards])
    tables = [pq.read_table(out / shard.file).column("vector").combine_chunks() for shard in manifest.shards]
    return np.concatenate([t.flatten().to_numpy().reshape(len(t), -1) for t in tables])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("write", [npy, jsonl, parquet], ids=lambda write: write.__name__)
def test_transform_equals_the_compressor_in_memory(folder, vectors, tmp_path, write, precision):
    job = Job(str(folder), write(tmp_path, vectors), dim=8, precision=precision, shard_rows=128)
    seen = []
    manifest = transform_files(job, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    expected = Compressor.load(folder).transform(vectors, 8, precision=precision)
    found = joined(tmp_path / "out")
    assert found.dtype == expected.dtype
    if precision in ("float32", "float16"):
        np.testing.assert_allclose(found, expected, atol=1e-6 if precision == "float32" else 1e-3)
    else:
        assert (found == expected).mean() > 0.999
    assert [shard.rows for shard in manifest.shards] == [128] * 7 + [104]
    assert [done for done, _ in seen] == [128 * i for i in range(1, 8)] + [1000]
    assert {total for _, total in seen} == {None if write is jsonl else 1000}


def test_parquet_keeps_ids_and_describes_its_vectors(folder, vectors, tmp_path):
    transform_files(Job(str(folder), parquet(tmp_path, vectors), precision="int8", shard_rows=300), tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    ids = [key for path in shards for key in pq.read_table(path).column("id").to_pylist()]
    assert ids == [f"d{i}" for i in range(ROWS)]
    record = json.loads(pq.read_schema(shards[0]).metadata[b"smec_st"])
    assert record["fingerprint"] == Compressor.load(folder).fingerprint
    assert (record["dim"], record["precision"], record["bytes"]) == (8, "int8", 8)
    assert record["backbone"]["model"] == "org/m"


def test_float_output_is_itself_a_source_and_is_not_compressed_again(folder, vectors, tmp_path):
    out = tmp_path / "out"
    transform_files(Job(str(folder), parquet(tmp_path, vectors), shard_rows=300), out)
    np.testing.assert_allclose(load_vectors(out), Compressor.load(folder).transform(vectors), atol=1e-6)
    with pytest.raises(DataError, match="compressed already"):
        transform_files(Job(str(folder), str(out)), tmp_path / "again")


@pytest.mark.parametrize("cut", ["log", "half a line", "damaged shard", "lost shard", "draft"])
def test_transform_continues_after_any_interruption(folder, vectors, tmp_path, cut):
    job, out = Job(str(folder), npy(tmp_path, vectors), shard_rows=128), tmp_path / "out"
    whole = transform_files(job, tmp_path / "whole")
    transform_files(job, out)
    (out / "_manifest.json").unlink()
    log = out / "_shards.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    if cut == "log":
        log.write_text("".join(lines[:3]))
    elif cut == "half a line":
        log.write_text("".join(lines[:3]) + lines[3][:20])
    elif cut == "damaged shard":
        data = (out / "shard-000002.npy").read_bytes()
        (out / "shard-000002.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif cut == "lost shard":
        (out / "shard-000002.npy").unlink()
    else:
        log.write_text("".join(lines[:3]))
        (out / "shard-000003.npy.partial").write_bytes(b"half")
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-00000[01]*")}
    assert transform_files(job, out).shards == whole.shards
    np.testing.assert_array_equal(joined(out), joined(tmp_path / "whole"))
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("shard-00000[01]*")} == kept
    assert not list(out.glob("*.partial"))


def test_a_finished_transform_is_not_repeated_and_damage_is_noticed(folder, vectors, tmp_path):
    job, out = Job(str(folder), npy(tmp_path, vectors), shard_rows=300), tmp_path / "out"
    first = transform_files(job, out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert transform_files(job, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.glob("shard-*")} == times
    (out / "shard-000001.npy").write_bytes(b"x")
    with pytest.raises(DataError, match="shard-000001.npy is damaged"):
        Manifest.read(out)


def other_model(folder, vectors, path):
    (path / "in.npy.json").write_text('{"model": "other/n"}')


def other_revision(folder, vectors, path):
    (path / "in.npy.json").write_text('{"model": "m", "revision": "2"}')


def other_width(folder, vectors, path):
    np.save(path / "in.npy", vectors[:, :8])


def a_zero_row(folder, vectors, path):
    np.save(path / "in.npy", np.where(np.arange(ROWS)[:, None] == 700, 0, vectors))


def a_nan(folder, vectors, path):
    np.save(path / "in.npy", np.where(np.arange(ROWS)[:, None] == 700, np.nan, vectors))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (other_model, "another embedding space: the model is 'other/n', but this compressor was fitted on 'org/m'"),
        (other_revision, "the revision is '2'"),
        (other_width, "are 8 wide; this compressor reads 16"),
        (a_zero_row, "in.npy, row 700 is all zero"),
        (a_nan, "in.npy, row 700 holds NaN"),
    ],
)
def test_transform_refuses_other_spaces_and_rows_without_a_direction(folder, vectors, tmp_path, spoil, match):
    source = npy(tmp_path, vectors)
    spoil(folder, vectors, tmp_path)
    with pytest.raises(DataError, match=match):
        transform_files(Job(str(folder), source, shard_rows=100), tmp_path / "out")
    assert not (tmp_path / "out" / "_manifest.json").exists()


@pytest.mark.parametrize("change", ["precision", "source", "compressor"])
def test_two_jobs_cannot_share_a_folder(folder, vectors, tmp_path, change):
    job, out = Job(str(folder), npy(tmp_path, vectors), shard_rows=300), tmp_path / "out"
    transform_files(job, out)
    seen = "begun with the compressor .*, not with the compressor "
    if change == "precision":
        job = Job(job.compressor, job.source, precision="int8", shard_rows=300)
        seen = "begun with --precision float32, not with --precision int8;"
    elif change == "source":
        np.save(tmp_path / "in.npy", 2 * vectors[:-1])
        seen = "begun with another source, not with what .*in.npy holds now;"
    else:
        Compressor.fit(vectors[:500], dims=(8, 4), method="pca").save(tmp_path / "other")
        job = Job(str(tmp_path / "other"), job.source, shard_rows=300)
    with pytest.raises(DataError, match=seen):
        transform_files(job, out)


def test_a_folder_with_other_files_is_left_alone(folder, vectors, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="holds something else"):
        transform_files(Job(str(folder), npy(tmp_path, vectors)), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_cutter_yields_each_row_once_for_any_sizes(tmp_path, vectors, rng):
    source = open_vectors(parquet(tmp_path, vectors))
    for start, size in ((0, 64), (137, 50), (999, 7)):
        cutter, got = Cutter(source, start, size), []
        while part := list(cutter.take(int(rng.integers(1, 90)))):
            got += [(batch.start + i, key) for batch in part for i, key in enumerate(batch.ids)]
        assert got == [(i, f"d{i}") for i in range(start, ROWS)]


KILLED = """
import sys, time
import smec_st.stores.job as job
write = job.write_shard
def slow(*arguments):
    time.sleep(0.15)
    return write(*arguments)
job.write_shard = slow
from smec_st.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_kill_9_loses_and_repeats_nothing(folder, vectors, tmp_path):
    arguments = ["transform", str(folder), npy(tmp_path, vectors), str(tmp_path / "out"), "--shard-rows", "40"]
    for wanted in (3, 9):
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
        log = tmp_path / "out" / "_shards.jsonl"
        end = time.monotonic() + 60
        while time.monotonic() < end and (not log.exists() or len(log.read_text().splitlines()) < wanted):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / "_manifest.json").exists()
    done = len(log.read_text().splitlines())
    assert 9 <= done < 25
    assert run(arguments) == 0
    found = joined(tmp_path / "out")
    np.testing.assert_allclose(found, Compressor.load(folder).transform(vectors), atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_writes_the_same_shards_and_continues_a_local_run(folder, vectors, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    import warnings

    job = Job(str(folder), parquet(tmp_path, vectors), precision="int8", shard_rows=200)
    local = transform_files(job, tmp_path / "local")
    transform_files(job, tmp_path / "both")
    (tmp_path / "both" / "_manifest.json").unlink()
    for number in (1, 3):
        (tmp_path / "both" / f"shard-00000{number}.parquet").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = transform_files(job, tmp_path / "both", engine="ray")
        gc.collect()  # Ray leaves a server process behind that started too late
    assert ray.shards == local.shards


@pytest.mark.parametrize("kind", [RuntimeError, Exception])  # Ray raises either
def test_ray_is_started_again_before_it_is_an_error(kind):
    tried = []

    class Never:
        def init(self, **settings):
            tried.append(settings)
            raise kind("Timed out waiting for file")

        def shutdown(self):
            tried.append("shutdown")

    with pytest.raises(DataError, match=r"Ray did not start \(Timed out waiting for file\); try again"):
        start_ray(Never())
    assert len(tried) == 2 * ATTEMPTS


def test_the_command_reports_what_it_did(folder, vectors, tmp_path, capsys):
    arguments = ["transform", str(folder), npy(tmp_path, vectors), str(tmp_path / "out")]
    assert run([*arguments, "--precision", "binary", "--dim", "4"]) == 0
    assert "1,000 vectors of 4 numbers (binary, 1 byte) in 1 file" in capsys.readouterr().out
    assert run([*arguments, "--bytes", "3"]) == 2
    assert "this compressor has no codes of 3 bytes; it has int8 of 8" in capsys.readouterr().err

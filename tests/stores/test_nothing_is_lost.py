"""What a store holds beside its vectors is never lost by accident, and files of several tables are never mixed."""

from __future__ import annotations

import hashlib
import json
import os
import uuid

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.data import DataError, load_vectors, open_vectors

WIDTH, ROWS = 24, 60


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def here(vectors, tmp_path, monkeypatch):
    """Work in a folder with the compressor ``c``."""
    monkeypatch.chdir(tmp_path)
    Compressor.fit(vectors, dims=(16, 8), method="pca").save("c")
    return tmp_path


def write(path, vectors, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"id": [f"d{row}" for row in range(len(vectors))], **columns, "embedding": list(vectors)})
    frame.to_parquet(path)


def contents(folder):
    """Return a hash of each file below a folder, except those of the compressor."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "c" not in path.parts[-2:])
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def with_columns(store, vectors):
    write(store / "0.parquet", vectors, title="a", price=1.5)


def with_a_column_in_one_part(store, vectors):
    write(store / "0.parquet", vectors)
    write(store / "1.parquet", vectors, title="a")


def with_partitions(store, vectors):
    for language in ("de", "en"):
        write(store / f"lang={language}" / "part-0.parquet", vectors)


def with_a_file(store, vectors):
    write(store / "0.parquet", vectors)
    (store / "README.md").write_text("licence")


def with_another_split(store, vectors):
    write(store / "train-00000-of-00001.parquet", vectors)
    write(store / "test-00000-of-00001.parquet", vectors)


OTHERS = {
    with_columns: "title, price",
    with_a_column_in_one_part: "title",
    with_partitions: "lang",
    with_a_file: "README.md",
    with_another_split: "test-00000-of-00001.parquet",
}


@pytest.mark.parametrize("fill", OTHERS, ids=lambda fill: fill.__name__)
def test_a_store_that_holds_more_is_not_replaced(here, vectors, capsys, fill):
    fill(here / "store", vectors)
    command = ["migrate", "c", "store", "--dim", "8", "--in-place"]
    command += ["--column", "train"] if fill is with_another_split else []
    before = contents(here)
    for arguments in (command, [*command, "--dry-run"]):
        assert run(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert f"store also holds {OTHERS[fill]}, which would be lost in place" in error
        assert error.count("\n") == 0
        assert contents(here) == before


def test_a_file_that_holds_more_is_not_replaced_but_migrated_beside(here, vectors, capsys):
    write(here / "s.parquet", vectors, title="a", price=1.5)
    before = contents(here)
    assert run(["migrate", "c", "s.parquet", "--dim", "8", "--in-place"]) == 2
    assert contents(here) == before
    capsys.readouterr()
    assert run(["migrate", "c", "s.parquet", "--dim", "8", "--out", "new.parquet"]) == 0
    assert pq.read_schema("new.parquet").names == ["id", "vector"]


def test_columns_that_are_left_out_are_named(here, vectors, caplog):
    write(here / "named.parquet", vectors, title="a", price=1.5)
    assert run(["migrate", "c", "named.parquet", "--dim", "8", "--out", "new"]) == 0
    assert [record.message for record in caplog.records] == [
        "named.parquet: title, price will be left out of what is written."
    ]


@pytest.mark.parametrize("name", ["s.npz", "s.safetensors", "s.csv"])
def test_kinds_that_are_not_replaced_are_refused_in_a_dry_run_as_well(here, vectors, capsys, name):
    if name == "s.npz":
        np.savez(name, vectors=vectors)
    elif name == "s.safetensors":
        from safetensors.numpy import save_file

        save_file({"vectors": vectors}, name)
    else:
        np.savetxt(name, vectors, delimiter=",")
    for more in ([], ["--dry-run"]):
        assert run(["migrate", "c", name, "--dim", "8", "--in-place", *more]) == 2
        assert "cannot be rewritten in place" in capsys.readouterr().err


def test_empty_parts_and_markers_are_replaced(here, vectors):
    for part in range(3):
        write(here / "store" / f"part-{part}.parquet", vectors[: 0 if part == 1 else ROWS])
    pq.write_table(pq.read_table("store/part-0.parquet").slice(0, 0), "store/part-1.parquet")
    for marker in ("_SUCCESS", ".part-0.parquet.crc", "_common_metadata"):
        (here / "store" / marker).touch()
    assert run(["migrate", "c", "store", "--dim", "8", "--in-place"]) == 0
    assert load_vectors("store").shape == (2 * ROWS, 8)


@pytest.mark.parametrize("kind", ["npy", "parquet", "folder", "faiss"])
def test_in_place_a_link_stays_and_its_target_is_replaced(here, vectors, kind):
    name = {"folder": "s"}.get(kind, f"s.{kind}")
    (here / "there").mkdir()
    if kind == "npy":
        np.save(f"there/{name}", vectors)
    elif kind == "faiss":
        faiss = pytest.importorskip("faiss")
        index = faiss.IndexFlatIP(WIDTH)
        index.add(vectors)
        faiss.write_index(index, f"there/{name}")
    else:
        write(here / "there" / (f"{name}/0.parquet" if kind == "folder" else name), vectors)
    os.symlink(f"there/{name}", name)
    assert run(["migrate", "c", name, "--dim", "8", "--in-place"]) == 0
    assert os.readlink(name) == f"there/{name}"
    assert load_vectors(f"there/{name}").shape == load_vectors(name).shape == (ROWS, 8)
    assert open_vectors(name).record["fingerprint"] == Compressor.load("c").fingerprint
    assert run(["migrate", "c", name, "--dim", "8", "--in-place"]) == 2, "compressed already"


def test_a_link_with_a_record_of_its_own_is_not_replaced(here, vectors, capsys):
    np.save("target.npy", vectors)
    os.symlink("target.npy", "link.npy")
    (here / "link.npy.json").write_text(json.dumps({"model": "m"}))
    before = contents(here)
    assert run(["migrate", "c", "link.npy", "--dim", "8", "--in-place"]) == 2
    assert "link.npy.json describes the link" in capsys.readouterr().err
    assert contents(here) == before


# -- parts of one table -----------------------------------------------------------------------------------------------

ONE_TABLE = {
    "spark": [f"part-{part:05d}-{uuid.UUID(int=part << 99 | part)}-c000.snappy.parquet" for part in range(3)],
    "hive": [f"year=2024/part-{part}.parquet" for part in range(3)],
    "arrow": [f"{hashlib.md5(bytes([part])).hexdigest()}-0.parquet" for part in range(3)],
    "dask": [f"part.{part}.parquet" for part in (0, 2, 10)],
    "polars": [f"{part:04d}.parquet" for part in range(3)],
    "duckdb": [f"data_{part}.parquet" for part in range(3)],
    "hub": [f"train-{part:05d}-of-00003.parquet" for part in range(3)],
    "hub, once": [
        f"train-{part:05d}-of-00003-{hashlib.md5(bytes([part])).hexdigest()[:16]}.parquet" for part in range(3)
    ],
}


@pytest.mark.parametrize("files", ONE_TABLE.values(), ids=ONE_TABLE)
def test_parts_whose_names_differ_in_numbers_and_hashes_are_one_table(tmp_path, vectors, files):
    for at, name in enumerate(files):
        write(tmp_path / name, vectors[20 * at : 20 * (at + 1)])
    read = load_vectors(tmp_path)
    order = np.lexsort(vectors.T)
    np.testing.assert_array_equal(read[np.lexsort(read.T)], vectors[order])


SEVERAL = {
    "corpus and queries": ["corpus.parquet", "queries.parquet"],
    "a copy of a browser": ["part-0 (1).parquet", "part-0.parquet"],
    "a copy of a file manager": ["part-0 copy.parquet", "part-0.parquet"],
    "a word in hexadecimal": ["beef-0.parquet", "cafe-0.parquet"],
    "a further table": ["part-0.parquet", "part-1.parquet", "test-0.parquet"],
    "in a partition": ["year=2024/corpus.parquet", "year=2024/queries.parquet"],
}


@pytest.mark.parametrize("files", SEVERAL.values(), ids=SEVERAL)
def test_files_of_several_tables_are_refused(here, vectors, capsys, files):
    for name in files:
        write(here / "store" / name, vectors)
    before = contents(here)
    for arguments in (["transform", "c", "store", "out"], ["migrate", "c", "store", "--dim", "8", "--in-place"]):
        assert run(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert "store holds several tables" in error
        assert "name one of these files" in error
        assert all(name.rpartition("/")[2] in error for name in files if name != "part-1.parquet")
        assert contents(here) == before


def test_files_beside_subfolders_are_spoken_of(tmp_path, vectors):
    for name in ("part-0.parquet", "more/part-0.parquet"):
        write(tmp_path / name, vectors)
    with pytest.raises(DataError, match=r"the splits \(files outside of subfolders\), more"):
        open_vectors(tmp_path)


# -- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["store", "store/out", "store/out.parquet", "store/../link/out", "store/_deep/er"])
@pytest.mark.parametrize("name", ["store", "link"])
def test_an_output_in_its_own_input_is_refused(here, vectors, capsys, name, out):
    write(here / "store" / "part-0.parquet", vectors)
    os.symlink("store", "link")
    before = contents(here)
    for command in (["transform", "c", name, out], ["migrate", "c", name, "--out", out]):
        for more in ([], ["--dry-run"]):
            assert run([*command, *more]) == 2
            assert f"{out} is in the folder {name}, which is read" in capsys.readouterr().err
            assert contents(here) == before
    assert run(["transform", "c", name, "store-out"]) == 0


@pytest.mark.parametrize("command", [["transform", "out", "--skip-bad"], ["migrate", "--dim", "8", "--in-place"]])
def test_pandas_and_arrow_read_a_folder_of_parquet(here, vectors, command):
    spoiled = vectors.copy()
    spoiled[3:5] = np.nan if command[0] == "transform" else 1
    for part in range(2):
        write(here / "s" / f"{part}.parquet", spoiled)
    out, *options = command[1:] if command[0] == "transform" else ["s", *command[1:]]
    target = [out, "--shard-rows", "50"] if command[0] == "transform" else []
    assert run([command[0], "c", "s", *target, *options]) == 0
    frame = pd.read_parquet(out)
    assert len(pq.read_table(out)) == len(frame) == (2 * ROWS - 4 if command[0] == "transform" else 2 * ROWS)
    np.testing.assert_array_equal(np.stack(frame["vector"]), load_vectors(out))
    assert (here / out / "_left-out-000000.jsonl").exists() == (command[0] == "transform")


@pytest.mark.parametrize("out", ["out", "out.npy"])
@pytest.mark.parametrize(
    "change", [["--dim", "8"], ["--codes", "float32"], ["--shard-rows", "7", "--precision", "int8"]]
)
def test_a_run_of_which_nothing_is_finished_is_begun_anew(here, vectors, capsys, out, change):
    spoiled = vectors.copy()
    spoiled[30] = np.nan
    np.save("v.npy", spoiled)
    assert run(["transform", "c", "v.npy", out]) == 2
    np.save("v.npy", vectors)
    assert run(["transform", "c", "v.npy", out, *change]) == 0
    np.save("whole.npy", vectors)
    assert run(["transform", "c", "whole.npy", "expected.npy", *change]) == 0
    shards = sorted((here / out).glob("shard-*.npy")) if out == "out" else [here / out]
    np.testing.assert_array_equal(np.concatenate([np.load(shard) for shard in shards]), np.load("expected.npy"))


DIFFERENT = {
    "a size": (["--dim", "8"], "--dim 16, not with --dim 8;"),
    "codes": (["--codes", "float32"], "no --codes, not with --codes float32;"),
    "rows of a shard": (["--shard-rows", "6"], "--shard-rows 7, not with --shard-rows 6;"),
    "a format": (["--format", "parquet"], "--format npy, not with --format parquet;"),
    "two": (
        ["--dim", "8", "--precision", "int8"],
        "--dim 16 and --precision float32, not with --dim 8 and --precision int8;",
    ),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_another_setting_in_a_begun_folder_is_named(here, vectors, capsys, change):
    options, seen = DIFFERENT[change]
    spoiled = vectors.copy()
    spoiled[30] = np.nan
    np.save("v.npy", spoiled)
    for out, work in (("out", "out"), ("out.npy", ".out.npy.unfinished")):
        if out == "out.npy" and "--format" in options:
            continue
        shards = [] if "--shard-rows" in options else ["--shard-rows", "7"]
        assert run(["transform", "c", "v.npy", out, "--shard-rows", "7"]) == 2
        before = contents(here)
        capsys.readouterr()
        assert run(["transform", "c", "v.npy", out, *shards, *options]) == 2
        error = capsys.readouterr().err
        assert f"{work} was begun with {seen}" in error
        assert f"Remove {work} to begin anew" in error
        assert contents(here) == before

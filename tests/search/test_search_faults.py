"""Faults of real machines: killed processes, full disks, two writers, damaged files."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

import search_children
from search_world import clustered, compressor, naive
from smec_st.data import DataError
from smec_st.search import FunnelIndex, Schedule, Step

ALL = Schedule((Step(4, 10_000), Step(32, 5)), k=5)


@pytest.fixture(params=["faiss", "lite"])
def uri(request, tmp_path):
    return str(tmp_path / {"faiss": "index", "lite": "index.db"}[request.param])


def holds(uri: str, rows: int) -> None:
    """Check that the index opens, holds the first rows undamaged, accepts more, and finds what a naive loop finds."""
    corpus, queries = clustered(4000), clustered(10, seed=1)
    with FunnelIndex.open(uri) as index:
        assert len(index) == rows
        index.verify()
        assert np.array_equal(index.search(queries, 5, schedule=ALL).ids, naive(corpus[:rows], queries, 5))
        index.add(corpus[rows : rows + 30], range(rows, rows + 30))
        assert np.array_equal(index.search(queries, 5, schedule=ALL).ids, naive(corpus[: rows + 30], queries, 5))


# -- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_during_add_keeps_every_batch_that_was_acknowledged(uri):
    writer, pipe = search_children.start(search_children.add, uri)
    acknowledged = 0
    while acknowledged < 150:
        acknowledged = pipe.recv()
    writer.join(0.007)
    writer.kill()
    with contextlib.suppress(EOFError):
        while True:
            acknowledged = pipe.recv()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    with FunnelIndex.open(uri) as index:
        rows = len(index)
    assert rows in (
        acknowledged,
        acknowledged + 25,
    )  # the kill may come after a batch is added and before it is reported
    holds(uri, rows)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "done"), [("adding", 80), ("choosing the schedule", 120)])
def test_a_killed_build_is_not_opened_and_continues(uri, stage, done):
    killed, _ = search_children.start(search_children.build_and_die, uri, stage, done)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match="was interrupted while it was built"):
        FunnelIndex.open(uri)
    with pytest.raises(DataError, match="unfinished index of other vectors"):
        FunnelIndex.build(uri, compressor(), clustered(120, seed=9), dims=(4,))
    FunnelIndex.build(uri, compressor(), clustered(4000)[:120], dims=(4,)).close()
    holds(uri, 120)


# -- full disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("mounting needs more rights")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(index: FunnelIndex) -> int:
    """Add rows until it fails, and return how many were added."""
    corpus, rows = clustered(40_000), 0

    def add_all():
        nonlocal rows
        for rows in range(0, 40_000, 2000):
            index.add(corpus[rows : rows + 2000], range(rows, rows + 2000))

    with pytest.raises(DataError, match=r"^adding 2000 rows failed.*No space left on device[^\n]*$"):
        add_all()
    return rows


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_there(small_disk):
    uri = str(small_disk / "index")
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        rows = fill(index)
        assert rows >= 2000
        assert len(index) == rows
        queries = clustered(5, seed=1)
        assert np.array_equal(
            index.search(queries, 5, schedule=ALL).ids[:, :1], naive(clustered(40_000)[:rows], queries, 1)
        )
    with FunnelIndex.open(uri) as index:
        index.verify()
        assert len(index) == rows
        assert index.delete(range(rows - 500)) == rows - 500  # compacting frees the space
        index.compact()
        index.add(clustered(40_000)[:100], range(100))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # for files that the engine could not flush
def test_a_full_disk_under_milvus_lite_is_an_error(small_disk):
    uri = str(small_disk / "index.db")
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        rows = fill(index)
    assert rows >= 2000
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    with FunnelIndex.open(uri) as index:
        assert rows <= len(index) <= rows + 2000
        index.verify()


def test_a_file_that_may_not_grow_is_an_error(tmp_path):
    uri = str(tmp_path / "index")
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        index.add(clustered(4000)[:50])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(DataError, match=r"adding 3000 rows failed: .*File too large.* still holds 50 rows"):
                index.add(clustered(4000)[50:3050], range(50, 3050))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert [path.name for path in (tmp_path / "index" / "segments").iterdir()] == ["000001"]
    holds(uri, 50)


# -- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_writer_is_refused_and_goes_on_when_the_first_is_gone(tmp_path):
    uri = str(tmp_path / "index")
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        index.add(clustered(4000)[:50])
    first, pipe = search_children.start(search_children.hold, uri)
    with FunnelIndex.open(uri) as reader:
        assert pipe.recv() == "written"
        assert len(reader) in (50, 60)
        with pytest.raises(DataError, match="is being written by another process"):
            reader.add(clustered(4000)[60:70], range(60, 70))
        reader.refresh()
        assert not reader.refresh()
        assert len(reader) == 60
        reader.search(clustered(2))
        first.kill()
        first.join()
        reader.add(clustered(4000)[60:70], range(60, 70))  # in addition to the rows of the other process
    holds(uri, 70)


@pytest.mark.slow
def test_a_local_milvus_file_belongs_to_one_process(tmp_path):
    uri = str(tmp_path / "index.db")
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        index.add(clustered(4000)[:50])
        _, pipe = search_children.start(search_children.open_only, uri)
        assert "another process has it open" in pipe.recv()
    holds(uri, 50)


# -- damaged files ----------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damage_to_any_file_is_found(tmp_path):
    uri = tmp_path / "index"
    with FunnelIndex.create(uri, compressor(), dims=(4, 8), fields={"lang": "str"}) as index:
        index.add(clustered(4500)[:4400], fields={"lang": ["en"] * 4400})
        index.delete([3])
        index.flush()
    files = sorted(path for path in uri.rglob("*") if path.is_file() and path.name != ".lock")
    kinds = {path.suffix for path in files}
    assert kinds == {".json", ".safetensors", ".npy", ".crc", ".arrow", ".bits", ".faiss"}
    for path in files:
        good = path.read_bytes()
        for damage in (cut, flip, Path.unlink):
            damage(path)
            with pytest.raises(DataError, match="damaged|holds no index") as caught:
                with FunnelIndex.open(uri) as index:
                    index.verify()
            assert "\n" not in str(caught.value)
            path.write_bytes(good)
    with FunnelIndex.open(uri) as index:
        index.verify()


def test_a_search_never_returns_what_it_read_from_a_damaged_block(tmp_path):
    uri = tmp_path / "index"
    corpus = clustered(4000)
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        index.add(corpus)
    flip(uri / "segments" / "000001" / "32.npy")
    with FunnelIndex.open(uri) as index:
        with pytest.raises(DataError, match="rows 1536 to 2047 do not match their checksum"):
            index.search(corpus[:5], schedule=ALL)


def test_a_damaged_milvus_file_is_an_error(tmp_path):
    uri = tmp_path / "index.db"
    with FunnelIndex.create(uri, compressor(), dims=(4,)) as index:
        index.add(clustered(200))
        index.flush()
    (rows,) = [path for path in uri.rglob("*.parquet") if "settings" not in str(path)]
    cut(rows)
    with pytest.raises(DataError):
        with FunnelIndex.open(uri) as index:
            index.verify()

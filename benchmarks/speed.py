"""Wall time of two checkouts in turns on one machine: whole commands, with their start and report.

    python benchmarks/speed.py DATA/scifact --before OTHER/CHECKOUT --after . --json benchmarks/results/speed.json

- scifact: `smec-st fit` with the defaults;
- wide: the same on SciFact's vectors, turned into 1,536 numbers, with a little noise; sizes 768, 384, 192 and 96;
- 3072: the same on 10,000 made documents of 3,072 numbers and 1,000 judged queries; `--after` alone;
- memory-map: a fit, without labels and with 2,000 judged queries, on a memory-mapped corpus of a million made vectors,
  against a fit on the first 10,000 of them; `--after` alone;
- demo: `examples/demo.py` from an empty folder.

Both checkouts run with this interpreter, each with its own `src` first on the path. Rounds alternate which one begins.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import write_record
from safetensors.numpy import load_file, save_file

CASES = ("scifact", "wide", "3072", "memory-map", "demo")
IN_TURNS = ("scifact", "wide", "demo")  # the others are run with --after alone
SIZES = "768,384,192,96"
QUICK = {"steps": 3, "batch_size": 16}  # settings that the checkouts have in common
TEST_QUERIES = 200

# Both need a checkout of their own, hence a process of its own.
WHERE = "import smec_st; print(smec_st.__file__)"
FIT = """
import json, sys, time
import numpy as np
from smec_st import Compressor
folder, rows, judged, settings = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
corpus = np.load(f"{folder}/corpus.npy", mmap_mode="r")[:rows]
queries, pairs = np.load(f"{folder}/queries.npy"), np.load(f"{folder}/pairs.npy")
began = time.perf_counter()
Compressor.fit(corpus, *((queries, pairs) if judged else ()), **settings)
print(time.perf_counter() - began)
"""


class Checkout:
    """A working tree whose code is run with this interpreter.

    Args:
        root: Folder that holds ``src`` and ``examples``.
        threads: Threads of each process.
    """

    def __init__(self, root: Path, threads: int) -> None:
        self.root = root.resolve()
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        path = os.pathsep.join(filter(None, [str(self.root / "src"), os.environ.get("PYTHONPATH")]))
        self._environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": path}
        found = Path(self.run(["-c", WHERE], self.root).strip())
        if not found.is_relative_to(self.root / "src"):
            raise SystemExit(f"{self.root} holds no smec_st of its own: {found} is imported.")

    def run(self, arguments: list[str], folder: Path) -> str:
        """Standard output of the interpreter with these arguments, started in a folder."""
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=folder, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        return done.stdout

    def seconds(self, arguments: list[str]) -> float:
        """Wall time of the interpreter with these arguments, started in an empty folder."""
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            self.run(arguments, Path(folder))
            return time.perf_counter() - began

    @property
    def commit(self) -> str:
        """The commit that is checked out, with a plus sign where files differ from it; empty without Git."""
        found = []
        for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
            done = subprocess.run(["git", "-C", self.root, *command], capture_output=True, text=True, check=False)
            found.append(done.stdout.strip() if done.returncode == 0 else "")
        return found[0] + ("+" if found[1] else "")


# -- collections ------------------------------------------------------------------------------------------------------


def write_wide(vectors: Path, path: Path, width: int = 1536, noise: float = 0.01) -> None:
    """Turn the vectors of a file into more numbers by random orthonormal rows, and add noise of norm ``noise``."""
    rng = np.random.default_rng(0)
    tables = load_file(vectors)
    turn = np.linalg.qr(rng.standard_normal((width, tables["corpus"].shape[1])))[0].T.astype(np.float32)
    for name, table in tables.items():
        wide = table.astype(np.float32) @ turn
        wide += noise / width**0.5 * rng.standard_normal(wide.shape, dtype=np.float32)
        tables[name] = wide.astype(np.float16)
    save_file(tables, path)


def write_made(folder: Path, documents: int, queries: int, width: int = 3072) -> Path:
    """A collection in BEIR layout; the variance of the i-th direction is 1 / i, and each query is near a document.

    ``queries`` are judged for training, :data:`TEST_QUERIES` more for the report. Returns the file of vectors.
    """
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((width, width), dtype=np.float32))[0]
    scale = np.arange(1, width + 1, dtype=np.float32) ** -0.5
    corpus = rng.standard_normal((documents, width), dtype=np.float32)
    about = rng.integers(0, documents, queries + TEST_QUERIES)
    asked = corpus[about] + rng.standard_normal((len(about), width), dtype=np.float32)
    (folder / "qrels").mkdir(parents=True)
    save_file({"corpus": corpus * scale @ turn, "queries": asked * scale @ turn}, folder / "vectors.safetensors")
    for name, letter, count in (("corpus", "d", documents), ("queries", "q", len(about))):
        lines = (json.dumps({"_id": f"{letter}{row}", "title": "", "text": str(row)}) + "\n" for row in range(count))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split, rows in (("train", range(queries)), ("test", range(queries, len(about)))):
        judged = "".join(f"q{row}\td{about[row]}\t1\n" for row in rows)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder / "vectors.safetensors"


def write_clustered(folder: Path, rows: int, few: int, judged: int, width: int = 768) -> None:
    """Write float16 vectors around 1,000 centres to map, and judged queries near some of the first ``few`` rows."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, width), dtype=np.float32)
    corpus = np.lib.format.open_memmap(folder / "corpus.npy", "w+", np.float16, (rows, width))
    for start in range(0, rows, 20_000):
        part = centres[rng.integers(0, len(centres), min(20_000, rows - start))]
        corpus[start : start + len(part)] = part + rng.standard_normal(part.shape, dtype=np.float32)
    corpus.flush()
    about = rng.permutation(few)[:judged]
    queries = corpus[about].astype(np.float32) + 0.5 * rng.standard_normal((len(about), width), dtype=np.float32)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "pairs.npy", np.stack([np.arange(len(about)), about], axis=1))


# -- measuring --------------------------------------------------------------------------------------------------------


def fit_command(data: Path, vectors: Path, more: list[str]) -> list[str]:
    """Arguments of the interpreter for `smec-st fit`."""
    paths = ["--data", str(data.resolve()), "--vectors", str(vectors.resolve()), "--out", "fitted"]
    return ["-m", "smec_st", "fit", *paths, *more]


def in_turns(runs: dict[str, Callable[[], float]], rounds: int, divided_by: str | None = None) -> dict[str, Any]:
    """Seconds of each run, round by round, their medians, and the others' medians divided by the one named.

    Every second round goes through the runs the other way round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            seconds[name].append(round(runs[name](), 2))
            print(f"  round {number + 1}, {name}: {seconds[name][-1]} s", flush=True)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found: dict[str, Any] = {"seconds": seconds, "medians": medians}
    if divided_by in medians and len(medians) > 1:
        others = {name: median for name, median in medians.items() if name != divided_by}
        found["ratios"] = {name: round(median / medians[divided_by], 3) for name, median in others.items()}
    return found


def commands_of(case: str, options: argparse.Namespace, folder: Path) -> Callable[[Checkout], list[str]]:
    """Arguments of the interpreter for a case that is one command, with what it reads written into a folder."""
    config: list[str] = []
    if options.quick:
        (folder / "quick.json").write_text(json.dumps(QUICK))
        config = ["--config", str(folder / "quick.json")]
    vectors = options.data / options.vectors
    if case == "scifact":
        return lambda _: fit_command(options.data, vectors, config)
    if case == "wide":
        write_wide(vectors, folder / "wide.safetensors")
        return lambda _: fit_command(options.data, folder / "wide.safetensors", ["--dims", SIZES, *config])
    if case == "3072":
        made = write_made(folder / "made", *((300, 100) if options.quick else (10_000, 1000)))
        return lambda _: fit_command(folder / "made", made, ["--dims", SIZES, *config])
    quick = ["--documents", "100", "--steps", "3"] if options.quick else []
    return lambda checkout: [str(checkout.root / "examples" / "demo.py"), *quick]


def measure_command(case: str, options: argparse.Namespace, checkouts: dict[str, Checkout]) -> list[dict[str, Any]]:
    """Seconds of a whole command by checkout, and those before divided by those after."""
    used = {name: checkout for name, checkout in checkouts.items() if case in IN_TURNS or name == "after"}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = commands_of(case, options, Path(folder))
        runs = {name: lambda checkout=checkout: checkout.seconds(command(checkout)) for name, checkout in used.items()}
        return [{"case": case, **in_turns(runs, options.rounds, divided_by="after")}]


def measure_memory_map(options: argparse.Namespace, checkout: Checkout) -> list[dict[str, Any]]:
    """Seconds of a fit on all rows and on the first of them, with labels and without, and their ratios."""
    many, few, judged = (4000, 1000, 100) if options.quick else (1_000_000, 10_000, 2000)
    settings = json.dumps(QUICK if options.quick else {})
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_clustered(Path(folder), many, few, judged)
        for queries in (0, judged):
            runs = {
                f"{count} rows": lambda count=count, queries=queries: float(
                    checkout.run(["-c", FIT, folder, str(count), str(queries), settings], Path(folder))
                )
                for count in (few, many)
            }
            measured = in_turns(runs, options.rounds, divided_by=f"{few} rows")
            rows.append({"case": "memory-map", "judged": queries, **measured})
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line; an unknown case is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="SciFact in BEIR layout, with a file of vectors")
    parser.add_argument("--vectors", default="all-MiniLM-L6-v2.safetensors")
    parser.add_argument("--before", type=Path, help="checkout to compare with; without it only --after is measured")
    parser.add_argument("--after", type=Path, required=True, help="checkout that is measured")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where made vectors go; the system's temporary folder by default")
    parser.add_argument("--quick", action="store_true", help="a few steps on little data, to try the script out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.cases = options.cases.split(",")
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"cases are {', '.join(CASES)}, got {', '.join(sorted(unknown))}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure the cases one after another, and write what is there so far after each."""
    options = parse(arguments)
    roots = {"before": options.before, "after": options.after}
    checkouts = {name: Checkout(root, options.threads) for name, root in roots.items() if root is not None}
    kept = ("data", "vectors", "cases", "rounds", "threads", "quick")
    recorded = argparse.Namespace(
        **{name: getattr(options, name) for name in kept},
        **{name: checkout.commit for name, checkout in checkouts.items()},
    )
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        print(case, flush=True)
        if case == "memory-map":
            rows += measure_memory_map(options, checkouts["after"])
        else:
            rows += measure_command(case, options, checkouts)
        for row in rows:
            if row["case"] == case:
                print({name: value for name, value in row.items() if name != "seconds"}, flush=True)
        if options.json:
            write_record(options.json, recorded, rows)


if __name__ == "__main__":
    main()

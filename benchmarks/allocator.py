"""What `smec-st fit` gains by keeping freed memory: pairs of fits, with and without, in one run.

    python benchmarks/allocator.py DATA/scifact --pairs 3

Writes benchmarks/results/allocator.json: processor seconds (user, system) of each fit, and the ratio of their medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch

from smec_st import __version__

RESULTS = Path(__file__).parent / "results"


def fit(data: Path, vectors: str, dims: str, environment: dict[str, str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "smec_st", "fit", "--data", str(data), "--vectors", str(data / vectors)]
        command += ["--dims", dims, "--out", str(Path(folder) / "fitted")]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, **environment}, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "wall": round(time.perf_counter() - began, 2),
            "user": round(after.ru_utime - before.ru_utime, 2),
            "system": round(after.ru_stime - before.ru_stime, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vectors", default="all-MiniLM-L6-v2.safetensors")
    parser.add_argument("--dims", default="192,96,48,24")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", default="1")
    options = parser.parse_args()
    threads = {"OMP_NUM_THREADS": options.threads}
    kept, plain = [], []
    for _ in range(options.pairs):
        kept.append(fit(options.data, options.vectors, options.dims, threads))
        # A user's own setting is respected, so one of glibc's defaults written out turns ours off.
        plain.append(fit(options.data, options.vectors, options.dims, {**threads, "MALLOC_ARENA_TEST": "8"}))
        print(kept[-1], plain[-1], flush=True)
    medians = [statistics.median(run["user"] + run["system"] for run in runs) for runs in (kept, plain)]
    record = {
        "arguments": {name: str(value) for name, value in vars(options).items() if name != "data"},
        "data": options.data.name,
        "versions": {"smec_st": __version__, "torch": torch.__version__, "numpy": numpy.__version__},
        "kept": kept,
        "given_back": plain,
        "ratio_of_medians": round(medians[0] / medians[1], 3),
    }
    (RESULTS / "allocator.json").write_text(json.dumps(record, indent=1) + "\n")
    print(record["ratio_of_medians"])


if __name__ == "__main__":
    main()

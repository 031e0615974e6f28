"""Transform and fit as ratios measured in one run, peak memory, and how a fit's time grows.

- transform: rows per second of `transform_files` from a memory-mapped file to finished, checksummed shards, against a
  bare numpy loop (matmul and normalise, in memory) over the same file, in turns;
- memory: peak resident memory of a process that transforms files of growing length;
- fit: time against the floor, the fit's own matrix products in bare numpy;
- growth: a fit's time as corpus, width and sizes double.

    python benchmarks/scale.py --json benchmarks/results/scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import numpy as np

from smec_st import Compressor, FitConfig
from smec_st.stores import Job, transform_files

WIDTH, DIMS = 384, (96, 48, 24)


def write_vectors(path: Path, rows: int, width: int, dtype: str) -> None:
    table = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (rows, width))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 50_000):
        table[start : start + 50_000] = rng.standard_normal((min(50_000, rows - start), width), dtype=np.float32)


def bare(path: Path, weight: np.ndarray, chunk: int = 1024) -> float:
    """Seconds of a loop that maps and normalises; its result stays in memory, unchecked and unwritten."""
    table = np.load(path, mmap_mode="r")
    began = time.perf_counter()
    result = np.empty((len(table), weight.shape[1]), dtype=np.float32)
    for start in range(0, len(table), chunk):
        out = table[start : start + chunk].astype(np.float32, copy=False) @ weight
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        result[start : start + chunk] = out
    return time.perf_counter() - began


def streamed(compressor: Path, path: Path, folder: Path, dim: int, precision: str) -> float:
    began = time.perf_counter()
    transform_files(Job(str(compressor), str(path), dim=dim, precision=precision), folder)
    return time.perf_counter() - began


def transform_part(folder: Path, rows: int, repeats: int) -> list[dict]:
    found = []
    for dtype in ("float32", "float16"):
        path = folder / f"{dtype}.npy"
        write_vectors(path, rows, WIDTH, dtype)
        sample = np.load(path, mmap_mode="r")[:5000].astype(np.float32)
        saved = folder / f"compressor-{dtype}"
        compressor = Compressor.fit(sample, dims=DIMS, method="pca")
        compressor.save(saved)
        for dim in DIMS[:2]:
            weight = np.ascontiguousarray(compressor.map_for(dim).layers[0].weight.T)
            for precision in ("float32", "float16", "int8", "binary"):
                ratios = []
                for repeat in range(repeats):
                    ours = streamed(saved, path, folder / f"{dtype}-{dim}-{precision}-{repeat}", dim, precision)
                    ratios.append(bare(path, weight) / ours)
                found.append({"input": dtype, "dim": dim, "precision": precision, "ratios": ratios})
                found[-1]["median"] = statistics.median(ratios)
                print({key: value for key, value in found[-1].items() if key != "ratios"}, flush=True)
    return found


MEMORY = """
import sys
from pathlib import Path
from smec_st.stores import Job, transform_files
transform_files(Job(sys.argv[1], sys.argv[2], dim=96), Path(sys.argv[3]))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0], status["RssAnon"].split()[0])
"""


def memory_part(folder: Path, rows: int) -> list[dict]:
    """Peak resident memory; pages of the mapped file count in it, so what is the process's own is said as well."""
    found = []
    for count in (rows // 8, rows // 4, rows // 2):
        path = folder / f"memory-{count}.npy"
        write_vectors(path, count, WIDTH, "float32")
        arguments = [str(folder / "compressor-float32"), str(path), str(folder / f"memory-{count}")]
        run = subprocess.run([sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True)
        peak, own = map(int, run.stdout.split()[-2:])
        found.append({"rows": count, "file_mb": count * WIDTH * 4 / 1e6, "peak_mb": peak / 1e3, "own_mb": own / 1e3})
        print(found[-1], flush=True)
    return found


def fit_seconds(rows: int, width: int, dims: tuple[int, ...], steps: int) -> float:
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((rows, width), dtype=np.float32)
    queries = corpus[:2000] + rng.standard_normal((2000, width), dtype=np.float32)
    pairs = np.repeat(np.arange(2000)[:, None], 2, axis=1)
    began = time.perf_counter()
    Compressor.fit(corpus, queries, pairs, dims, candidates=("ranked",), steps=steps)
    return time.perf_counter() - began


def floor_seconds(rows: int, width: int, dims: tuple[int, ...], steps: int) -> float:
    """The products of a fit in bare numpy: full-width similarities, map, similarities, and their gradients.

    All sizes are trained in one pass, and their similarities are summed block by block: the widest alone counts.
    """
    config = FitConfig()
    batch, pool = config.batch_size, min(rows, config.random_rows) + config.batch_size
    rng = np.random.default_rng(0)
    anchors, others = (rng.standard_normal((n, width), dtype=np.float32) for n in (batch, pool))
    weight = rng.standard_normal((width, max(dims)), dtype=np.float32)
    times = 3
    began = time.perf_counter()
    for _ in range(times):
        for left in (anchors, others[:batch]):  # queries and documents against the pool
            left @ others.T
        pooled = others @ weight
        small = np.concatenate([anchors @ weight, pooled[:batch]])
        similarity = small @ pooled.T
        back, gradient = similarity @ pooled, similarity.T @ small
        gradient[:batch] += back[batch:]
        others.T @ gradient, anchors.T @ back[:batch]
    return (time.perf_counter() - began) / times * steps


def growth_part(steps: int) -> tuple[list[dict], dict]:
    base = {"rows": 4000, "width": 256, "dims": (64, 32)}
    series = {
        "rows": [{**base, "rows": 4000 * 2**i} for i in range(5)],
        "width": [{**base, "width": 128 * 2**i, "dims": (128, 64)} for i in range(4)],  # above a 24th: no hidden layer
        "dims": [{**base, "dims": tuple(128 // 2**j for j in range(count))} for count in (1, 2, 4)],
    }
    fit_seconds(**base, steps=2)  # imports
    found = []
    for name, cases in series.items():
        for case in cases:
            seconds = fit_seconds(**case, steps=steps)
            found.append({"series": name, **{key: value for key, value in case.items()}, "seconds": seconds})
            print(found[-1], flush=True)
    case = {"rows": 5000, "width": WIDTH, "dims": (192, 96, 48, 24)}
    ours, floor = fit_seconds(**case, steps=steps), floor_seconds(**case, steps=steps)
    fit = {**case, "steps": steps, "seconds": ours, "floor": floor, "ratio": floor / ours}
    print(fit, flush=True)
    return found, fit


def plot(growth: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for axis, name in zip(axes, ("rows", "width", "dims"), strict=True):
        points = [entry for entry in growth if entry["series"] == name]
        xs = [len(entry["dims"]) if name == "dims" else entry[name] for entry in points]
        ys = [entry["seconds"] for entry in points]
        axis.plot(xs, ys, marker="o", label="fit")
        axis.plot(xs, [ys[0] * x / xs[0] for x in xs], linestyle="--", color="grey", label="linear")
        axis.set(xscale="log", yscale="log", xlabel={"rows": "documents", "dims": "sizes"}.get(name, name))
        axis.set_xticks(xs, [f"{x:,}" for x in xs])
        axis.minorticks_off()
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        transform = transform_part(folder, options.rows, options.repeats)
        memory = memory_part(folder, options.rows)
    growth, fit = growth_part(options.steps)
    result = {
        "arguments": {"rows": options.rows, "repeats": options.repeats, "steps": options.steps, "width": WIDTH},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "transform_over_bare": transform,
        "memory": memory,
        "fit_over_floor": fit,
        "growth": growth,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    plot(growth, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()

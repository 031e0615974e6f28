"""What oneDNN gains over MKL on this processor: matrix products, and whole fits, in turns in one run.

    python benchmarks/matmul.py DATA/scifact --pairs 3

Writes benchmarks/results/matmul.json: seconds of each, their ratio, and the greatest error beside float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import write_record

from smec_st import Collection, Compressor, load_collection
from smec_st.system.matmul import fast_matmul, rounding

RESULTS = Path(__file__).parent / "results"
SHAPES = ((256, 1024, 384), (1024, 1024, 1024), (5000, 96, 384))  # rows, columns, inner


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(run: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """``run`` with and without, so many times; a precision that somebody chose turns ours off."""
    setting = torch.backends.mkldnn.matmul
    fast, plain = [], []
    for _ in range(pairs):
        with fast_matmul():
            fast.append(seconds(run))
        setting.fp32_precision = "ieee"
        plain.append(seconds(run))
        setting.fp32_precision = "none"
    medians = [statistics.median(times) for times in (fast, plain)]
    return {"fast": fast, "plain": plain, "ratio_of_medians": round(medians[0] / medians[1], 3)}


def product(rows: int, columns: int, inner: int, repeats: int = 20) -> Callable[[], None]:
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)

    def run() -> None:
        for _ in range(repeats):
            left @ right

    return run


def fit(collection: Collection, dims: tuple[int, ...]) -> Callable[[], Compressor]:
    return lambda: Compressor.fit(
        collection.corpus,
        collection.queries,
        collection.judged("train"),
        dims,
        dev_qrels=collection.judged("dev"),
        own_document=collection.own_document,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vectors", default="all-MiniLM-L6-v2.safetensors")
    parser.add_argument("--dims", default="192,96,48,24")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "matmul.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [{"what": "rounding", **{name: rounding(name) for name in ("ieee", "bf16")}}]
    for shape in SHAPES:
        in_turns(product(*shape), 1)
        rows.append({"what": "product", "shape": shape, **in_turns(product(*shape), 9)})
    collection = load_collection(options.data, options.data / options.vectors)
    dims = tuple(map(int, options.dims.split(",")))
    rows.append({"what": "fit", **in_turns(fit(collection, dims), options.pairs)})
    write_record(options.json, options, rows)
    for row in rows:
        print({name: value for name, value in row.items() if name not in ("fast", "plain")})


if __name__ == "__main__":
    main()

"""Run the paper's analyses on a collection and record what is found.

The collection is a folder in BEIR layout with a safetensors file of vectors beside the texts.

    python benchmarks/analysis.py DATA/scifact --out benchmarks/results/analysis
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import argparse
import time
from pathlib import Path

import torch

from smec_st import load_collection
from smec_st.research.analysis import ablation, convergence, gradients, importance

ANALYSES = {
    "gradients": gradients.run,
    "convergence-rank": lambda data, out: convergence.run(data, out, "rank"),
    "convergence-cross-entropy": lambda data, out: convergence.run(data, out, "cross-entropy"),
    "importance": lambda data, out: importance.run(data, out, sizes_with_a_sixth(data.corpus.shape[1])),
    "ablation": ablation.run,
}


def sizes_with_a_sixth(width: int) -> tuple[int, ...]:
    """Halvings down to a sixteenth, and a sixth: the ratio that the paper reports."""
    return tuple(sorted({width // part for part in (2, 4, 6, 8, 16)}, reverse=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help=f"Of {', '.join(ANALYSES)}; all by default.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_collection(options.folder, next(options.folder.glob("*.safetensors")))
    for name in options.only.split(",") if options.only else ANALYSES:
        began = time.perf_counter()
        ANALYSES[name](data, options.out)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

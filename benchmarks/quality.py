"""Fit every named collection with the defaults, several seeds, and record quality by size and the time each fit took.

Collections are folders in BEIR layout with a safetensors file of vectors beside the texts. Settings are the defaults
of ``smec-st fit``; the dev split helps to choose what is trained, the test split gives the figures.

    python benchmarks/quality.py DATA/scifact DATA/medquad --json benchmarks/results/quality.json
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
import transformers

from smec_st import Compressor, FitConfig, load_collection
from smec_st.evaluation.sweep import sweep
from smec_st.evaluation.untrained import original, pca, truncate
from smec_st.fitting.config import METHODS, read_settings


def run(
    folder: Path, seeds: list[int], dims: tuple[int, ...] | None, no_labels: bool, method: str, settings: dict
) -> dict:
    vectors = next(folder.glob("*.safetensors"))
    data = load_collection(folder, vectors)
    train = data.judged("train")
    fits, rows = [], []
    for seed in seeds:
        began = time.perf_counter()
        compressor = Compressor.fit(
            data.corpus,
            data.queries,
            None if no_labels else train,
            dims,
            dev_qrels=None if no_labels else data.qrels.get("dev"),
            unlabelled_queries=train.query_rows,
            own_document=data.own_document,
            method=method,
            **{**settings, "seed": seed},
        )
        seconds = time.perf_counter() - began
        methods = {method: compressor.transform}
        if not rows:
            methods = {"original": original, "truncate": truncate, "pca": pca(data.corpus), **methods}
        rows += [
            {**row.to_dict(), "seed": seed}
            for row in sweep(
                data.corpus,
                data.queries,
                data.judged("test"),
                methods,
                compressor.dims,
                own_document=data.own_document,
            )
        ]
        decisions = compressor.info["decisions"]
        chosen = decisions[-1]["chosen"] if decisions else None
        fits.append(
            {
                "seed": seed,
                "seconds": seconds,
                "chosen": chosen,
                "decisions": decisions,
                "stages": compressor.info["stages"],
            }
        )
        print(f"{folder.name}, seed {seed}: {seconds:.0f} s, {chosen or 'nothing to choose'}", flush=True)
    names = list(dict.fromkeys(row["method"] for row in rows))
    median = {
        name: {
            dim: statistics.median(row["ndcg@10"] for row in rows if (row["method"], row["dim"]) == (name, dim))
            for dim in sorted({row["dim"] for row in rows if row["method"] == name}, reverse=True)
        }
        for name in names
    }
    for name, by_dim in median.items():
        print(f"  {name:10}" + "".join(f"{dim:>6}: {score:.4f}" for dim, score in by_dim.items()), flush=True)
    return {"median_ndcg@10": median, "rows": rows, "fits": fits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--dims", help="Sizes; by default the width and its halvings down to a sixteenth.")
    parser.add_argument("--method", default="smec")
    parser.add_argument("--no-labels", action="store_true")
    parser.add_argument("--config", type=Path, help="settings that differ from the defaults, JSON or YAML")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    dims = tuple(int(dim) for dim in options.dims.split(",")) if options.dims else None
    settings = read_settings(options.config) if options.config else {}
    result = {
        "settings": {**FitConfig().to_dict(), **METHODS[options.method], **settings},
        "arguments": {
            "seeds": seeds,
            "dims": dims,
            "method": options.method,
            "no_labels": options.no_labels,
            "threads": options.threads,
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentence-transformers": sentence_transformers.__version__,
        },
        "collections": {
            folder.name: run(folder, seeds, dims, options.no_labels, options.method, settings)
            for folder in options.folders
        },
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

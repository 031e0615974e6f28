"""Settings of a fit against one another, by cross-validation over training and dev queries. Test is never read.

    python benchmarks/ablation.py DATA/scifact --dims 24,12 --name scifact-narrow \\
        --variant '{"candidates": ["ranked"]}' --variant '{"candidates": ["ranked"], "narrow_hidden": 0}'

Folds are drawn query by query, so that held-out queries share documents with training ones as they happen to; with
--unseen, queries that share a relevant document stay together: what is held out asks for documents never trained on.
Each variant is a JSON object of FitConfig fields; the first is the reference. A variant that names one candidate
trains that one; otherwise each fit chooses. Writes benchmarks/results/ablation/NAME.json: nDCG@10 by variant, size and
query, means, and paired 95 % intervals of the difference to the first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record

from smec_st import Compressor
from smec_st.data import Collection, Qrels, load_collection
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.statistics import paired_interval

RESULTS = Path(__file__).parent / "results" / "ablation"


def folds(collection: Collection, count: int, unseen: bool) -> list[tuple[Qrels, Qrels]]:
    """Training and held-out judgements; ``unseen`` keeps queries that share a relevant document together."""
    judged = Qrels.joined(collection.qrels[name] for name in ("train", "dev") if name in collection.qrels)
    order = np.random.default_rng(0).permutation(judged.query_rows)
    parts = [order[fold::count] for fold in range(count)]
    if unseen:
        rest, parts = judged, []
        for left in range(count, 1, -1):
            rest, part = rest.split(1 / left, seed=0)
            parts.append(part.query_rows)
        parts.append(rest.query_rows)
    return [(judged.of_queries(np.setdiff1d(order, rows)), judged.of_queries(rows)) for rows in parts]


def fit_and_score(
    collection: Collection, train: Qrels, held_out: Qrels, dims: tuple[int, ...], settings: dict[str, Any], seed: int
) -> dict[int, np.ndarray]:
    labels = settings.pop("labels", True)
    compressor = Compressor.fit(
        collection.corpus,
        collection.queries,
        train if labels else None,
        dims,
        unlabelled_queries=train.query_rows,
        own_document=collection.own_document,
        **{"seed": seed, **settings},
    )
    own = None if collection.own_document is None else collection.own_document[held_out.query_rows]
    queries = collection.queries[held_out.query_rows]
    local = held_out.renumbered()
    scores = {}
    for dim in compressor.dims:
        small = compressor.transform(collection.corpus, dim), compressor.transform(queries, dim)
        scores[dim] = evaluate_retrieval(*small, local, ("ndcg@10",), own_document=own)["ndcg@10"]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vectors", default="all-MiniLM-L6-v2.safetensors")
    parser.add_argument("--dims", required=True)
    parser.add_argument("--variant", action="append", required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--only", type=int, help="Run this many of the folds.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", required=True, help="Of the result.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dims = tuple(int(dim) for dim in options.dims.split(","))
    collection = load_collection(options.data, options.data / options.vectors)
    values: dict[str, dict[int, list[np.ndarray]]] = {name: {dim: [] for dim in dims} for name in options.variant}
    seconds = dict.fromkeys(options.variant, 0.0)
    for fold, (train, held_out) in enumerate(folds(collection, options.folds, options.unseen)[: options.only]):
        for name in options.variant:
            began = time.perf_counter()
            scores = fit_and_score(collection, train, held_out, dims, json.loads(name), seed=fold)
            seconds[name] += time.perf_counter() - began
            for dim, score in scores.items():
                values[name][dim].append(score)
            print(fold, name, {dim: round(float(score.mean()), 4) for dim, score in scores.items()}, flush=True)
    rows = []
    for name in options.variant:
        for dim in dims:
            score, first = np.concatenate(values[name][dim]), np.concatenate(values[options.variant[0]][dim])
            interval = paired_interval(score, first) if name != options.variant[0] else None
            rows.append(
                {
                    "variant": json.loads(name),
                    "dim": dim,
                    "ndcg@10": round(float(score.mean()), 4),
                    "difference": round(float((score - first).mean()), 4),
                    "interval": None if interval is None else [round(interval.low, 4), round(interval.high, 4)],
                    "queries": len(score),
                    "fit_seconds": round(seconds[name], 1),
                }
            )
            print(rows[-1])
    write_record(RESULTS / f"{options.name}.json", options, rows)


if __name__ == "__main__":
    main()

"""What a bridge keeps when the model is replaced: between two models of the same texts, both ways, several seeds.

    python benchmarks/bridge.py DATA/xquad_r_en DATA/xquad_r_en_e5 --json benchmarks/results/bridge.json

Both folders hold the same texts and judgements, with vectors of one model each. A bridge learns from training and dev
queries and from documents; test queries are only reported on. There are two kinds of samples:

- store: the sample holds every document of the store, also those that test queries ask for. Nobody needs a bridge
  then, except while the index is rebuilt.
- part: no test query's document is in the sample, as for a small sample of a large store.

For the store, documents then move to the new model in parts, in random order, and the score of both searched as one is
recorded for each part (`moved`).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record

from smec_st import Bridge, Compressor, Qrels, load_collection
from smec_st.data import unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval, exact_search, score_rankings
from smec_st.evaluation.statistics import paired_interval
from smec_st.fitting import bridge as fitting

METRIC = "ndcg@10"
SAMPLES = ("store", "part")
MOVED = (0.25, 0.5, 0.75)


def ndcg(corpus: np.ndarray, queries: np.ndarray, qrels: Qrels) -> np.ndarray:
    return evaluate_retrieval(unit_rows(corpus), unit_rows(queries), qrels, (METRIC,))[METRIC]


def recall_of(old_corpus: np.ndarray, bridged: np.ndarray, new_corpus: np.ndarray, new: np.ndarray) -> float:
    """Share of the ten documents that the new model finds among its own which the bridge finds too."""
    ours, theirs = (exact_search(*pair, 10)[0] for pair in ((old_corpus, bridged), (new_corpus, new)))
    return float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(ours, theirs, strict=True)]))


def moving(
    bridge: Bridge, old_corpus: np.ndarray, bridged: np.ndarray, new: Any, test: Qrels, seed: int
) -> dict[str, float]:
    """Scores while parts of the documents have moved: both cosines on one scale, as `BridgedIndex` merges them."""
    rows, (new_corpus, new_queries) = test.query_rows, new
    factor, offset = bridge.info["kept"]["scales"][str(bridge.dims[0])]
    before = factor * (bridged[rows] @ old_corpus.T) + offset
    after = new_queries[rows] @ new_corpus.T
    order = np.random.default_rng(seed).permutation(len(old_corpus))
    scores = {}
    for part in MOVED:
        mixed = before.copy()
        there = order[: round(part * len(order))]
        mixed[:, there] = after[:, there]
        ranked = np.argsort(-mixed, axis=1, kind="stable")[:, :10]
        scores[str(part)] = float(score_rankings((rows, ranked), test, (METRIC,))[METRIC].mean())
    return scores


def run(old: Any, new: Any, dims: tuple[int, ...] | None, sample: str, seed: int) -> list[dict[str, Any]]:
    test = old.judged("test")
    told = Qrels.joined([qrels for split, qrels in old.qrels.items() if split != "test"])
    rows = np.setdiff1d(np.arange(len(old.queries)), test.query_rows)
    documents = np.arange(len(old.corpus))
    if sample == "part":
        documents = np.setdiff1d(documents, test.documents)
    inside = np.isin(told.documents, documents)
    qrels = Qrels(
        np.searchsorted(rows, told.queries[inside]),
        np.searchsorted(documents, told.documents[inside]),
        told.grades[inside],
    )
    compressor = None
    if dims is not None:
        compressor = Compressor.fit(
            old.corpus, old.queries, old.judged("train"), dims, dev_qrels=old.qrels.get("dev"), seed=seed,
            unlabelled_queries=old.judged("train").query_rows,
        )  # fmt: skip
    began = time.perf_counter()
    bridge = Bridge.fit(
        old.corpus[documents], old.queries[rows], new.corpus[documents], new.queries[rows], qrels,
        compressor=compressor, share=1.0 if sample == "store" else 0.0, least=0.0, seed=seed,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    made, ridge = bridge.transform(new.queries), plain_ridge(old, new, documents, compressor)
    found = []
    for dim in bridge.dims:
        corpus, asked = (
            (old.corpus, old.queries)
            if compressor is None
            else (compressor.transform(old.corpus, dim), compressor.transform(old.queries, dim))
        )
        corpus, bridged = unit_rows(corpus), unit_rows(made[:, :dim])
        reference, ours = ndcg(corpus, asked, test), ndcg(corpus, bridged, test)
        row = {
            "old": old.name, "new": new.name, "sample": sample, "seed": seed, "dim": dim,
            "compressed": compressor is not None, "documents": len(documents), "queries": len(rows),
            "seconds": round(seconds, 1), "decision": bridge.info["decision"], "held_out": bridge.info["kept"],
            "old_old": float(reference.mean()), "new_new": float(ndcg(new.corpus, new.queries, test).mean()),
            "plain_ridge": float(ndcg(corpus, ridge[:, :dim], test).mean()), "bridged": float(ours.mean()),
            "kept": float(ours.mean() / reference.mean()), "difference": paired_interval(ours, reference)._asdict(),
            "recall@10_of_new": recall_of(
                corpus, bridged[test.query_rows], unit_rows(new.corpus), unit_rows(new.queries[test.query_rows])
            ),
        }  # fmt: skip
        if dim == bridge.dims[0] and sample == "store":
            row["moved"] = moving(bridge, corpus, bridged, (unit_rows(new.corpus), unit_rows(new.queries)), test, seed)
        print(
            {name: row[name] for name in ("old", "new", "sample", "seed", "dim", "plain_ridge", "bridged")}, flush=True
        )
        found.append(row)
    return found


def plain_ridge(old: Any, new: Any, documents: np.ndarray, compressor: Compressor | None) -> np.ndarray:
    """The usual answer: a ridge regression of old document vectors on new ones, applied to queries."""
    target = old.corpus[documents] if compressor is None else compressor.transform(old.corpus[documents])
    rows, target = unit_rows(new.corpus[documents]).astype(np.float64), unit_rows(target)
    gram = rows.T @ rows
    gram[np.diag_indices_from(gram)] += fitting.RIDGE * np.trace(gram) / len(gram)
    return unit_rows(unit_rows(new.queries) @ np.linalg.solve(gram, rows.T @ target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs=2, type=Path, help="two folders of the same texts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", nargs="+", choices=SAMPLES, default=list(SAMPLES))
    parser.add_argument("--dims", help="also into a space that was compressed to these sizes, for instance 96,48")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    one, other = (load_collection(folder, next(folder.glob("*.safetensors"))) for folder in options.data)
    if (one.corpus_ids, one.query_ids) != (other.corpus_ids, other.query_ids):
        raise SystemExit("both folders must hold the same texts in the same order.")
    spaces = [None, *([tuple(int(dim) for dim in options.dims.split(","))] if options.dims else [])]
    rows: list[dict[str, Any]] = []
    for sample in options.samples:
        for seed in options.seeds:
            for dims in spaces:
                for old, new in ((one, other), (other, one)):
                    rows += run(old, new, dims, sample, seed)
                    write_record(options.json, options, rows)


if __name__ == "__main__":
    main()

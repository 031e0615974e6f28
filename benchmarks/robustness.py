"""What becomes of the defaults where labels are few, misleading, or of another collection.

    python benchmarks/robustness.py few        DATA/scifact
    python benchmarks/robustness.py misleading DATA/xquad_r_en DATA/scifact
    python benchmarks/robustness.py transfer   DATA/scifact DATA/medquad DATA/xquad_r_en
    python benchmarks/robustness.py mix        DATA/scifact DATA/medquad DATA/xquad_r_en
    python benchmarks/robustness.py synthetic  DATA/scifact --model MODEL
    python benchmarks/robustness.py unseen     DATA/scifact DATA/xquad_r_en
    python benchmarks/robustness.py gallery    DATA/clothing_images --dims 1024,256,128,64,32,16
    python benchmarks/robustness.py partial    DATA/clothing_images --dims 1024,256,128,64,32,16
    python benchmarks/robustness.py cone       DATA/scifact
    python benchmarks/robustness.py wide --dims 256,64,32 --methods smec,pca-centred,mrl-principal

few: 0, 20, 50, 100, 200 and all training queries, no dev split, beside rivals: for those a fifth is held out.
misleading: as they are; judgements that name another query's documents; 20 random pairs. Beside untrained methods.
transfer: fitted on one collection with and without labels, used on another, beside PCA fitted on the first.
mix: fitted on all of them at once, used on each, beside PCA of all.
synthetic: queries made from the documents by MODEL, in place of judgements and beside 50 judged queries.
unseen: judged queries whose documents no training query names, with and without labels; test is not read.
gallery: classes whose queries are no documents: half of the corpus is searched, the other half asks.
partial: the same, where each query's judgements, but for those of test, name a random half of its class.
cone: all vectors moved towards one direction, so that any two of them have a cosine of .75 and more, as many models
  make them; with and without labels.
wide: made vectors of 4,096 numbers whose 32 directions of meaning are known, under louder ones that mean nothing.

Writes benchmarks/results/robustness/NAME.json: nDCG@10 on test by size, one row per fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_record

from smec_st.data import (
    Collection,
    Qrels,
    VectorTable,
    add_synthetic_queries,
    join_collections,
    load_collection,
    read_jsonl,
    unit_rows,
)
from smec_st.data.beir import Side
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.research.baselines import TrainingData
from smec_st.research.compare import METHODS
from smec_st.system.matmul import fast_matmul

RESULTS = Path(__file__).parent / "results" / "robustness"
UNTRAINED = ("truncate", "pca", "pca-centred")
FEW = "0,20,50,100,200,all"


def load(folder: Path) -> Collection:
    (vectors,) = folder.glob("*.safetensors")
    return load_collection(folder, vectors)


def score(encoder: Any, collection: Collection, qrels: Qrels | None = None) -> dict[int, float]:
    qrels = qrels or collection.judged("test")
    scores = {}
    for size in encoder.sizes:
        sides = encoder.documents(collection.corpus, size), encoder.queries(collection.queries, size)
        values = evaluate_retrieval(*sides, qrels, ("ndcg@10",), own_document=collection.own_document)
        scores[size.dim] = round(float(values["ndcg@10"].mean()), 4)
    return scores


@fast_matmul()
def fit(
    method: str,
    collection: Collection,
    train: Qrels | None,
    dims: tuple[int, ...],
    seed: int,
    dev: Any,
    asked: np.ndarray | None = None,
) -> Any:
    table = VectorTable(collection.corpus, collection.queries, collection.own_document)
    asked = collection.judged("train").query_rows if asked is None else asked
    return METHODS[method]().fit(TrainingData(table, train, dev, asked), dims, seed)


def with_and_without_labels(
    collection: Collection, dims: tuple[int, ...], methods: list[str], seed: int
) -> Iterator[dict[str, Any]]:
    """Every method without labels, and those that learn from labels with them, too."""
    for name, labels in (("none", None), ("judged", collection.judged("train"))):
        dev = None if labels is None else collection.qrels.get("dev")
        for method in methods:
            if METHODS[method]().needs_labels if labels is None else not METHODS[method]().uses_labels:
                continue
            scores = score(fit(method, collection, labels, dims, seed, dev), collection)
            yield {"data": collection.name, "method": method, "labels": name, "ndcg@10": scores}


def few(
    folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int, counts: str
) -> Iterator[dict[str, Any]]:
    for folder in folders:
        collection = load(folder)
        judged = collection.judged("train")
        order = np.random.default_rng(seed).permutation(judged.query_rows)
        for count in (len(order) if name == "all" else int(name) for name in counts.split(",")):
            chosen = None if count == 0 else judged.of_queries(order[:count])
            shared = (None, None) if chosen is None else chosen.hold_out(0.2, seed)
            for method in methods:
                if chosen is None and METHODS[method]().needs_labels:
                    continue
                train, dev = (chosen, None) if method == "smec" else shared  # ours shares them out itself
                scores = score(fit(method, collection, train, dims, seed, dev), collection)
                yield {"data": folder.name, "method": method, "queries": count, "ndcg@10": scores}


def misleading(folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for folder in folders:
        collection = load(folder)
        train, dev = collection.judged("train"), collection.qrels.get("dev")
        rows = train.query_rows
        other = dict(zip(rows.tolist(), rng.permutation(rows).tolist(), strict=True))
        shuffled = Qrels(np.array([other[q] for q in train.queries.tolist()]), train.documents, train.grades)
        picked = rng.choice(rows, 20, replace=False)
        random = Qrels(picked, rng.integers(0, len(collection.corpus), 20), np.ones(20))
        for method in UNTRAINED:
            scores = score(fit(method, collection, None, dims, seed, None), collection)
            yield {"data": folder.name, "method": method, "labels": "none", "ndcg@10": scores}
        for name, labels, held_out in (
            ("as they are", train, dev),
            ("of another query", *shuffled.hold_out(0.1, seed)),
            ("20 random pairs", *random.hold_out(0.1, seed)),
        ):
            for method in methods:
                scores = score(fit(method, collection, labels, dims, seed, held_out), collection)
                yield {"data": folder.name, "method": method, "labels": name, "ndcg@10": scores}


def transfer(folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    collections = {folder.name: load(folder) for folder in folders}
    for source, collection in collections.items():
        labelled = collection.judged("train"), collection.qrels.get("dev")
        for method, (train, dev) in itertools.product(["pca", *methods], (labelled, (None, None))):
            if method == "pca" and train is not None:
                continue
            encoder = fit(method, collection, train, dims, seed, dev)
            for target, used in collections.items():
                yield {
                    "fitted_on": source, "used_on": target, "method": method,
                    "labels": "none" if train is None else "judged", "ndcg@10": score(encoder, used),
                }  # fmt: skip


def mix(folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    collections = {folder.name: load(folder) for folder in folders}
    joined = join_collections(list(collections.values()))
    for method in ["pca", *methods]:
        encoder = fit(method, joined, joined.judged("train"), dims, seed, joined.qrels.get("dev"))
        for target, used in collections.items():
            yield {"fitted_on": joined.name, "used_on": target, "method": method, "ndcg@10": score(encoder, used)}


def synthetic(
    folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int, model: str
) -> Iterator[dict[str, Any]]:
    for folder in folders:
        corpus = Side.read(read_jsonl(folder / "corpus.jsonl"), str(folder))
        collection = replace(load(folder), titles=corpus.titles, texts=corpus.texts)
        judged = collection.judged("train")
        few = judged.of_queries(np.random.default_rng(seed).permutation(judged.query_rows)[:50])
        for name, labels in (("none", {}), ("50 queries", {"train": few})):
            made = add_synthetic_queries(replace(collection, qrels=labels), model, seed=seed)
            for source, fitted_on, train in (
                ("judged", collection, labels.get("train")),
                ("judged and made", made, made.qrels["train"]),
            ):
                shared = (None, None) if train is None else train.hold_out(0.1, seed)
                for method in methods:
                    given = (train, None) if method == "smec" else shared  # ours shares them out itself
                    scores = score(
                        fit(method, fitted_on, given[0], dims, seed, given[1], judged.query_rows), collection
                    )
                    yield {"data": folder.name, "method": method, "judged": name, "on": source, "ndcg@10": scores}


def unseen(folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    for folder in folders:
        collection = load(folder)
        rest, asked = Qrels.joined(collection.qrels[name] for name in ("train", "dev")).split(0.35, seed)
        for name, labels in (("judged", rest), ("none", None)):
            train, dev = (None, None) if labels is None else labels.hold_out(0.1, seed)
            for method in [*(UNTRAINED if labels is None else ()), *methods]:
                scores = score(fit(method, collection, train, dims, seed, dev, rest.query_rows), collection, asked)
                yield {
                    "data": folder.name, "method": method, "labels": name, "queries": len(asked.query_rows),
                    "ndcg@10": scores,
                }  # fmt: skip


def gallery(
    folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int, named: float = 1.0
) -> Iterator[dict[str, Any]]:
    for folder in folders:
        whole, draws = load(folder), np.random.default_rng(seed + 1)
        searched = np.sort(np.random.default_rng(seed).permutation(len(whole.corpus))[: len(whole.corpus) // 2])
        place = np.full(len(whole.corpus), -1)
        place[searched] = np.arange(len(searched))
        asks = (whole.own_document < 0) | (place[whole.own_document] < 0)
        qrels = {}
        for split, judged in whole.qrels.items():
            kept = asks[judged.queries] & (place[judged.documents] >= 0)
            if split != "test":
                kept &= draws.random(len(kept)) < named
            qrels[split] = Qrels(judged.queries[kept], place[judged.documents[kept]], judged.grades[kept])
        ids = [whole.corpus_ids[row] for row in searched.tolist()]
        collection = Collection(folder.name, whole.corpus[searched], whole.queries, ids, whole.query_ids, qrels)
        for method in methods:
            scores = score(fit(method, collection, qrels["train"], dims, seed, qrels.get("dev")), collection)
            yield {"data": folder.name, "method": method, "queries": len(qrels["train"].query_rows), "ndcg@10": scores}


def partial(folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    yield from gallery(folders, dims, methods, seed, named=0.5)


def cone(folders: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    for folder in folders:
        whole = load(folder)
        axis = unit_rows(np.random.default_rng(seed).normal(size=(1, whole.corpus.shape[1])))
        sides = [unit_rows(0.5 * unit_rows(rows) + 0.75**0.5 * axis) for rows in (whole.corpus, whole.queries)]
        collection = replace(whole, corpus=sides[0], queries=sides[1])
        yield from with_and_without_labels(collection, dims, methods, seed)


def wide(_: list[Path], dims: tuple[int, ...], methods: list[str], seed: int) -> Iterator[dict[str, Any]]:
    collection, meaning = made_wide(seed)
    yield from with_and_without_labels(collection, dims, methods, seed)
    for method, axes in (("original", None), ("the directions of meaning", meaning)):
        sides = [x if axes is None else x @ axes.T for x in (collection.corpus, collection.queries)]
        values = evaluate_retrieval(*map(unit_rows, sides), collection.qrels["test"], ("ndcg@10",))
        scores = {sides[0].shape[1]: round(float(values["ndcg@10"].mean()), 4)}
        yield {"data": collection.name, "method": method, "labels": "none", "ndcg@10": scores}


def made_wide(
    seed: int, width: int = 4096, documents: int = 3000, queries: int = 1000
) -> tuple[Collection, np.ndarray]:
    """Documents and queries about them: 32 directions of meaning, 32 of louder noise, faint noise everywhere.

    Returns the collection and the directions of meaning, ``(32, width)``.
    """
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 64)))[0].T.astype(np.float32)
    meaning, noise = axes[:32], axes[32:]
    about = rng.choice(documents, queries, replace=False)
    latent = rng.normal(size=(documents, 32)).astype(np.float32)
    asked = latent[about] + 0.5 * rng.normal(size=(queries, 32)).astype(np.float32)

    def vectors(latent: np.ndarray) -> np.ndarray:
        loud = 1.4 * rng.normal(size=(len(latent), len(noise))).astype(np.float32)
        faint = 0.1 * rng.normal(size=(len(latent), width)).astype(np.float32)
        return unit_rows(latent @ meaning + loud @ noise + faint)

    rows = np.arange(queries)
    splits = zip(("train", "dev", "test"), np.split(rows, [queries // 2, queries * 3 // 5]), strict=True)
    qrels = {name: Qrels(part, about[part], np.ones(len(part))) for name, part in splits}
    ids = [str(i) for i in range(documents)]
    return Collection(f"made-{width}", vectors(latent), vectors(asked), ids, ids[:queries], qrels), meaning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = (few, misleading, transfer, mix, synthetic, unseen, gallery, partial, cone, wide)
    parser.add_argument("what", choices=[kind.__name__ for kind in kinds])
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--dims", default="384,192,96,48,24")
    parser.add_argument("--methods", default="smec")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--model", help="That made the vectors, for queries made from texts.")
    parser.add_argument("--queries", default=FEW, help="How many training queries, for few.")
    parser.add_argument("--keep", action="store_true", help="Keep recorded rows that this run does not measure.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dims = tuple(int(dim) for dim in options.dims.split(","))
    path = RESULTS / f"{options.what}.json"
    rows = json.loads(path.read_text())["rows"] if options.keep else []
    methods = options.methods.split(",")
    options.methods = ",".join(dict.fromkeys([*(row["method"] for row in rows), *methods]))
    for seed in (int(seed) for seed in options.seeds.split(",")):
        began = time.perf_counter()
        more = {"synthetic": (options.model,), "few": (options.queries,)}.get(options.what, ())
        for row in globals()[options.what](options.data, dims, methods, seed, *more):
            row["seed"] = seed
            rows = [one for one in rows if any(one.get(name) != row[name] for name in row if name != "ndcg@10")]
            rows.append({**row, "seconds": round(time.perf_counter() - began, 1)})
            began = time.perf_counter()
            print(rows[-1], flush=True)
            write_record(path, options, rows)


if __name__ == "__main__":
    main()

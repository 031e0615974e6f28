"""Quality at equal bytes: sizes x precisions of ours and of other float methods, each under the same quantisers.

Every method's floats are stored in each precision that fits a budget; the dev split chooses size and precision per
method and budget, the test split gives the figure. Quantisers are int8, binary (rotated), product quantisation with
and without a learned rotation, and RaBitQ (FAISS; its 8 bytes of factors count). Documents are codes, queries float,
decoded documents have length 1 for all alike, RaBitQ apart. Done parts are kept: the command goes on after a stop.

    python benchmarks/bytes.py DATA/scifact --fitted FOLDER --json benchmarks/results/bytes.json

The floats are ours, the original's, and those of every method of the field that makes floats, each with its defaults.
Ours are of three seeds: the map and its codes are fitted anew for each, and the figure is the median. `--fitted` keeps
one compressor per collection and seed (fitted with the defaults when it is not there).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import faiss
import numpy as np
from record import open_record

from smec_st import Collection, Compressor, VectorTable, load_collection
from smec_st.data import unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval, leave_out, score_rankings
from smec_st.quantization.codecs import Binary
from smec_st.quantization.starts import calibrate_int8, random_rotation, sample_rows
from smec_st.research.baselines import Size, TrainingData
from smec_st.research.baselines.quantizers import product_codec
from smec_st.research.compare import METHODS
from smec_st.system.matmul import fast_matmul

BUDGETS = (384, 96, 48, 32, 24, 16, 12, 6)
RABITQ_FACTORS = 8
PARTS = (
    "ours", "original", "pca", "truncate", "mrl-principal", "mrl", "matryoshka-adaptor", "smec-published", "dive",
    "adawidth", "search-adaptor",
)  # fmt: skip
Floats = Callable[[np.ndarray, int], np.ndarray]


def quantised(documents: np.ndarray, queries: np.ndarray, budget: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every way to store these floats in so many bytes: name, decoded documents, queries."""
    dim = documents.shape[1]
    rows = documents[sample_rows(len(documents), 0, 8000)]
    if 4 * dim == budget:
        yield "float32", documents, queries
    if 2 * dim == budget:
        yield "float16", unit_rows(documents.astype(np.float16)), queries
    if dim == budget:
        codec = calibrate_int8(rows)
        yield "int8", codec.decode(codec.encode(documents)), queries
    if dim == 8 * budget:
        codec = Binary(random_rotation(dim, 0))
        yield "binary", codec.decode(codec.encode(documents)), queries
    padded = -(-dim // budget) * budget  # zeros, where the bytes do not divide the width
    if padded > budget:
        spare = ((0, 0), (0, padded - dim))
        rows, documents, queries = np.pad(rows, spare), np.pad(documents, spare), np.pad(queries, spare)
        for rotate in (False, True) if budget <= 48 else (False,):
            _, codec = product_codec(rows, budget, rotate, 0)
            yield "opq" if rotate else "pq", unit_rows(codec.decoded(documents)), codec.queries(queries)


def rabitq(documents: np.ndarray, queries: np.ndarray, depth: int) -> np.ndarray:
    """Ranking by FAISS's own estimate."""
    index = faiss.index_factory(documents.shape[1], "RaBitQ", faiss.METRIC_INNER_PRODUCT)
    index.train(documents)
    index.add(documents)
    return index.search(queries, depth)[1]


def score(data: Collection, split: str, documents: np.ndarray, queries: np.ndarray) -> float:
    found = evaluate_retrieval(documents, queries, data.qrels[split], ("ndcg@10",), data.own_document)
    return float(found["ndcg@10"].mean())


def score_ranking(data: Collection, split: str, documents: np.ndarray, queries: np.ndarray) -> float:
    rows = data.qrels[split].query_rows
    ranked = leave_out(rabitq(documents, queries[rows], 11), data.own_document[rows])[:, :10]
    return float(score_rankings((rows, ranked), data.qrels[split], ("ndcg@10",))["ndcg@10"].mean())


def rows_of(data: Collection, name: str, floats: Floats, dims: tuple[int, ...]) -> Iterator[dict]:
    """Every combination of one float method."""
    for dim in dims:
        documents, queries = floats(data.corpus, dim), floats(data.queries, dim)
        base = {"method": name, "dim": dim}
        for budget in BUDGETS:
            for precision, stored, asked in quantised(documents, queries, budget):
                scores = {split: score(data, split, stored, asked) for split in ("dev", "test")}
                yield {**base, "precision": precision, "bytes": budget, **scores}
        scores = {split: score_ranking(data, split, documents, queries) for split in ("dev", "test")}
        yield {**base, "precision": "rabitq", "bytes": -(-dim // 8) + RABITQ_FACTORS, **scores}


def fitted(data: Collection, folder: Path, seed: int) -> Compressor:
    """The compressor of a seed, from the folder if it is there."""
    saved = folder / f"{data.name}-{seed}"
    if not saved.exists():
        Compressor.fit(
            data.corpus, data.queries, data.judged("train"), dev_qrels=data.qrels["dev"],
            own_document=data.own_document, seed=seed,
        ).save(saved)  # fmt: skip
    return Compressor.load(saved)


def our_rows(data: Collection, compressor: Compressor, seed: int) -> Iterator[dict]:
    """What `smec-st fit --bytes` picks at each budget."""
    for budget in BUDGETS:
        began = time.perf_counter()
        with_codes = compressor.quantize(
            data.corpus,
            data.queries,
            data.judged("train"),
            bytes=budget,
            dev_qrels=data.qrels["dev"],
            own_document=data.own_document,
            seed=seed,
        )
        head = with_codes.head(bytes=budget)
        documents, queries = head.decode(head.encode(data.corpus)), head.queries(data.queries)
        yield {
            "method": "smec_st", "seed": seed, "dim": head.dim, "precision": head.precision, "bytes": budget,
            **{split: score(data, split, documents, queries) for split in ("dev", "test")},
            "trained": head.info["trained"],
            "tried": head.info["tried"], "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip


def floats_of(data: Collection, method: str, dims: tuple[int, ...]) -> Floats:
    """A method of the field, fitted with its defaults."""
    table = VectorTable(data.corpus, data.queries, data.own_document)
    given = TrainingData(table, data.judged("train"), data.qrels["dev"], data.judged("train").query_rows)
    encoder = METHODS[method]().fit(given, dims)
    return lambda vectors, dim: encoder.documents(vectors, Size(dim, 4 * dim))


def measure(data: Collection, compressor: Compressor, part: str) -> list[dict]:
    width = data.corpus.shape[1]
    dims = tuple(dict.fromkeys((width, *compressor.dims)))
    served = (width,) if part == "original" else tuple(dim for dim in dims if dim < width)
    return list(rows_of(data, part, floats_of(data, part, served), served))


def best(rows: list[dict]) -> dict[str, dict[int, dict]]:
    """Per method and budget, what dev likes best among all that fits into the budget; of ours, the median of seeds."""
    chosen: dict[str, dict[int, dict]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        for budget in BUDGETS:
            own = [row for row in rows if row["method"] == method]
            if method == "smec_st":
                seeds = sorted((row for row in own if row["bytes"] == budget), key=lambda row: row["test"])
                if seeds:
                    median = {**seeds[(len(seeds) - 1) // 2], "seeds": [row["test"] for row in seeds]}
                    chosen.setdefault(method, {})[budget] = median
                continue
            fitting = [row for row in own if row["bytes"] <= budget]
            if fitting:
                chosen.setdefault(method, {})[budget] = max(fitting, key=lambda row: row["dev"])
    return chosen


def plot(result: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    size = (4.6 * len(result), 4.4)
    figure, axes = plt.subplots(1, len(result), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, entry) in zip(axes[0], result.items(), strict=True):
        for method, by_budget in best(entry["rows"]).items():
            style = {"linewidth": 2.5, "color": "black", "zorder": 3} if method == "smec_st" else {}
            axis.plot(list(by_budget), [row["test"] for row in by_budget.values()], marker="o", label=method, **style)
        axis.axhline(entry["original_float32"], linestyle="--", color="grey")
        axis.set(title=name, xscale="log", xlabel="bytes per document", ylabel="nDCG@10")
        axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axis.minorticks_off()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=150)


@fast_matmul()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fitted", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="ours, and methods of the field that make floats")
    parser.add_argument("--anew", action="store_true", help="measure these parts again, also where they are recorded")
    parser.add_argument("--seeds", default="0,1,2", help="of ours")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    arguments = {"budgets": BUDGETS, "seeds of ours": seeds, "seed of others": 0}
    record = open_record(options.json, options.threads, **arguments)
    for folder in options.folders:
        data = load_collection(folder, next(folder.glob("*.safetensors")))
        original = score(data, "test", unit_rows(data.corpus), unit_rows(data.queries))
        entry = record["collections"].setdefault(folder.name, {"original_float32": original, "rows": [], "parts": []})
        ours = {f"ours-{seed}": seed for seed in seeds}
        parts = [name for part in options.parts.split(",") for name in (ours if part == "ours" else [part])]
        if options.anew:
            entry["parts"] = [part for part in entry["parts"] if part not in parts]
        for part in parts:
            if part in entry["parts"]:
                continue
            began = time.perf_counter()
            compressor = fitted(data, options.fitted, ours.get(part, 0))
            if part in ours:
                old, rows = ("smec_st", ours[part]), our_rows(data, compressor, ours[part])
            else:
                old, rows = (part, None), measure(data, compressor, part)
            entry["rows"] = [row for row in entry["rows"] if (row["method"], row.get("seed")) != old] + list(rows)
            entry["parts"].append(part)
            options.json.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{folder.name}, {part}: {time.perf_counter() - began:.0f} s", flush=True)
        for method, by_budget in best(entry["rows"]).items():
            line = " ".join(f"{b}:{row['test']:.3f}({row['precision']},{row['dim']})" for b, row in by_budget.items())
            print(f"  {method:9} {line}", flush=True)
        entry["best"] = {m: {b: row for b, row in by.items()} for m, by in best(entry["rows"]).items()}
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    plot(record["collections"], options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()

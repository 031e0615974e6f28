"""Quality at equal bytes without labels: ours against every label-free way to store the same vectors.

    python benchmarks/bytes_no_labels.py DATA/scifact DATA/xquad_r_en --json benchmarks/results/bytes-no-labels.json

Ours is `Compressor.fit(corpus, queries, bytes=...)` without judgements, on the queries of the train split. The rivals
are the original vectors, their principal axes, and their first numbers, each stored as int8; as signs after a random
rotation; as signs of the difference to each number's median, in one stage (1 bit) and in two (2 bits); as product
codes without a rotation, with a learned one (OPQ), and with the balanced one that ours have (OPQ in closed form); and
as FAISS's RaBitQ of 1, 2 and 4 bits (its factors count). Queries are floats for all. LeanVec is compared where the
FAISS release has it; 1.15 has not.

Nothing chooses for the rivals: at each number of bytes the rival that is best *on test* is taken, among all that take
at most that many bytes. The interval of the difference to it is over test queries, for the first seed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import faiss
import numpy as np
from record import open_record

from smec_st import Collection, Compressor, load_collection
from smec_st.data import unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval, leave_out, score_rankings
from smec_st.evaluation.statistics import paired_interval
from smec_st.evaluation.untrained import pca
from smec_st.quantization.codecs import Binary, Codec
from smec_st.quantization.starts import (
    balanced_rotation,
    calibrate_int8,
    product_codes,
    random_rotation,
    sample_rows,
)
from smec_st.research.baselines.quantizers import product_codec
from smec_st.system.files import write_text
from smec_st.system.matmul import fast_matmul

BUDGETS = (96, 48, 32, 24, 16, 12)
FIT_ROWS = 8000
Sides = Callable[[], tuple[np.ndarray, np.ndarray]]


def floats_of(data: Collection) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, documents and queries: the original, and prefixes of it and of its principal axes."""
    corpus, queries = unit_rows(data.corpus), unit_rows(data.queries)
    width = corpus.shape[1]
    turned = pca(corpus)
    yield f"original {width}", corpus, queries
    for size in (width // 2, width // 4, width // 8):
        yield f"pca {size}", turned(corpus, size), turned(queries, size)
        yield f"truncate {size}", unit_rows(corpus[:, :size]), unit_rows(queries[:, :size])


def median_signs(documents: np.ndarray, bits: int) -> np.ndarray:
    """Documents as decoded from signs about the median of each number; a second bit halves each side the same way."""
    decoded, rest = np.zeros_like(documents), documents
    for _ in range(bits):
        middle = np.median(rest, axis=0)
        above = rest > middle
        sums = ((np.where(part, rest, 0).sum(axis=0), part.sum(axis=0)) for part in (above, ~above))
        step = np.where(above, *(total / np.maximum(count, 1) for total, count in sums))
        decoded, rest = decoded + step, rest - step
    return unit_rows(decoded.astype(np.float32))


def stored(documents: np.ndarray, queries: np.ndarray, rotations: bool) -> Iterator[tuple[str, int, Sides]]:
    """Every way to store these floats: name, bytes, and how to get decoded documents and queries; `rotations`: OPQ."""
    dim = documents.shape[1]
    rows = documents[sample_rows(len(documents), 0, FIT_ROWS)]

    def decoded(codec: Codec) -> tuple[np.ndarray, np.ndarray]:
        return codec.decode(codec.encode(documents)), queries

    def product(budget: int, rotate: bool) -> tuple[np.ndarray, np.ndarray]:
        spare = ((0, 0), (0, -dim % budget))  # zeros, where the bytes do not divide the width
        known, more, asked = np.pad(rows, spare), np.pad(documents, spare), np.pad(queries, spare)
        _, codec = product_codec(known, budget, rotate, 0)
        return unit_rows(codec.decoded(more)), codec.queries(asked)

    def balanced(budget: int) -> tuple[np.ndarray, np.ndarray]:
        spare = ((0, 0), (0, -dim % budget))
        turn = balanced_rotation(np.pad(rows, spare), budget)
        known, more, asked = (np.pad(part, spare) @ turn for part in (rows, documents, queries))
        codec = product_codes(known, budget, 0)
        return codec.decode(codec.encode(more)), asked

    yield "int8", dim, lambda: decoded(calibrate_int8(rows))
    yield "binary", -(-dim // 8), lambda: decoded(Binary(random_rotation(dim, 0)))
    for bits in (1, 2):
        yield f"median signs, {bits} bit", -(-dim * bits // 8), partial(_median_sides, documents, queries, bits)
    for budget in BUDGETS:
        if dim > budget:
            yield f"balanced pq in {budget} bytes", budget, partial(balanced, budget)
        for rotate in (False, True) if rotations and budget <= 48 else (False,):
            if dim > budget:
                yield f"{'opq' if rotate else 'pq'} in {budget} bytes", budget, partial(product, budget, rotate)


def _median_sides(documents: np.ndarray, queries: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    return median_signs(documents, bits), queries


def rabitq(data: Collection, documents: np.ndarray, queries: np.ndarray, bits: int) -> tuple[int, np.ndarray]:
    """Bytes of a code, and nDCG@10 of each test query by FAISS's own estimate."""
    index = faiss.IndexRaBitQ(documents.shape[1], faiss.METRIC_INNER_PRODUCT, bits)
    index.train(documents)
    index.add(documents)
    rows = data.qrels["test"].query_rows
    ranked = leave_out(index.search(queries[rows], 11)[1], data.own_document[rows])[:, :10]
    return index.code_size, score_rankings((rows, ranked), data.qrels["test"], ("ndcg@10",))["ndcg@10"]


def score(data: Collection, documents: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """nDCG@10 of each test query."""
    return evaluate_retrieval(documents, queries, data.qrels["test"], ("ndcg@10",), data.own_document)["ndcg@10"]


def rivals(data: Collection, skip: set[str]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name, bytes and nDCG@10 of each test query, of all rivals but those that are named."""
    for name, documents, queries in floats_of(data):
        rotations = not name.startswith("truncate")  # OPQ of a prefix takes long, and is below OPQ of principal axes
        for way, size, sides in stored(documents, queries, rotations):
            if f"{name}, {way}" not in skip:
                yield f"{name}, {way}", size, score(data, *sides())
        for bits in (1, 2, 4):
            if f"{name}, rabitq {bits} bit" not in skip:
                size, values = rabitq(data, documents, queries, bits)
                yield f"{name}, rabitq {bits} bit", size, values


@fast_matmul()
def ours(data: Collection, seed: int) -> dict[int, tuple[str, np.ndarray]]:
    """By bytes: how documents are stored, and nDCG@10 of each test query."""
    rows = data.judged("train").query_rows
    queries, given = data.queries[rows], {"own_document": data.own_document[rows], "seed": seed}
    compressor = Compressor.fit(data.corpus, queries, **given)
    found = {}
    for budget in BUDGETS:
        head = compressor.quantize(data.corpus, queries, bytes=budget, **given).head(bytes=budget)
        values = score(data, head.decode(head.encode(data.corpus)), head.queries(data.queries))
        found[budget] = f"{head.precision} {head.dim}", values
        print(f"  seed {seed}, {budget} bytes: {values.mean():.4f} {found[budget][0]}", flush=True)
    return found


def best_of(known: dict, budget: int) -> str:
    """Name of the rival with the best mean in at most this many bytes."""
    return max((row["ndcg@10"], name) for name, row in known.items() if row["bytes"] <= budget)[1]


def measure(data: Collection, seeds: list[int], before: dict) -> dict:
    """Means of all rivals, and by bytes ours, the best rival, and the interval of the difference.

    Rivals that are recorded are not measured again, but for the best ones, whose interval needs each query.
    """
    known = before.get("rivals", {})
    found: dict[str, tuple[int, np.ndarray]] = {}
    wanted: set[str] | None = None
    while wanted is None or wanted:  # measured again, another one may be the best
        wanted = wanted or {best_of(known, budget) for budget in BUDGETS if known}
        for name, size, values in rivals(data, set(known) - wanted):
            found[name] = size, values
            known[name] = {"bytes": size, "ndcg@10": round(float(values.mean()), 4)}
        wanted = {best_of(known, budget) for budget in BUDGETS} - set(found)
    runs = [ours(data, seed) for seed in seeds]
    budgets = {}
    for budget in BUDGETS:
        name = best_of(known, budget)
        size, values = found[name]
        scores = [float(run[budget][1].mean()) for run in runs]
        budgets[budget] = {
            "ours": round(float(np.median(scores)), 4),
            "seeds": [round(mean, 4) for mean in scores],
            "stored_as": [run[budget][0] for run in runs],
            "rival": round(float(values.mean()), 4),
            "rival_is": name,
            "rival_bytes": size,
            "difference": [round(value, 4) for value in paired_interval(runs[0][budget][1], values)],
        }
    return {
        "original_float32": round(float(score(data, unit_rows(data.corpus), unit_rows(data.queries)).mean()), 4),
        "budgets": budgets,
        "rivals": known,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--anew", action="store_true", help="measure the rivals again, too, where they are recorded")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    record = open_record(options.json, options.threads, budgets=BUDGETS)
    for folder in options.folders:
        began = time.perf_counter()
        data = load_collection(folder, next(folder.glob("*.safetensors")))
        before = {} if options.anew else record["collections"].get(folder.name, {})
        found = measure(data, seeds, before)
        record["collections"][folder.name] = {"seeds": seeds, **found, "seconds": round(time.perf_counter() - began)}
        write_text(options.json, json.dumps(record, indent=1) + "\n")
        print(folder.name, f"original {found['original_float32']}", flush=True)
        for budget, row in found["budgets"].items():
            print(f"  {budget:3} bytes: ours {row['ours']}, {row['rival_is']} {row['rival']}, {row['difference']}")


if __name__ == "__main__":
    main()

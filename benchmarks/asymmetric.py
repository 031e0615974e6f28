"""Documents small, queries whole: symmetric maps against asymmetric ones at equal bytes of documents.

    python benchmarks/asymmetric.py DATA/scifact DATA/medquad --fitted FOLDER --json benchmarks/results/asymmetric.json

Documents are stored as always, in `d` numbers or in codes; `a` is what a document is decoded to. Symmetric search
compares `a` with the first `d` numbers of the mapped query `f`. Asymmetric search compares `a` with `B f`, which reads
all numbers of `f`, as LeanVec (arXiv 2312.16335) has it. `B` comes from

* least squares: `B f . a` is nearest to `f . e` over the documents, where `e` is a document of the widest size. In
  closed form `B = E[a a^T]^-1 E[a e^T]`: each query is told how the numbers that are not stored follow from the rest;
* training: from the symmetric map, for 40 steps, with the loss that trains our codes (neighbourhoods of the widest
  size; with labels the contrastive term as well), while documents stay as they are.

How far to go from the symmetric query, 0, to the asymmetric one, 1, is chosen on the dev split with labels. Without
labels, training queries choose, by how many of the ten nearest documents of the widest size they find again. Test
queries give the figures, and 95 % intervals of the paired difference to symmetric search. Compressors are fitted with
the defaults and kept; `general` is the published one of three text collections together, with labels.

The last rows are of sparse codes, the form of CSR (arXiv 2503.01776): documents of the widest size as a sum of few of
many atoms. The number of an atom takes its bits and a value takes 8, fewer than CSR's 16. Atoms are our own axes, or
cluster centres, four times as many as the width but at most a third of the documents; matching pursuit chooses among
them, and queries stay floats. They stand beside product codes of the same floats and bytes, before any training of the
codes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import faiss
import numpy as np
import torch
from record import open_record

from smec_st import Collection, Compressor, VectorTable, load_collection
from smec_st.data import unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval, exact_search, neighbour_overlap
from smec_st.evaluation.statistics import paired_interval
from smec_st.functional import alignment_kl, contrastive_loss, unit
from smec_st.quantization.choice import add_best
from smec_st.quantization.codecs import Binary
from smec_st.quantization.starts import calibrate_int8, itq_rotation, product_codes, sample_rows
from smec_st.quantization.training import LastStage
from smec_st.system.files import write_text
from smec_st.system.matmul import fast_matmul

GENERAL = Path(__file__).parent.parent / "model_cards" / "all-MiniLM-L6-v2-smec-general"
SIZES = (96, 48, 24)
Way = tuple[str, int, int, np.ndarray, np.ndarray]
STRENGTHS = (0.0, 0.25, 0.5, 1.0)
FIT_ROWS, RIDGE = 8000, 1e-3
SPARSE_BYTES, EXPANSION = (96, 48), 4


def fitted(data: Collection, folder: Path, kind: str, seed: int) -> Compressor:
    """The published compressor, or the one that is kept in a folder, or a new one with the defaults."""
    if kind == "general":
        return Compressor.load(GENERAL)
    if not folder.exists():
        given = {"own_document": data.own_document, "seed": seed}
        if kind == "labels":
            given |= {"qrels": data.judged("train"), "dev_qrels": data.qrels["dev"]}
        else:
            given |= {"unlabelled_queries": data.judged("train").query_rows}
        Compressor.fit(data.corpus, data.queries, **given).save(folder)
    return Compressor.load(folder)


def stored(rows: np.ndarray, widest: int) -> Iterator[Way]:
    """Ways to store documents: name, size, bytes, decoded documents, and the symmetric ``B``, ``(d, w)``."""
    sample = sample_rows(len(rows), 0, FIT_ROWS)
    for size in SIZES:
        floats = unit_rows(rows[:, :size])
        yield "float32", size, 4 * size, floats, np.eye(size, widest)
        codec = calibrate_int8(floats[sample])
        yield "int8", size, size, codec.decode(codec.encode(floats)), np.eye(size, widest)
    rotation = itq_rotation(rows[sample], 0)
    signs = Binary(None, widest)
    yield "binary", widest, widest // 8, signs.decode(signs.encode(rows @ rotation)), rotation.T
    half = unit_rows(rows[:, : widest // 2])
    for budget in (48, 24):
        if (widest // 2) % budget == 0:
            product = product_codes(half[sample], budget, 0)
            yield "pq", widest // 2, budget, product.decode(product.encode(half)), np.eye(widest // 2, widest)


def heads(data: Collection, compressor: Compressor, has_labels: bool) -> Iterator[Way]:
    """The same of what ``fit --bytes`` stores: codes that were trained together with the map of both sides."""
    table = VectorTable(data.corpus, data.queries, data.own_document)
    judged = data.judged("train")
    train, dev = (judged, data.qrels["dev"]) if has_labels else (None, None)
    (widest,) = compressor.map_for().layers
    for budget in (48, 24):
        head = add_best(compressor, table, train, dev, budget, 0, judged.query_rows).head(bytes=budget)
        (own,) = head.folded.layers
        basis = own.weight @ np.linalg.pinv(widest.weight)
        yield f"{head.precision}, trained", head.dim, budget, head.decode(head.encode(data.corpus)), basis


def least_squares(documents: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """``B``, ``(d, w)``, from decoded documents ``(N, d)`` and those of the widest size ``(N, w)``."""
    moment = documents.T @ documents / len(documents)
    moment += RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    return np.linalg.solve(moment, documents.T @ wide / len(documents)).astype(np.float32)


def trained(
    data: Collection, start: np.ndarray, documents: np.ndarray, wide: np.ndarray, asked: np.ndarray, has_labels: bool
) -> np.ndarray:
    """``B``, ``(d, w)``, trained on the training queries from its start, with the settings of the last stage."""
    config, judged = LastStage(steps=40, candidates=1024), data.judged("train")
    rng = np.random.default_rng([config.seed, len(start)])
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    scale = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([weight, scale], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    relevant: dict[int, dict[int, float]] = {}
    for query, document, grade in zip(judged.queries, judged.documents, judged.grades, strict=True):
        if grade > 0:
            relevant.setdefault(int(query), {})[int(document)] = float(grade)
    asking = np.array(sorted(relevant))
    for _ in range(config.steps):
        queries = asking[rng.permutation(len(asking))[: config.batch_size]]
        own = data.own_document[queries] if data.own_document is not None else np.full(len(queries), -1)
        pool = rng.permutation(len(documents))[: config.candidates]
        pool = np.union1d(pool, [document for query in queries for document in list(relevant[query])[:1]])
        f, a, e = (torch.from_numpy(part) for part in (asked[queries], documents[pool], wide[pool]))
        other = torch.from_numpy(pool != own[:, None])
        student = unit(f @ weight.T) @ a.T
        loss = (
            config.alignment_weight
            * config.alignment_tau
            * alignment_kl(student, f @ e.T, config.alignment_tau, other)
        )
        if has_labels:
            grades = np.zeros((len(queries), len(pool)), dtype=np.float32)
            for row, query in enumerate(queries):
                found = np.array(list(relevant[query]))
                place = np.minimum(np.searchsorted(pool, found), len(pool) - 1)
                hit = (pool[place] == found) & (found != own[row])
                grades[row, place[hit]] = np.array(list(relevant[query].values()))[hit]
            allowed = student.masked_fill(~other, -1e9)
            loss = loss + contrastive_loss(allowed, torch.from_numpy(grades), config.tau * scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weight.detach().numpy()


def score(data: Collection, split: str, documents: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """nDCG@10 of each query of a split."""
    found = evaluate_retrieval(documents, queries, data.qrels[split], ("ndcg@10",), data.own_document)
    return found["ndcg@10"]


def chooser(data: Collection, wide: np.ndarray, asked: np.ndarray, has_labels: bool) -> Callable[..., float]:
    """What strengths are chosen by: nDCG@10 of dev, or kept neighbours of training queries."""
    if has_labels:
        return lambda documents, queries: float(score(data, "dev", documents, queries).mean())
    rows = data.judged("train").query_rows[:500]
    near, _ = exact_search(wide, asked[rows], 10)

    def kept(documents: np.ndarray, queries: np.ndarray) -> float:
        found, _ = exact_search(documents, np.ascontiguousarray(queries[rows]), 10)
        return float(neighbour_overlap(found, near).mean())

    return kept


@fast_matmul()
def measure(
    data: Collection, compressor: Compressor, has_labels: bool, ways: Iterator[Way] | None = None
) -> list[dict]:
    """Every way to store documents, searched with symmetric and asymmetric queries."""
    widest = compressor.nested_dims[0]
    wide, asked = (compressor.transform(part, dim=widest) for part in (data.corpus, data.queries))
    choose = chooser(data, wide, asked, has_labels)
    found = []
    for precision, size, bytes, documents, basis in ways or stored(wide, widest):
        basis = basis.astype(np.float32)
        symmetric = unit_rows(asked @ basis.T)
        plain = score(data, "test", documents, symmetric)
        row = {"precision": precision, "dim": size, "bytes": bytes, "symmetric": float(plain.mean())}
        sample = sample_rows(len(documents), 0, FIT_ROWS)
        maps = {
            "least_squares": least_squares(documents[sample], wide[sample]),
            "trained": trained(data, basis, documents, wide, asked, has_labels),
        }
        for name, weight in maps.items():
            whole = unit_rows(asked @ weight.T)
            between = {share: unit_rows((1 - share) * symmetric + share * whole) for share in STRENGTHS}
            told = {share: choose(documents, queries) for share, queries in between.items()}
            share = max(STRENGTHS, key=lambda share: (told[share], -share))
            values = score(data, "test", documents, between[share])
            interval = paired_interval(values, plain) if share else None
            row[name] = {
                "strength": share, "ndcg@10": float(values.mean()),
                "difference": interval.difference if interval else 0.0,
                "interval": [interval.low, interval.high] if interval else [0.0, 0.0],
                "whole": float(score(data, "test", documents, whole).mean()),
            }  # fmt: skip
        found.append(row)
        print(f"  {precision} {size} ({bytes} bytes): {row['symmetric']:.4f}", *(
            f"{name} {row[name]['ndcg@10']:.4f} at {row[name]['strength']} {row[name]['interval']}" for name in maps
        ), flush=True)  # fmt: skip
    return found


def pursued(rows: np.ndarray, atoms: np.ndarray, kept: int) -> np.ndarray:
    """Rows as sums of ``kept`` atoms by matching pursuit, values rounded to 8 bits. ``(n, w), (m, w) -> (n, w)``."""
    likeness, code = rows @ atoms.T, np.zeros((len(rows), len(atoms)), dtype=np.float32)
    between, every = atoms @ atoms.T, np.arange(len(rows))
    for _ in range(kept):
        best = np.abs(likeness).argmax(axis=1)
        amount = likeness[every, best]
        code[every, best] += amount
        likeness -= amount[:, None] * between[best]
    step = np.abs(code).max(axis=1, keepdims=True) / 127
    return unit_rows(np.rint(code / step) * step @ atoms)


@fast_matmul()
def sparse(data: Collection, compressor: Compressor) -> list[dict]:
    """Sparse codes of the widest floats beside product codes of the same bytes."""
    widest = compressor.nested_dims[0]
    wide, asked = (compressor.transform(part, dim=widest) for part in (data.corpus, data.queries))
    sample = wide[sample_rows(len(wide), 0, FIT_ROWS)]
    atoms = min(EXPANSION * widest, len(sample) // 3)  # of a small corpus fewer, or each document would be its own
    clusters = faiss.Kmeans(widest, atoms, niter=10, seed=0, spherical=True, min_points_per_centroid=1)
    clusters.train(sample)
    dictionaries = {"axes": np.eye(widest, dtype=np.float32), "clusters": unit_rows(clusters.centroids)}
    found = []
    for budget in SPARSE_BYTES:
        spare = ((0, 0), (0, -widest % budget))  # zeros, where the bytes do not divide the width
        product = product_codes(np.pad(sample, spare), budget, 0)
        decoded = product.decode(product.encode(np.pad(wide, spare)))[:, :widest]
        ours = score(data, "test", decoded, asked)
        row = {"bytes": budget, "pq": float(ours.mean())}
        for name, dictionary in dictionaries.items():
            kept = 8 * budget // (math.ceil(math.log2(len(dictionary))) + 8)
            values = score(data, "test", pursued(wide, dictionary, kept), asked)
            interval = paired_interval(values, ours)
            row[name] = {
                "kept": kept, "ndcg@10": float(values.mean()), "difference": interval.difference,
                "interval": [interval.low, interval.high],
            }  # fmt: skip
        found.append(row)
        print("  sparse", row, flush=True)
    return found


PARTS = {"asymmetric": lambda *given: None, "heads": heads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fitted", type=Path, required=True)
    parser.add_argument("--kinds", default="labels,none", help="labels, none, general")
    parser.add_argument("--parts", default="asymmetric,heads,sparse")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    record = open_record(options.json, options.threads, sizes=SIZES, strengths=STRENGTHS, ridge=RIDGE)
    for folder in options.folders:
        data = load_collection(folder, next(folder.glob("*.safetensors")))
        for kind in options.kinds.split(","):
            for seed in options.seeds.split(","):
                part = record["collections"].setdefault(folder.name, {}).setdefault(kind, {}).setdefault(seed, {})
                missing = [name for name in options.parts.split(",") if name not in part]
                if not missing:
                    continue
                print(f"{folder.name}, {kind}, seed {seed}", flush=True)
                saved = options.fitted / f"{folder.name}-{kind}-{seed}"
                compressor = fitted(data, saved, kind, int(seed))
                for name in missing:
                    given = data, compressor, kind != "none"
                    part[name] = sparse(*given[:2]) if name == "sparse" else measure(*given, PARTS[name](*given))
                    write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a map of directions keeps of a ranking by inner product, where documents are not equally long.

    python benchmarks/dot.py --data ../shared/data/scifact --json benchmarks/results/dot.json

Two collections: made vectors, whose relevant documents are the ten of the largest inner product, and a real one whose
documents are made longer or shorter at random, those with a judgement by ``--gain`` on average. Each is compressed

- without lengths: as a fit does that compares by cosine;
- with the length as one more number: sqrt(M^2 - |x|^2) behind each document and 0 behind each query, so that the
  cosine at full width ranks as the inner product does (Bachrach et al., 2014), M being the longest document's length;
- with the length beside: directions are compressed, and each document's cosine is multiplied by its length.

Figures are nDCG@10 against the judgements, and the share of the ten best documents by inner product that stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from record import write_record

from smec_st import Compressor, load_collection
from smec_st.data.qrels import Qrels
from smec_st.evaluation.metrics import exact_search, score_rankings

K = 10


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(rng: np.random.Generator, spread: float) -> tuple[np.ndarray, np.ndarray, Qrels]:
    """Vectors around 200 centres whose loudness falls by direction, and judgements by inner product."""
    width, scale = 256, np.arange(1, 257) ** -0.5
    centres = rng.normal(size=(200, width)) * scale
    corpus = unit(centres[rng.integers(0, 200, 10_000)] + rng.normal(size=(10_000, width)) * scale)
    queries = unit(centres[rng.integers(0, 200, 300)] + rng.normal(size=(300, width)) * scale).astype(np.float32)
    corpus = (corpus * rng.lognormal(0, spread, (len(corpus), 1))).astype(np.float32)
    best, _ = exact_search(corpus, queries, K)
    rows = np.repeat(np.arange(len(queries)), K)
    return corpus, queries, Qrels(rows, best.reshape(-1), np.ones(len(rows)))


def lengthened(data: Path, rng: np.random.Generator, spread: float, gain: float) -> tuple[Any, Any, Qrels]:
    """A collection's unit vectors with made lengths, and its test judgements."""
    collection = load_collection(data, next(data.glob("*.safetensors")))
    qrels = collection.judged("test")
    factor = rng.lognormal(0, spread, (len(collection.corpus), 1))
    for split in collection.qrels.values():
        factor[np.unique(split.documents[split.grades > 0])] *= gain ** (1 / len(collection.qrels))
    corpus = (unit(np.asarray(collection.corpus, dtype=np.float64)) * factor).astype(np.float32)
    rows = qrels.query_rows
    position = {row: place for place, row in enumerate(rows.tolist())}
    moved = Qrels(np.array([position[row] for row in qrels.queries.tolist()]), qrels.documents, qrels.grades)
    return corpus, unit(np.asarray(collection.queries[rows], dtype=np.float32)), moved


def measure(corpus: np.ndarray, queries: np.ndarray, qrels: Qrels, method: str) -> list[dict[str, Any]]:
    """One row per way to treat lengths and size."""
    width, rows = corpus.shape[1], np.arange(len(queries))
    best, _ = exact_search(corpus, queries, K)
    length = np.linalg.norm(corpus, axis=1, keepdims=True)
    more = np.sqrt(np.maximum(length.max() ** 2 - length**2, 0))
    longer = np.hstack([corpus, more]).astype(np.float32), np.hstack([queries, 0 * queries[:, :1]])
    found = []

    def add(way: str, dim: int, documents: np.ndarray, asked: np.ndarray) -> None:
        ranked, _ = exact_search(documents, asked, K)
        kept = (ranked[:, :, None] == best[:, None]).any(2).mean()
        ndcg = score_rankings((rows, ranked), qrels, ["ndcg@10"])["ndcg@10"].mean()
        found.append({"way": way, "dim": dim, "ndcg@10": float(ndcg), "kept": float(kept)})

    add("original by inner product", width, corpus, queries)
    add("original by cosine", width, unit(corpus), queries)
    dims = (width // 2, width // 4, width // 8)
    plain = Compressor.fit(corpus, dims=dims, method=method)
    wide = Compressor.fit(longer[0], dims=dims, method=method)
    for dim in dims:
        small = plain.transform(corpus, dim), plain.transform(queries, dim)
        add("without lengths", dim, *small)
        add("length as one more number", dim, wide.transform(longer[0], dim), wide.transform(longer[1], dim))
        add("length beside", dim, small[0] * length, small[1])
    return found


def main() -> None:
    """Measure both collections at several spreads of lengths and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.05, 0.2], help="Of the lengths' logarithm.")
    parser.add_argument("--gain", type=float, default=1.2)
    parser.add_argument("--method", default="pca")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for spread in options.spreads:
        rng = np.random.default_rng(0)
        for name, source in (
            ("made", made(rng, spread)),
            (options.data.name, lengthened(options.data, rng, spread, options.gain)),
        ):
            for row in measure(*source, options.method):
                rows.append({"collection": name, "spread": spread, **row})
                print(*rows[-1].values(), flush=True)
    write_record(options.json, options, rows)


if __name__ == "__main__":
    main()

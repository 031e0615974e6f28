"""A synthetic collection on which a trained map can win."""

import json

import numpy as np
from safetensors.numpy import save_file

LATENT = 6  # dimensions that link a query to its documents
NUISANCE = 5  # louder dimensions that link nothing
SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}


def make_vectors(rng, documents, queries, width):
    """Vectors of both sides, the document each query was made from, and the nearest other document by latent."""
    mix = np.linalg.qr(rng.normal(size=(width, width)))[0]
    scale = np.r_[np.full(LATENT, 1.0), np.full(NUISANCE, 1.2), np.full(width - LATENT - NUISANCE, 0.3)]
    corpus = rng.normal(size=(documents, width))
    source = rng.permutation(documents)[:queries] if queries <= documents else rng.integers(0, documents, queries)
    asked = rng.normal(size=(queries, width))
    asked[:, :LATENT] = corpus[source, :LATENT] + 0.3 * asked[:, :LATENT]
    distance = np.linalg.norm(corpus[source, None, :LATENT] - corpus[None, :, :LATENT], axis=2)
    distance[np.arange(queries), source] = np.inf
    vectors = {"corpus": corpus * scale @ mix.T, "queries": asked * scale @ mix.T}
    return {name: table.astype(np.float32) for name, table in vectors.items()}, source, distance.argmin(axis=1)


def write_collection(folder, documents=300, queries=120, width=32, seed=0):
    """Write a BEIR folder with ``vectors.safetensors``; the source document has grade 2, the nearest other grade 1."""
    (folder / "qrels").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    vectors, source, nearest = make_vectors(rng, documents, queries, width)
    save_file(vectors, folder / "vectors.safetensors")
    for side, letter, count in (("corpus", "d", documents), ("queries", "q", queries)):
        records = [{"_id": f"{letter}{i}", "title": "", "text": f"{side} {i}"} for i in range(count)]
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    ends = np.round(np.cumsum(list(SHARES.values())) * queries).astype(int)
    for split, part in zip(SHARES, np.split(rng.permutation(queries), ends[:-1]), strict=True):
        lines = [f"q{q}\td{source[q]}\t2\nq{q}\td{nearest[q]}\t1\n" for q in part.tolist()]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder

"""Vectors from an API: shrink the answers you have already paid for; no model is needed.

The input is JSON lines as OpenAI's batch API gives them back: each holds ``custom_id`` and, below
``response.body.data``, the embedding. Lines with ``id`` and ``embedding`` are read as well.

    python examples/api_vectors.py corpus.jsonl --queries queries.jsonl --dims 512,256 --out small.jsonl
"""

import argparse
import json
from pathlib import Path

import numpy as np

from smec_st import Compressor


def read_answers(path):
    """Ids and vectors ``(n, D)``; an answer that is an error is named, not skipped."""
    ids, vectors = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        answer = json.loads(line)
        body = (answer.get("response") or {}).get("body") or {}
        vector = answer.get("embedding") or next((item["embedding"] for item in body.get("data", [])), None)
        if vector is None:
            raise SystemExit(f"{path}, line {number}: no embedding; {answer.get('error') or body.get('error')}")
        ids.append(answer.get("custom_id") or answer.get("id") or str(number))
        vectors.append(vector)
    return ids, np.array(vectors, dtype=np.float32)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--queries", type=Path, help="questions people ask: the map is then fitted on them as well")
    parser.add_argument("--dims", default="512,256,128")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--name", default="text-embedding-3-large", help="the API's model, kept with the compressor")
    parser.add_argument("--out", type=Path, default=Path("small.jsonl"))
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    ids, corpus = read_answers(options.corpus)
    queries = read_answers(options.queries)[1] if options.queries else None
    compressor = Compressor.fit(corpus, queries, dims=dims, model=options.name, steps=options.steps)
    small = compressor.transform(corpus, dims[-1])
    lines = (json.dumps({"id": key, "embedding": row.tolist()}) + "\n" for key, row in zip(ids, small, strict=True))
    options.out.write_text("".join(lines), encoding="utf-8")
    compressor.save(options.out.with_suffix(""))
    print(f"{len(ids)} vectors: {corpus.shape[1]} -> {small.shape[1]} numbers each")
    print(f"embed new texts with {options.name}, then Compressor.load({str(options.out.with_suffix(''))!r}).transform")


if __name__ == "__main__":
    main()

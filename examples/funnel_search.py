"""Funnel search with Milvus: the smallest size over everything, a shrinking shortlist at larger ones, originals last.

    python examples/funnel_search.py --data scifact --vectors scifact.safetensors
    python examples/funnel_search.py --data scifact --vectors scifact.safetensors --uri http://localhost:19530

The name chooses the engine: a folder is FAISS, a file `NAME.db` Milvus Lite, `http://...` a Milvus server.
Milvus Lite is for trying things out: time a server, or FAISS, before you judge the speed.
"""

import argparse

import numpy as np

from smec_st import Compressor, FunnelIndex, load_collection


def unit(rows):
    """Rows of length 1: their inner products are cosines."""
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder in BEIR layout, or id on the Hugging Face Hub")
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--dims", default="192,96,48")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--uri", default="funnel")
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    data = load_collection(options.data, options.vectors)
    compressor = Compressor.fit(
        data.corpus,
        data.queries,
        dims=dims,  # without judgements: the funnel is to find what exact search at full width finds
        steps=options.steps,
    )
    asked = data.queries[data.judged("test").query_rows]
    with FunnelIndex.build(options.uri, compressor, data.corpus, queries=data.queries) as index:
        found = np.asarray(index.search(asked, k=10).ids)
        print(index.schedule)
        print(index.bytes())
    exact = np.argsort(-(unit(asked) @ unit(data.corpus).T), axis=1)[:, :10]
    shared = [len(set(map(int, a)) & set(b.tolist())) / 10 for a, b in zip(found, exact, strict=True)]
    print(f"recall@10 of exact full-width search: {np.mean(shared):.3f}")


if __name__ == "__main__":
    main()

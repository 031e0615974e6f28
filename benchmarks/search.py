"""Search through the funnel against exact and HNSW search at full width, on one thread, measured in turns in one run.

    python benchmarks/search.py engines --json benchmarks/results/search/engines.json
    python benchmarks/search.py engines --rows 1000000 --heads hnsw-int8,codes:12,codes:24 --json ...
    python benchmarks/search.py milvus  --json benchmarks/results/search/milvus.json
    python benchmarks/search.py quality --data ../shared/data/scifact ... --json benchmarks/results/search/quality.json
    python benchmarks/search.py duplicates --rows 20000 --json benchmarks/results/search/duplicates.json
    python benchmarks/search.py plot    --json benchmarks/results/search/engines.json

``engines`` and ``milvus`` use made, clustered vectors (said in the result); ``quality`` uses a collection's real ones.
``duplicates`` compares the same documents with and without 2 % of equal rows, which lie near the queries.
Every method is set so that the lower end of a 95 % interval of recall@10 on one half of the queries is at least 0.99;
what is reported is measured on the other half. Ratios count, not milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np

from smec_st import Compressor, FunnelIndex, load_collection
from smec_st.evaluation.metrics import exact_search, leave_out, score_rankings
from smec_st.quantization.engines import faiss_codes
from smec_st.search.heads import codes_of
from smec_st.search.schedule import lower_bound

TARGET, K = 0.99, 10
Search = Callable[[np.ndarray], np.ndarray]


def clustered(count: int, width: int, clusters: int, seed: int, chunk: int = 20_000) -> np.ndarray:
    """Unit vectors around cluster centres; loudness of the directions falls as in real embeddings (about 1/sqrt)."""
    fixed = np.random.default_rng(1234)
    scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    centres = fixed.normal(size=(clusters, width)).astype(np.float32) * scale
    rotation = np.linalg.qr(fixed.normal(size=(width, width)))[0].astype(np.float32)
    rng = np.random.default_rng(seed)
    out = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, chunk):
        part = out[start : start + chunk]
        noise = rng.standard_normal(part.shape, dtype=np.float32) * scale
        part[:] = (centres[rng.integers(0, clusters, len(part))] + noise) @ rotation
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def recall(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per query."""
    return (truth[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)


def timed(search: Search, queries: np.ndarray, batch: int) -> float:
    """Seconds per query."""
    start = time.perf_counter()
    for first in range(0, len(queries), batch):
        search(queries[first : first + batch])
    return (time.perf_counter() - start) / len(queries)


def in_turns(methods: dict[str, Search], queries: np.ndarray, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per query of each method, once per round, all methods in each round."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for search in methods.values():
        search(queries[:batch])
    for _ in range(rounds):
        for name, search in methods.items():
            times[name].append(timed(search, queries[: batch * 8] if name.endswith("flat") else queries, batch))
    return times


def ratios(times: dict[str, list[float]], reference: str) -> dict[str, float]:
    """How many times the reference's queries per second: the median over rounds."""
    return {
        name: statistics.median(r / own for own, r in zip(mine, times[reference], strict=True))
        for name, mine in times.items()
    }


def faiss_search(index: Any, ef: int = 0) -> Search:
    """Full-width search in FAISS."""
    parameters = faiss.SearchParametersHNSW(efSearch=ef) if ef else None
    return lambda queries: index.search(queries, K, params=parameters)[1]


def funnel_search(index: FunnelIndex) -> Search:
    """The funnel with its own schedule."""
    return lambda queries: index.search(queries, K).ids


def engines(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """FAISS flat and HNSW at full width against the funnel."""
    corpus = clustered(options.rows, options.width, options.clusters, seed=1)
    queries = clustered(2 * options.queries, options.width, options.clusters, seed=2)
    seen, unseen = queries[: options.queries], queries[options.queries :]
    flat = faiss.IndexFlatIP(options.width)
    flat.add(corpus)
    truth = flat.search(queries, K)[1]
    seen_truth, unseen_truth = truth[: options.queries], truth[options.queries :]
    result: dict[str, Any] = {"methods": {}, "curve": []}
    start = time.perf_counter()
    hnsw = faiss.IndexHNSWFlat(options.width, 32, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efConstruction = options.construction
    hnsw.add(corpus)
    result["hnsw_build_seconds"] = time.perf_counter() - start
    ef = 16
    while lower_bound(recall(faiss_search(hnsw, ef)(seen), seen_truth)) < TARGET and ef < options.rows:
        ef = int(ef * 1.25)
    links = hnsw.hnsw.neighbors.size() * 4 + hnsw.hnsw.offsets.size() * 8 + hnsw.hnsw.levels.size() * 4
    full = 4 * options.width * options.rows
    methods: dict[str, Search] = {"flat": faiss_search(flat), "hnsw": faiss_search(hnsw, ef)}
    ram = {"flat": full, "hnsw": full + links}
    disk = {"flat": 0, "hnsw": 0}
    sample = corpus[:: max(1, options.rows // 20_000)]
    compressor = Compressor.fit(sample, method="pca", dims=options.dims)
    for head in options.heads:
        if codes_of(head):
            compressor = compressor.quantize(sample, bytes=codes_of(head))
    for head in options.heads:
        start = time.perf_counter()
        index = FunnelIndex.build(Path(folder) / head, compressor, corpus, queries=seen, recall=TARGET, k=K, head=head)
        name = f"funnel, {head}"
        report = index.bytes()
        methods[name], ram[name], disk[name] = funnel_search(index), report["ram"]["total"], report["disk"]["total"]
        result[f"{head}_build_seconds"] = time.perf_counter() - start
        result[f"{head}_schedule"] = index.schedule.to_dict()
        result[f"{head}_bytes"] = report
    result["ef"] = ef
    for batch in (1, 64):
        times = in_turns(methods, unseen, batch, options.rounds)
        flat_ratio, hnsw_ratio = ratios(times, "flat"), ratios(times, "hnsw")
        for name in methods:
            result["methods"].setdefault(name, {})[f"batch_{batch}"] = {
                "seconds_per_query": times[name],
                "qps_against_flat": flat_ratio[name],
                "qps_against_hnsw": hnsw_ratio[name],
            }
    for name, search in methods.items():
        share = recall(search(unseen), unseen_truth)
        row = {"recall": share.mean(), "recall_low": lower_bound(share), "ram": ram[name], "disk": disk[name]}
        result["methods"][name].update(row, ram_against_hnsw=ram[name] / ram["hnsw"])
    for ef in (16, 32, 64, 128, 256, 512):
        search = faiss_search(hnsw, ef)
        result["curve"].append(point("hnsw, full width", ef, search, unseen, unseen_truth, ram["hnsw"]))
    for head in options.heads:
        with FunnelIndex.open(Path(folder) / head) as index:
            for share in (0.25, 0.5, 1.0, 2.0, 4.0):
                search = scaled(index, share)
                name = f"funnel, {head}"
                result["curve"].append(point(name, share, search, unseen, unseen_truth, ram[name]))
    return result


def scaled(index: FunnelIndex, share: float) -> Search:
    """The funnel with shorter or longer lists than its schedule's."""
    from dataclasses import replace

    schedule = index.schedule
    steps = [replace(step, keep=max(K, int(step.keep * share))) for step in schedule.steps[:-1]]
    effort = None if schedule.effort is None else max(K, int(schedule.effort * share))
    other = replace(schedule, steps=(*steps, schedule.steps[-1]), effort=effort)
    return lambda queries: index.search(queries, K, schedule=other).ids


def point(
    name: str, setting: float, search: Search, queries: np.ndarray, truth: np.ndarray, ram: int
) -> dict[str, Any]:
    """One point of the curve of recall against latency."""
    seconds = timed(search, queries, 1)
    return {
        "method": name, "setting": setting, "seconds_per_query": seconds, "ram": ram,
        "recall": float(recall(search(queries), truth).mean()),
    }  # fmt: skip


def milvus(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Full-width search in Milvus Lite against the funnel in Milvus Lite.

    Full width is searched exactly, by inner product of unit vectors (``flat``: the field of the originals in the index
    itself), and by Milvus's default metric, cosine, in a collection of its own (``cosine flat``).
    """
    from pymilvus import DataType, MilvusClient

    corpus = clustered(options.rows, options.width, options.clusters, seed=1)
    queries = clustered(2 * options.queries, options.width, options.clusters, seed=2)
    seen, unseen = queries[: options.queries], queries[options.queries :]
    truth = exact_search(corpus, unseen, K)[0]
    compressor = Compressor.fit(corpus[:: max(1, options.rows // 20_000)], method="pca", dims=options.dims)
    result: dict[str, Any] = {"methods": {}}
    methods: dict[str, Search] = {}

    def full_width(client: Any, name: str) -> Search:
        def search(asked: np.ndarray) -> np.ndarray:
            hits = client.search(name, data=list(asked), anns_field="full", limit=K, output_fields=["id"])
            return np.array([[hit["id"] for hit in found] for found in hits])

        return search

    for head in options.heads:
        uri = f"{folder}/{head}.db"
        start = time.perf_counter()
        index = FunnelIndex.build(uri, compressor, corpus, queries=seen, recall=TARGET, k=K, head=head)
        result[f"{head}_build_seconds"] = time.perf_counter() - start
        result[f"{head}_schedule"] = index.schedule.to_dict()
        result[f"{head}_bytes"] = index.bytes()
        methods[f"funnel, {head}"] = funnel_search(index)
        methods.setdefault("flat", full_width(MilvusClient(uri), f"smec_{compressor.fingerprint}"))
    client = MilvusClient(f"{folder}/cosine.db")
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("full", DataType.FLOAT_VECTOR, dim=options.width)
    indexes = client.prepare_index_params()
    indexes.add_index("full", index_type="FLAT", metric_type="COSINE")
    client.create_collection("full", schema=schema, index_params=indexes)
    for start in range(0, options.rows, 2000):
        client.insert("full", [{"id": start + i, "full": row} for i, row in enumerate(corpus[start : start + 2000])])
    client.flush("full")
    client.load_collection("full")
    methods["cosine flat"] = full_width(client, "full")
    for batch in (1, 16):
        times = in_turns(methods, unseen[: 8 * batch], batch, options.rounds)
        against, cosine = ratios(times, "flat"), ratios(times, "cosine flat")
        for name in methods:
            row = {
                "seconds_per_query": times[name],
                "qps_against_flat": against[name],
                "qps_against_cosine_flat": cosine[name],
            }
            result["methods"].setdefault(name, {})[f"batch_{batch}"] = row
    for name, search in methods.items():
        share = recall(search(unseen), truth)
        result["methods"][name].update(recall=float(share.mean()), recall_low=lower_bound(share))
    return result


def duplicates(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """How much longer a search takes, and what it recalls, when 2 % of the documents are one and the same vector.

    The schedule is chosen for each collection on the same queries, a tenth of which lie near the repeated vector.
    """
    corpus = clustered(options.rows, options.width, options.clusters, seed=1)
    queries = clustered(2 * options.queries, options.width, options.clusters, seed=2)
    queries[::10] = unit(corpus[0] + 0.3 * queries[::10])
    seen, unseen = queries[: options.queries], queries[options.queries :]
    repeated = corpus.copy()
    repeated[np.random.default_rng(3).choice(options.rows, options.rows // 50, replace=False)] = corpus[0]
    compressor = Compressor.fit(corpus[:: max(1, options.rows // 20_000)], method="pca", dims=options.dims)
    result: dict[str, Any] = {"methods": {}}
    for head in options.heads:
        methods: dict[str, Search] = {}
        for name, documents in (("without", corpus), ("with", repeated)):
            index = FunnelIndex.build(
                Path(folder) / f"{head}-{name}", compressor, documents, queries=seen, recall=TARGET, k=K, head=head
            )
            methods[name] = funnel_search(index)
            best = -np.sort(-(unseen @ documents.T), axis=1)[:, :K]
            scores = np.einsum("qd,qkd->qk", unseen, documents[methods[name](unseen)])
            share = (scores >= best[:, -1:] - 1e-5).mean(axis=1)  # equal scores count as found
            result["methods"][f"{head}, {name}"] = {
                "schedule": str(index.schedule), "recall by score": share.mean(), "recall_low": lower_bound(share),
            }  # fmt: skip
        times = in_turns(methods, unseen, 1, options.rounds)
        for name in methods:
            result["methods"][f"{head}, {name}"]["seconds_per_query"] = times[name]
        result[f"{head}, seconds with against without"] = 1 / ratios(times, "without")["with"]
    return result


def quality(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """nDCG@10 of the funnel and of exact full-width search on collections with judgements."""
    result = {}
    for data in options.data:
        (vectors,) = data.glob("*.safetensors")
        collection = load_collection(data, vectors)
        qrels = collection.judged("test")
        width = collection.corpus.shape[1]
        compressor = Compressor.fit(collection.corpus, method="pca", dims=(width // 2, width // 4, width // 8))
        for head in options.heads:
            if codes_of(head):
                compressor = compressor.quantize(collection.corpus, bytes=codes_of(head))
        train = np.setdiff1d(np.arange(len(collection.queries)), qrels.query_rows)
        rows = qrels.query_rows
        own = collection.own_document[rows]  # a query that is a document is not its own answer
        more = K + int((own >= 0).any())
        exact, _ = exact_search(unit(collection.corpus), unit(collection.queries[rows]), more)
        exact = leave_out(exact, own)[:, :K]
        result[data.name] = {
            "documents": len(collection.corpus), "ndcg@10 exact": ndcg(rows, exact, qrels), "funnels": {}, "codes": {}
        }  # fmt: skip
        for head in options.heads:
            with FunnelIndex.build(
                Path(folder) / f"{data.name}-{head}", compressor, collection.corpus, head=head,
                queries=collection.queries[train], recall=TARGET,
            ) as index:  # fmt: skip
                found = leave_out(index.search(collection.queries[rows], more).ids, own)[:, :K]
                result[data.name]["funnels"][head] = {
                    "schedule": str(index.schedule), "ndcg@10": ndcg(rows, found, qrels),
                    "recall@10 of exact": float(recall(found, exact).mean()),
                }  # fmt: skip
            if codes_of(head):
                coded = compressor.head(bytes=codes_of(head))
                result[data.name]["codes"][codes_of(head)] = same_ranking(
                    coded, collection.corpus, collection.queries[rows], own, rows, qrels
                )
        usual = result[data.name]["funnels"]["hnsw-int8" if "hnsw-int8" in options.heads else options.heads[0]]
        result[data.name].update(usual, **{"ndcg@10 funnel": usual["ndcg@10"]})
    return result


def same_ranking(
    head: Any, corpus: np.ndarray, queries: np.ndarray, own: np.ndarray, rows: np.ndarray, qrels: Any
) -> dict[str, Any]:
    """FAISS over codes of a head against numpy over the same: nDCG@10 of both, and places that differ in score."""
    more = K + int((own >= 0).any())
    asked, codes = head.queries(queries), head.encode(corpus)
    scores = head.scores(asked, codes)
    by_numpy = np.argsort(-scores, axis=1, kind="stable")[:, :more]
    index = head.to_faiss()
    index.add_sa_codes(faiss_codes(head.codec, codes))
    by_head, _ = head.search(index, asked, more)
    _, by_faiss = index.search(asked, more)
    expected = np.take_along_axis(scores, by_numpy, axis=1)
    differ = np.abs(np.take_along_axis(scores, by_head, axis=1) - expected) > 2e-6
    orders = {"numpy": by_numpy, "head.search": by_head, "faiss alone": by_faiss}
    return {
        "places that differ but for ties": int(differ.sum()), "places": int(differ.size),
        **{f"ndcg@10 {name}": ndcg(rows, leave_out(found, own)[:, :K], qrels) for name, found in orders.items()},
    }  # fmt: skip


def ndcg(rows: np.ndarray, found: np.ndarray, qrels: Any) -> float:
    """Mean nDCG@10."""
    return float(score_rankings((rows, found), qrels, ["ndcg@10"])["ndcg@10"].mean())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    rows = vectors.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plot(path: Path) -> None:
    """Recall against latency, and recall against bytes in memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(path.read_text())
    rows = record["arguments"]["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(each["method"] for each in record["curve"]):
        mine = [each for each in record["curve"] if each["method"] == name]
        left.plot([1e3 * p["seconds_per_query"] for p in mine], [p["recall"] for p in mine], "o-", label=name)
    left.set(xlabel="milliseconds per query, one at a time", ylabel="recall@10 of exact search", xscale="log")
    left.legend()
    for name, method in record["methods"].items():
        right.plot([method["ram"] / rows], [method["recall"]], "o", label=f"{name}, in memory")
        if method["disk"]:
            right.plot([method["disk"] / rows], [method["recall"]], "x", label=f"{name}, on disk, originals counted")
    right.set(xlabel="bytes per vector", xscale="log")
    right.legend()
    figure.savefig(path.with_suffix(".png"), dpi=120)


def main() -> None:
    """Run one part and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["engines", "milvus", "quality", "duplicates", "plot"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--dims", type=lambda text: tuple(map(int, text.split(","))), default=(384, 192, 96, 48))
    parser.add_argument("--heads", type=lambda text: text.split(","), default=["hnsw", "hnsw-int8"])
    parser.add_argument("--construction", type=int, default=40, help="efConstruction of full-width HNSW.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "plot":
        plot(options.json)
        return
    faiss.omp_set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parts = {"engines": engines, "milvus": milvus, "quality": quality, "duplicates": duplicates}
        result = parts[options.part](options, folder)
    arguments = {k: v for k, v in vars(options).items() if k not in ("json", "data")}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "what": "made, clustered vectors" if options.part != "quality" else "real vectors, of the files named in data",
        "arguments": {**arguments, "data": [path.name for path in options.data], "seeds": [1, 2, 1234]},
        "versions": {"faiss": faiss.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "machine": platform.machine(), "threads": 1, "seconds": time.perf_counter() - start, **result,
    }  # fmt: skip
    options.json.write_text(json.dumps(record, indent=1, default=float) + "\n", encoding="utf-8")
    print(json.dumps(result.get("methods", result), indent=1, default=float))


if __name__ == "__main__":
    main()

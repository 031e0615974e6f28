"""Try the lowest and the highest supported releases, each in an environment of its own, and record which ones work.

For each interpreter two environments are made: one with the lowest releases of torch, transformers and
sentence-transformers that pyproject.toml allows, and one with the newest. In each a compressor is fitted, saved,
loaded, exported and served. This needs the package index, and about 2 GB of disk at a time. `--pin` fixes a package in
both, for instance to a build of torch for the CPU. `--set installed` tries an interpreter with what it has, and needs
no package index.

`python benchmarks/tables.py` then writes what was found into docs/guide/versions.md.

    python benchmarks/versions.py --python python3.10 --python python3.13 --pin torch==2.13.0+cpu
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "versions.json"
HELD = ("torch", "transformers", "sentence-transformers")
SHOWN = ("torch", "transformers", "sentence-transformers", "datasets", "accelerate", "numpy", "scipy")
PROBE = """
import importlib.metadata, json, platform, sys, tempfile
from pathlib import Path
import numpy as np
from sentence_transformers import SentenceTransformer
from smec_st import Compressor
from smec_st.cli import run

rng = np.random.default_rng(0)
corpus, queries = rng.normal(size=(2, 400, 384)).astype(np.float32)
queries[:200] += 2 * corpus[:200]
pairs = np.stack([np.arange(200)] * 2, axis=1)
quick = {"steps": 20, "adapt_steps": 10, "batch_size": 32, "random_rows": 64, "memory": 256, "narrow_hidden": 0.0}
fitted = Compressor.fit(corpus, queries, pairs, dims=(48, 24), candidates=("adapted and ranked",), **quick)
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    fitted.save(folder / "saved")
    loaded = Compressor.load(folder / "saved")
    assert np.array_equal(loaded.transform(corpus), fitted.transform(corpus))
    head = loaded.head(24, "int8")
    assert head.scores(head.queries(queries), head.encode(corpus)).shape == (400, 400)
    np.save(folder / "corpus.npy", corpus)
    assert run(["transform", str(folder / "saved"), str(folder / "corpus.npy"), str(folder / "small")]) == 0
    if sys.argv[1:]:
        backbone = SentenceTransformer(sys.argv[1], device="cpu")
        loaded.export(backbone, folder / "model")
        served = SentenceTransformer(str(folder / "model"), truncate_dim=24, device="cpu")
        found = served.encode(["a text"], normalize_embeddings=True)
        assert np.allclose(found, loaded.transform(backbone.encode(["a text"]), 24), atol=1e-5)
names = json.loads(sys.stdin.read())
found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
print("\\n" + json.dumps(found))
"""


def lowest() -> list[str]:
    """Requirements that hold each of :data:`HELD` at the lowest minor release that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.match(r"([\w-]+)(?:\[[^]]*\])?>=([\d.]+)", line) for line in project["dependencies"]]
    return [f"{match[1]}=={match[2]}.*" for match in found if match is not None and match[1] in HELD]


def attempt(python: str, which: str, pins: list[str], model: str | None, folder: Path) -> dict[str, object]:
    """Install into a new environment, and run the probe there."""
    pinned = {re.split("[=<>~]", pin)[0] for pin in pins}
    held = [line for line in (lowest() if which == "lowest" else []) if line.split("==")[0] not in pinned]
    (folder / "constraints.txt").write_text("\n".join([*held, *pins]) + "\n")
    inside = str(folder / "env" / "bin" / "python")
    install = [inside, "-m", "pip", "install", "--quiet", "-c", str(folder / "constraints.txt"), str(ROOT)]
    probe = [inside, "-c", PROBE, *([model] if model else [])]
    row: dict[str, object] = {"asked": Path(python).name, "set": which, "pins": pins, "works": False}
    steps = {"venv": [python, "-m", "venv", str(folder / "env")], "install": install, "run": probe}
    if which == "installed":
        steps = {"run": [python, *probe[1:]]}
    for name, command in steps.items():
        began = time.perf_counter()
        done = subprocess.run(
            command, input=json.dumps(SHOWN), capture_output=True, text=True, check=False, cwd=folder
        )
        row[f"{name}_seconds"] = round(time.perf_counter() - began)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            told = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or [""]
            return {**row, "failed": name, "error": told[0][:300]}
    return {**row, "works": True, "versions": json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, help="An interpreter; may be repeated.")
    sets = ["lowest", "highest", "installed"]
    parser.add_argument("--set", action="append", choices=sets, help="The first two by default.")
    parser.add_argument("--pin", action="append", default=[], help="A requirement that holds in both sets.")
    parser.add_argument("--model", help="Folder of a sentence-transformers model of width 384, to export with.")
    options = parser.parse_args()
    before = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    for python in options.python:
        for which in options.set or ["lowest", "highest"]:
            with tempfile.TemporaryDirectory() as name:
                row = attempt(python, which, options.pin, options.model, Path(name))
            print(json.dumps(row), flush=True)
            before = [old for old in before if (old["asked"], old["set"]) != (row["asked"], which)] + [row]
            RESULT.write_text(json.dumps({"rows": before}, indent=1) + "\n")


if __name__ == "__main__":
    main()

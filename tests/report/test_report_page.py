"""The HTML report: its figures are right, and a real browser shows it in every light, at every width, by keyboard."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from conftest import make_vectors
from smec_st import Compressor, load_collection
from smec_st.cli import run
from smec_st.compressor.scoring import score_compressor
from smec_st.data import DataError, unit_rows
from smec_st.fitting.config import CANDIDATES
from smec_st.report import measure_variants, write_page
from smec_st.report.items import LONG, SHORT, Item, read_items
from smec_st.report.page import MEANINGS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
    "</script></details></section><h1>owned</h1>{{ 7 * 7 }}",
    "\u202egnihtyreve desrever\u202d\u2066 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "x" * 100_000,
    "word " * 20_000,
    "zero\x00 bell\x07 alone\ud800 &amp; &lt;b&gt;",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection whose documents and queries are all hostile, in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("desk") / "<b onclick=x>toy"
    (folder / "qrels").mkdir(parents=True)
    vectors, source, _ = make_vectors(np.random.default_rng(0), 300, 80, 32)
    save_file(vectors, folder / "vectors.safetensors")
    for side, letter, count in (("corpus", "d", 300), ("queries", "q", 80)):
        lines = [
            {"_id": f"{letter}{i}", "title": f"title {i}", "text": HOSTILE[i % len(HOSTILE)]} for i in range(count)
        ]
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\td{source[i]}\t2\n" for i in range(80)))
    return folder


@pytest.fixture(scope="module")
def collection(folder):
    return load_collection(folder, folder / "vectors.safetensors")


@pytest.fixture(scope="module")
def compressor(collection):
    info = {
        "what": "what to train",
        "chosen": "ranked",
        "instead_of": "neighbourhoods",
        "gain": 0.05,
        "error": 0.01,
        "queries": 600,
        "means": {"neighbourhoods": 0.5, "ranked": 0.55},
    }
    fitted = Compressor.fit(collection.corpus, method="pca", dims=(16, 8, 4), backbone={"model": HOSTILE[0]})
    return Compressor(fitted.maps, {**fitted.info, "decisions": [info]}, fitted.heads)


@pytest.fixture(scope="module")
def measured(compressor, collection):
    return measure_variants(compressor, collection)


@pytest.fixture(scope="module")
def page_file(compressor, collection, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(compressor, collection, path, source=folder)
    return path


# -- figures ----------------------------------------------------------------------------------------------------------


def test_floats_score_as_evaluate_scores_them(measured, compressor, collection):
    expected = {(row.method, row.dim): row.metrics for row in score_compressor(compressor, collection)}
    found = {(variant.method, variant.dim): variant.metrics for variant in measured.variants}
    assert measured.original.metrics == expected["original", 32]
    for dim in (16, 8, 4):
        assert found["truncate", dim] == pytest.approx(expected["truncate", dim])
        own = next(v for v in measured.variants if (v.method, v.precision, v.dim) == ("compressed", "float32", dim))
        assert own.metrics == pytest.approx(expected["pca", dim])
        difference = own.metrics["ndcg@10"] - measured.original.metrics["ndcg@10"]
        assert own.interval.difference == pytest.approx(difference)
        assert own.interval.low <= difference <= own.interval.high
        assert own.lost + own.won <= measured.queries == 80


def test_frontier_is_the_best_within_each_number_of_bytes(measured):
    own = [variant for variant in measured.variants if variant.method == "compressed"]
    assert {variant.precision for variant in own} == {"float32", "float16", "int8", "binary"}
    frontier = [measured.variants[place] for place in measured.frontier]
    for budget in range(1, 80):
        affordable = [variant.metrics["ndcg@10"] for variant in own if variant.bytes <= budget]
        within = [variant for variant in frontier if variant.bytes <= budget]
        assert bool(within) == bool(affordable)
        if within:
            assert within[-1].metrics["ndcg@10"] == max(affordable)
    assert len({variant.bytes for variant in frontier}) == len(frontier)


def test_changes_tell_where_the_relevant_documents_went(measured, compressor, collection):
    variant = measured.variants[measured.frontier[0]]
    head = compressor.head(variant.dim, variant.precision)
    original = unit_rows(collection.corpus), unit_rows(collection.queries)
    compressed = head.decode(head.encode(collection.corpus)), head.queries(collection.queries)
    grades = collection.qrels["test"].relevant_by_query()
    assert variant.losses
    gains = [change.after - change.before for change in variant.losses]
    assert gains == sorted(gains)
    assert all(change.after > change.before for change in variant.wins)
    for change in (*variant.losses, *variant.wins):
        for sides, top, rank in ((original, change.top_before, "before"), (compressed, change.top_after, "after")):
            scores = sides[0] @ sides[1][change.query]
            assert [hit.document for hit in top] == np.argsort(-scores, kind="stable")[:10].tolist()
            assert [getattr(hit, rank) for hit in top] == list(range(1, 11))
            for hit in change.relevant:
                above, level = scores > scores[hit.document], scores == scores[hit.document]
                assert getattr(hit, rank) == 1 + above.sum() + level[: hit.document].sum()
        assert {hit.document: hit.grade for hit in change.relevant} == grades[change.query]


def test_a_query_never_finds_its_own_document(collection, compressor):
    images = load_collection_of_itself(collection)
    changes = [c for v in measure_variants(compressor, images).variants for c in (*v.losses, *v.wins)]
    assert changes
    assert all(hit.document != change.query for change in changes for hit in (*change.top_before, *change.top_after))


def load_collection_of_itself(collection):
    from smec_st import Collection, Qrels

    count = 100
    rows = np.arange(count)
    qrels = Qrels(np.repeat(rows, 2), np.r_[rows, (rows + 1) % count].reshape(2, -1).T.ravel(), np.ones(2 * count))
    ids = [str(row) for row in rows]
    corpus = collection.corpus[:count]
    return Collection("self", corpus, corpus, ids, ids, {"test": qrels}, own_document=rows)


def test_every_candidate_is_explained():
    assert set(MEANINGS) == set(CANDIDATES)


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_items_are_short_once_and_long_when_opened():
    item = Item("1", "title", HOSTILE[4])
    assert item.is_long
    assert len(item.short) <= SHORT + 2
    assert item.short.endswith("word …")
    assert len(item.full) < LONG + 40
    assert "(100,005 characters in all)" in item.full
    assert not Item("1", "", "short").is_long
    assert Item("the id").full == Item("the id").short == "the id"
    Item("1", "", HOSTILE[5]).full.encode("utf-8")


def test_images_are_thumbnails_only_of_the_folder(tmp_path, collection):
    folder = tmp_path / "clothes"
    for split, count in (("train", 3), ("test", 1)):
        (folder / split / "a").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (300, 200), (200, i * 50, 0)).save(folder / split / "a" / f"{i}.png")
    (folder / "train" / "a" / "3.png").write_bytes(b"\x89PNG broken")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    save_file({"images": np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)}, tmp_path / "v.safetensors")
    images = load_collection(folder, tmp_path / "v.safetensors")
    items = read_items(images, folder, range(4), range(5))
    assert [bool(items.documents[row].thumbnail) for row in range(4)] == [True, True, True, False]
    assert items.documents[3].short == "train/a/3.png"
    assert not read_items(images, None, [0], []).documents[0].thumbnail
    images.corpus_ids[0] = "../secret.png"
    assert not read_items(images, folder, [0], []).documents[0].thumbnail


def test_vectors_in_parquet_tables_are_not_taken_for_texts(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(3, 4))
    for side in ("corpus", "queries"):
        (tmp_path / side).mkdir()
        rows = {"id": [f"{side}{i}" for i in range(3)], "vector": numbers.tolist()}
        pq.write_table(pa.table(rows), tmp_path / side / "part.parquet")
    items = read_items(load_collection(tmp_path), tmp_path, [1], [2])
    assert (items.documents[1].full, items.queries[2].full) == ("corpus1", "queries2")


def test_texts_that_a_collection_holds_are_shown_without_a_source(collection):
    held = dataclasses.replace(collection, titles=["title"] * 300, texts=[f"text {i}" for i in range(300)])
    items = read_items(held, None, [7], [3])
    assert (items.documents[7].short, items.queries[3].short) == ("title text 7", "q3")


# -- the command line -------------------------------------------------------------------------------------------------


def test_report_and_fit_write_the_page(small_collection, tmp_path, capsys):
    folder = small_collection()
    data = ["--data", str(folder), "--vectors", str(folder / "vectors.safetensors")]
    assert run(["fit", *data, "--method", "pca", "--dims", "8,4", "--out", str(tmp_path / "c"), "--report"]) == 0
    assert (tmp_path / "c" / "report.html").stat().st_size > 1e6
    out = tmp_path / "again.html"
    assert run(["report", str(tmp_path / "c"), *data, "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "corpus 1" in out.read_text(encoding="utf-8")
    capsys.readouterr()
    assert run(["report", str(tmp_path / "c"), *data, "--out", str(folder / "corpus.jsonl")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "c"), *data, "--split", "val", "--out", str(out)]) == 2
    assert "has no val split" in capsys.readouterr().err


def test_report_without_plotly_or_judgements_is_refused_before_the_fit(
    small_collection, tmp_path, capsys, monkeypatch
):
    folder = small_collection()
    fit = ["fit", "--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--report", "--no-labels"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "plotly.offline", None)
        assert run([*fit, "--out", str(tmp_path / "c")]) == 2
    assert 'pip install "smec-st[report]"' in capsys.readouterr().err
    shutil.rmtree(folder / "qrels")
    assert run([*fit, "--out", str(tmp_path / "c")]) == 2
    assert "has no judgements" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_vectors_of_another_width_are_refused(collection, tmp_path):
    other = Compressor.fit(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32), method="pca", dims=(4,))
    with pytest.raises(DataError, match="are 32 wide; this compressor reads 8"):
        write_page(other, collection, tmp_path / "r.html")


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Open a file; everything that the console says and every address that is asked for is collected."""
    contexts = []

    def open_page(path, width=1400, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.said.append(request.url) if request.url[:4] == "http" else None)
        page.goto(path.as_uri())
        page.wait_for_selector("#by-bytes .main-svg", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_a_word_and_fits(show, page_file, width, scheme):
    page = show(page_file, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    light = [sum(map(int, page.evaluate(f"{value}.match(/\\d+/g).slice(0, 3)"))) for value in COLOURS]
    text, back, plot = light
    assert (text < back) == (scheme == "light")
    assert (plot < back) == (scheme == "light")
    assert page.said == []


COLOURS = (
    "getComputedStyle(document.body).color",
    "getComputedStyle(document.body).backgroundColor",
    "getComputedStyle(document.querySelector('.xtick text')).fill",
)


@pytest.mark.slow
def test_scheme_may_change_while_the_page_is_open(show, page_file):
    page = show(page_file)
    before = page.evaluate(COLOURS[2])
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)  # the page's policy forbids a script that waits
    assert page.evaluate(COLOURS[2]) != before
    assert page.said == []


@pytest.mark.slow
def test_page_is_used_by_keyboard(show, page_file, measured):
    page = show(page_file)
    frontier = [measured.variants[place] for place in measured.frontier]
    answer = page.locator(".answer:visible")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("20")
    expected = [variant for variant in frontier if variant.bytes <= 20][-1]
    assert f"{expected.bytes} bytes per document" in answer.inner_text()
    assert f"{expected.metrics['ndcg@10']:.3f}" in answer.inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    assert f"{frontier[0].bytes} bytes per document" in answer.inner_text()
    assert page.locator("#bytes").input_value() == str(frontier[0].bytes)
    page.keyboard.press("ArrowRight")
    assert f"{frontier[1].bytes} bytes per document" in answer.inner_text()
    assert page.locator("section:visible").count() == 1
    for _ in range(3):  # all figures, then the first query
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.parentElement.className") == "query":
            break
    page.keyboard.press("Enter")
    opened = page.locator("section:visible .query[open]")
    assert opened.count() == 1
    assert opened.locator(".sides ol").first.locator("li").count() == 10
    assert page.said == []


@pytest.mark.slow
def test_points_tell_more_when_the_pointer_rests_on_them(show, page_file):
    page = show(page_file)
    page.locator("#by-bytes").scroll_into_view_if_needed()
    box = page.locator("#by-bytes .scatterlayer .trace").nth(3).locator(".point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#by-bytes .hovertext")
    text = page.locator("#by-bytes .hovertext").first.text_content()
    assert "bytes per document" in text
    assert "against the original" in text


@pytest.mark.slow
def test_hostile_texts_stay_text(show, page_file):
    page = show(page_file)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    assert page.evaluate("document.querySelectorAll('img, b[onclick]').length") == 0
    text = page.evaluate("document.body.textContent")
    for part in (HOSTILE[0], HOSTILE[1][:30], "{{ 7 * 7 }}", HOSTILE[2], "&amp; &lt;b&gt;", "zero\ufffd bell\ufffd"):
        assert part in text
    assert "<b onclick=x>toy" in page.title()
    # Reversed text is reversed inside its own element only.
    assert page.evaluate("[...document.querySelectorAll('bdi')].every(e => e.closest('details, td, li, h1, dd'))")
    assert page.said == []


@pytest.mark.slow
def test_images_are_shown(show, tmp_path):
    folder = tmp_path / "clothes"
    for split, count in (("train", 40), ("test", 10)):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (300, 200), (200, i * 5, 100)).save(folder / split / label / f"{i}.png")
    vectors = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    save_file({"images": vectors}, tmp_path / "v.safetensors")
    images = load_collection(folder, tmp_path / "v.safetensors")
    fitted = Compressor.fit(images.corpus, method="pca", dims=(4, 2))
    write_page(fitted, images, tmp_path / "r.html", source=folder)
    page = show(tmp_path / "r.html", 400)
    page.locator("section:visible .query").first.evaluate("part => { part.open = true }")
    sizes = page.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(sizes) > 20
    assert set(sizes) == {112}
    assert page.said == []

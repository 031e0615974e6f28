"""``Compressor``: what it accepts, what it promises, what it keeps."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from collection_world import write_collection
from smec_st.compressor import Compressor
from smec_st.data import DataError, Qrels, load_collection, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.fitting.config import PAIRS_PER_QUERY
from smec_st.fitting.recipe import _some_of_each_query
from smec_st.functional import alignment_kl

QUICK = {"steps": 30, "adapt_steps": 20, "batch_size": 32, "candidates": ("adapted and ranked",)}
SHORT = {**QUICK, "steps": 3, "adapt_steps": 3}  # where only sameness matters
PUBLISHED = {"steps": 30, "batch_size": 32}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = write_collection(tmp_path_factory.mktemp("collections") / "toy")
    return load_collection(folder, folder / "vectors.safetensors")


@pytest.fixture(scope="module")
def fitted(toy):
    return Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(16, 8, 4), **QUICK)


def ndcg(transform, collection) -> float:
    corpus, queries = transform(collection.corpus), transform(collection.queries)
    return float(evaluate_retrieval(corpus, queries, collection.qrels["test"], ("ndcg@10",))["ndcg@10"].mean())


def test_fit_beats_truncation_and_pca_at_every_size(toy):
    fitted = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(16, 8, 4), **{**QUICK, "steps": 80})
    pca = Compressor.fit(toy.corpus, dims=(16, 8, 4), method="pca")
    for dim in (16, 8, 4):
        ours = ndcg(lambda x, d=dim: fitted.transform(x, d), toy)
        assert ours > ndcg(lambda x, d=dim: unit_rows(x[:, :d]), toy) + 0.1
        assert ours > ndcg(lambda x, d=dim: pca.transform(x, d), toy) + 0.05


@pytest.mark.slow
def test_fit_gives_the_same_from_arrays_tensors_memory_maps_and_half_precision_of_the_same_numbers(toy, tmp_path):
    corpus, queries = toy.corpus.astype(np.float16), toy.queries.astype(np.float16)
    np.save(tmp_path / "corpus.npy", corpus)
    forms = [
        (corpus.astype(np.float32), queries.astype(np.float32)),
        (torch.from_numpy(corpus), torch.from_numpy(queries)),
        (np.load(tmp_path / "corpus.npy", mmap_mode="r"), queries.astype(np.float64)),
    ]
    made = [Compressor.fit(c, q, toy.qrels["train"], dims=(4,), **SHORT).fingerprint for c, q in forms]
    assert len(set(made)) == 1


@pytest.mark.parametrize("form", ["dict", "pairs"])
def test_fit_takes_judgements_by_row(toy, form):
    qrels = toy.qrels["train"]
    given = qrels.relevant_by_query() if form == "dict" else qrels.pairs
    same = qrels if form == "dict" else Qrels(*qrels.pairs.T, np.ones(len(qrels.pairs)))
    one, other = (Compressor.fit(toy.corpus, toy.queries, q, dims=(4,), **SHORT) for q in (given, same))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("queries", [True, False])
def test_fit_without_labels_brings_neighborhoods_nearer_to_those_of_full_width(toy, queries):
    fitted = Compressor.fit(toy.corpus, toy.queries if queries else None, dims=(6,), **{**QUICK, "steps": 60})
    pca = Compressor.fit(toy.corpus, dims=(6,), method="pca")
    others = ~torch.eye(len(toy.corpus), dtype=torch.bool)

    def drift(compressor: Compressor) -> float:
        full, small = (torch.from_numpy(x) for x in (unit_rows(toy.corpus), compressor.transform(toy.corpus, 6)))
        return alignment_kl(small @ small.T, full @ full.T, 0.08, others).item()

    assert drift(fitted) < drift(pca)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.75, 0.9])
def test_fit_without_labels_serves_a_narrow_cone_as_it_serves_what_was_moved_into_it(toy, share):
    """Many models give any two texts a cosine of 0.7 and more; what is near is the same as without that."""
    away = unit_rows(np.random.default_rng(0).normal(size=(1, toy.corpus.shape[1])))

    def moved(rows: np.ndarray) -> np.ndarray:
        return unit_rows((1 - share) ** 0.5 * unit_rows(rows) + share**0.5 * away)

    def kept(rows: np.ndarray) -> float:
        """Share of the ten nearest that stay."""
        fitted = Compressor.fit(rows, dims=(6,), **{**QUICK, "steps": 60})
        small = fitted.transform(rows, 6)
        near, left = (np.argsort(-(x @ x.T), axis=1)[:, 1:11] for x in (unit_rows(rows), small))
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near.tolist(), left.tolist(), strict=True)]))

    assert kept(moved(toy.corpus)) > kept(toy.corpus) - 0.08  # 0.11 where this is not seen to


def test_transform_gives_unit_norm_float32_at_every_size(fitted, toy):
    for dim in fitted.dims:
        out = fitted.transform(toy.corpus, dim)
        assert out.shape == (300, dim)
        assert out.dtype == np.float32
        assert np.allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_transform_takes_any_float_one_row_or_many_and_any_chunk(fitted, toy, dtype):
    rows = toy.corpus.astype(dtype)
    whole = fitted.transform(rows, 8)
    assert np.allclose(fitted.transform(rows, 8, chunk=7), whole, atol=1e-6)
    assert fitted.transform(rows[3], 8).shape == (8,)
    assert np.allclose(fitted.transform(rows[3], 8), whole[3], atol=1e-6)
    assert np.allclose(fitted.transform(5 * rows, 8), whole, atol=2e-3)
    assert fitted.transform(rows[:0], 8).shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transform_gives_a_tensor_for_a_tensor(fitted, toy, dtype):
    rows = torch.from_numpy(np.array(toy.corpus)).to(dtype)
    out = fitted.transform(rows, 4)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.float32
    assert np.allclose(out.numpy(), fitted.transform(rows.float().numpy(), 4), atol=1e-6)


def test_nested_sizes_are_prefixes_and_sizes_between_are_served(fitted, toy):
    assert fitted.is_nested
    wide = fitted.transform(toy.corpus, 16)
    for dim in (8, 4, 11):
        assert np.allclose(fitted.transform(toy.corpus, dim), unit_rows(wide[:, :dim]), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.ones((2, 31), np.float32), "must be 32 wide"),
        (np.ones((2, 2, 32), np.float32), "must be 32 wide"),
        (np.ones((2, 32), np.int64), "must be floats"),
        (np.r_[np.ones((1, 32)), np.zeros((1, 32))], "Row 1 is zero, NaN or infinite"),
        (np.r_[np.ones((1, 32)), np.full((1, 32), np.nan)], "Row 1 is zero, NaN or infinite"),
        (np.r_[np.full((1, 32), np.inf), np.ones((1, 32))], "Row 0 is zero, NaN or infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_transform_refuses_rows_that_have_no_direction_or_the_wrong_shape(fitted, rows, match):
    with pytest.raises(ValueError, match=match):
        fitted.transform(rows, 4)


def test_transform_refuses_a_size_it_does_not_serve(fitted, toy):
    with pytest.raises(ValueError, match="`dim` must be one of 16, 8, 4, got 17"):
        fitted.transform(toy.corpus, 17)


def test_published_order_serves_its_own_sizes_only(toy):
    fitted = Compressor.fit(
        toy.corpus, toy.queries, toy.qrels["train"], dims=(32, 8, 4), method="smec-published", **PUBLISHED
    )
    assert fitted.dims == (32, 8, 4)
    assert not fitted.is_nested
    assert fitted.transform(toy.corpus, 8).shape == (300, 8)
    with pytest.raises(ValueError, match="must be one of"):
        fitted.transform(toy.corpus, 6)


@pytest.mark.parametrize("method", ["smec", "smec-published"])
def test_save_and_load_give_the_same_vectors_and_facts(toy, tmp_path, method):
    settings = QUICK if method == "smec" else PUBLISHED
    fitted = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(8, 4), method=method, **settings)
    fitted.save(tmp_path / "saved")
    loaded = Compressor.load(tmp_path / "saved")
    for dim in fitted.dims:
        assert np.array_equal(fitted.transform(toy.corpus, dim), loaded.transform(toy.corpus, dim))
    assert (loaded.dims, loaded.nested_dims, loaded.fingerprint) == (
        fitted.dims,
        fitted.nested_dims,
        fitted.fingerprint,
    )
    assert loaded.info == json.loads(json.dumps(fitted.info))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_hidden_layer_is_kept_through_save_and_load(toy, tmp_path, activation):
    settings = {**QUICK, "hidden_dim": 12, "activation": activation, "learning_rate": 1e-3}
    fitted = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(8, 4), **settings)
    fitted.save(tmp_path / "saved")
    assert [layer.activation for layer in Compressor.load(tmp_path / "saved").map_for(8).layers] == [activation, None]
    assert np.array_equal(
        fitted.transform(toy.corpus, 4), Compressor.load(tmp_path / "saved").transform(toy.corpus, 4)
    )


def test_save_refuses_a_folder_in_use_and_leaves_it(fitted, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        fitted.save(tmp_path)
    assert [path.name for path in tmp_path.glob("*.txt")] == ["precious.txt"]


def broken_json(folder):
    (folder / "compressor.json").write_text("{")


def newer_format(folder):
    config = json.loads((folder / "compressor.json").read_text())
    (folder / "compressor.json").write_text(json.dumps({**config, "format": 99}))


def other_weights(folder):
    path = folder / "compressor.safetensors"
    save_file({name: weight * 2 for name, weight in load_file(path).items()}, path)


def cut_weights(folder):
    path = folder / "compressor.safetensors"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (broken_json, "is damaged"),
        (newer_format, "newer smec-st"),
        (other_weights, "do not belong together"),
        (cut_weights, "not a readable safetensors file"),
    ],
)
def test_load_refuses_a_damaged_compressor(fitted, tmp_path, damage, match):
    fitted.save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(DataError, match=match):
        Compressor.load(tmp_path / "saved")


@pytest.mark.parametrize(
    "damage",
    [
        {"data": 3},
        {"data": {"documents": "many"}},
        {"stages": [1]},
        {"stages": [{"seconds": None}]},
        {"decisions": {}},
        {"decisions": [{"what": "what to train"}]},
        {"kept_neighbors": [0.9]},
    ],
)
def test_load_refuses_records_that_no_fit_writes(fitted, tmp_path, damage):
    fitted.save(tmp_path / "saved")
    path = tmp_path / "saved" / "compressor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(DataError, match=f"is damaged: `{next(iter(damage))}` holds"):
        Compressor.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([99999], "names query row 99999"),
        ([-1], "names query row -1"),
        ([0.5], "row numbers"),
        ([True], "row numbers"),
    ],
)
def test_unlabelled_queries_that_are_no_rows_are_refused(toy, rows, match):
    with pytest.raises(DataError, match=match):
        Compressor.fit(toy.corpus, toy.queries, dims=(8,), unlabelled_queries=rows, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"backbone": "the-api/model"}, "`backbone` is a dict, such as {'model': 'the-api/model'}"),
        ({"qrels": {0: {1: 1, 2: None}}}, "grades must be numbers, got None"),
        ({"qrels": [[0], [1, 2]]}, "several lengths"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(toy, arguments, match):
    with pytest.raises(DataError, match=match):
        Compressor.fit(toy.corpus, toy.queries, dims=(8,), **arguments, **QUICK)
    with pytest.raises(DataError, match="qrels need queries, and there are none"):
        Compressor.fit(toy.corpus, qrels={0: {1: 1}}, dims=(8,), **QUICK)


@pytest.mark.slow
def test_extend_leaves_every_old_size_bit_identical_and_serves_the_new_ones(toy):
    fitted = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(12, 6), **QUICK)
    more = fitted.extend(toy.corpus, toy.queries, toy.qrels["train"], dims=(20, 9, 3))
    assert more.dims == (20, 12, 9, 6, 3)
    assert more.nested_dims == (20, 12, 6)
    for dim in fitted.dims:
        assert np.array_equal(fitted.transform(toy.corpus, dim), more.transform(toy.corpus, dim))
    for dim in (20, 9, 3):
        assert ndcg(lambda x, d=dim: more.transform(x, d), toy) > ndcg(lambda x, d=dim: unit_rows(x[:, :d]), toy)


def test_extend_makes_a_smaller_size_from_the_next_larger_one(toy):
    fitted = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(12, 6), **QUICK)
    more = fitted.extend(toy.corpus, toy.queries, toy.qrels["train"], dims=(9,))
    parent, child = (more.map_for(dim).layers[0].weight for dim in (12, 9))
    solved, *_ = np.linalg.lstsq(parent.T, child.T, rcond=None)
    assert np.allclose(parent.T @ solved, child.T, atol=1e-5)  # every new row lies in the span of the old ones
    assert [stage["stage"] for stage in more.info["stages"][len(fitted.info["stages"]) :]] == [
        "stage-00-shrink-9-joint"
    ]


@pytest.mark.parametrize(
    ("dims", "match"), [((8,), "size 8 exists already"), ((40,), "must not exceed"), ((), "at least one size")]
)
def test_extend_refuses_sizes_it_cannot_add(fitted, toy, dims, match):
    with pytest.raises(DataError, match=match):
        fitted.extend(toy.corpus, toy.queries, toy.qrels["train"], dims=dims)


@pytest.mark.parametrize(
    ("qrels", "match"),
    [
        ({500: {0: 1}}, "query row 500; there are 120"),
        ({0: {-1: 1}}, "document row -1; there are 300"),
        (np.zeros((3, 5), int), r"must be \(P, 2\)"),
        ({0: {0: 0}}, "no relevant pair"),
    ],
)
def test_fit_refuses_judgements_that_name_no_row(toy, qrels, match):
    with pytest.raises(DataError, match=match):
        Compressor.fit(toy.corpus, toy.queries, qrels, dims=(4,), **QUICK)


@pytest.mark.parametrize(
    ("corpus", "queries", "match"),
    [
        ("documents.txt", None, "corpus: one text is no list of texts"),
        (["a b", "c d"], "who", "queries: one text is no list of texts"),
        (["a b", None, "c d"], None, "corpus: row 1 of the texts hold no text"),
        (["a b", "c d"], np.ones((2, 4), np.float32), "both be texts, or both be vectors"),
        (np.ma.masked_greater(np.eye(4, 3, dtype=np.float32), 0.5), None, "masked values"),
        (np.ones((1, 4), np.float32), None, "two documents or more"),
    ],
)
def test_fit_refuses_what_is_no_collection(corpus, queries, match):
    with pytest.raises(DataError, match=match):
        Compressor.fit(corpus, queries, dims=(2,))


def test_columns_of_pandas_and_arrays_of_texts_are_lists(tmp_path):
    import pandas as pd

    from tiny_models import tiny_bert

    texts = [f"text number {number}" for number in range(12)]
    plain = Compressor.fit(texts, dims=(4,), method="pca", model=(model := tiny_bert(tmp_path)))
    for column in (pd.Series(texts), np.array(texts), iter(texts)):
        same = Compressor.fit(column, dims=(4,), method="pca", model=model)
        assert same.fingerprint == plain.fingerprint
    rows = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    of_lists = Compressor.fit(pd.Series(list(rows)), dims=(4,), method="pca")
    assert of_lists.fingerprint == Compressor.fit(rows, dims=(4,), method="pca").fingerprint


def test_queries_of_both_splits_choose_and_do_not_train(toy, told):
    train = toy.qrels["train"]
    with pytest.raises(DataError, match="judges all queries that should be trained on"):
        Compressor.fit(toy.corpus, toy.queries, train, dims=(8,), dev_qrels=train, **QUICK)
    dev = train.of_queries(train.query_rows[:5])
    both = Compressor.fit(toy.corpus, toy.queries, train, dims=(8,), dev_qrels=dev, **QUICK)
    assert both.info["data"]["training_queries"] == len(train.query_rows) - 5
    assert any(line.startswith("5 of the training queries") for line in told())


def test_fit_refuses_texts_without_a_model():
    with pytest.raises(DataError, match="texts need a `model`"):
        Compressor.fit(["some text", "more text"])


def test_import_is_cheap_and_loads_no_heavy_library():
    code = "import sys, smec_st; print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_fit_learns_classes_from_images_that_are_their_own_queries(rng):
    labels = rng.integers(0, 5, 300)
    images = rng.normal(size=(300, 32)) * np.r_[np.full(8, 3.0), np.full(24, 1.0)]  # the loud numbers say nothing
    images[:, 8:] += 1.2 * rng.normal(size=(5, 24))[labels]
    images = images.astype(np.float32)
    train, test = np.arange(200), np.arange(200, 300)
    same = labels[:, None] == labels[None, :200]
    same[train, train] = False
    own = np.r_[train, np.full(100, -1)]
    qrels = {split: class_pairs(same, rows) for split, rows in (("train", train), ("test", test))}

    def score(transform):
        corpus, queries = transform(images[:200]), transform(images)
        return evaluate_retrieval(corpus, queries, qrels["test"], ("ndcg@10",), own_document=own)["ndcg@10"].mean()

    fitted = Compressor.fit(
        images[:200],
        images,
        qrels["train"],
        dims=(4,),
        own_document=own,
        **{**QUICK, "steps": 80, "learning_rate": 1e-2},
    )
    pca = Compressor.fit(images[:200], dims=(4,), method="pca")
    assert score(fitted.transform) > score(pca.transform) + 0.2


def class_pairs(same, rows):
    queries, documents = np.nonzero(same[rows])
    return Qrels(rows[queries], documents, np.ones(len(queries)))


def test_training_takes_some_pairs_of_each_query(rng):
    pairs = np.stack(np.nonzero(rng.random((6, 90)) < np.array([[0.9], [0.05], [0.5], [0.1], [1.0], [0.2]])), axis=1)
    chosen = _some_of_each_query(pairs, seed=1)
    counts = np.bincount(pairs[:, 0], minlength=6)
    np.testing.assert_array_equal(np.bincount(chosen[:, 0], minlength=6), np.minimum(counts, PAIRS_PER_QUERY))
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    assert {tuple(pair) for pair in chosen.tolist()} <= {tuple(pair) for pair in pairs.tolist()}
    assert not np.array_equal(_some_of_each_query(pairs, seed=2), chosen)
    few = pairs[:3]
    np.testing.assert_array_equal(_some_of_each_query(few, seed=1), few)


def test_fit_without_a_memory_uses_the_batch_alone(toy):
    plain = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(8,), memory=0, **QUICK)
    remembering = Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(8,), **QUICK)
    assert plain.fingerprint != remembering.fingerprint
    assert ndcg(plain.transform, toy) > ndcg(lambda x: unit_rows(x[:, :8]), toy)

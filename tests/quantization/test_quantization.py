"""Codes against plain loops; heads for one vector and many; the last stage; the choice; storage."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from collection_world import write_collection
from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.data import DataError, VectorTable, load_collection, unit_rows
from smec_st.evaluation.limits import Limit, Pair
from smec_st.evaluation.metrics import evaluate_retrieval, exact_search, neighbour_overlap
from smec_st.maps import FoldedMap, Layer
from smec_st.quantization.choice import Judge, candidates
from smec_st.quantization.codecs import Binary, Plain, Product, make_codec
from smec_st.quantization.head import Head
from smec_st.quantization.pairs import pairs_in, pairs_to_try
from smec_st.quantization.starts import (
    balanced_rotation,
    calibrate_int8,
    itq_rotation,
    product_codes,
    random_rotation,
)
from smec_st.quantization.training import LastStage, train_codes

pytest.importorskip("faiss")
QUICK = {"steps": 60, "batch_size": 32, "candidates": ("adapted and ranked",)}


@pytest.fixture
def rows(rng):
    return unit_rows(rng.normal(size=(400, 8)) * np.linspace(1, 0.3, 8))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = write_collection(tmp_path_factory.mktemp("collections") / "toy")
    return load_collection(folder, folder / "vectors.safetensors")


@pytest.fixture(scope="module")
def fitted(toy):
    return Compressor.fit(toy.corpus, toy.queries, toy.qrels["train"], dims=(16, 8, 4), **QUICK)


def codecs(rows):
    return [
        Plain(8), Plain(8, "float16"), calibrate_int8(rows), Binary(None, 8), Binary(random_rotation(8, 0)),
        product_codes(rows, 2, 0), product_codes(rows @ balanced_rotation(rows, 4), 4, 0),
    ]  # fmt: skip


def test_every_codec_decodes_to_unit_rows_near_its_input_in_the_bytes_it_says(rows):
    for codec in codecs(rows):
        codes = codec.encode(rows)
        assert codes.dtype.itemsize * codes.shape[1] == codec.bytes
        decoded = codec.decode(codes)
        assert decoded.shape == rows.shape
        assert decoded.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
        floor = {"float32": 1 - 1e-6, "float16": 0.9999, "int8": 0.999}.get(codec.precision, 0.6)
        assert (decoded * rows).sum(axis=1).mean() > floor


def test_every_codec_gives_a_row_the_same_code_alone_and_survives_storage(rows):
    for codec in codecs(rows):
        codes = codec.encode(rows)
        np.testing.assert_array_equal(np.concatenate([codec.encode(rows[i : i + 1]) for i in range(9)]), codes[:9])
        again = make_codec(codec.precision, codec.dim, codec.tensors())
        np.testing.assert_array_equal(again.encode(rows), codes)


def test_int8_equals_a_loop(rows):
    codec = calibrate_int8(rows)
    codes = codec.encode(3 * rows[:5])  # out of range as well
    for i, row in enumerate(3 * rows[:5]):
        for j, x in enumerate(row):
            exact = float(x - codec.low[j]) / float(codec.step[j])
            assert abs(float(codes[i, j]) + 128 - min(max(exact, 0), 255)) <= 0.5 + 1e-3


def test_int8_leaves_stray_values_out_and_takes_a_constant(rng):
    table = np.concatenate([rng.normal(size=(5000, 1)), np.zeros((5000, 1))], axis=1).astype(np.float32)
    table[0, 0] = 1000
    codec = calibrate_int8(table)
    assert codec.low[0] + 255 * codec.step[0] < 5
    assert np.isfinite(codec.decode(codec.encode(table[1:]))).all()


def test_binary_is_packbits_and_undoes_its_rotation(rows):
    plain, turned = Binary(None, 8), Binary(random_rotation(8, 1))
    np.testing.assert_array_equal(plain.encode(rows)[:, 0], np.packbits(rows > 0, axis=1)[:, 0])
    expected = [[(1 if x > 0 else -1) / np.sqrt(8) for x in row] for row in rows[:5]]
    np.testing.assert_allclose(plain.decode(plain.encode(rows[:5])), expected, atol=1e-6)
    signs = np.where(rows @ turned.rotation > 0, 1, -1) / np.sqrt(8)
    np.testing.assert_allclose(turned.decode(turned.encode(rows)), signs @ turned.rotation.T, atol=1e-6)


def test_product_takes_the_nearest_centroid(rows):
    codec = product_codes(rows, 2, 0)
    codes = codec.encode(rows[:20], chunk=7)
    for row, code in zip(rows[:20], codes, strict=True):
        for group in range(2):
            part = row[4 * group : 4 * group + 4]
            assert code[group] == np.square(codec.centroids[group] - part).sum(axis=1).argmin()


def test_rotations_are_orthogonal_and_itq_loses_less_than_chance(rng):
    rows = unit_rows(rng.normal(size=(2000, 16)) * np.linspace(1, 0.05, 16))

    def loss(rotation):
        signs = np.where(rows @ rotation > 0, 0.25, -0.25)
        return np.square(signs - rows @ rotation).sum(axis=1).mean()

    learned, drawn = itq_rotation(rows, 0), random_rotation(16, 0)
    for rotation in (learned, drawn):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-5)
    assert loss(learned) < loss(drawn)
    np.testing.assert_array_equal(drawn, random_rotation(16, 0))


@pytest.mark.parametrize("groups", [1, 3, 8, 24])
def test_balanced_groups_have_the_products_of_variances_of_the_greedy_allocation(rng, groups):
    variances = np.sort(rng.uniform(0.01, 1, 24))[::-1]
    rows = np.linalg.qr(rng.standard_normal((24, 24)))[0] * np.sqrt(variances) @ random_rotation(24, 1)
    rows = np.concatenate([rows, -rows])  # their covariance has these very variances
    rotation = balanced_rotation(rows, groups)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(24), atol=1e-5)
    found = np.square(rows @ rotation).mean(axis=0).reshape(groups, -1)
    room = [[] for _ in range(groups)]  # by hand: the largest variance goes to the smallest product that has room
    for value in variances / variances[-1]:
        min((part for part in room if len(part) < 24 // groups), key=lambda part: np.prod(part)).append(value)
    np.testing.assert_allclose(found / found.min(), room, rtol=1e-3)


def test_codes_lose_less_of_rows_whose_groups_vary_alike(rng):
    rows = unit_rows(rng.standard_normal((2000, 16)) * np.linspace(1, 0.05, 16))

    def loss(turned):
        codec = product_codes(turned, 4, 0)
        return np.square(codec.decode(codec.encode(turned)) - turned).sum(axis=1).mean()

    assert loss(rows @ balanced_rotation(rows, 4)) < 0.8 * loss(rows)


def test_rows_that_do_not_vary_at_all_are_balanced_as_well():
    rotation = balanced_rotation(np.ones((5, 8), np.float32), 2)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(8), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "tensors", "match"),
    [
        ("int8", {"low": np.zeros(8, np.float32)}, "lacks its tensor 'step'"),
        ("int8", {"low": np.zeros(7, np.float32), "step": np.ones(7, np.float32)}, "do not fit 8 numbers"),
        ("int8", {"low": np.full(8, np.nan, np.float32), "step": np.ones(8, np.float32)}, "do not fit"),
        ("pq", {"centroids": np.zeros((2, 4, 4), np.float64)}, "do not fit"),
        ("int3", {}, "unknown precision 'int3'"),
    ],
)
def test_damaged_codes_are_refused(precision, tensors, match):
    with pytest.raises(DataError, match=match):
        make_codec(precision, 8, tensors)


def test_codes_of_another_shape_or_type_are_refused(rows):
    for codec in codecs(rows):
        with pytest.raises(DataError, match="codes must be"):
            codec.decode(np.zeros((3, 5), dtype=np.int32))
    with pytest.raises(DataError, match="a code is 255, and there are 4 centroids"):
        Product(np.zeros((2, 4, 4), np.float32)).decode(np.full((1, 2), 255, np.uint8))


# -- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_a_head_treats_one_vector_as_it_treats_many(fitted, toy, precision):
    head = fitted.head(8, precision)
    codes, queries = head.encode(toy.corpus), head.queries(toy.queries)
    assert head.encode(toy.corpus[5]).shape == codes[5].shape
    np.testing.assert_allclose(head.decode(head.encode(toy.corpus[5])), head.decode(codes)[5], atol=2e-2)
    np.testing.assert_allclose(head.queries(toy.queries[3]), queries[3], atol=1e-6)
    np.testing.assert_allclose(head.scores(queries, codes), queries @ head.decode(codes).T, atol=1e-6)
    assert head.encode(toy.corpus[:0]).shape == (0, codes.shape[1])
    np.testing.assert_array_equal(fitted.transform(toy.corpus, 8, precision=precision), codes)


def test_scores_of_queries_that_were_not_mapped_are_refused(fitted, toy):
    head = fitted.head(8, "int8")
    with pytest.raises(DataError, match=r"queries must be \(q, 8\), from `head.queries"):
        head.scores(toy.queries, head.encode(toy.corpus))


def test_a_head_is_asked_for_by_whole_numbers_and_encodes_tensors(fitted, toy):
    with pytest.raises(DataError, match="`bytes` must be a whole number, got '8'"):
        fitted.head(bytes="8")
    head = fitted.head(8, "int8")
    tensor = torch.tensor(toy.corpus, requires_grad=True)
    np.testing.assert_array_equal(head.encode(tensor), head.encode(toy.corpus))


def test_heads_are_saved_and_float_vectors_have_the_same_fingerprint_with_and_without(fitted, tmp_path):
    fitted.save(tmp_path / "c")
    again = Compressor.load(tmp_path / "c")
    assert [head.digest for head in again.heads] == [head.digest for head in fitted.heads]
    assert {(head.precision, head.dim) for head in again.heads} == {
        (p, d) for p in ("int8", "binary") for d in (16, 8, 4)
    }
    assert Compressor(fitted.maps, fitted.info).fingerprint == again.fingerprint


def test_codes_of_another_compressor_are_refused(fitted, tmp_path):
    fitted.save(tmp_path / "c")
    tensors = load_file(tmp_path / "c" / "compressor.safetensors")
    tensors["heads.0.low"] += 1
    save_file(tensors, tmp_path / "c" / "compressor.safetensors")
    with pytest.raises(DataError, match="digests differ"):
        Compressor.load(tmp_path / "c")


def test_a_head_that_is_not_there_names_those_that_are(fitted):
    with pytest.raises(DataError, match=r"no codes of 5 numbers int8; it has int8 of 16 numbers \(16 bytes\)"):
        fitted.head(5, "int8")


# -- the last stage and the choice ------------------------------------------------------------------------------------


def score(head, toy, split):
    documents = head.decode(head.encode(toy.corpus))
    return evaluate_retrieval(documents, head.queries(toy.queries), toy.qrels[split], ("ndcg@10",))["ndcg@10"].mean()


@pytest.mark.parametrize("kind", ["binary", "int8", "pq"])
def test_training_through_the_rounding_keeps_more_neighbours(fitted, toy, kind):
    folded = fitted.map_for(8)
    rows = folded.compress(toy.corpus)
    codec = {"binary": Binary(None, 8), "int8": calibrate_int8(rows), "pq": product_codes(rows, 2, 0)}[kind]
    table, settings = VectorTable(toy.corpus, toy.queries), LastStage(steps=60, batch_size=32, learning_rate=5e-3)
    queries, start = toy.qrels["train"].query_rows, Head(folded, codec)
    end = Head(*train_codes(table, folded, codec, queries, settings, fitted.map_for(None)))
    assert not np.array_equal(end.folded.layers[-1].weight, folded.layers[-1].weight)
    judge = Judge.of(table, None, 0, fitted.map_for(None))
    assert judge.score(end)[1] > judge.score(start)[1] + (0.01 if kind != "int8" else -0.02)


def test_the_last_stage_keeps_more_of_a_cone_whose_similarities_it_stretches(rng, monkeypatch):
    corpus = unit_rows(rng.standard_normal((600, 24)) * np.linspace(2, 0.5, 24) + 8 * np.eye(24)[0])
    weight = np.eye(24, dtype=np.float32)[1:17]  # the mean direction is left out: similarities differ more now
    folded, near = FoldedMap((Layer(weight),)), exact_search(corpus, corpus, 10)[0]
    codec = product_codes(folded.compress(corpus), 4, 0)

    def kept():
        settings = LastStage(learning_rate=1e-2, code_learning_rate=1e-2)
        head = Head(*train_codes(VectorTable(corpus), folded, codec, np.zeros(0, dtype=np.int64), settings))
        found = exact_search(head.decode(head.encode(corpus)), head.queries(corpus), 10)[0]
        return neighbour_overlap(found, near).mean()

    stretched = kept()
    monkeypatch.setattr("smec_st.quantization.training.narrowness", lambda _: 1.0)
    assert stretched > 1.05 * kept()


@pytest.mark.parametrize("labels", [True, False])
def test_quantize_picks_what_held_out_queries_like_best(fitted, toy, labels):
    qrels = (toy.qrels["train"], toy.qrels["dev"]) if labels else (None, None)
    grown = fitted.quantize(toy.corpus, toy.queries, qrels[0], bytes=4, dev_qrels=qrels[1])
    head = grown.head(bytes=4)
    assert head.bytes == 4
    tried = head.info["tried"]
    assert {entry["precision"] for entry in tried} >= {"int8", "pq"}
    assert ("ndcg@10" in head.info) == labels
    judge = Judge.of(VectorTable(toy.corpus, toy.queries), qrels[1], 0, fitted.map_for(16))
    values, kept = judge.score(head)
    assert kept == pytest.approx(head.info["kept_neighbors"], abs=1e-6)
    if labels:
        assert values.mean() == pytest.approx(head.info["ndcg@10"], abs=1e-6)
        assert values.mean() > max(entry["ndcg@10"] for entry in tried) - 0.1
    else:
        assert kept == max(entry["kept_neighbors"] for entry in tried)
    assert grown.fingerprint == fitted.fingerprint
    again = fitted.quantize(toy.corpus, toy.queries, qrels[0], bytes=4, dev_qrels=qrels[1])
    assert again.head(bytes=4).digest == head.digest


def test_close_ones_are_told_apart_by_neighbours_and_clear_ones_by_judgements():
    even, good, bad = np.tile([0.4, 0.6], 50), np.tile([0.41, 0.6], 50), np.tile([0.1, 0.2], 50)
    assert Judge.best([(even, 0.9), (good - np.tile([0, 0.009], 50), 0.5), (bad, 1.0)]) == 0
    assert Judge.best([(bad, 0.9), (good, 0.1)]) == 1
    assert Judge.best([(np.zeros(0), 0.2), (np.zeros(0), 0.3), (np.zeros(0), 0.3)]) == 1


def test_candidates_fit_the_budget_and_rotations_go_into_the_map(fitted, toy):
    for budget in (1, 2, 4, 8):
        heads = list(
            candidates(fitted, unit_rows(toy.corpus), list(pairs_in(budget, fitted.dims, fitted.nested_dims)), 0)
        )
        assert heads
        for head in heads:
            assert head.bytes == budget
            assert head.encode(toy.corpus).nbytes == budget * len(toy.corpus)


def test_what_fits_no_size_is_refused(fitted, toy):
    with pytest.raises(DataError, match="no size of this compressor"):
        fitted.quantize(toy.corpus, bytes=1000)
    with pytest.raises(DataError, match="`bytes` must be 1 or more"):
        fitted.quantize(toy.corpus, bytes=0)


SIZES = (384, 192, 96, 48, 24)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Limit(), {(384, "float32", 1536)}),  # nothing is finer than the widest floats
        (Limit("pinecone"), {(384, "float32", 1536)}),
        (Limit("pinecone", 100), {(25, "float32", 100)}),
        (Limit("pgvector", 40), {(10, "float32", 40), (20, "float16", 40), (320, "binary", 40)}),
        (Limit("pgvector", 41), {(10, "float32", 40), (20, "float16", 40), (328, "binary", 41)}),
        (Limit(None, 400), {(100, "float32", 400), (200, "float16", 400), (384, "int8", 384)}),
        (
            Limit(None, 24),
            {(6, "float32", 24), (12, "float16", 24), (24, "int8", 24), (192, "binary", 24)}
            | {(dim, "pq", 24) for dim in (48, 96, 192, 384)},
        ),
    ],
)  # fmt: skip
def test_pairs_worth_trying_are_the_finest_that_fit(limit, expected):
    assert set(pairs_to_try(SIZES, SIZES, limit)) == {Pair(*pair) for pair in expected}


def test_wide_vectors_go_into_an_index_as_halves_or_as_fewer_floats():
    sizes = (3072, 1536, 768)
    assert set(pairs_to_try(sizes, sizes, Limit("pgvector"))) == {(2000, "float32", 8000), (3072, "float16", 6144)}
    assert pairs_to_try((8192,), (8192,), Limit("pgvector")) == [(8192, "binary", 1024)]


@pytest.mark.parametrize(
    "limit", [Limit(), Limit("pgvector"), Limit("pinecone"), Limit(None, 1), Limit("pgvector", 2)]
)
@pytest.mark.parametrize("dims", [SIZES, (3072, 1024), (100, 33, 7), (5000,)])
def test_every_pair_to_try_is_allowed_and_is_served(dims, limit):
    served = [
        pair for count in range(1, 4 * dims[0] + 1) for pair in pairs_in(count, dims, dims) if limit.allows(pair)
    ]
    if not served:
        with pytest.raises(DataError, match=f"fits {limit}"):
            pairs_to_try(dims, dims, limit)
        return
    found = pairs_to_try(dims, dims, limit)
    assert found
    assert set(found) <= set(served)


def test_what_fits_nothing_says_what_the_smallest_would_need():
    message = (
        "none of the sizes 384, 192, 96, 48, 24 fits pinecone and 2 bytes a document: the smallest way to store one, "
        "float32 of 6 numbers, takes 24 bytes a document, 1.2 GB for 50,000,000 documents."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        pairs_to_try(SIZES, SIZES, Limit.of("pinecone", "100MB", "50M"))
    nearest = r"can be stored in 25 bytes within pgvector; the nearest that can is 48 bytes \(binary of 384 numbers\)"
    with pytest.raises(DataError, match=nearest):
        pairs_to_try((384,), (384,), Limit("pgvector"), 25)
    with pytest.raises(DataError, match="fits pinecone and 1 byte a document"):
        pairs_to_try(SIZES, SIZES, Limit("pinecone", 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bytes": 7}, "no size of this compressor"),
        ({"bytes": "8"}, "whole number"),
        ({"bytes": 8.0}, "whole number"),
        ({"bytes": (8, 0)}, "1 or more"),
        ({"limit": "pgvector"}, "takes a Limit"),
        ({"limit": Limit(bytes=0)}, "none of the sizes"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_fit(toy, monkeypatch, given, message):
    monkeypatch.setattr("smec_st.fitting.fit.fit_maps", lambda *args, **kwargs: pytest.fail("the fit has begun"))
    with pytest.raises(DataError, match=message):
        Compressor.fit(toy.corpus, method="pca", dims=(16,), **given)


def test_bytes_may_be_a_number_of_numpy(toy):
    compressor = Compressor.fit(toy.corpus, method="pca", dims=(8,), bytes=np.int64(8))
    assert compressor.head(bytes=8).bytes == 8


@pytest.mark.parametrize("bytes", [float("nan"), -1, "40", None])
def test_limit_of_no_number_is_refused(bytes):
    with pytest.raises(DataError, match="a number of 0 or more"):
        Limit(bytes=bytes)


def test_a_head_is_printed_in_one_line(toy):
    head = Compressor.fit(toy.corpus, method="pca", dims=(8,)).head(precision="int8")
    assert str(head) == "Head(int8 of 8 numbers, 8 bytes)"


def test_quantize_keeps_to_a_limit(fitted, toy):
    grown = fitted.quantize(toy.corpus, toy.queries, toy.qrels["train"], limit=Limit("pgvector", 4))
    head = grown.heads[-1]
    assert Limit("pgvector", 4).allows(Pair(head.dim, head.precision, head.bytes))
    assert head.info["limit"] == "pgvector and 4 bytes a document"
    assert {entry["precision"] for entry in head.info["tried"]} <= {"float32", "float16", "binary"}
    assert grown.head(bytes=head.bytes) is head
    whole = fitted.quantize(toy.corpus, limit=Limit("pinecone")).heads[-1]
    assert (whole.precision, whole.dim) == ("float32", fitted.dims[0])
    with pytest.raises(DataError, match="needs a number of bytes or a limit"):
        fitted.quantize(toy.corpus)


@pytest.mark.slow
def test_the_command_fits_for_bytes_and_saves_what_it_chose(small_collection, tmp_path, capsys):
    folder, out = small_collection(), tmp_path / "out"
    config = tmp_path / "quick.yaml"
    config.write_text("steps: 8\nadapt_steps: 4\nbatch_size: 16\n")
    base = ["--data", str(folder), "--vectors", str(folder / "vectors.safetensors"), "--config", str(config)]
    assert run(["fit", *base, "--dims", "16,8,4", "--bytes", "4", "--out", str(out)]) == 0
    head = Compressor.load(out).head(bytes=4)
    printed = capsys.readouterr().out
    assert f"best in 4 bytes: {head.precision} of {head.dim} numbers" in printed
    assert f"smec {head.precision}" in (out / "report.csv").read_text()


@pytest.mark.parametrize(("documents", "width", "bytes"), [(2, 16, 1), (3, 16, (6, 2)), (10, 16, 1), (60, 64, 2)])
def test_few_documents_can_be_stored_in_codes(rng, documents, width, bytes):
    corpus = rng.standard_normal((documents, width)).astype(np.float32)
    compressor = Compressor.fit(corpus, dims=(width, width // 2), method="pca", bytes=bytes)
    for head in compressor.heads:
        assert head.decode(head.encode(corpus)).shape == (documents, head.dim)


def test_one_document_has_no_neighbours_to_choose_codes_by(rng):
    fitted = Compressor.fit(rng.standard_normal((20, 8)), dims=(8, 4), method="pca")
    with pytest.raises(DataError, match="at least two documents"):
        fitted.quantize(rng.standard_normal((1, 8)), bytes=1)
    with pytest.raises(DataError, match="cannot be learned from 1 rows"):
        product_codes(unit_rows(rng.standard_normal((1, 8))), 1, 0)

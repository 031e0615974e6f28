"""The paper's analyses: formulas against naive loops and limits, and files that hold what was measured."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from torch import nn

from collection_world import write_collection
from smec_st.data import Collection, DataError, Qrels, load_collection, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.fitting.config import METHODS, FitConfig
from smec_st.functional import unit
from smec_st.research.analysis import ablation, convergence, gradients, importance
from smec_st.research.analysis.layer import LOSSES, LabelledBatches, LayerTraining, loss_by_size, train_layer
from smec_st.research.analysis.record import training_data
from smec_st.research.analysis.ware import chance_deviation, leverage, most_important, similar_and_random_pairs, ware

pytestmark = pytest.mark.slow  # fits methods at length; the base install needs none of them

QUICK = {"steps": 4, "adapt_steps": 2, "selection_steps": 2, "batch_size": 32}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = write_collection(tmp_path_factory.mktemp("collections") / "toy")
    return load_collection(folder, folder / "vectors.safetensors")


@pytest.fixture(scope="module")
def data(toy):
    return training_data(toy)


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def assert_written(out, name, result):
    """JSON as returned (up to keys and tuples becoming text and lists), a plot, and no draft left."""
    assert json.loads((out / f"{name}.json").read_text()) == json.loads(json.dumps(result))
    assert is_png(out / f"{name}.png")
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.json", f"{name}.png"]
    assert {"analysis", "collection", "arguments", "versions", "paper"} <= set(result)


# -- importance -------------------------------------------------------------------------------------------------------


def naive_ware(vectors, pairs):
    def cosine(a, b):
        length = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / length if length > 1e-9 else 0.0

    result = []
    for i in range(vectors.shape[1]):
        keep = np.arange(vectors.shape[1]) != i
        change = weights = 0.0
        for a, b in pairs:
            full = cosine(vectors[a], vectors[b])
            weight = max(full, 0.0)
            change += weight * abs(full - cosine(vectors[a][keep], vectors[b][keep]))
            weights += weight
        result.append(change / weights)
    return np.array(result)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ware_equals_naive_loop(rng, dtype):
    vectors = (rng.normal(size=(20, 6)) * [3, 1, 1, 0.5, 0.1, 1]).astype(dtype)
    pairs = rng.integers(0, 20, (50, 2))
    assert ware(vectors, pairs, chunk=7) == pytest.approx(naive_ware(vectors.astype(np.float64), pairs), rel=1e-9)


def test_ware_of_a_dimension_that_is_always_zero_is_zero(rng):
    vectors = rng.normal(size=(20, 5))
    vectors[:, 3] = 0
    found = ware(vectors, rng.integers(0, 20, (40, 2)))
    assert found[3] == 0
    assert (np.delete(found, 3) > 0).all()


def test_ware_puts_the_dimension_that_carries_everything_first(rng):
    vectors = 0.05 * rng.normal(size=(30, 5))
    vectors[:, 2] = rng.choice([-1.0, 1.0], 30)
    found = ware(vectors, rng.integers(0, 30, (60, 2)))
    assert most_important(found, 1).tolist() == [2]
    alone = np.eye(5)[[2, 2]]
    assert ware(alone, np.array([[0, 1]])).tolist() == [0, 0, 1, 0, 0]


def test_ware_does_not_depend_on_lengths_and_is_zero_without_similar_pairs(rng):
    vectors, pairs = rng.normal(size=(10, 4)), rng.integers(0, 10, (20, 2))
    scaled = vectors * rng.uniform(0.5, 5, (10, 1))
    assert np.allclose(ware(scaled, pairs), ware(vectors, pairs))
    assert ware(np.array([[1.0, 0], [-1.0, 0]]), np.array([[0, 1]])).tolist() == [0, 0]


def test_most_important_takes_the_lower_of_equals():
    assert most_important(np.array([1.0, 3, 2, 2, 2]), 3).tolist() == [1, 2, 3]


def test_leverage_is_one_for_chosen_coordinates_and_sums_to_the_rows_of_any_map(rng):
    assert leverage(5 * np.eye(6)[[4, 1]]).tolist() == [0, 1, 0, 0, 1, 0]
    directions = rng.normal(size=(3, 6))
    projector = directions.T @ np.linalg.inv(directions @ directions.T) @ directions
    assert np.allclose(leverage(directions), np.diag(projector))
    assert leverage(directions).sum() == pytest.approx(3)


def test_chance_deviation_is_that_of_blind_picks(rng):
    shares = [np.mean(rng.permutation(40)[:10] < 10) for _ in range(4000)]
    assert chance_deviation(40, 10) == pytest.approx(np.std(shares), rel=0.05)
    assert chance_deviation(4, 4) == 0


def test_pairs_never_join_a_row_with_itself_nor_a_query_with_its_own_document(rng):
    corpus = rng.normal(size=(30, 8)).astype(np.float32)
    rows = np.arange(6)
    own = Collection(
        "own",
        corpus,
        corpus[:6],
        [f"d{i}" for i in range(30)],
        [f"q{i}" for i in rows],
        {"train": Qrels(rows, rows + 10, np.ones(6)), "dev": Qrels(rows, rows + 11, np.ones(6))},
        own_document=rows,
    )
    data = training_data(own)
    pairs = similar_and_random_pairs(data, documents=12, neighbors=5, seed=0)
    assert pairs.shape == ((6 + 12) * 10, 2)
    assert pairs[:, 1].max() < 30
    anchors = torch.from_numpy(pairs[:, 0])
    assert (data.table.own(anchors).numpy() != pairs[:, 1]).all()
    near = pairs[:5, 1]
    similarity = unit_rows(corpus) @ unit_rows(corpus[:1])[0]
    assert sorted(near) == sorted(np.argsort(-similarity)[1:6])


def test_importance_measures_untrained_and_trained_choices(toy, tmp_path):
    result = importance.run(toy, tmp_path, dims=(16, 8), seeds=(0,), documents=40, neighbors=4, settings=QUICK)
    assert_written(tmp_path, "importance", result)
    share = {(row["method"], row["dim"]): row for row in result["rows"]}
    assert {method for method, _ in share} == {
        "most important",
        "truncation",
        "variance",
        "PCA",
        "ADS alone",
        "ADS with its layer",
        "SMEC's whole map",
    }
    best = most_important(np.array(result["ware"]), 8)
    assert share["truncation", 8]["share_kept"] == pytest.approx(np.mean(best < 8))
    assert all(0 <= row["share_kept"] <= 1 and 0 <= row["ware_kept"] <= 1 for row in result["rows"])
    assert all(share[method, 16]["ware_kept"] > share[method, 8]["ware_kept"] for method, _ in share)
    assert result["chance"][8]["share"] == 0.25
    assert share["most important", 8]["share_kept"] == 1
    small = [unit_rows(side[:, :8]) for side in (toy.corpus, toy.queries)]
    expected = evaluate_retrieval(*small, toy.qrels["test"], ("ndcg@10",))["ndcg@10"].mean()
    assert share["truncation", 8]["ndcg@10"] == pytest.approx(expected)


def test_ads_picks_as_many_coordinates_as_asked_and_none_twice(data):
    config = FitConfig.from_dict({**METHODS["smec-published"], **QUICK})
    alone = importance.selected_alone(data, (16, 8), config)
    picks, maps = importance.selected_jointly(data, (16, 8), config)
    for directions in (alone, picks):
        for dim in (16, 8):
            assert directions[dim].sum(axis=1).tolist() == [1] * dim
            assert directions[dim].sum(axis=0).max() == 1
    assert (picks[8].sum(axis=0) <= picks[16].sum(axis=0)).all()
    assert maps[8].shape == (8, 32)


def test_importance_refuses_layers_that_are_not_linear(data):
    config = FitConfig.from_dict({**METHODS["smec-published"], "hidden_dim": 4})
    with pytest.raises(DataError, match="leave out `hidden_dim`, which is 4"):
        importance.selected_jointly(data, (16,), config)


# -- one layer --------------------------------------------------------------------------------------------------------


def test_batches_hold_each_pair_once_per_epoch_and_differ_between_epochs(data):
    batches = LabelledBatches(data, 16, seed=0)
    epochs = [list(batches.epoch(number)) for number in (0, 0, 1)]
    assert all(len(batch.queries) <= 16 for batch in epochs[0])
    seen = torch.cat([batch.queries[batch.grades.nonzero()[:, 0]] for batch in epochs[0]])
    assert len(seen) >= len(data.train.pairs)
    assert all(torch.equal(one.queries, two.queries) for one, two in zip(*epochs[:2], strict=True))
    assert any(not torch.equal(one.queries, two.queries) for one, two in zip(*epochs[1:], strict=True))


def test_batches_leave_out_documents_that_are_a_query_of_the_batch(rng):
    corpus = rng.normal(size=(12, 4)).astype(np.float32)
    rows = np.arange(6)
    qrels = {"train": Qrels(rows, (rows + 1) % 6, np.ones(6)), "dev": Qrels(rows, rows + 6, np.ones(6))}
    ids = [str(i) for i in range(12)]
    data = training_data(Collection("own", corpus, corpus[:6], ids, ids[:6], qrels, own_document=rows))
    for batch in LabelledBatches(data, 3, seed=0).epoch(0):
        assert not any((document == batch.queries).all(dim=1).any() for document in batch.documents)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_of_a_prefix_equals_the_loss_of_the_map_cut_to_it(data, loss):
    batch = next(LabelledBatches(data, 16, seed=0).epoch(0))
    mapping = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32))
    whole = loss_by_size(mapping, batch, (8, 3), loss)
    cut = loss_by_size(mapping[:3], batch, (3,), loss)
    assert torch.allclose(whole[3], cut[3])
    queries, documents = unit(batch.queries @ mapping[:3].T), unit(batch.documents @ mapping[:3].T)
    assert torch.allclose(cut[3], LOSSES[loss](queries @ documents.T, batch.grades))


def test_gradient_that_is_reported_is_that_of_autograd(data):
    training = LayerTraining(loss="rank", epochs=1, batch_size=16)
    seen: list[torch.Tensor] = []
    weight = nn.Parameter(torch.eye(8, 32))
    list(train_layer(weight, data, (8, 4), training, on_gradient=seen.append))
    start = torch.eye(8, 32, requires_grad=True)
    batch = next(LabelledBatches(data, 16, training.seed).epoch(0))
    sum(loss_by_size(start, batch, (8, 4), "rank").values()).backward()
    assert torch.allclose(seen[0], start.grad)


def test_training_a_layer_behind_frozen_ones_leaves_them_alone_and_lowers_the_loss(data):
    before = torch.eye(16, 32)
    weight = nn.Parameter(torch.eye(8, 16))
    training = LayerTraining(loss="cross-entropy", epochs=6, batch_size=16, learning_rate=1e-2)
    losses = [epoch[8] for epoch in train_layer(weight, data, (8,), training, before)]
    assert losses[-1] < losses[0]
    assert torch.equal(before, torch.eye(16, 32))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss": "hinge", "epochs": 1}, "`loss` must be rank, mse, cross-entropy, got 'hinge'"),
        ({"loss": "rank", "epochs": 0}, "`epochs` and `batch_size` must be 1 or more, got 0 and 64"),
    ],
)
def test_layer_training_refuses_settings_that_make_no_sense(settings, match):
    with pytest.raises(DataError, match=match):
        LayerTraining(**settings)


# -- gradients --------------------------------------------------------------------------------------------------------


def test_block_meter_reads_hand_made_gradients():
    meter = gradients.BlockMeter((0, 1, 3))
    meter.add(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]))
    meter.add(torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 2.0]]))
    reading = meter.take()
    assert reading["magnitude"] == [5.0, (1 + 1 + 0 + 2) / 4]
    assert reading["variance"] == [0.0, (1 + 0 + 0 + 1) / 4]
    meter.add(torch.ones(3, 2))
    assert meter.take()["variance"] == [0.0, 0.0]


def test_mrl_adds_to_the_first_block_only(data):
    training = LayerTraining(loss="rank", epochs=1, batch_size=1000)  # one step: both begin from the same weights
    mrl = gradients.measure(data, (16, 8), 8, training)[0]["magnitude"]
    smrl = gradients.measure(data, (16,), 8, training)[0]["magnitude"]
    assert mrl[1] == pytest.approx(smrl[1])
    assert mrl[0] > 1.5 * smrl[0]


def test_expected_ratio_is_three_for_equal_coordinates_and_less_for_a_strong_first_half(data):
    corpus = np.ones((4, 8), dtype=np.float32)
    ids = [str(i) for i in range(4)]
    qrels = {split: Qrels([0], [1], [1]) for split in ("train", "dev")}
    equal = training_data(Collection("equal", corpus, corpus, ids, ids, qrels))
    assert gradients.expected_ratio(equal, 4) == pytest.approx(3)
    strong = training_data(
        Collection("strong", corpus * np.r_[np.full(4, 5), np.ones(4)].astype(np.float32), corpus, ids, ids, qrels)
    )
    assert gradients.expected_ratio(strong, 4) == pytest.approx(2 + 1 / 25)


def test_gradients_are_the_same_for_the_same_seed_and_written_down(toy, tmp_path):
    settings = {"epochs": 2, "batch_size": 32}
    one = gradients.run(toy, tmp_path / "one", seeds=(0,), **settings)
    other = gradients.run(toy, tmp_path / "other", seeds=(0,), **settings)
    third = gradients.run(toy, tmp_path / "third", seeds=(1,), **settings)
    assert one == other
    assert one["curves"] != third["curves"]
    assert_written(tmp_path / "one", "gradients", one)
    assert one["blocks"] == [[0, 8], [8, 16]]
    assert set(one["curves"]) == set(LOSSES)
    for of_loss in one["curves"].values():
        for curve in of_loss.values():
            assert np.shape(curve["magnitude"]) == np.shape(curve["variance"]) == (2, 2)


def test_gradients_refuses_blocks_wider_than_the_vectors(toy, tmp_path):
    with pytest.raises(DataError, match=r"`half` must be in \[1, 16\], got 17"):
        gradients.run(toy, tmp_path, half=17)


# -- convergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0] * 8, 0), ([9.0, 5, 1, 1, 1, 1, 1], 2), ([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10)],
)
def test_settled_epoch_is_the_first_after_which_nothing_happens(values, expected):
    assert convergence.settled_epoch(values) == expected


def test_convergence_follows_both_orders_by_epoch(toy, tmp_path):
    result = convergence.run(toy, tmp_path, "cross-entropy", dims=(16, 8), seeds=(0, 1), epochs=6, batch_size=32)
    assert_written(tmp_path, "convergence-cross-entropy", result)
    assert len(result["curves"]["MRL"][16]["loss"]) == 12
    assert len(result["curves"]["SMRL"][16]["loss"]) == 6
    # The first stage of SMRL begins as MRL does: the same map, the same batches.
    for curve in ("loss", "ndcg@10"):
        start = [result["curves"][method][16][curve][0] for method in ("MRL", "SMRL")]
        assert start[0] == pytest.approx(start[1], abs=0.02)
    for row in result["summary"]:
        assert row["final_ndcg@10"] > result["start_ndcg@10"][row["dim"]]


def test_dev_scores_are_those_of_plain_evaluation(toy, data):
    scores = convergence.PrefixScores(data, (8,))
    corpus, queries = (unit_rows(unit_rows(vectors)[:, :8]) for vectors in (toy.corpus, toy.queries))
    expected = evaluate_retrieval(corpus, queries, toy.qrels["dev"], ("ndcg@10",))["ndcg@10"].mean()
    assert scores(torch.eye(32), 8) == pytest.approx(expected)


# -- ablation ---------------------------------------------------------------------------------------------------------


def config_of(recipe: str, **settings) -> FitConfig:
    return FitConfig.from_dict({**METHODS[recipe], **QUICK, "dims": (16, 8), **settings})


def test_without_ads_nothing_is_chosen():
    grow, plan = ablation.without_part(config_of("smec", selection_ratio=2.0), ablation.NO_ADS, 32)
    assert (grow.selection_ratio, plan) == (1.0, None)
    _, shrink = ablation.without_part(config_of("smec-published"), ablation.NO_ADS, 32)
    assert [(stage.phase, stage.in_dim, stage.out_dim) for stage in shrink] == [
        ("compress", 32, 16), ("compress", 16, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", ablation.RECIPES)
@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_a_variant_changes_nothing_but_its_own_part(recipe, variant):
    parts = {
        ablation.FULL: set(),
        ablation.NO_SMRL: {"order", "prefix_gradient", "wide_weight"},
        ablation.NO_ADS: {"selection_ratio"},
        ablation.NO_MEMORY: {"memory"},
    }
    before = config_of(recipe, selection_ratio=2.0)
    after, _ = ablation.without_part(before, variant, 32)
    changed = {name for name, value in before.to_dict().items() if after.to_dict()[name] != value}
    assert changed <= parts[variant]


def test_published_recipe_without_selection_keeps_the_first_coordinates(toy, data):
    transform = ablation.fit_variant(data, config_of("smec-published", learning_rate=1e-12), ablation.NO_ADS)
    assert np.allclose(transform(toy.corpus, 8), unit_rows(toy.corpus[:, :8]), atol=1e-5)


@pytest.mark.parametrize(("dims", "is_same"), [((16,), True), ((16, 8), False)])
def test_without_smrl_only_several_sizes_differ(data, toy, dims, is_same):
    """With one size no smaller one shares its columns, so there is nothing to freeze."""
    full, shared = (
        ablation.fit_variant(data, config_of("smec", dims=dims), variant)(toy.corpus, 8 if len(dims) > 1 else 16)
        for variant in (ablation.FULL, ablation.NO_SMRL)
    )
    assert np.allclose(full, shared, atol=1e-6) == is_same


def test_without_smrl_the_published_recipe_trains_one_nested_map(data, toy):
    transform = ablation.fit_variant(data, config_of("smec-published"), ablation.NO_SMRL)
    assert np.allclose(transform(toy.corpus, 8), unit_rows(transform(toy.corpus, 16)[:, :8]), atol=1e-5)


def test_ablation_records_each_variant_with_paired_intervals(toy, tmp_path):
    result = ablation.run(toy, tmp_path, dims=(8,), seeds=(0,), recipes=("smec",), settings=QUICK)
    assert_written(tmp_path, "ablation", result)
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        difference = row["to_full"]
        full = next(
            other
            for other in result["rows"]
            if (other["recipe"], other["variant"], other["dim"]) == (row["recipe"], ablation.FULL, row["dim"])
        )
        assert difference["low"] <= difference["difference"] <= difference["high"]
        assert difference["difference"] == pytest.approx(row["ndcg@10"] - full["ndcg@10"])
        assert ("to_without_ads" in row) == (row["variant"] == ablation.NO_SMRL)


def test_ablation_refuses_a_recipe_that_is_not_trained(toy, tmp_path):
    with pytest.raises(DataError, match="recipes are smec and smec-published, got pca"):
        ablation.run(toy, tmp_path, recipes=("pca",))


# -- all --------------------------------------------------------------------------------------------------------------


def test_training_data_holds_queries_out_where_there_is_no_dev_split(toy):
    without_dev = Collection(
        toy.name, toy.corpus, toy.queries, toy.corpus_ids, toy.query_ids, {"train": toy.qrels["train"]}
    )
    data = training_data(without_dev)
    held, kept = set(data.dev.query_rows), set(data.train.query_rows)
    assert held
    assert not held & kept
    assert held | kept == set(toy.qrels["train"].query_rows)


@pytest.mark.parametrize("run", [importance.run, gradients.run, convergence.run, ablation.run])
def test_every_analysis_says_that_it_needs_a_train_split(toy, tmp_path, run):
    tests_only = Collection(
        toy.name, toy.corpus, toy.queries, toy.corpus_ids, toy.query_ids, {"test": toy.qrels["test"]}
    )
    with pytest.raises(DataError, match="has no train split"):
        run(tests_only, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_docstring_examples_hold():
    outcome = doctest.testmod(convergence)
    assert outcome.attempted > 0
    assert outcome.failed == 0

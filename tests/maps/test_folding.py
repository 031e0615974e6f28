"""A folded map gives what running the modules gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from smec_st.maps.folding import FoldedMap, Layer, fold
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter

WIDTH = 12


@pytest.fixture
def make(rng):
    """Build trained modules and chains of them."""

    def tensor(*shape):
        return torch.from_numpy(rng.normal(size=shape) / np.sqrt(shape[-1])).float()

    def adapter(in_dim, out_dim, strength=0.75, writes="candidate_embedding", **options):
        result = ResidualAdapter(in_dim, out_dim, writes=writes, start=tensor(out_dim, in_dim), **options)
        result.strength.fill_(strength)
        with torch.no_grad():
            for part in result.parameters():
                part.copy_(tensor(*part.shape))
        return result

    def selection(in_dim, keep, offset=0, frozen=True):
        result = AdaptiveDimensionSelection(in_dim, keep, offset=offset, reads="candidate_embedding")
        result.set_importance(tensor(in_dim))
        if frozen:
            result.freeze()
        return result

    def shrink(sizes, **options):
        """As published: each stage reads the last one's outputs."""
        widths = [WIDTH, *sizes]
        chain = [EmbeddingInput(WIDTH)]
        for wide, narrow in zip(widths, sizes, strict=False):
            chain += [adapter(wide, wide, **options), selection(wide, narrow)]
        return chain

    def grow(sizes, options):
        """Each stage reads the source and adds columns, of twice as many candidates."""
        chain, have = [EmbeddingInput(WIDTH)], 0
        for size, settings in zip(sizes, options, strict=True):
            new = size - have
            chain += [adapter(WIDTH, 2 * new, reads="source_embedding", **settings), selection(2 * new, new, have)]
            have = size
        return chain

    return SimpleNamespace(adapter=adapter, selection=selection, shrink=shrink, grow=grow)


@torch.no_grad()
def assert_folds(modules, rng, layers):
    x = rng.normal(size=(40, WIDTH)).astype(np.float32)
    expected = nn.Sequential(*modules).eval()({"sentence_embedding": torch.from_numpy(x)})["sentence_embedding"]
    folded = fold(modules)
    assert len(folded.layers) == layers
    assert (folded.in_dim, folded.out_dim) == (WIDTH, expected.shape[1])
    got = folded(x)
    assert got.dtype == np.float32
    assert np.abs(got - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("sizes", [[5], [7, 3], [11, 6, 2]])
def test_fold_equals_a_linear_shrink_chain(make, rng, sizes):
    assert_folds(make.shrink(sizes), rng, layers=1)


@pytest.mark.parametrize("sizes", [[3], [3, 7], [2, 5, 6]])
def test_fold_equals_linear_grown_columns(make, rng, sizes):
    assert_folds(make.grow(sizes, [{}] * len(sizes)), rng, layers=1)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("sizes", [[3], [3, 7]])
def test_fold_equals_grown_columns_with_a_hidden_layer(make, rng, activation, sizes):
    chain = make.grow(sizes, [{"hidden_dim": 5, "activation": activation}] * len(sizes))
    assert_folds(chain, rng, layers=2)


@pytest.mark.parametrize("options", [[{"hidden_dim": 5}, {}], [{}, {"hidden_dim": 5}]], ids=["behind", "in front"])
def test_fold_equals_linear_columns_beside_hidden_ones(make, rng, options):
    assert_folds(make.grow([3, 7], options), rng, layers=2)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize(("sizes", "layers"), [([5], 2), ([7, 3], 3)])
def test_fold_equals_a_shrink_chain_with_hidden_layers(make, rng, activation, sizes, layers):
    assert_folds(make.shrink(sizes, hidden_dim=6, activation=activation), rng, layers)


def test_fold_equals_a_shrink_chain_of_two_activations(make, rng):
    first, second = make.shrink([12], hidden_dim=6), make.shrink([4], hidden_dim=5, activation="gelu")
    assert_folds(first + second[1:], rng, layers=3)


def test_fold_equals_linear_stages_around_a_hidden_layer(make, rng):
    around = make.shrink([12]), make.shrink([12], hidden_dim=6), make.shrink([4])
    assert_folds([around[0][0], *(module for chain in around for module in chain[1:])], rng, layers=2)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("hidden_outputs", [1, 4, 7])
def test_fold_equals_a_hidden_layer_beside_a_linear_map(make, rng, activation, hidden_outputs):
    options = {"hidden_dim": 9, "hidden_outputs": hidden_outputs, "activation": activation}
    adapter = make.adapter(WIDTH, 7, **options)
    assert_folds([EmbeddingInput(WIDTH), adapter, make.selection(7, 7)], rng, layers=2)
    behind = make.shrink([12]) + [adapter, make.selection(7, 4)]
    assert_folds(behind, rng, layers=2)
    grown = make.grow([3, 7], [{}, {**options, "hidden_outputs": 1}])
    assert_folds(grown, rng, layers=2)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_fold_takes_the_strength_in(make, rng, strength):
    assert_folds(make.shrink([7, 3], strength=strength, hidden_dim=4), rng, layers=3)


def test_fold_takes_an_adapter_that_writes_in_place(make, rng):
    assert_folds([EmbeddingInput(WIDTH), make.adapter(WIDTH, 5, writes="sentence_embedding")], rng, layers=1)


def test_fold_of_no_modules_is_the_identity(rng):
    assert_folds([EmbeddingInput(WIDTH)], rng, layers=1)


def test_fold_takes_a_selection_that_leaves_nothing_to_choose(make, rng):
    assert_folds([EmbeddingInput(WIDTH), make.adapter(WIDTH, 5), make.selection(5, 5, frozen=False)], rng, layers=1)


def test_fold_leaves_the_modules_as_they_are(make, rng):
    chain = nn.Sequential(*make.grow([3, 7], [{"hidden_dim": 5}] * 2))
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    fold(chain)
    for name, value in chain.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "options", [{}, {"hidden_dim": 5}, {"hidden_dim": 5, "hidden_outputs": 2}], ids=["linear", "hidden", "beside"]
)
@pytest.mark.parametrize("dim", [1, 3, 7])
def test_first_maps_to_the_first_outputs(make, rng, options, dim):
    folded = fold(make.grow([3, 7], [options] * 2))
    x = rng.normal(size=(9, WIDTH)).astype(np.float32)
    part = folded.first(dim)
    assert part.out_dim == dim
    np.testing.assert_allclose(part(x), folded(x)[:, :dim], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"hidden_dim": 5}], ids=["linear", "hidden"])
def test_after_a_linear_map_is_one_after_the_other(make, rng, options):
    folded = fold(make.grow([3, 7], [options] * 2))
    weight = rng.normal(size=(WIDTH, 20)).astype(np.float32)
    x = rng.normal(size=(9, 20)).astype(np.float32)
    joined = folded.after(weight)
    assert (joined.in_dim, len(joined.layers)) == (20, len(folded.layers))
    np.testing.assert_allclose(joined(x), folded(x @ weight.T), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(joined.first(3)(x), folded.first(3)(x @ weight.T), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 8])
def test_first_rejects_dims_out_of_range(dim):
    with pytest.raises(ValueError, match=rf"`dim` must be in \[1, 7\], got {dim}"):
        FoldedMap((Layer(np.ones((7, WIDTH), dtype=np.float32)),)).first(dim)


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        (lambda make: [], "starts with EmbeddingInput, got NoneType"),
        (lambda make: [make.adapter(WIDTH, 5)], "starts with EmbeddingInput, got ResidualAdapter"),
        (lambda make: [EmbeddingInput(WIDTH), nn.Linear(WIDTH, 5)], "Linear does not fold"),
        (
            lambda make: [EmbeddingInput(WIDTH), make.selection(WIDTH, 5, frozen=False)],
            "A selection must be frozen before it is folded",
        ),
        (
            lambda make: make.grow([3, 7], [{"hidden_dim": 5}, {"hidden_dim": 5, "activation": "silu"}]),
            "Only columns with one and the same hidden activation fold side by side",
        ),
        (
            lambda make: make.shrink([7, 5], hidden_dim=6) + make.grow([3], [{}])[1:],
            "Columns that read the source cannot follow a non-linear chain",
        ),
    ],
    ids=["empty", "no input", "other module", "not frozen", "two activations", "source behind non-linear"],
)
def test_fold_rejects_what_has_no_folded_form(make, modules, match):
    with pytest.raises(ValueError, match=match):
        fold(modules(make))

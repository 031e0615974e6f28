"""The three modules: what is learned, what is saved, and what no later change may touch."""

import numpy as np
import pytest
import torch
from torch import nn

from smec_st.functional import gumbel_noise, top_k_indices
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, LiveBackbone, ResidualAdapter

SELECTIONS = [
    {"in_dim": 8, "keep": 3, "reads": "source_embedding"},
    {"in_dim": 8, "keep": 3, "offset": 4, "reads": "candidate_embedding"},
    {"in_dim": 8, "keep": 8, "offset": 4, "reads": "candidate_embedding"},
]
ADAPTERS = [
    {"in_dim": 8, "out_dim": 8},
    {"in_dim": 8, "out_dim": 3, "hidden_dim": 5, "activation": "gelu"},
    {"in_dim": 8, "out_dim": 5, "hidden_dim": 4, "hidden_outputs": 2, "activation": "silu"},
    {"in_dim": 8, "out_dim": 5, "reads": "source_embedding", "writes": "candidate_embedding"},
]


@pytest.fixture
def x(rng):
    return torch.from_numpy(rng.normal(size=(6, 8)).astype(np.float32))


@pytest.fixture
def start(rng):
    return torch.from_numpy(rng.normal(size=(5, 8)).astype(np.float32))


def features_of(x):
    return {"sentence_embedding": x[:, :4], "candidate_embedding": x, "source_embedding": x.flip(0)}


def embed(module, x, key="sentence_embedding"):
    return module({"sentence_embedding": x})[key]


def trained(adapter):
    """Random learned weights in place of the zeros that training begins with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in adapter.parameters():
            part.copy_(torch.randn(part.shape, generator=generator))
    return adapter


def choosing(keep=3, **options):
    """A selection of 8 dimensions that prefers 6, 1, 4, in training mode."""
    selection = AdaptiveDimensionSelection(8, keep, **options)
    selection.set_importance(torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 3.0, 0.0]))
    return selection.train()


# -- file format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "path"),
    [
        (EmbeddingInput, "smec_st.modules.embedding_input.EmbeddingInput"),
        (ResidualAdapter, "smec_st.modules.adapter.ResidualAdapter"),
        (AdaptiveDimensionSelection, "smec_st.modules.selection.AdaptiveDimensionSelection"),
        (LiveBackbone, "smec_st.modules.live_backbone.LiveBackbone"),
    ],
)
def test_modules_stay_at_the_path_written_into_saved_models(cls, path):
    assert f"{cls.__module__}.{cls.__qualname__}" == path


def test_embedding_input_loads_what_it_saved(tmp_path):
    EmbeddingInput(8).save(str(tmp_path))
    assert EmbeddingInput.load(str(tmp_path)).get_config_dict() == {"dim": 8}
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("config", ADAPTERS)
def test_residual_adapter_loads_what_it_saved(tmp_path, x, rng, config):
    shape = (config["out_dim"], config["in_dim"])
    adapter = trained(ResidualAdapter(**config, start=torch.from_numpy(rng.normal(size=shape)).float()))
    adapter.strength.fill_(0.5)
    adapter.save(str(tmp_path))
    loaded = ResidualAdapter.load(str(tmp_path))
    assert loaded.get_config_dict() == adapter.get_config_dict()
    assert torch.equal(embed(loaded, x, adapter.writes), embed(adapter, x, adapter.writes))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("config", SELECTIONS)
@pytest.mark.parametrize("freeze", [True, False])
def test_selection_loads_what_it_saved(tmp_path, x, config, freeze):
    selection = AdaptiveDimensionSelection(**config)
    selection.set_importance(torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 3.0, 0.0]))
    if freeze:
        selection.freeze()
    selection.eval().save(str(tmp_path))
    loaded = AdaptiveDimensionSelection.load(str(tmp_path)).eval()
    assert loaded.get_config_dict() == selection.get_config_dict()
    assert loaded.frozen is freeze
    assert loaded.logits.requires_grad is not freeze
    got, expected = loaded(features_of(x)), selection(features_of(x))
    assert torch.equal(got["sentence_embedding"], expected["sentence_embedding"])


@pytest.mark.parametrize("module", [ResidualAdapter(4, 4), AdaptiveDimensionSelection(4, 2)])
def test_modules_refuse_to_load_without_safetensors(tmp_path, module):
    module.save(str(tmp_path))
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model.safetensors"):
        type(module).load(str(tmp_path))


# -- embedding input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [list, np.asarray, torch.from_numpy, lambda rows: [torch.from_numpy(r) for r in rows]]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_embedding_input_stacks_rows_as_float32(rng, kind, dtype):
    rows = rng.normal(size=(3, 8)).astype(dtype)
    got = EmbeddingInput(8).preprocess(kind(rows))["sentence_embedding"]
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), rows.astype(np.float32))


def test_embedding_input_passes_on_a_new_dict(x):
    given = {"sentence_embedding": x}
    passed = EmbeddingInput(8)(given)
    passed["source_embedding"] = x
    assert list(given) == ["sentence_embedding"]
    assert passed["sentence_embedding"] is x


@pytest.mark.parametrize(("shape", "got"), [((3, 7), r"\(3, 7\)"), ((8,), r"\(8,\)"), ((1, 3, 8), r"\(1, 3, 8\)")])
def test_embedding_input_rejects_another_width(shape, got):
    with pytest.raises(ValueError, match=f"Vectors must be 8 wide, got an input of shape {got}"):
        EmbeddingInput(8).preprocess(torch.ones(shape))


# -- adapter ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_dim", [None, 6])
def test_residual_adapter_begins_as_its_start(x, start, hidden_dim):
    adapter = ResidualAdapter(8, 5, hidden_dim=hidden_dim, start=start)
    torch.testing.assert_close(embed(adapter, x), x @ start.T)


def test_residual_adapter_begins_as_the_identity(x):
    assert torch.equal(embed(ResidualAdapter(8, 8), x), x)


@pytest.mark.parametrize("hidden_dim", [None, 6])
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_residual_adapter_strength_walks_from_start_to_result(x, start, hidden_dim, strength):
    adapter = trained(ResidualAdapter(8, 5, hidden_dim=hidden_dim, start=start))
    result = embed(adapter, x)
    adapter.strength.fill_(strength)
    torch.testing.assert_close(embed(adapter, x), torch.lerp(x @ start.T, result, strength))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_residual_adapter_equals_its_formula(x, start, activation):
    adapter = trained(ResidualAdapter(8, 5, hidden_dim=6, activation=activation, start=start))
    hidden = getattr(nn.functional, activation)(x @ adapter.hidden.weight.T)
    torch.testing.assert_close(embed(adapter, x), x @ start.T + hidden @ adapter.residual.weight.T / 6**0.5)


def test_residual_adapter_reads_the_source_however_far_behind(x, start):
    first = ResidualAdapter(8, 5, start=start)
    second = ResidualAdapter(8, 5, reads="source_embedding", writes="candidate_embedding", start=2 * start)
    features = second(first({"sentence_embedding": x}))
    torch.testing.assert_close(features["candidate_embedding"], 2 * x @ start.T)
    torch.testing.assert_close(features["sentence_embedding"], x @ start.T)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("hidden_outputs", [1, 2, 5])
def test_a_hidden_layer_for_the_first_outputs_adds_to_those_alone(x, start, activation, hidden_outputs):
    adapter = ResidualAdapter(8, 5, hidden_dim=6, hidden_outputs=hidden_outputs, activation=activation, start=start)
    torch.testing.assert_close(embed(adapter, x), x @ start.T)
    trained(adapter).strength.fill_(0.5)
    hidden = getattr(nn.functional, activation)(x @ adapter.hidden.weight.T)
    expected = x @ (start + adapter.residual.weight / 2).T
    expected[:, :hidden_outputs] += hidden @ adapter.narrow.weight.T / 6**0.5 / 2
    torch.testing.assert_close(embed(adapter, x), expected)
    assert adapter.has_linear_part


def test_a_hidden_layer_beside_a_linear_map_begins_at_zero_and_both_learn(x, start):
    adapter = ResidualAdapter(8, 5, hidden_dim=6, hidden_outputs=2, start=start)
    names = ["hidden.weight", "narrow.weight", "residual.weight"]
    assert sorted(name for name, _ in adapter.named_parameters()) == names
    embed(adapter, x).square().sum().backward()
    assert adapter.residual.weight.grad.abs().max() > 0
    assert adapter.narrow.weight.grad.abs().max() > 0
    assert adapter.narrow.weight.shape == (2, 6)


@pytest.mark.parametrize("hidden_outputs", [None, 2])
def test_an_adapter_knows_whether_its_hidden_layer_adds_anything(hidden_outputs):
    adapter = ResidualAdapter(8, 5, hidden_dim=6, hidden_outputs=hidden_outputs)
    assert not adapter.is_at_start  # it is about to learn
    assert adapter.requires_grad_(False).is_at_start
    trained(adapter)
    assert not adapter.is_at_start
    adapter.strength.fill_(0.0)
    assert adapter.is_at_start


def test_hidden_layers_are_drawn_by_their_seed_alone():
    first, second = (ResidualAdapter(8, 5, hidden_dim=2000) for _ in range(2))
    first.draw_hidden(3)
    assert not torch.equal(first.hidden.weight, second.hidden.weight)
    second.draw_hidden(3)
    assert torch.equal(first.hidden.weight, second.hidden.weight)
    assert first.hidden.weight.std().item() == pytest.approx(1, abs=0.03)
    second.draw_hidden(4)
    assert not torch.equal(first.hidden.weight, second.hidden.weight)
    ResidualAdapter(8, 5).draw_hidden(3)  # nothing to draw


def test_orthonormalize_gives_the_rows_of_gram_and_schmidt(start):
    adapter = trained(ResidualAdapter(8, 5, start=start))
    before = adapter.linear_map().detach().double()
    expected = []
    for row in before:
        for other in expected:
            row = row - (row @ other) * other
        expected.append(row / row.norm())
    adapter.orthonormalize()
    torch.testing.assert_close(adapter.linear_map().double(), torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(adapter.start, start)
    again = adapter.linear_map().detach().clone()
    adapter.orthonormalize()
    torch.testing.assert_close(adapter.linear_map(), again, atol=1e-6, rtol=0)


def test_residual_adapter_trains_only_its_residual(x, start):
    adapter = ResidualAdapter(8, 5, hidden_dim=6, start=start)
    assert sorted(name for name, _ in adapter.named_parameters()) == ["hidden.weight", "residual.weight"]
    embed(adapter, x).square().sum().backward()
    assert adapter.residual.weight.grad.abs().max() > 0


@pytest.mark.parametrize("hidden_dim", [None, 6])
@pytest.mark.parametrize("trainable", [True, False])
def test_keep_outputs_drops_all_others(x, start, hidden_dim, trainable):
    adapter = trained(ResidualAdapter(8, 5, hidden_dim=hidden_dim, start=start)).requires_grad_(trainable)
    expected = embed(adapter, x)[:, [4, 1]]
    adapter.keep_outputs(torch.tensor([4, 1]))
    torch.testing.assert_close(embed(adapter, x), expected)
    assert adapter.get_embedding_dimension() == adapter.get_config_dict()["out_dim"] == 2
    assert adapter.residual.weight.requires_grad is trainable


def test_linear_map_is_what_a_linear_adapter_applies(x, start):
    adapter = trained(ResidualAdapter(8, 5, start=start))
    adapter.strength.fill_(0.5)
    torch.testing.assert_close(embed(adapter, x), x @ adapter.linear_map().T)


@pytest.mark.parametrize("hidden_outputs", [None, 3])
def test_linear_map_rejects_an_adapter_with_a_hidden_layer(hidden_outputs):
    with pytest.raises(ValueError, match="An adapter with a hidden layer is no linear map"):
        ResidualAdapter(4, 4, hidden_dim=2, hidden_outputs=hidden_outputs).linear_map()


def test_linear_part_is_what_an_adapter_applies_beside_its_hidden_layer(x, start):
    mixed = trained(ResidualAdapter(8, 5, hidden_dim=6, hidden_outputs=2, start=start))
    torch.testing.assert_close(embed(mixed, x)[:, 2:], (x @ mixed.linear_part().T)[:, 2:])
    replaced = trained(ResidualAdapter(8, 5, hidden_dim=6, start=start))
    assert torch.equal(replaced.linear_part(), start)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"in_dim": 0}, "`in_dim` and `out_dim` must be at least 1, got 0 and 4"),
        ({"activation": "tanh"}, "`activation` must be one of relu, gelu, silu, got 'tanh'"),
        ({"hidden_dim": 0}, "`hidden_dim` must be at least 1, or None for a linear map; got 0"),
        ({"hidden_outputs": 2}, r"`hidden_outputs` must be in \[1, 4\] of a hidden layer, got 2"),
        ({"hidden_dim": 3, "hidden_outputs": 5}, r"`hidden_outputs` must be in \[1, 4\] of a hidden layer, got 5"),
        ({"start": torch.ones(8, 4)}, r"`start` must be \(4, 8\), got \(8, 4\)"),
    ],
)
def test_residual_adapter_rejects_bad_settings(options, match):
    with pytest.raises(ValueError, match=match):
        ResidualAdapter(**({"in_dim": 8, "out_dim": 4} | options))


# -- selection --------------------------------------------------------------------------------------------------------


def test_selection_chooses_once_per_draw(x):
    selection = choosing()
    selection.draw(0, 1, 2, tau=0.5, noise_scale=3.0)
    anchors, documents = embed(selection, x), embed(selection, x + 1)
    torch.testing.assert_close(documents, anchors + 1)
    assert torch.equal(embed(selection, x), anchors)


def test_selection_draw_depends_on_its_seed_alone(x):
    one, other = choosing(), choosing()
    one.draw(0, 1, 2, tau=1.0, noise_scale=2.0)
    other.draw(5, tau=1.0)
    other.draw(0, 1, 2, tau=1.0, noise_scale=2.0)
    assert torch.equal(one.noise, other.noise)
    assert torch.equal(one.noise, 2 * gumbel_noise(8, 0, 1, 2))
    other.draw(0, 1, 3, tau=1.0)
    assert not torch.equal(one.noise, other.noise)


def test_selection_keeps_the_top_of_logits_plus_noise_while_training(x):
    selection = choosing()
    selection.draw(3, tau=0.5, noise_scale=3.0)
    expected = top_k_indices(selection.logits.detach() + selection.noise, 3)
    assert expected.tolist() != [1, 4, 6]  # the noise matters
    torch.testing.assert_close(embed(selection, x), x[:, expected])


def test_selection_uses_logits_only_when_not_training(x):
    selection = choosing()
    selection.draw(3, tau=0.5, noise_scale=100.0)
    assert torch.equal(embed(selection.eval(), x), x[:, [1, 4, 6]])


def test_selection_uses_logits_only_when_they_do_not_train(x):
    selection = choosing().requires_grad_(False)
    selection.draw(3, tau=0.5, noise_scale=100.0)
    assert torch.equal(embed(selection, x), x[:, [1, 4, 6]])


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_selection_gradient_reaches_all_logits(x, tau):
    selection = choosing()
    selection.draw(3, tau=tau)
    embed(selection, x)[:, 0].sum().backward()
    assert selection.logits.grad.isfinite().all()
    assert (selection.logits.grad != 0).all()


@pytest.mark.parametrize("offset", [0, 4])
def test_selection_replaces_or_appends(x, offset):
    selection = choosing(offset=offset, reads="candidate_embedding").eval()
    got = selection(features_of(x))["sentence_embedding"]
    assert torch.equal(got, torch.cat([x[:, :offset], x[:, [1, 4, 6]]], dim=1))
    assert selection.get_embedding_dimension() == got.shape[1]


def test_selection_passes_everything_when_there_is_nothing_to_choose(x):
    selection = choosing(keep=8)
    selection.draw(1, tau=0.1, noise_scale=10.0)
    assert torch.equal(embed(selection, x), x)


@pytest.mark.parametrize("training", [True, False])
def test_freeze_outlives_later_changes_of_the_logits(x, training):
    selection = choosing()
    selection.draw(3, tau=0.5, noise_scale=100.0)
    assert selection.freeze().tolist() == [1, 4, 6]
    selection.set_importance(torch.arange(8.0))
    assert selection.freeze().tolist() == [1, 4, 6]
    assert torch.equal(embed(selection.train(training), x), x[:, [1, 4, 6]])
    assert not selection.logits.requires_grad


def test_freeze_outlives_half_precision(x):
    selection = AdaptiveDimensionSelection(8, 3)
    selection.set_importance(1.0 + torch.tensor([0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 4.0, 1.0]) * 1e-5)
    selection.freeze()
    assert torch.equal(embed(selection.half(), x.half()), x.half()[:, [1, 4, 6]])
    assert selection.indices.dtype == torch.int64


def test_selection_is_the_same_under_bfloat16_autocast(x):
    selection = choosing()
    selection.set_importance(1.0 + torch.tensor([0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 4.0, 1.0]) * 1e-4)
    selection.draw(3, tau=0.5, noise_scale=1e-5)  # differences that bfloat16 cannot hold
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = embed(selection, x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, x.bfloat16()[:, [1, 4, 6]])
    got.float().sum().backward()
    assert selection.logits.grad.dtype == torch.float32
    assert selection.logits.grad.isfinite().all()


def test_renumber_goes_with_keep_outputs(x, start):
    adapter = trained(ResidualAdapter(8, 5, start=start, writes="candidate_embedding"))
    selection = AdaptiveDimensionSelection(5, 2, reads="candidate_embedding")
    selection.set_importance(torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0]))
    chain = nn.Sequential(adapter, selection).eval()
    expected = embed(chain, x)
    adapter.keep_outputs(selection.freeze())
    selection.renumber()
    torch.testing.assert_close(embed(chain, x), expected)
    assert selection.is_trivial
    assert selection.indices.tolist() == [0, 1]
    assert selection.get_config_dict()["in_dim"] == 2


@pytest.mark.parametrize("keep", [0, 9])
def test_selection_rejects_keep_out_of_range(keep):
    with pytest.raises(ValueError, match=rf"`keep` must be in \[1, 8\], got {keep}"):
        AdaptiveDimensionSelection(8, keep)


def test_embedding_input_rejects_width_below_one():
    with pytest.raises(ValueError, match="`dim` must be at least 1, got 0"):
        EmbeddingInput(0)

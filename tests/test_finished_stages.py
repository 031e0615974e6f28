"""What finished stages give is remembered with the rows of the memory; the loss and its gradients stay the same."""

# ruff: noqa: F811 -- fixtures of the other file

import pytest
import torch
from torch import nn

from loss_world import BATCH, DOCUMENTS, WIDTH, batch_of, qrels, relevance, table  # noqa: F401
from smec_st.losses import SMECLoss
from smec_st.memory import SelectableCrossBatchMemory
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter


def two_stages(order, hidden=24):
    """A finished stage with a hidden layer, and one that trains: behind it (shrink) or beside it (grow)."""
    torch.manual_seed(0)
    reads, have, width = ("source_embedding", 4, WIDTH) if order == "grow" else ("sentence_embedding", 0, 4)
    modules = [EmbeddingInput(WIDTH)]
    for in_dim, offset, inside in ((WIDTH, 0, hidden), (width, have, None)):
        start = torch.randn(4, in_dim)
        adapter = ResidualAdapter(in_dim, 4, inside, reads=reads, writes="candidate_embedding", start=start)
        nn.init.normal_(adapter.residual.weight, std=0.3)
        selection = AdaptiveDimensionSelection(4, 4, offset=offset, reads="candidate_embedding")
        selection.freeze()
        modules += [adapter, selection]
    model = nn.Sequential(*modules).requires_grad_(False)
    model[3].requires_grad_(True)
    return model


@pytest.mark.parametrize("order", ["grow", "shrink"])
@pytest.mark.parametrize(
    ("capacity", "has_table", "judged"),
    [(DOCUMENTS, True, True), (9, True, True), (9, True, False), (9, False, True), (None, True, True)],
    ids=["all", "stream", "no labels", "pushed", "no memory"],
)
def test_what_finished_stages_give_is_remembered_and_changes_nothing(
    table, relevance, order, capacity, has_table, judged
):
    def trained(remember):
        model = two_stages(order)
        memory = None if capacity is None else SelectableCrossBatchMemory(WIDTH, capacity)
        rows = table if has_table else None
        loss = SMECLoss(model, rows, relevance if judged else None, memory, random_rows=7, top_k=2, shadow_share=0.5)
        for module in model[1:3]:
            module.is_finished = remember
        seen = []
        model[1].hidden.register_forward_hook(lambda _, args, out: seen.append(len(out)))
        loss.begin_stage(1, model[3], finished=model[1:3] if remember else ())
        terms = []
        for step in range(3):
            seen.clear()
            loss.begin_step(1, step)
            terms.append(loss(*batch_of(table, *(BATCH if judged else BATCH[:1]))))
            sum(terms[-1].values()).backward()
        return terms, model[3].residual.weight.grad, sum(seen)

    (known, gradient, few), (plain, expected, many) = trained(True), trained(False)
    torch.testing.assert_close(known, plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0
    assert few < many or capacity != DOCUMENTS  # rows that move through a smaller memory are computed as they come


def test_finished_stages_without_a_hidden_layer_are_not_remembered(table, relevance):
    model, memory = two_stages("grow", hidden=None), SelectableCrossBatchMemory(WIDTH, DOCUMENTS)
    loss = SMECLoss(model, table, relevance, memory)
    loss.begin_stage(1, model[3], finished=model[1:3])
    assert memory.finished.shape == (DOCUMENTS, 0)

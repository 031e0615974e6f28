"""Make the modules that a stage trains, with the weights that they begin from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smec_st.data import Table
from smec_st.functional import leftover_axes
from smec_st.modules import AdaptiveDimensionSelection, ResidualAdapter
from smec_st.stages import NARROW_HIDDEN, Stage
from smec_st.training.arguments import SequentialTrainingArguments
from smec_st.training.moments import corpus_moments


def new_modules(
    stage: Stage,
    args: SequentialTrainingArguments,
    table: Table,
    finished: Sequence[nn.Module],
    *,
    ranks: bool,
    adapter: ResidualAdapter | None = None,
) -> tuple[ResidualAdapter, AdaptiveDimensionSelection]:
    """Make the adapter and the selection of a stage.

    Args:
        stage: The stage that begins.
        args: Settings of the run.
        table: What the stage reads.
        finished: Modules of the stages before, without the first module of the model.
        ranks: Whether this run trains on judgements; only then do the smallest sizes get a hidden layer.
        adapter: An adapter that is there already; None to make one.
    """
    from_axes = args.start == "principal"
    adapter = adapter or _new_adapter(stage, args, table, finished, ranks)
    selection = AdaptiveDimensionSelection(
        adapter.out_dim, stage.new_dims, offset=stage.have, reads="candidate_embedding"
    )
    if from_axes:  # the axes come by descending variance: begin with the first
        selection.set_importance(torch.linspace(1.0, 0.0, adapter.out_dim))
    return adapter, selection


def _new_adapter(
    stage: Stage, args: SequentialTrainingArguments, table: Table, finished: Sequence[nn.Module], ranks: bool
) -> ResidualAdapter:
    is_adapt, from_axes = stage.phase == "adapt", args.start == "principal"
    hidden_dim, hidden_outputs = (None, None) if is_adapt else _hidden_layer(stage, args, table.width, ranks)
    adapter = ResidualAdapter(
        stage.in_dim,
        stage.candidates,
        hidden_dim=hidden_dim,
        hidden_outputs=hidden_outputs,
        activation=args.activation,
        reads="source_embedding" if stage.have else "sentence_embedding",
        writes="candidate_embedding",
        start=principal_axes(stage, table, finished) if from_axes and not is_adapt else None,
    )
    adapter.draw_hidden(args.seed * 1009 + stage.index)  # wherever a run is continued
    return adapter


def _hidden_layer(
    stage: Stage, args: SequentialTrainingArguments, width: int, ranks: bool
) -> tuple[int | None, int | None]:
    """Return the width of a new adapter's hidden layer, and how many outputs get it; see :class:`ResidualAdapter`."""
    narrow = [size for size in stage.sizes if size <= NARROW_HIDDEN * width]
    wanted = args.narrow_hidden_dim and stage.phase == "compress" and stage.have == 0 and ranks
    if args.hidden_dim or not (wanted and narrow):
        return args.hidden_dim, None
    return args.narrow_hidden_dim, narrow[-1]


def principal_axes(stage: Stage, table: Table, finished: Sequence[nn.Module]) -> Tensor:
    """Return the axes that a stage begins from, by descending variance, ``(candidates, in_dim)``.

    In ``grow`` those of what the frozen columns leave over; the direction of the mean, which tells documents apart
    least, comes last.
    """
    mean, moment = corpus_moments(table)
    if stage.order == "shrink":
        linear = linear_map(finished, table.width)
        moment = linear.double() @ moment @ linear.double().T
        return leftover_axes(moment, linear[:0, :0].reshape(0, stage.in_dim), stage.in_dim)
    frozen = linear_map(finished, table.width)[: stage.have] if stage.have else torch.zeros(0, stage.in_dim)
    return leftover_axes(moment, frozen, stage.candidates, mean)


def linear_map(finished: Sequence[nn.Module], width: int) -> Tensor:
    """Return the directions of the frozen columns, ``(m, D)``; of non-linear adapters, those of their linear part."""
    rows = torch.eye(width)
    for module in finished:
        if isinstance(module, ResidualAdapter):
            direct = module.linear_part().detach().cpu()
            candidates = direct if module.reads == "source_embedding" else direct @ rows
        elif isinstance(module, AdaptiveDimensionSelection):
            kept = candidates[module.indices.cpu()]
            rows = torch.cat([rows, kept]) if module.offset else kept
    return rows

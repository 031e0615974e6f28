"""Fold a chain of adapters and selections into the fewest dense layers, exactly (to float32 rounding).

A linear chain becomes one matrix. A residual adapter with one hidden layer becomes two, because the activations
allowed satisfy ``a(z) - a(-z) = z``: ``L x + U a(V x) = [U, I, -I] a([V; L; -L] x)``. All algebra is done in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from smec_st.maps import FoldedMap, Layer
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter

__all__ = ["FoldedMap", "Layer", "fold"]


@dataclass(frozen=True)
class _Form:
    """``sentence_embedding`` as ``L h + U a(V h)`` of ``h``, the output of the layers already written down."""

    linear: Tensor
    up: Tensor
    down: Tensor
    activation: str | None = None
    layers: tuple[Layer, ...] = ()

    @classmethod
    def of(cls, linear: Tensor, layers: tuple[Layer, ...] = ()) -> _Form:
        """A form without a hidden layer."""
        rows, columns = linear.shape
        return cls(linear, linear.new_zeros(rows, 0), linear.new_zeros(0, columns), layers=layers)

    def read_source(self) -> _Form:
        if self.layers:
            raise ValueError("Columns that read the source cannot follow a non-linear chain; fold them apart.")
        return _identity(self.linear.shape[1])

    def adapt(self, adapter: ResidualAdapter) -> _Form:
        direct = adapter.start.detach().double().cpu()
        if adapter.has_linear_part:
            direct = direct + adapter.strength.double().cpu() * adapter.residual.weight.detach().double().cpu()
        if adapter.hidden is None:
            return replace(self, linear=direct @ self.linear, up=direct @ self.up)
        form = self._written_down() if len(self.down) else self
        weight = (adapter.residual if adapter.narrow is None else adapter.narrow).weight.detach().double().cpu()
        up = torch.zeros(len(direct), weight.shape[1], dtype=torch.float64)
        up[: len(weight)] = adapter.scale * adapter.strength.double().cpu() * weight
        down = adapter.hidden.weight.detach().double().cpu() @ form.linear
        return _Form(direct @ form.linear, up, down, adapter.activation, form.layers)

    def select(self, indices: Tensor) -> _Form:
        return replace(self, linear=self.linear[indices], up=self.up[indices])

    def append(self, other: _Form) -> _Form:
        if self.layers or other.layers or len({self.activation, other.activation} - {None}) > 1:
            raise ValueError("Only columns with one and the same hidden activation fold side by side.")
        return _Form(
            torch.cat([self.linear, other.linear]),
            torch.block_diag(self.up, other.up),
            torch.cat([self.down, other.down]),
            self.activation or other.activation,
        )

    def finish(self) -> FoldedMap:
        form = self._written_down() if len(self.down) else self
        return FoldedMap((*form.layers, Layer(form.linear.float().numpy())))

    def _written_down(self) -> _Form:
        wide = torch.cat([self.down, self.linear, -self.linear])
        one = torch.eye(len(self.linear), dtype=torch.float64)
        layers = (*self.layers, Layer(wide.float().numpy(), self.activation))
        return _Form.of(torch.cat([self.up, one, -one], dim=1), layers)


def _identity(width: int) -> _Form:
    return _Form.of(torch.eye(width, dtype=torch.float64))


def _read(key: str, current: _Form, named: dict[str, _Form]) -> _Form:
    if key == "sentence_embedding":
        return current
    if key == "source_embedding":
        return current.read_source()
    if key not in named:
        raise ValueError(f"A module reads {key!r}, which no module before it writes.")
    return named[key]


def fold(modules: Iterable[nn.Module]) -> FoldedMap:
    """Fold a compressor model's modules, the input module included.

    Args:
        modules: :class:`~smec_st.modules.EmbeddingInput`, then adapters and selections in turn.

    Returns:
        The same function, up to float32 rounding.

    Raises:
        ValueError: If a module is of another kind, or the chain has no such form.
    """
    iterator = iter(modules)
    first = next(iterator, None)
    if not isinstance(first, EmbeddingInput):
        raise ValueError(f"A compressor model starts with EmbeddingInput, got {type(first).__name__}.")
    current = _identity(first.dim)
    named: dict[str, _Form] = {}
    for module in iterator:
        if isinstance(module, ResidualAdapter):
            result = _read(module.reads, current, named).adapt(module)
        elif isinstance(module, AdaptiveDimensionSelection):
            if not (module.frozen or module.is_trivial):
                raise ValueError("A selection must be frozen before it is folded.")
            result = _read(module.reads, current, named).select(module.indices.cpu())
            if module.offset:
                result = current.append(result)
        else:
            raise ValueError(f"{type(module).__name__} does not fold.")
        writes = module.writes if isinstance(module, ResidualAdapter) else "sentence_embedding"
        if writes == "sentence_embedding":
            current = result
        else:
            named[writes] = result
    return current.finish()


def fold_adapter(adapter: ResidualAdapter) -> FoldedMap:
    """Fold one adapter, all outputs of which are kept."""
    everything = AdaptiveDimensionSelection(adapter.out_dim, adapter.out_dim, reads=adapter.writes, frozen=True)
    return fold([EmbeddingInput(adapter.in_dim), adapter, everything])

"""Rounding that a gradient passes: rows as a codec stores them, for training a map or a backbone through it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.functional import unit
from smec_st.losses.ranks import total, world_size
from smec_st.quantization.codecs import Binary, Codec, Int8, Product, make_codec

#: Share of the past in the moving averages that ranges and centroids follow a training map by: 20 steps of memory.
MOMENTUM = 0.95
NEVER_CHOSEN = 1e-8  # share of the rows below which a centroid stays where it is


class Rounding(nn.Module):
    """Rounds rows as a codec does and passes the gradient straight through (Bengio et al., 2013).

    Centroids and ranges are parameters. Either an optimizer trains them, or :meth:`follow` keeps them where the rows
    are while a map trains; for the latter call ``requires_grad_(False)``.

    Args:
        codec: Int8, binary or product codes, without a rotation of its own.
        rotation: Orthogonal matrix ``(d, d)`` applied as ``rows @ rotation`` before the rounding and undone after it;
            None for none.
    """

    rotation: Tensor | None
    shares: Tensor  # of the rows that chose each centroid, (m, c); of product codes alone

    def __init__(self, codec: Codec, rotation: np.ndarray | None = None) -> None:
        super().__init__()
        self.codec = codec
        self.dim = codec.dim
        own = {name: nn.Parameter(torch.from_numpy(np.array(tensor))) for name, tensor in codec.tensors().items()}
        self.trained = nn.ParameterDict(own)
        self.register_buffer("rotation", None if rotation is None else torch.from_numpy(np.array(rotation)))
        if isinstance(codec, Product):
            self.register_buffer("shares", torch.full(codec.centroids.shape[:2], 1 / codec.centroids.shape[1]))

    def forward(self, rows: Tensor) -> Tensor:
        """Decode what the first ``d`` numbers of each row are stored as. ``(n, at least d) -> (n, d)``.

        In training mode, frozen parameters follow the rows.
        """
        rows = unit(rows[:, : self.dim])
        turned = rows if self.rotation is None else rows @ self.rotation
        if self.training and not any(parameter.requires_grad for parameter in self.parameters()):
            self.follow(turned.detach())  # before they are read: a gradient needs them as they were
        decoded = self.decoded(turned)
        return decoded if self.rotation is None else decoded @ self.rotation.T

    def decoded(self, rows: Tensor) -> Tensor:
        """Round rows of length 1 that are rotated already. ``(n, d) -> (n, d)``."""
        if isinstance(self.codec, Binary):
            signs = torch.where(rows > 0, 1.0, -1.0) / rows.shape[1] ** 0.5
            return _straight(rows, signs)
        if isinstance(self.codec, Int8):
            low, step = self.trained["low"], self.trained["step"]
            place = ((rows - low) / step).clamp(0, 255)
            values: Tensor = low + _straight(place, place.detach().round()) * step
            return values
        centroids = self.trained["centroids"]  # (m, c, s)
        groups = torch.arange(len(centroids), device=rows.device).unsqueeze(1)
        chosen: Tensor = centroids[groups, self._nearest(rows)]  # (m, n, s)
        return chosen.transpose(0, 1).reshape_as(rows) + rows - rows.detach()

    @torch.no_grad()
    def follow(self, rows: Tensor) -> None:
        """Move ranges to the extremes and centroids to the means of these rows, by moving averages.

        Args:
            rows: Rotated rows of length 1, ``(n, d)``.

        Reference:
            van den Oord et al., Neural Discrete Representation Learning, 2017, appendix A.1.
        """
        if isinstance(self.codec, Int8):
            low, step = self.trained["low"], self.trained["step"]
            least, most = _mean_over_ranks(rows.amin(dim=0)), _mean_over_ranks(rows.amax(dim=0))
            low.lerp_(least, 1 - MOMENTUM)
            step.lerp_((most - least) / 255, 1 - MOMENTUM).clamp_(min=1e-9)
        elif isinstance(self.codec, Product):
            centroids = self.trained["centroids"]
            codes = self._nearest(rows)  # (m, n)
            counts = torch.zeros_like(self.shares).scatter_add_(1, codes, rows.new_ones(codes.shape))
            index = codes.unsqueeze(2).expand(-1, -1, centroids.shape[2])
            sums = torch.zeros_like(centroids).scatter_add_(1, index, self._groups(rows).contiguous())
            past, weight = MOMENTUM * self.shares, (1 - MOMENTUM) / len(rows)
            self.shares.copy_(past + weight * _mean_over_ranks(counts))
            shares = self.shares.unsqueeze(2)
            moved = (past.unsqueeze(2) * centroids + weight * _mean_over_ranks(sums)) / shares
            centroids.copy_(torch.where(shares > NEVER_CHOSEN, moved, centroids))

    def finished(self) -> Codec:
        """The codec with what its tensors have become."""
        learned = {name: tensor.detach().numpy().copy() for name, tensor in self.trained.items()}
        if "step" in learned:
            learned["step"] = np.maximum(learned["step"], np.float32(1e-9))
        return self.codec if isinstance(self.codec, Binary) else make_codec(self.codec.precision, self.dim, learned)

    def _groups(self, rows: Tensor) -> Tensor:
        """``(n, d) -> (m, n, d / m)``."""
        return rows.view(len(rows), *self.trained["centroids"].shape[::2]).transpose(0, 1)

    @torch.no_grad()
    def _nearest(self, rows: Tensor) -> Tensor:
        """The number of each group's nearest centroid, ``(m, n)``."""
        centroids = self.trained["centroids"]
        half = centroids.square().sum(2) / 2  # (m, c)
        groups = zip(half, self._groups(rows), centroids, strict=True)  # one by one they stay in the cache
        return torch.stack([torch.addmm(-less, part, own.T).argmax(dim=1) for less, part, own in groups])


def _mean_over_ranks(found: Tensor) -> Tensor:
    """Ranks round alike up to the last digit; their centroids must be the same to it."""
    return total(found) / world_size()


class _Straight(torch.autograd.Function):
    """The rounded value, with the gradient of the unrounded one."""

    @staticmethod
    def forward(ctx: object, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _straight(exact: Tensor, rounded: Tensor) -> Tensor:
    result: Tensor = _Straight.apply(exact, rounded)
    return result

"""All sizes of a nested map in one pass, with the gradient in closed form.

Autograd would keep a dozen ``(rows, pool)`` matrices per size and walk over each of them several times. The gradient
of both terms with respect to a cosine is short enough to be written down, so each size needs two buffers and a handful
of passes. ``tests/losses/test_nested_loss.py`` holds it to autograd over the plain formulas in
:mod:`smec_st.functional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-12  # of squared lengths, so that a row of zeros has a direction


@dataclass(frozen=True)
class Comparison:
    """What the rows of a step should find in the pool. ``n`` rows, ``C`` candidates, ``P`` relevant pairs.

    Rows that are ranked come first.

    Attributes:
        sizes: Sizes whose losses are summed, ascending.
        tau: Temperature of the contrastive term, before its learned factors.
        ranked: Number of rows that are ranked.
        pairs: Row and candidate of each relevant pair, ``(P,)`` each.
        pair_weights: Weight of each pair, ``(P,)``.
        taus: Temperature of the KL term by size.
        targets: Full-width neighbourhoods by size: ``row_weights`` times a softmax, ``(n, C)``.
        entropies: Weighted sum of the targets' ``t log t`` by size, a scalar each.
        row_weights: Weight of each row's KL term, ``(n,)``.
        same: Row and candidate where both are the same item, which takes no part, ``(s,)`` each.
        prefix_gradient: Share of a size's gradient that reaches the columns of the smaller sizes.
    """

    sizes: Sequence[int]
    tau: float
    ranked: int
    pairs: tuple[Tensor, Tensor]
    pair_weights: Tensor
    taus: Sequence[float]
    targets: Sequence[Tensor]
    entropies: Sequence[Tensor]
    row_weights: Tensor
    same: tuple[Tensor, Tensor]
    prefix_gradient: float = 0.0


def nested_loss(left: Tensor, right: Tensor, log_scale: Tensor, want: Comparison) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the contrastive and the KL term over all sizes; each size's loss moves only the columns that it adds.

    With ``m'`` the next smaller size, the cosine at size ``m`` is ``(s + a.p) / (|.| |.|)``, where ``s``, and the part
    of the squared lengths that comes from the first ``m'`` columns, are constants. So sizes that are smaller are
    frozen for those that are larger, as in SMRL, without a pass of their own; and as products are summed block by
    block, all sizes together cost what the largest one does.

    Args:
        left: Mapped rows, ``(n, d)``.
        right: Mapped candidates, ``(C, d)``.
        log_scale: Logarithm of each size's factor of ``tau``, ``(sizes,)``.
        want: What the rows should find.

    Returns:
        The sum of both terms, which is differentiable; and each term by itself, which is not.
    """
    total, rank, alignment = _NestedLoss.apply(left, right, log_scale, want)
    return total, rank, alignment


class _NestedLoss(torch.autograd.Function):
    """:func:`nested_loss`; gradients are made along with the values."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, left: Tensor, right: Tensor, log_scale: Tensor, want: Comparison
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_left, to_right, to_scale = torch.zeros_like(left), torch.zeros_like(right), torch.zeros_like(log_scale)
        rank, alignment = left.new_zeros(()), left.new_zeros(())
        dot = left.new_zeros(len(left), len(right))
        left_squares, right_squares = left.new_zeros(len(left)), right.new_zeros(len(right))
        before = 0
        for number, size in enumerate(want.sizes):
            a, p = left[:, before:size], right[:, before:size]
            dot.addmm_(a, p.T)
            left_squares += a.square().sum(1)
            right_squares += p.square().sum(1)
            one, other = left_squares.clamp_min(FLOOR).rsqrt(), right_squares.clamp_min(FLOOR).rsqrt()
            cosine = dot * one[:, None]
            cosine *= other
            gradient, lost = _alignment(cosine, want, number)
            alignment += lost
            tau = want.tau * float(log_scale[number].exp())
            lost, to_scale[number] = _add_rank(gradient, cosine, want, tau)
            rank += lost
            # From cosines to columns: d cos / d a = p / (|a||p|) - cos a / |a|^2.
            cosine *= gradient
            along_left, along_right = cosine.sum(1) * one.square(), cosine.sum(0) * other.square()
            start = 0 if want.prefix_gradient else before
            a, p = left[:, start:size], right[:, start:size]
            step_left = one[:, None] * (gradient @ (other[:, None] * p)) - a * along_left[:, None]
            step_right = other[:, None] * (gradient.T @ (one[:, None] * a)) - p * along_right[:, None]
            if want.prefix_gradient:
                step_left[:, :before] *= want.prefix_gradient
                step_right[:, :before] *= want.prefix_gradient
            to_left[:, start:size] += step_left
            to_right[:, start:size] += step_right
            before = size
        ctx.save_for_backward(to_left, to_right, to_scale)
        ctx.mark_non_differentiable(rank, alignment)
        return rank + alignment, rank, alignment

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_left, to_right, to_scale = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * to_left, grads[0] * to_right, grads[0] * to_scale, None


def _alignment(cosine: Tensor, want: Comparison, number: int) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the KL term with respect to the cosines, ``(n, C)``, and its value.

    ``d/dc sum_i w_i KL(t_i || softmax(c_i / tau)) tau = w (softmax(c / tau) - t)``: the factor ``tau`` of the KL form
    cancels that of the softmax.
    """
    if not len(want.targets):
        return torch.zeros_like(cosine), cosine.new_zeros(())
    tau, target = want.taus[number], want.targets[number]
    gradient = cosine / tau
    gradient[want.same] = -torch.inf
    highest, sums = _exponentials(gradient, tau)
    divergence = want.entropies[number] + (want.row_weights * (sums.log() + highest)).sum()
    value = tau * divergence - torch.dot(target.view(-1), cosine.view(-1))
    gradient *= (want.row_weights / sums)[:, None]
    gradient -= target
    return gradient, value


def _add_rank(gradient: Tensor, cosine: Tensor, want: Comparison, tau: float) -> tuple[Tensor, Tensor]:
    """Add the contrastive term's gradient; return its value and the gradient of the temperature's logarithm.

    Of a pair ``(i, j)`` with margin ``m = logsumexp_k(c_ik / tau) - c_ij / tau`` over irrelevant ``k``, the term is
    ``w log(1 + e^m)``.
    """
    if not len(want.pair_weights):
        return cosine.new_zeros(()), cosine.new_zeros(())
    rows, columns = want.pairs
    ranked = cosine[: want.ranked]
    relevant = ranked[rows, columns]
    others = ranked / tau
    others[rows, columns] = -torch.inf
    inside = want.same[0] < want.ranked
    others[want.same[0][inside], want.same[1][inside]] = -torch.inf
    highest, sums = _exponentials(others, tau)
    margins = (sums.log() + highest)[rows] - relevant / tau
    value = (want.pair_weights * torch.nn.functional.softplus(margins)).sum()
    pull = want.pair_weights * torch.sigmoid(margins) / tau
    push = torch.zeros_like(sums).index_add_(0, rows, pull) / sums
    others *= push[:, None]
    others.index_put_((rows, columns), -pull, accumulate=True)
    to_scale = -(others * ranked).sum()
    gradient[: want.ranked] += others
    return value, to_scale


def _exponentials(logits: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Turn cosines over ``tau``, ``(n, C)``, into ``exp(logit - highest)`` in place.

    Returns:
        The highest logit of each row and the sum of its exponentials, ``(n,)`` each, finite in rows of ``-inf`` too.
    """
    highest = logits.amax(1).clamp_min(-1 / tau)
    logits.sub_(highest[:, None]).exp_()
    return highest, logits.sum(1).clamp_min(torch.finfo(logits.dtype).tiny)

"""The formulas, as pure functions on tensors.

Letters: ``B`` batch, ``C`` candidates, ``D`` full width, ``d`` narrow width, ``k`` top-k, ``tau`` temperature.
Sources: SMEC (Zhang et al., EMNLP 2025, https://arxiv.org/abs/2510.12474), Matryoshka-Adaptor ("MA"; Yoon et al.,
EMNLP 2024, https://arxiv.org/abs/2407.20243) and Search-Adaptor (Yoon et al., ACL 2024,
https://arxiv.org/abs/2310.08750).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e9  # a logit that takes no part in a softmax, yet stays finite in float32
WIDE = 2048  # from this width on, a few leading axes are found by iterations
USUAL_SPREAD = 0.8  # of the vectors that temperatures were chosen on
Mean = Callable[[Tensor, Tensor], Tensor]  # from a sum and a count


def mean_of(amount: Tensor, count: Tensor) -> Tensor:
    """Return ``amount / count``, 0 for a count of 0. In distributed training ``share_of_mean`` takes its place."""
    return amount / count.clamp_min(1)


def unit(x: Tensor) -> Tensor:
    """Scale each row to length 1; a zero row stays zero. ``(..., D) -> (..., D)``."""
    return F.normalize(x, dim=-1)


def contrastive_loss(similarity: Tensor, grades: Tensor, tau: Tensor | float, mean: Mean = mean_of) -> Tensor:
    """Graded InfoNCE: each relevant document against all irrelevant ones, never against another relevant one.

    ``mean_i sum_j w_ij log(1 + sum_{k: y_ik = 0} exp((s_ik - s_ij) / tau))`` with ``w_ij = y_ij / sum_j y_ij``. With
    one relevant document per query this is plain InfoNCE. SMEC leaves the pair-based loss open (section on S-XBM).

    Args:
        similarity: Cosine of queries and candidates, ``(B, C)``.
        grades: Relevance ``y >= 0`` of each candidate, ``(B, C)``; 0 is irrelevant (or unjudged).
        tau: Temperature, above 0.
        mean: How the sum over queries and their count make a mean.

    Returns:
        A scalar; 0 when no query has a relevant candidate. Queries without one do not count.
    """
    logits = similarity / tau
    relevant = grades > 0
    irrelevant = torch.logsumexp(logits.masked_fill(relevant, NEVER), dim=1)
    rows, columns = relevant.nonzero(as_tuple=True)
    total = grades.sum(dim=1)
    weights = grades[rows, columns] / total[rows]
    margins = irrelevant[rows] - logits[rows, columns]
    return mean((weights * F.softplus(margins)).sum(), (total > 0).sum())


def rank_loss(
    similarity: Tensor,
    grades: Tensor,
    most: int = 1024,
    mean: Mean = mean_of,
    position: tuple[int, int] | None = None,
) -> Tensor:
    """The pairwise ranking loss of Search-Adaptor, MA and SMEC.

    ``mean over (i, j, k) with y_ij > y_ik of (y_ij - y_ik) log(1 + exp(s_ik - s_ij))``: MA Eq. (5), with the mean in
    place of the sum so that the weight does not grow with the batch.

    Args:
        similarity: Cosine of queries and candidates, ``(B, C)``.
        grades: Relevance of each candidate, ``(B, C)``.
        most: Relevant pairs (i, j) that count, at most; of more, evenly spaced ones, to bound memory where a query has
            hundreds (classes as labels).
        mean: How the sum over triples and their count make a mean.
        position: Where these pairs stand among those of all ranks, and how many there are; None when these are all.

    Returns:
        A scalar; 0 when nothing is ranked above anything.
    """
    rows, columns = torch.nonzero(grades > 0, as_tuple=True)
    before, pairs = position or (0, len(rows))
    every = max(1, -(-pairs // most))
    first = -before % every
    rows, columns = rows[first::every], columns[first::every]
    above = (grades[rows, columns].unsqueeze(1) - grades[rows]).clamp_min(0)  # (P, C)
    margin = similarity[rows] - similarity[rows, columns].unsqueeze(1)
    return mean((above * F.softplus(margin)).sum(), (above > 0).sum())


def alignment_l1(student: Tensor, teacher: Tensor, mask: Tensor, mean: Mean = mean_of) -> Tensor:
    """Mean absolute change of similarity over the chosen pairs: MA Eq. (2); SMEC's unsupervised loss over the memory.

    Args:
        student: Similarities at the narrow width, ``(B, C)``.
        teacher: The same pairs at full width, ``(B, C)``.
        mask: True where a pair counts (the top-k of the memory), ``(B, C)``.
        mean: How the sum over pairs and their count make a mean.

    Returns:
        A scalar in ``[0, 2]``.
    """
    change = (student - teacher).abs() * mask
    return mean(change.sum(), mask.sum())


def alignment_kl(
    student: Tensor, teacher: Tensor, tau: float, mask: Tensor | None = None, mean: Mean = mean_of
) -> Tensor:
    """Divergence of the narrow neighbourhood from the full-width one.

    ``mean_i KL(softmax(t_i / tau) || softmax(s_i / tau))``. A softmax weighs each pair by how near it is, so the far
    pairs, which no ranking looks at, cost nothing. This replaces the absolute difference of SMEC by default;
    :func:`alignment_l1` is the published form.

    Args:
        student: Similarities at the narrow width, ``(B, C)``.
        teacher: The same pairs at full width, ``(B, C)``; no gradient flows into it.
        tau: Temperature of both, above 0.
        mask: True where a pair counts, ``(B, C)``; None for all. A row with no True counts 0.
        mean: How the sum over rows and their count make a mean.

    Returns:
        A scalar, at least 0.
    """
    given, target = student / tau, teacher.detach() / tau
    if mask is not None:
        given, target = given.masked_fill(~mask, NEVER), target.masked_fill(~mask, NEVER)
    log_target = target.log_softmax(dim=1)
    target = log_target.exp()
    negative_entropy = (target * log_target).sum()
    divergence = F.cross_entropy(given, target, reduction="sum") + negative_entropy
    return mean(divergence, torch.tensor(len(student), device=student.device))


def spread(vectors: Tensor) -> Tensor:
    """How far apart directions are: 1 less the mean cosine of two different rows.

    Near 1 for vectors that point everywhere; near 0 for those of a narrow cone, whose similarities differ little.

    Args:
        vectors: Unit norm, ``(n, D)``.

    Returns:
        A scalar, at least 0.01; 1 for fewer than two rows.
    """
    count = len(vectors)
    if count < 2:
        return vectors.new_ones(())
    cosines = vectors.sum(dim=0).square().sum() - vectors.square().sum()
    return (1 - cosines / (count * (count - 1))).clamp(min=0.01)


def narrowness(vectors: Tensor) -> float:
    """Return ``spread / USUAL_SPREAD``, at most 1, of unit rows ``(n, D)``.

    Temperatures were tuned on vectors with a ratio of 1. The similarities of a narrower cone differ less; they are
    divided by this ratio, so that the same temperatures apply.
    """
    return min(float(spread(vectors)) / USUAL_SPREAD, 1.0)


def reconstruction_l1(start: Tensor, result: Tensor) -> Tensor:
    """Mean absolute change the adapter makes to its start, both ``(B, d)``: MA Eq. (3), ``|f(x)|`` of ``x + f(x)``."""
    return (result - start).abs().mean()


def gumbel_noise(size: int, *seed: int) -> Tensor:
    """Standard Gumbel noise that depends on ``seed`` alone, on any device and rank.

    ``-log(-log u)`` with ``u`` in float32 kept off 0 and 1, where half precision would give infinities.

    Args:
        size: How many values.
        seed: Non-negative integers, for instance (seed, stage, step).

    Returns:
        Float32 noise, ``(size,)``.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    u = torch.rand(size, generator=generator, dtype=torch.float32).clamp(1e-9, 1 - 1e-7)
    return -torch.log(-torch.log(u))


def top_k_indices(scores: Tensor, keep: int) -> Tensor:
    """Positions of the ``keep`` largest scores, ascending; of equal scores the lower position. ``(D,) -> (keep,)``."""
    return torch.argsort(scores, descending=True, stable=True)[:keep].sort().values


def straight_through_top_k(logits: Tensor, noise: Tensor, keep: int, tau: float) -> tuple[Tensor, Tensor]:
    """Hard top-k going forward, softmax going back: the selection of ADS.

    Forward, the kept dimensions pass unchanged (gate 1). Backward, the gate has the gradient of
    ``softmax((logits + noise) / tau)``, scaled to order 1 by ``D / keep``.

    Args:
        logits: Learned importance, ``(D,)``.
        noise: Gumbel noise of the step, ``(D,)``.
        keep: How many dimensions stay.
        tau: Temperature, above 0.

    Returns:
        Kept positions ``(keep,)``, ascending, and their gate ``(keep,)``, equal to 1.
    """
    scores = logits.float() + noise.float()
    indices = top_k_indices(scores.detach(), keep)
    soft = (scores / tau).softmax(dim=0)[indices] * (len(logits) / keep)
    return indices, 1.0 + soft - soft.detach()


def second_moment(vectors: Tensor, chunk: int = 65536) -> Tensor:
    """``X^T X / N`` in float64, read in chunks so that ``vectors`` may be memory-mapped. ``(N, D) -> (D, D)``."""
    total = torch.zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64)
    for start in range(0, len(vectors), chunk):
        rows = vectors[start : start + chunk].to(torch.float64)
        total += rows.T @ rows
    return total / max(len(vectors), 1)


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the row space, ``(m, D) -> (rank, D)``."""
    _, scale, right = torch.linalg.svd(rows, full_matrices=False)
    basis: Tensor = right[scale > scale[0] * 1e-6]  # rows come in float32
    return basis


def _leading_axes(moment: Tensor, removed: Tensor, count: int) -> Tensor:
    """Leading eigenvectors of a moment off the row space of orthonormal ``removed``, ``(count, D)``."""
    basis = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    if len(removed):
        basis = torch.linalg.qr(removed.T, mode="complete").Q[:, len(removed) :]
    _, vectors = torch.linalg.eigh(basis.T @ moment @ basis)
    axes: Tensor = (basis @ vectors.flip(1))[:, :count].T
    return axes


def _few_leading_axes(moment: Tensor, removed: Tensor, count: int) -> Tensor:
    """As :func:`_leading_axes`, by Lanczos iterations (ARPACK), which cost much less for a few axes of many."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    matrix, out = moment.cpu().numpy(), removed.cpu().numpy()

    def off(x: np.ndarray) -> np.ndarray:
        rest: np.ndarray = x - out.T @ (out @ x)
        return rest

    operator = LinearOperator(matrix.shape, matvec=lambda x: off(matrix @ off(x)), dtype=np.float64)
    begin = off(np.random.default_rng(0).normal(size=len(matrix)))
    values, vectors = eigsh(operator, k=count, which="LA", v0=begin)
    axes = np.linalg.qr(off(vectors[:, np.argsort(-values)]))[0].T
    return torch.from_numpy(np.ascontiguousarray(axes)).to(moment)


def subspace_iteration(moment: Tensor, count: int, rounds: int = 4) -> Tensor:
    """Leading eigenvectors of a wide second moment, about, by randomised subspace iteration (Halko et al., 2011).

    A full decomposition of a 4,096 x 4,096 moment takes half a minute; the span of the leading axes is all that is
    needed of them here.

    Args:
        moment: Symmetric, positive, ``(D, D)``.
        count: How many, at most ``D``.
        rounds: Multiplications by ``moment``.

    Returns:
        Orthonormal rows by descending eigenvalue, ``(count, D)``.
    """
    width = len(moment)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(width, min(width, count + count // 8), generator=generator).to(moment)
    for _ in range(rounds):
        basis = torch.linalg.qr(moment @ basis).Q
    values, vectors = torch.linalg.eigh(basis.T @ moment @ basis)
    axes: Tensor = (basis @ vectors.flip(1)[:, :count]).T.contiguous()
    return axes


def linear_link(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Estimate the matrix that maps ``inputs`` to ``outputs`` from these pairs.

    ``argmin_A mean |y - A x|^2 + l |A - a I|^2``: ridge regression towards ``a I``, where ``a`` is the best single
    factor and ``l = mean |x|^2 / P``, about the covariance that chance makes of ``P`` pairs.

    Args:
        inputs: ``x``, ``(P, D)``.
        outputs: ``y``, ``(P, D)``.

    Returns:
        ``A``, float32, ``(D, D)``.
    """
    count, width = inputs.shape
    eye = torch.eye(width, dtype=torch.float64, device=inputs.device)
    left, right = torch.zeros_like(eye), torch.zeros_like(eye)
    for x, y in zip(inputs.split(4096), outputs.split(4096), strict=True):
        left += x.double().T @ x.double() / count
        right += x.double().T @ y.double() / count
    ridge, factor = left.trace() / count, right.trace() / left.trace()
    link: Tensor = torch.linalg.solve(left + ridge * eye, right + ridge * factor * eye).T.float()
    return link


def leftover_axes(moment: Tensor, taken: Tensor, count: int, last: Tensor | None = None) -> Tensor:
    """Principal axes of what the ``taken`` directions leave over.

    The data is projected off the row space of ``taken``; the leading eigenvectors of what remains are new directions,
    by descending variance, orthonormal and orthogonal to all taken ones. With nothing taken these are the uncentred
    principal axes. Signs are fixed (the largest entry is positive), so the result does not depend on the solver.

    Args:
        moment: Uncentred second moment of the data, ``(D, D)``.
        taken: Directions already in use, one per row, ``(m, D)``; need not be orthogonal.
        count: How many axes to return, at most ``D - rank(taken)``.
        last: A direction that comes after all others, ``(D,)``: what is left of it is the very last axis, and the
            others are orthogonal to it. With the mean of the data here, the axes are nearly those of centred PCA, and
            need no bias.

    Returns:
        Axes, one per row, float32, ``(count, D)``.
    """
    width = len(moment)
    moment = moment.to(torch.float64)
    used = _orthonormal(taken.to(moment)) if len(taken) else moment[:0]
    left = width - len(used)
    if count > left:
        raise ValueError(f"`count` must be at most {left}, the directions left over, got {count}.")
    behind = moment[:0]
    if last is not None:
        rest = last.to(moment)
        rest = rest - used.T @ (used @ rest)
        if rest.norm() > 1e-6 * last.norm():
            behind = rest.unsqueeze(0) / rest.norm()
    removed = torch.cat([used, behind])
    inside = min(count, width - len(removed))
    few = width >= WIDE and inside <= width // 16
    leading = _few_leading_axes(moment, removed, inside) if few else _leading_axes(moment, removed, inside)
    axes = torch.cat([leading, behind])[:count]
    peak = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    signed: Tensor = (axes * torch.sign(peak)).float()
    return signed


def nested_cosines(
    left: Tensor, right: Tensor, sizes: Sequence[int], prefix_gradient: float = 0.0
) -> Iterator[Tensor]:
    """Cosines of all pairs at each size of a nested map, as plain differentiable tensors.

    Inner products and squared lengths are summed block by block. What the smaller sizes' columns contribute to a size
    passes only a share of its gradient back: 0 for SMRL, 1 for MRL.

    Args:
        left: Mapped rows, ``(n, d)``.
        right: Mapped candidates, ``(C, d)``.
        sizes: Ascending, the last at most ``d``.
        prefix_gradient: That share.

    Yields:
        ``(n, C)`` for each size.
    """
    before, dot, one, other = 0, left.new_zeros(()), left.new_zeros(()), left.new_zeros(())
    for size in sizes:
        a, p = left[:, before:size], right[:, before:size]
        own = a @ p.T, a.square().sum(1), p.square().sum(1)
        smaller = [x.detach() + prefix_gradient * (x - x.detach()) for x in (dot, one, other)]
        product, length, width = (x + y for x, y in zip(smaller, own, strict=True))
        yield product * (length.clamp_min(1e-12).rsqrt()[:, None] * width.clamp_min(1e-12).rsqrt())
        dot, one, other = dot + own[0], one + own[1], other + own[2]
        before = size

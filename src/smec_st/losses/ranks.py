"""Exchange values between the ranks of a distributed run, so that they train as one process would.

Each rank compares its own rows of the batch with the candidates of all ranks. DDP averages gradients over ranks, so
each rank returns ``world_size * own sum / total count``. With a single rank these functions change nothing.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Found = TypeVar("Found")


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(count: Tensor) -> Tensor:
    """Return the sum over ranks, without gradient."""
    if world_size() == 1:
        return count
    count = count.detach().clone()
    dist.all_reduce(count)
    return count


def share_of_mean(amount: Tensor, count: Tensor) -> Tensor:
    """Return this rank's share of ``sum of amounts / sum of counts``, such that the mean over ranks is the whole."""
    return world_size() * amount / total(count).clamp_min(1)


def any_rank(mask: Tensor) -> Tensor:
    """Return whether a value is true on any rank."""
    if world_size() == 1:
        return mask
    votes = mask.to(torch.uint8)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return votes.bool()


def mean_gradient(gradient: Tensor) -> Tensor:
    """Return the mean over ranks: for parameters of the loss, which DDP does not wrap."""
    return gradient if world_size() == 1 else total(gradient) / world_size()


def same_on_all_ranks(found: Found) -> Found:
    """Return the first rank's value, so that a choice between floats does not depend on how each machine rounds."""
    if world_size() == 1:
        return found
    box = [found]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: Tensor, with_grad: bool = False) -> tuple[Tensor, int]:
    """Gather the rows of all ranks, in their order, and return where this rank's begin; numbers of rows may differ.

    Args:
        rows: ``(b, ...)``.
        with_grad: Whether gradients flow back to the ranks the rows came from.

    Returns:
        ``(B, ...)`` and the position of this rank's first row.
    """
    if world_size() == 1:
        return rows, 0
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    sizes[dist.get_rank()] = len(rows)
    dist.all_reduce(sizes)
    longest = int(sizes.max())
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    if with_grad:
        from torch.distributed.nn.functional import all_gather

        parts = list(all_gather(padded))
    else:
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(parts, padded.detach().contiguous())
    kept = [part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)]
    return torch.cat(kept), int(sizes[: dist.get_rank()].sum())

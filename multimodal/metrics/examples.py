"""What metrics over a whole split share: one place in the state for each example id.

Such a metric can't be wrong about ranks that got different numbers of examples, or none, nor about examples that a
sampler repeated to fill up a batch; and it notices examples that never came.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def all_reduce_max(state: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Elementwise maximum of one state over ranks, given to a torchmetrics metric as its `dist_sync_fn`.

    Places start at the least value, so that the maximum is the value of whichever rank had the example. The usual
    gathering would hold a copy for every rank at once, and fails where a rank has no example.
    """
    reduced = state.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, dist.ReduceOp.MAX, group)
    return [reduced]


def check_ids(name: str, ids: Tensor, count: int) -> None:
    """Raise ValueError if `ids int[B]` leaves 0..count-1."""
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be int[B], not {ids.dtype}{list(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ValueError(f"{name} has values {int(ids.min())}..{int(ids.max())}; allowed: 0..{count - 1}")


def check_complete(name: str, seen: Tensor) -> None:
    """Raise ValueError if `seen bool[n]` has a gap."""
    missing = (~seen).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(seen)} {name} never reached the metric (first: {missing[:5]}); "
            "a score over part of a split is not the score of the split"
        )

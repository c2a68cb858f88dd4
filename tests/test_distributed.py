from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from tests.distributed import run_world


def sum_of_ranks(offset: Tensor) -> Tensor:
    total = offset + dist.get_rank()
    dist.all_reduce(total)
    return total * (dist.get_rank() + 1)


def only_the_last_rank_fails() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ZeroDivisionError("the last rank")
    dist.barrier()


def test_ranks_talk_and_answer_in_order() -> None:
    assert run_world(sum_of_ranks, 2, torch.tensor([10.0])) == [torch.tensor([21.0]), torch.tensor([42.0])]


def test_the_error_of_one_rank_is_the_error_of_the_world() -> None:
    with pytest.raises(ZeroDivisionError, match="the last rank"):
        run_world(only_the_last_rank_fails, 2)

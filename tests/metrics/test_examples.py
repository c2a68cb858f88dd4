"""The metrics over real processes: the same bits however the examples are dealt out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from multimodal.metrics import RetrievalRecall, VqaAccuracy, recall
from tests.distributed import run_world

SIZES = (1, 5, 7, 21)  # one example on three ranks: two of them have none
IMAGES = 4


def split(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores float[n], similarity float[U, n] with ties, relevant bool[U, n]."""
    generator = torch.Generator().manual_seed(size)
    scores = torch.randint(0, 11, (size,), generator=generator) / 10
    similarity = torch.randint(0, 30, (IMAGES, size), generator=generator) / 7
    return scores, similarity, torch.arange(IMAGES)[:, None] == torch.arange(size) % IMAGES


def shards(size: int, world: int) -> list[list[list[int]]]:
    """Ways to deal out `size` examples: in turn; in turn, padded by repeating; most of them to one rank."""
    in_turn = [list(range(rank, size, world)) for rank in range(world)]
    most = max(map(len, in_turn))
    padded = [[i % size for i in range(rank, most * world, world)] for rank in range(world)]
    first = size * 13 // 21
    lopsided = [list(range(first))] + [list(range(first, size))[rank :: max(world - 1, 1)] for rank in range(world - 1)]
    return [in_turn, padded, lopsided if world > 1 else in_turn]


def evaluate() -> list[Any]:
    rank, world = dist.get_rank(), dist.get_world_size()
    results: list[Any] = []
    for size in SIZES:
        scores, similarity, relevant = split(size)
        for shard in shards(size, world):
            accuracy, retrieval = VqaAccuracy(size), RetrievalRecall(relevant, (1, 3))
            for ids in torch.tensor(shard[rank], dtype=torch.int64).split(4):
                accuracy.update(ids, scores[ids])
                retrieval.update(ids, similarity[:, ids])
            results.append((accuracy.compute(), retrieval.compute()))
            assert accuracy.per_example().equal(scores)
            assert retrieval.full_similarity().equal(similarity)
    return results


def an_example_is_missing() -> str:
    metric = VqaAccuracy(4)
    metric.update(torch.tensor([dist.get_rank()]), torch.ones(1))
    with pytest.raises(ValueError, match=r"2 of 4 examples.*\[2, 3\]") as error:
        metric.compute()
    return str(error.value)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # a rank without examples
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_gets_the_bits_of_one_process(world: int) -> None:
    want = []
    for size in SIZES:
        scores, similarity, relevant = split(size)
        want += [(scores.double().mean().item(), recall(similarity, relevant, (1, 3)))] * 3
    assert len(shards(21, 2)[2][0]) == 13
    for results in run_world(evaluate, world):
        assert results == want


def test_every_rank_notices_a_missing_example() -> None:
    assert len(set(run_world(an_example_is_missing, 2))) == 1

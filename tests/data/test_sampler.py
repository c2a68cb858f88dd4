from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from multimodal.data.sampler import EvaluationSampler, TrainingSampler


def sampler(
    *, n: int = 50, batch_size: int = 6, seed: int = 0, rank: int = 0, world: int = 1, group: int = 1, epoch: int = 0
) -> TrainingSampler:
    made = TrainingSampler(n=n, batch_size=batch_size, seed=seed, rank=rank, world=world, group=group)
    made.set_epoch(epoch)
    return made


def batches(*samplers: TrainingSampler) -> list[list[int]]:
    """Global batches: what the ranks read in each step, in order of rank."""
    return [np.concatenate(step).tolist() for step in zip(*samplers, strict=True)]


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    np.random.seed(0)  # noqa: NPY002  the global state must not matter
    first = batches(sampler(seed=3, epoch=2))
    np.random.seed(1)  # noqa: NPY002
    later = sampler(seed=3)
    list(later)
    later.set_epoch(1)
    list(later)
    later.set_epoch(2)
    assert batches(later) == first
    assert batches(sampler(seed=3, epoch=1)) != first
    assert batches(sampler(seed=2, epoch=2)) != first
    assert sorted(sampler(seed=3).order(2)) == list(range(50))
    assert sampler(batch_size=7).order(1).tolist() == sampler(batch_size=10, world=3).order(1).tolist()


@pytest.mark.parametrize("group", [1, 2])
def test_steps_are_the_same_for_every_world_size(group: int) -> None:
    one = batches(sampler(n=50, batch_size=12, group=group))
    assert len(one) == 4
    for world in (2, 3, 6):
        ranks = [sampler(n=50, batch_size=12 // world, rank=rank, world=world, group=group) for rank in range(world)]
        assert batches(*ranks) == one


def test_last_incomplete_global_batch_is_left_out_on_every_rank() -> None:
    ranks = [sampler(n=21, batch_size=4, rank=rank, world=2) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [2, 2]
    seen = list(itertools.chain(*batches(*ranks)))
    assert len(seen) == len(set(seen)) == 16


def test_groups_stay_side_by_side_in_one_batch() -> None:
    read = [batch for rank in range(2) for batch in sampler(n=50, batch_size=6, rank=rank, world=2, group=2)]
    assert all((batch[1::2] == batch[::2] + 1).all() and (batch[::2] % 2 == 0).all() for batch in read)
    assert [batch[0] for batch in read] != sorted(batch[0] for batch in read)


@pytest.mark.parametrize("done", [0, 1, 3, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_state_is_the_same_on_every_rank_and_serves_every_world_size(done: int, world: int) -> None:
    whole = batches(sampler(n=50, batch_size=12, epoch=5))
    ranks = [sampler(n=50, batch_size=6, rank=rank, world=2, epoch=5) for rank in range(2)]
    for rank in ranks:
        rank.batches_done = done
    assert ranks[0].state_dict() == ranks[1].state_dict()
    resumed = [sampler(n=50, batch_size=12 // world, rank=rank, world=world) for rank in range(world)]
    for rank in resumed:
        rank.load_state_dict(ranks[0].state_dict())
        rank.set_epoch(5)  # Lightning says so after loading
    assert batches(*resumed) == whole[done:]
    for rank in resumed:
        rank.set_epoch(6)
    assert batches(*resumed) == batches(sampler(n=50, batch_size=12, epoch=6))


@pytest.mark.parametrize("change", [{"n": 60}, {"batch_size": 3}, {"seed": 1}, {"group": 2}])
def test_a_run_cannot_go_on_in_another_order(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"resume: the run read its examples in the order of \{'examples': 50"):
        sampler(**change).load_state_dict(sampler(n=50, epoch=1).state_dict())


def test_order_hash_is_that_of_the_examples_read() -> None:
    ranks = [sampler(n=50, batch_size=6, rank=rank, world=2, seed=4) for rank in range(2)]
    read: list[list[int]] = []
    for epoch in range(3):
        for rank in ranks:
            rank.set_epoch(epoch)
        read += batches(*ranks)
    for count in (0, 1, 4, 5, 12):
        expected = hashlib.sha256(b"12:" + np.array(read[:count], dtype="<i8").tobytes()).hexdigest()
        assert ranks[1].order_hash(count) == expected
        assert sampler(n=50, batch_size=12, seed=4).order_hash(count) == expected


def test_order_hash_changes_with_all_that_changes_the_order() -> None:
    changes = [{}, {"n": 51}, {"batch_size": 5}, {"seed": 1}, {"group": 2}]
    hashes = [sampler(**change).order_hash(6) for change in changes]
    assert len({*hashes, sampler().order_hash(7)}) == 6


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loader\.batch_size=51: must be 1 to the 50 training examples"):
        sampler(batch_size=51)
    with pytest.raises(ValueError, match=r"loader\.batch_size=26 on each of 2 devices"):
        sampler(batch_size=26, world=2)
    with pytest.raises(ValueError, match=r"loader\.batch_size=0"):
        sampler(batch_size=0)
    with pytest.raises(ValueError, match=r"loader\.batch_size=5: examples come in groups of 2"):
        sampler(batch_size=5, group=2)
    with pytest.raises(ValueError, match=r"loader\.eval_batch_size=0"):
        EvaluationSampler(n=5, batch_size=0, rank=0, world=1)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [5, 7, 21])
def test_evaluation_reads_each_example_once_over_all_ranks(n: int, world: int) -> None:
    ranks = [EvaluationSampler(n=n, batch_size=2, rank=rank, world=world) for rank in range(world)]
    shards = [list(rank) for rank in ranks]
    assert np.concatenate([batch for shard in shards for batch in shard]).tolist() == list(range(n))
    assert [len(rank) for rank in ranks] == [len(shard) for shard in shards]
    sizes = [sum(map(len, shard)) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert max(len(batch) for shard in shards for batch in shard) == 2

"""Which examples form which batch: a function of seed and epoch alone, so that a run can be resumed and compared.

A step of training reads one *global* batch of `batch_size * world` examples, of which each rank takes its slice.
The same global batch on another number of devices is therefore the same set of examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from multimodal.types import Batch


class TrainingSampler(Sampler[np.ndarray]):
    """Batches int[batch_size] of one rank, in an order that only seed and epoch decide; resumable.

    Args:
        n: examples in the table.
        batch_size: examples a batch of one rank.
        seed: decides the order, together with the epoch.
        rank, world: which slice of each global batch is ours.
        group: so many consecutive examples (2i and 2i + 1 for 2) stay side by side in one batch.

    Raises:
        ValueError: there are fewer examples than a global batch has room for, or groups do not fit in a batch.
    """

    def __init__(self, *, n: int, batch_size: int, seed: int, rank: int, world: int, group: int) -> None:
        if not 1 <= batch_size * world <= n:
            devices = f" on each of {world} devices" if world > 1 else ""
            raise ValueError(f"loader.batch_size={batch_size}{devices}: must be 1 to the {n} training examples in all")
        if batch_size % group or n % group:
            raise ValueError(
                f"loader.batch_size={batch_size}: examples come in groups of {group}, which must divide it and "
                f"the number of training examples, {n}"
            )
        self.n, self.batch_size, self.seed, self.rank, self.world, self.group = n, batch_size, seed, rank, world, group
        self.epoch = 0
        self.batches_done = 0  # of this epoch, by the consumer: a prefetching loader is further ahead

    @property
    def global_batch(self) -> int:
        """Examples a step of all ranks together."""
        return self.batch_size * self.world

    def __len__(self) -> int:
        """Batches in a whole epoch; the examples that do not fill a last global batch are left out."""
        return self.n // self.global_batch

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.order(self.epoch)
        for step in range(self.batches_done, len(self)):
            first = step * self.global_batch + self.rank * self.batch_size
            yield order[first : first + self.batch_size]

    def order(self, epoch: int) -> np.ndarray:
        """All examples int[n] in the order of one epoch; global batch s is its s-th slice of `global_batch`."""
        groups = np.random.default_rng([self.seed, epoch]).permutation(self.n // self.group)
        return (groups[:, None] * self.group + np.arange(self.group)).ravel()

    def order_hash(self, batches: int) -> str:
        """sha256 of the examples in the first `batches` global batches, from epoch 0 on.

        Equal for two runs exactly if both read the same batches in the same order, on however many devices.
        """
        digest = hashlib.sha256(f"{self.global_batch}:".encode())
        for epoch in range(-(-batches // len(self))):
            left = min(len(self), batches - epoch * len(self))
            digest.update(self.order(epoch)[: left * self.global_batch].astype("<i8").tobytes())
        return digest.hexdigest()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, or stay where we are if it is the one we are in. Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.batches_done = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where training stands; the same on every rank."""
        return {"epoch": self.epoch, "batches_done": self.batches_done, "order": self._order_key()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch that was handed out.

        Raises:
            ValueError: what follows would be other examples than without the interruption.
        """
        if state["order"] != self._order_key():
            raise ValueError(
                f"resume: the run read its examples in the order of {state['order']}, these settings ask for "
                f"{self._order_key()}; set data, seed, overfit and loader.batch_size x devices as they were"
            )
        self.epoch, self.batches_done = state["epoch"], state["batches_done"]

    def _order_key(self) -> dict[str, int]:
        return {"examples": self.n, "global_batch": self.global_batch, "seed": self.seed, "group": self.group}


class EvaluationSampler(Sampler[np.ndarray]):
    """Batches of one rank's share of n examples in their order: together every example once, none twice.

    Shares differ by one example at most, so ranks may have different numbers of batches: no collective within a step.

    Raises:
        ValueError: the batch size is not positive.
    """

    def __init__(self, *, n: int, batch_size: int, rank: int, world: int) -> None:
        if batch_size < 1:
            raise ValueError(f"loader.eval_batch_size={batch_size}: must be 1 or more")
        self.share = np.array_split(np.arange(n), world)[rank]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.share) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self.share), self.batch_size):
            yield self.share[first : first + self.batch_size]


class ResumableLoader(DataLoader[Batch]):
    """A loader over a `TrainingSampler` that a checkpoint can stop and start between any two batches.

    Lightning stores and restores whatever loader has `state_dict` and `load_state_dict`. Batches are counted when
    they leave the loader, so what workers read ahead is read again.
    """

    def __init__(
        self, dataset: Dataset[Batch], sampler: TrainingSampler, *, num_workers: int, pin_memory: bool
    ) -> None:
        self.order = sampler
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing is read before the first batch is asked for, when Lightning has called set_epoch.
        if self.order.batches_done == len(self):
            self.order.batches_done = 0  # a second pass over the same epoch
        for batch in super().__iter__():
            self.order.batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where training stands; the same on every rank."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch that was handed out."""
        self.order.load_state_dict(state)

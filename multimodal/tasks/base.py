"""What all tasks share: the way from a batch to its loss and from a split to its score, and what a checkpoint holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from multimodal.data.vocabularies import Vocabularies
from multimodal.models.contract import VisionLanguageModel
from multimodal.tasks.optim import Optim
from multimodal.types import Batch, Evaluation

Rows = dict[str, np.ndarray]  # columns of equal length


@dataclass(frozen=True)
class Step:
    """What one batch gives: losses by name, to be summed, and what the score is made from."""

    losses: dict[str, Tensor]  # float[] each
    predictions: Tensor


class Task(LightningModule, ABC):
    """A model, the losses that train it and the score that judges it. Takes any model that keeps the contract.

    Args:
        model: any VisionLanguageModel.
        vocabularies: what its token ids and answer rows mean; goes into every checkpoint.
        optim: learning rate, weight decay and schedule.
    """

    table: ClassVar[Literal["questions", "captions"]]  # what it reads of a data set

    def __init__(self, *, model: nn.Module, vocabularies: Vocabularies, optim: Optim) -> None:
        super().__init__()
        self.model: VisionLanguageModel = model  # type: ignore[assignment]
        self.vocabularies = vocabularies
        self.optim = optim
        self.seed = 0  # of dropout and negatives; set when a run starts
        self.evaluations: dict[str, Evaluation] = {}  # by split, the latest

    @abstractmethod
    def step(self, batch: Any) -> Step:
        """From a batch to its losses and predictions."""

    @abstractmethod
    def collect(self, split: str, batch: Any) -> None:
        """Take in one evaluation batch. No collectives: ranks may hold different numbers of batches."""

    @abstractmethod
    def evaluate(self, split: str) -> Evaluation:
        """Judge what all ranks have collected; every rank returns the same."""

    # --- wired once for training, validation and test ---

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make what is random in a step a function of seed, step and rank: a resumed run draws what it would have."""
        done = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed((self.seed * 1_000_003 + done) * 4099 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the losses, each of them logged."""
        losses = self.step(batch).losses
        loss = torch.stack(list(losses.values())).sum()
        logged = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict({"train/loss": loss.detach(), **logged}, batch_size=len(batch.example_id))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect one batch of the validation split."""
        self.collect("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Score the validation split."""
        self._judge("val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect one batch of a test split; there is one loader a split."""
        self.collect(self.trainer.datamodule.test_splits[dataloader_idx], batch)  # type: ignore[attr-defined]

    def on_test_epoch_end(self) -> None:
        """Score every test split."""
        for split in self.trainer.datamodule.test_splits:  # type: ignore[attr-defined]
            self._judge(split)

    def _judge(self, split: str) -> None:
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # one batch is no split
        evaluation = self.evaluations[split] = self.evaluate(split)
        metrics = evaluation.metrics | evaluation.by_family
        # evaluate() has gathered already: each rank logs the same number, so there is nothing left to reduce
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule over the number of steps the trainer is going to make."""
        optimizer = self.optim.optimizer(self)
        scheduler = self.optim.scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Hold the temperature in its range after the step: clamped before it, the step can leave the range."""
        super().optimizer_step(*args, **kwargs)
        self.model.embedding.clamp_scale()

    # --- checkpoints hold tensors and plain values, so that weights_only=True loads them ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the token ids and answer rows mean."""
        checkpoint["vocabularies"] = self.vocabularies.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with another tokenizer or other answers."""
        self.vocabularies.require_equal(Vocabularies.from_state(checkpoint["vocabularies"]))


def gather_rows(parts: list[Rows], key: str) -> Rows:
    """Join the rows that all ranks collected, in the order of `key`, each value of it once.

    Collective: every rank has to call it.
    """
    shards: list[list[Rows]] = [parts]
    if dist.is_initialized():
        shards = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(shards, parts)
    joined = [part for shard in shards for part in shard]
    rows = {name: np.concatenate([part[name] for part in joined]) for name in joined[0]}
    _, first = np.unique(rows[key], return_index=True)
    return {name: column[first] for name, column in rows.items()}


def unused_parameters(task: Task, batch: Batch) -> list[str]:
    """Names of the parameters that the task's losses can't reach, found by one backward pass over a small batch.

    LXMERT's last image branch under VQA is one: a task that reads only the pooled vector has no use for it. Frozen,
    they let plain DDP work and don't count as trained.
    """
    with torch.random.fork_rng(devices=[]):
        sum(task.step(batch).losses.values(), torch.zeros(())).backward()
    unused = [name for name, parameter in task.named_parameters() if parameter.requires_grad and parameter.grad is None]
    task.zero_grad(set_to_none=True)
    return unused

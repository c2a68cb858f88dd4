"""What is measured and shown while a run is under way."""

from __future__ import annotations

import csv
import logging
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from multimodal.types import Batch


class Meter(Callback):
    """Training speed and memory. The median step counts: validation and the first, slow steps don't blur it."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._examples = 0  # of one step, all ranks together
        self._last: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take the time since the last step ended, data loading included."""
        now = time.perf_counter()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now
        self._examples = len(batch.example_id) * trainer.world_size

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is no training step."""
        self._last = None

    @property
    def samples_per_s(self) -> float:
        """Training examples a second, all devices together; 0 before the second step."""
        return self._examples / statistics.median(self._seconds[-1000:]) if self._seconds else 0.0


def peak_memory_bytes() -> int:
    """The most memory held so far: on the GPU where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Bar(RichProgressBar):
    """Lightning's bar with the training speed beside it."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The logged metrics that go on the bar, and samples/s."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            items["loss"] = f"{loss:.3f}"
        return {**items, "samples/s": f"{samples_per_s(trainer):,.0f}"}


class Lines(ProgressBar):
    """A line at every validation, where there is no terminal to draw a bar in."""

    def __init__(self) -> None:
        super().__init__()
        self._speaks = True

    def enable(self) -> None:
        """Speak again."""
        self._speaks = True

    def disable(self) -> None:
        """Say nothing: the other ranks, and while a finder tries things out."""
        self._speaks = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step, loss, score and speed."""
        if not self._speaks:
            return
        score = trainer.callback_metrics.get("val/score")
        loss = trainer.callback_metrics.get("train/loss")
        numbers = [f"{name} {value:.3f}" for name, value in (("loss", loss), ("val/score", score)) if value is not None]
        speed = f"{samples_per_s(trainer):,.0f} samples/s"
        print(f"step {trainer.global_step}/{trainer.max_steps}", *numbers, speed, sep="  ", flush=True)


def quiet() -> None:
    """Keep what the user has to know on the screen: Lightning's advertisements and its notices to itself go."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Batches of the embedded data cost microseconds: a worker process would cost more than it saves.
    warnings.filterwarnings("ignore", message=r".*does not have many workers which may be a bottleneck")


def progress_bar() -> ProgressBar:
    """A bar in a terminal, lines elsewhere."""
    return Bar(leave=False) if sys.stdout.isatty() else Lines()


def samples_per_s(trainer: Trainer) -> float:
    """Training examples a second, all devices together."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, Meter)).samples_per_s


def rank() -> int:
    """The rank of this process, also before the ranks know of each other."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]


class MetricsLog(Logger):
    """metrics.csv, one line a number: a resumed or killed run only ever adds lines."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a line for each metric."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "metric", "value"])
            writer.writerows([step, name, value] for name, value in metrics.items() if name != "epoch")

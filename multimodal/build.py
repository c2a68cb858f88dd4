"""From a checked config to the objects that train: data, then model and task, then trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from multimodal.config import instantiate, target_class
from multimodal.data.datamodule import DataModule
from multimodal.data.text import ClipTokenizer, Tokenizer, WordPieceTokenizer
from multimodal.data.vocabularies import Vocabularies
from multimodal.models.vision import StandardisedRegions
from multimodal.runs.watch import Meter, MetricsLog, progress_bar
from multimodal.tasks.base import Task, unused_parameters
from multimodal.tasks.optim import Optim
from multimodal.types import Regions

MONITOR = "val/score"  # every task's score is a share of what is right: more is better


def build_data(plain: dict[str, Any], tokenizer: Tokenizer | None = None) -> DataModule:
    """The data set behind its loaders, its training table read.

    Args:
        plain: the resolved config.
        tokenizer: that of a checkpoint; none: from `text.vocabulary` or the training texts.

    Raises:
        ValueError: the data or the loader's settings don't fit.
    """
    task = target_class(plain["task"], "task", plain["allow"])
    text, loader = plain["text"], plain["loader"]
    data = DataModule(
        dataset=instantiate(plain["data"], "data", plain["allow"]),
        table=task.table,
        tokenizer=tokenizer or _given_tokenizer(text["tokenizer"], text["vocabulary"]),
        answers=None,
        batch_size=min(loader["batch_size"], plain["overfit"] or loader["batch_size"]),
        eval_batch_size=loader["eval_batch_size"],
        num_workers=loader["num_workers"],
        seed=plain["seed"],
        max_text_length=text["max_length"],
        limit=plain["overfit"],
    )
    data.setup()
    return data


def _given_tokenizer(kind: str, vocabulary: str | None) -> Tokenizer | None:
    """The tokenizer of a vocabulary file; none for words, which the training texts give."""
    if kind == "words" or vocabulary is None:
        return None
    return {"wordpiece": WordPieceTokenizer, "clip": ClipTokenizer}[kind](vocabulary=vocabulary)


def build_task(plain: dict[str, Any], vocabularies: Vocabularies) -> Task:
    """The model inside its task, with fresh weights drawn from torch's random state."""
    allow = plain["allow"]
    model = instantiate(
        plain["model"],
        "model",
        allow,
        vision=instantiate(plain["vision"], "vision", allow),
        vocab_size=vocabularies.tokenizer.vocab_size,
        max_text_length=plain["text"]["max_length"],
    )
    task: Task = instantiate(
        plain["task"], "task", allow, model=model, vocabularies=vocabularies, optim=Optim(**plain["optim"])
    )
    return task


def measure_features(task: Task, data: DataModule) -> None:
    """Let a stem that standardises its features see what they are like, on up to 2,000 training examples."""
    if isinstance(task.model.vision, StandardisedRegions):
        image = data.example_batch(2000).image
        if isinstance(image, Regions):
            task.model.vision.measure(image)


def freeze_unused(task: Task, data: DataModule) -> list[str]:
    """Freeze the parameters that the losses can't reach, so that plain DDP works; returns their names."""
    unused = unused_parameters(task, data.example_batch(4))
    for name, parameter in task.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    return unused


def build_trainer(plain: dict[str, Any], run_dir: Path | None, keeps: bool) -> Trainer:
    """Lightning's Trainer with our callbacks.

    Args:
        plain: the resolved config.
        run_dir: where rank 0 writes; none on other ranks.
        keeps: whether anything is kept at all.
    """
    node, allow = dict(plain["trainer"]), plain["allow"]
    node["precision"] = precision(node["precision"], node["accelerator"])
    if node["max_steps"] > 0:  # a short run is validated once, at its end
        batches = node["max_steps"] * node["accumulate_grad_batches"]
        node["val_check_interval"] = min(node["val_check_interval"], batches)
    callbacks = [
        instantiate(callback, f"trainer.callbacks.{number}", allow)
        for number, callback in enumerate(node.pop("callbacks", None) or [])
    ]
    strategy = instantiate(plain["strategy"], "strategy", allow) if plain["strategy"]["_target_"] else "auto"
    return instantiate(
        node,
        "trainer",
        allow,
        strategy=strategy,
        logger=_loggers(plain, run_dir),
        callbacks=[*callbacks, *_callbacks(plain), *(_checkpoints(run_dir) if keeps else [])],
        default_root_dir=str(run_dir or tempfile.gettempdir()),
        enable_checkpointing=keeps,
    )


def _loggers(plain: dict[str, Any], run_dir: Path | None) -> list[Logger]:
    if run_dir is None or plain["fast_dev_run"]:
        return []
    loggers: list[Logger] = [MetricsLog(run_dir / "metrics.csv")]
    if plain["logger"]["_target_"]:
        loggers.append(instantiate(plain["logger"], "logger", plain["allow"], save_dir=str(run_dir)))
    return loggers


def _callbacks(plain: dict[str, Any]) -> list[Callback]:
    """What every rank has to have: Lightning calls collectives from inside these."""
    callbacks: list[Callback] = [Meter(), progress_bar()]
    if plain["early_stopping"] is not None:
        callbacks.append(EarlyStopping(MONITOR, mode="max", patience=plain["early_stopping"]))
    if plain["ema"] is not None:
        callbacks.append(EMAWeightAveraging(decay=plain["ema"]))
    return callbacks


def _checkpoints(run_dir: Path | None) -> list[Callback]:
    """best.ckpt, by which scores are made, and last.ckpt, from which a run goes on."""
    folder = run_dir / "checkpoints" if run_dir else None  # other ranks are told by rank 0
    return [
        # The first is `trainer.checkpoint_callback`. `save_last` would write only when the score has improved.
        ModelCheckpoint(folder, "best", monitor=MONITOR, mode="max", enable_version_counter=False),
        ModelCheckpoint(folder, "last", enable_version_counter=False),
    ]


def precision(wanted: str | int | None, accelerator: str) -> str | int:
    """If nothing is wanted, bf16 on a GPU that has it and fp32 elsewhere; the weights are fp32 either way."""
    if wanted is not None:
        return wanted
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"

"""`multimodal train`: build what the config says, fit it, judge it on every split, keep the record.

Starts as `python -m multimodal.train`: Lightning starts the other ranks by this same command line.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before a data loader forks

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.tuner.tuning import Tuner
from omegaconf import DictConfig

from multimodal.build import build_data, build_task, build_trainer, freeze_unused, measure_features
from multimodal.config import ConfigError, check, conf_dir, config_hash, register, resolved, resumed
from multimodal.data.datamodule import DataModule
from multimodal.data.vocabularies import Vocabularies
from multimodal.overrides import explain
from multimodal.runs.record import RunFolder, read_status, write_predictions
from multimodal.runs.result import SCHEMA_VERSION, environment, flops_per_sample, parameters, print_scores, scores
from multimodal.runs.watch import peak_memory_bytes, rank, samples_per_s
from multimodal.tasks.base import Task


@dataclass(frozen=True)
class Run:
    """All that a run needs, built and checked."""

    plain: dict[str, Any]
    data: DataModule
    task: Task
    frozen: list[str]  # parameters that the task's losses can't reach
    checkpoint: Path | None  # where to go on
    folder: RunFolder | None  # on rank 0 of a run that keeps something


def prepare(plain: dict[str, Any]) -> Run:
    """Build everything that can be wrong.

    Raises:
        ValueError: the user's mistake; nothing has been written.
    """
    check(plain)
    seed_everything(plain["seed"], workers=True, verbose=False)
    data = build_data(plain)
    task = build_task(plain, data.vocabularies)
    measure_features(task, data)
    frozen = freeze_unused(task, data) if plain["freeze_unused"] else []
    checkpoint = Path(plain["resume"]) / "checkpoints" / "last.ckpt" if plain["resume"] else None
    if checkpoint:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["vocabularies"]
        data.vocabularies.require_equal(Vocabularies.from_state(saved))
    # The same weights on every rank, but not the same dropout masks and negatives.
    torch.manual_seed(plain["seed"] + rank())
    keeps = rank() == 0 and not plain["fast_dev_run"] and not plain["find"]
    return Run(plain, data, task, frozen, checkpoint, open_folder(plain) if keeps else None)


def execute(run: Run) -> None:
    """Train, test and record."""
    plain, folder, task, data = run.plain, run.folder, run.task, run.data
    trainer = build_trainer(plain, folder.path if folder else None)
    if plain["find"]:
        find(plain["find"], trainer, task, data)
        return
    if folder:
        folder.write_config(plain)
        folder.write_status("running")
    try:
        fit_and_test(trainer, run)
        if folder:
            record(run, folder, trainer)
    except BaseException as error:
        if folder:
            folder.write_status("failed", exception=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        raise


def open_folder(plain: dict[str, Any]) -> RunFolder:
    """Where this run writes: a folder of its own, or that of an unfinished run to go on with."""
    if plain["run_dir"]:
        return RunFolder(Path(plain["run_dir"]))
    if plain["resume"] and read_status(Path(plain["resume"])).get("state") != "done":
        return RunFolder(Path(plain["resume"]))
    choices = plain["choices"]
    name = f"{choices['model']}-{choices['task']}-{choices['size']}-{choices['data']}-s{plain['seed']}"
    return RunFolder.unique(Path(plain["runs_dir"]) / plain["study"], name)


def find(what: str, trainer: Trainer, task: Task, data: DataModule) -> None:
    """Print what Lightning's learning-rate or batch-size finder suggests; trains and keeps nothing."""
    tuner = Tuner(trainer)
    if what == "lr":
        finder = tuner.lr_find(task, datamodule=data, attr_name="lr", update_attr=False)
        print(f"optim.lr={finder.suggestion():.2e}" if finder else "no suggestion")
    else:
        print(f"loader.batch_size={tuner.scale_batch_size(task, datamodule=data, batch_arg_name='batch_size')}")


def fit_and_test(trainer: Trainer, run: Run) -> None:
    """Train, then judge the best weights on every test split, by the ranks that trained them."""
    task, data = run.task, run.data
    trainer.fit(task, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        best = trainer.checkpoint_callback.best_model_path or None  # type: ignore[union-attr]
        trainer.test(task, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)


def record(run: Run, folder: RunFolder, trainer: Trainer) -> None:
    """Write the predictions and result.json, and print the scores."""
    plain, task, data = run.plain, run.task, run.data
    for split, evaluation in task.evaluations.items():
        write_predictions(folder.path, split, evaluation.predictions)
    batch = data.example_batch(min(64, data.batch_size))
    best = trainer.checkpoint_callback.best_model_score  # type: ignore[union-attr]
    folder.write_result(
        {
            "schema_version": SCHEMA_VERSION,
            **plain["choices"],
            "seed": plain["seed"],
            "config_hash": config_hash(plain),
            "best_val_score": None if best is None else best.item(),
            "splits": scores(task.evaluations),
            "cost": {
                "parameters": parameters(task),
                "flops_per_sample": flops_per_sample(task.cpu(), batch),
                "train_samples_per_s": samples_per_s(trainer),
                "peak_memory_bytes": peak_memory_bytes(),
            },
            "steps": trainer.global_step,
            "global_batch_size": data.batch_size * trainer.world_size * trainer.accumulate_grad_batches,
            "order_hash": data.order_hash(trainer.global_step * trainer.accumulate_grad_batches),
            "frozen": run.frozen,
            "tokenizer_hash": task.vocabularies.tokenizer.hash,
            "answers_hash": task.vocabularies.answers.hash if task.vocabularies.answers else None,
            "world_size": trainer.world_size,
            **environment(),
        }
    )
    folder.write_status("done")
    print_scores(task.evaluations, title=str(folder.path))


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def hydra_main(cfg: DictConfig) -> None:
    """Hydra's entry: compose, then train."""
    try:
        run = prepare(plain_config(cfg))
    except ValueError as error:
        sys.exit(str(error))
    execute(run)


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The composed config; or, to go on with a run, that run's own with the KEY=VALUEs given beside `resume`."""
    hydra_cfg = HydraConfig.get()
    if cfg.resume is not None:
        given = [override for override in hydra_cfg.overrides.task if not override.startswith("resume=")]
        return {**resumed(Path(cfg.resume), given), "resume": cfg.resume}
    chosen = hydra_cfg.runtime.choices
    groups = ("model", "size", "vision", "data", "task", "experiment")
    return {**resolved(cfg), "choices": {group: chosen[group] for group in groups if chosen.get(group)}}


def quiet() -> None:
    """Keep what the user has to know on the screen: Lightning's advertisements and its notices to itself go."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Batches of the embedded data cost microseconds: a worker process would cost more than it saves.
    warnings.filterwarnings("ignore", message=r".*does not have many workers which may be a bottleneck")


def main() -> None:
    """Say all that is wrong with the command line at once, then let Hydra take over."""
    register()
    quiet()
    arguments = sys.argv[1:]
    flags = [argument for argument in arguments if argument.startswith("-")]
    if not flags and (problems := explain(arguments)):
        sys.exit(str(ConfigError(problems)))
    hydra_main()


if __name__ == "__main__":
    main()

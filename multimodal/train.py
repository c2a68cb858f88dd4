"""`multimodal train`: build what the config says, fit it, judge it on every split, keep the record.

Starts as `python -m multimodal.train`: Lightning starts the other ranks by this same command line.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before a data loader forks

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner.tuning import Tuner
from omegaconf import DictConfig

from multimodal.build import build_data, build_task, build_trainer, freeze_unused, measure_features
from multimodal.config import ConfigError, check, conf_dir, config_hash, register, resolved, resumed
from multimodal.data.datamodule import DataModule
from multimodal.data.vocabularies import Vocabularies
from multimodal.overrides import explain
from multimodal.runs.record import RunFolder, read_status, write_predictions
from multimodal.runs.result import SCHEMA_VERSION, environment, flops_per_sample, parameters, print_scores, scores
from multimodal.runs.watch import peak_memory_bytes, quiet, rank, samples_per_s
from multimodal.tasks.base import Task


@dataclass(frozen=True)
class Run:
    """All that a run needs, built and checked."""

    plain: dict[str, Any]
    data: DataModule
    task: Task
    trainer: Trainer
    frozen: list[str]  # parameters that the task's losses can't reach
    flops: float  # of one example's forward pass
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
    sampler = data.training_sampler(rank=0, world=planned_world(plain["trainer"]))
    task = build_task(plain, data.vocabularies)
    task.seed = plain["seed"]
    measure_features(task, data)
    frozen = freeze_unused(task, data) if plain["freeze_unused"] else []
    flops = flops_per_sample(task, data.example_batch(64))  # before there are other ranks to wait for
    checkpoint = Path(plain["resume"]) / "checkpoints" / "last.ckpt" if plain["resume"] else None
    if checkpoint:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        data.vocabularies.require_equal(Vocabularies.from_state(saved["vocabularies"]))
        sampler.load_state_dict(saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
    keeps = not plain["fast_dev_run"] and not plain["find"]
    folder = open_folder(plain) if keeps and rank() == 0 else None
    try:
        trainer = build_trainer(plain, folder.path if folder else None, keeps)
    except (MisconfigurationException, TypeError, ValueError) as error:
        if folder:
            folder.discard()
        raise ConfigError([f"trainer: {error}"]) from error
    return Run(plain, data, task, trainer, frozen, flops, checkpoint, folder)


def planned_world(trainer: dict[str, Any]) -> int:
    """How many ranks will train, as far as the config says: "auto" may be any number, and counts as one."""
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return max(1, count) * int(trainer["num_nodes"])


def execute(run: Run) -> None:
    """Train, test and record."""
    folder = run.folder
    if run.plain["find"]:
        find(run.plain["find"], run)
        return
    if folder:
        folder.write_config(run.plain)
        folder.write_status("running")
    try:
        fit_and_test(run)
        if folder:
            record(run, folder)
    except BaseException as error:
        if folder:
            folder.write_status("failed", exception=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        raise


def open_folder(plain: dict[str, Any]) -> RunFolder:
    """Where this run writes: a folder of its own, or that of an unfinished run to go on with."""
    if plain["run_dir"]:
        return RunFolder(Path(plain["run_dir"]))
    if plain["resume"] and read_status(Path(plain["resume"])).get("state") != "done":
        return RunFolder(Path(plain["resume"]), going_on=True)
    choices = plain["choices"]
    name = f"{choices['model']}-{choices['task']}-{choices['size']}-{choices['data']}-s{plain['seed']}"
    return RunFolder.unique(Path(plain["runs_dir"]) / plain["study"], name)


def find(what: str, run: Run) -> None:
    """Print what Lightning's learning-rate or batch-size finder suggests; trains and keeps nothing."""
    tuner = Tuner(run.trainer)
    if what == "lr":
        finder = tuner.lr_find(run.task, datamodule=run.data, attr_name="optim.lr", update_attr=False)
        print(f"optim.lr={finder.suggestion():.2e}" if finder else "no suggestion")
    else:
        doublings = (len(run.data.table("train").text) // 2).bit_length() - 1  # from 2 to no more than all examples
        size = tuner.scale_batch_size(
            run.task, datamodule=run.data, batch_arg_name="batch_size", max_trials=max(1, doublings)
        )
        print(f"loader.batch_size={size}")


def fit_and_test(run: Run) -> None:
    """Train, then judge the best weights on every test split, by the ranks that trained them."""
    trainer, task, data = run.trainer, run.task, run.data
    trainer.fit(task, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
    best = trainer.checkpoint_callback
    path = best.best_model_path if isinstance(best, ModelCheckpoint) else ""
    trainer.test(task, datamodule=data, ckpt_path=path or None, weights_only=True, verbose=False)


def record(run: Run, folder: RunFolder) -> None:
    """Write the predictions and result.json, and print the scores."""
    plain, task, data, trainer = run.plain, run.task, run.data, run.trainer
    for split, evaluation in task.evaluations.items():
        write_predictions(folder.path, split, evaluation.predictions)
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
                "flops_per_sample": run.flops,
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
    groups = ("model", "size", "vision", "data", "task", "experiment")
    chosen = HydraConfig.get().runtime.choices
    choices = {group: chosen[group] for group in groups if chosen.get(group)}
    start(lambda: {**resolved(cfg), "choices": choices})


def start(config: Callable[[], dict[str, Any]]) -> None:
    """Train by a config; what is the user's mistake goes on one screen, without a trace."""
    try:
        run = prepare(config())
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    execute(run)


def main() -> None:
    """Say all that is wrong with the command line at once, then let Hydra take over."""
    register()
    quiet()
    arguments = sys.argv[1:]
    runs = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if runs and runs[0] != "null":  # its config is the run's own and not composed anew
        given = [argument for argument in arguments if not argument.startswith("resume=")]
        start(lambda: {**resumed(Path(runs[0]), given, "resume"), "resume": runs[0]})
        return
    if not SHOWS & set(arguments) and (problems := explain(arguments)):
        sys.exit(str(ConfigError(problems)))
    hydra_main()


# Flags by which Hydra does something else than to start one run of what is composed.
SHOWS = {
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--multirun",
    "-m",
    "--config-name",
}


if __name__ == "__main__":
    main()

"""`multimodal evaluate run=DIR [KEY=VALUE ...]`: score a run's best weights again; and `multimodal.load`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import seed_everything
from torch import nn

from multimodal.build import build_data, build_task, build_trainer
from multimodal.config import ConfigError, check, register, resumed
from multimodal.data.text import Tokenizer
from multimodal.data.transforms import PixelTransform, RegionTransform
from multimodal.data.vocabularies import Vocabularies
from multimodal.runs.record import read_config, write_json, write_predictions
from multimodal.runs.result import environment, print_scores, scores
from multimodal.runs.watch import quiet, rank
from multimodal.tasks.base import Task


class Loaded(NamedTuple):
    """What a notebook needs of a run: `model, tokenizer, transform = multimodal.load(run)`."""

    model: nn.Module  # a VisionLanguageModel with the run's best weights, in eval mode
    tokenizer: Tokenizer
    transform: PixelTransform | RegionTransform  # a picture to the model's ImageInput


def load(run: str | Path) -> Loaded:
    """The model of a run folder with what turns a text and a picture into its inputs. Runs no code from the folder.

    Raises:
        ValueError: there is no such run, or it has no checkpoint yet.
    """
    plain = read_config(Path(run))
    task = restore(plain, read_checkpoint(Path(run)))
    image = plain["image"]
    transform = RegionTransform() if image["visual"] == "regions" else PixelTransform(image_size=image["size"])
    return Loaded(task.model, task.vocabularies.tokenizer, transform)  # type: ignore[arg-type]


def read_checkpoint(run: Path) -> dict[str, Any]:
    """The best checkpoint of a run: tensors and plain values only.

    Raises:
        ValueError: there is none.
    """
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise ValueError(f"run={run}: has no {path.relative_to(run)}; allowed: a run that was validated at least once")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def restore(plain: dict[str, Any], checkpoint: dict[str, Any]) -> Task:
    """The task that a config describes, with a checkpoint's weights and vocabularies."""
    register()
    task = build_task(plain, Vocabularies.from_state(checkpoint["vocabularies"]))
    task.load_state_dict(checkpoint["state_dict"])
    return task.eval()


def evaluate(run: Path, overrides: list[str]) -> Path | None:
    """Score the best weights of a run on all test splits of its data, changed by KEY=VALUE overrides.

    Returns:
        A new folder below the run's own, with result.json and predictions; none on ranks other than 0.

    Raises:
        ValueError: the user's mistake; nothing has been written.
    """
    plain = resumed(run, overrides)
    checkpoint = read_checkpoint(run)
    vocabularies = Vocabularies.from_state(checkpoint["vocabularies"])
    # The tokenizer comes with the weights: the file it was made from may be gone.
    check({**plain, "text": {**plain["text"], "tokenizer": "words", "vocabulary": None}})
    seed_everything(plain["seed"], workers=True, verbose=False)
    data = build_data(plain, vocabularies.tokenizer)
    data.vocabularies.require_equal(vocabularies)
    task = restore(plain, checkpoint)
    trainer = build_trainer({**plain, "logger": {"_target_": None}}, run_dir=None, keeps=False)
    trainer.test(task, datamodule=data, verbose=False)
    if rank() != 0:
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder = run / "evaluations" / stamp
    folder.mkdir(parents=True)
    for split, evaluation in task.evaluations.items():
        write_predictions(folder, split, evaluation.predictions)
    write_json(folder / "result.json", {"overrides": overrides, "splits": scores(task.evaluations), **environment()})
    print_scores(task.evaluations, title=str(folder))
    return folder


def main() -> None:
    """Read `run=DIR` and the overrides from the command line."""
    register()
    arguments = sys.argv[1:]
    wrong = [argument for argument in arguments if "=" not in argument]
    if wrong:
        sys.exit(str(ConfigError([f"{argument}: not of the form KEY=VALUE" for argument in wrong])))
    given = [argument.removeprefix("run=") for argument in arguments if argument.startswith("run=")]
    if len(given) != 1:
        sys.exit("usage: multimodal evaluate run=RUNS_DIR/STUDY/JOB [KEY=VALUE ...]")
    quiet()
    try:
        evaluate(Path(given[0]), [argument for argument in arguments if not argument.startswith("run=")])
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

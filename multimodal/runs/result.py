"""result.json: what a finished run says of itself."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multimodal.types import Batch, Evaluation

SCHEMA_VERSION = 1
PACKAGES = ("torch", "lightning", "transformers", "torchvision", "hydra-core", "omegaconf", "torchmetrics", "timm")


def scores(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """Metrics, scores by family and baselines of every split, and what judging cost."""
    return {
        split: {
            "metrics": evaluation.metrics,
            "by_family": evaluation.by_family,
            "baselines": evaluation.baselines,
            "cost": evaluation.cost,
        }
        for split, evaluation in evaluations.items()
    }


def flops_per_sample(task: nn.Module, batch: Batch) -> float:
    """Floating-point operations of one training example's forward pass, losses included.

    Counted on the plain form of attention: the fused kernels of a CPU are invisible to the counter.
    """
    was_training = task.training
    task.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), counter:
        task.step(batch)  # type: ignore[operator]
    task.train(was_training)
    return counter.get_total_flops() / len(batch.example_id)


def parameters(task: nn.Module) -> dict[str, int]:
    """Number of parameters of the model, of those that are trained, and of the word embeddings among the model's."""
    model: Any = task.model
    return {
        "model": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad),
        "word_embeddings": sum(parameter.numel() for parameter in model.word_embeddings.parameters()),
    }


def environment() -> dict[str, Any]:
    """Where a run happened and with what."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "code": code_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
    }


def code_version() -> dict[str, Any]:
    """The commit of a checkout and whether it was changed since; of an installed package its version."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"version": importlib.metadata.version("multimodal-lab"), "commit": None, "dirty": None}
    return {"version": None, "commit": commit, "dirty": bool(git("status", "--porcelain", "-uno"))}


def print_scores(evaluations: dict[str, Evaluation], title: str) -> None:
    """Scores with their baselines, a column a split."""
    table = Table(title=title, title_justify="left")
    table.add_column("%")
    for split in evaluations:
        table.add_column(split, justify="right")

    def row(name: str, values: list[float | None], style: str = "") -> None:
        table.add_row(name, *("" if value is None else f"{100 * value:.1f}" for value in values), style=style)

    def keys(kind: str) -> list[str]:
        return list(dict.fromkeys(key for evaluation in evaluations.values() for key in getattr(evaluation, kind)))

    for kind in ("metrics", "by_family"):
        for name in keys(kind):
            row(name, [getattr(evaluation, kind).get(name) for evaluation in evaluations.values()])
        table.add_section()
    for baseline in keys("baselines"):
        found = [evaluation.baselines.get(baseline, {}) for evaluation in evaluations.values()]
        for name in dict.fromkeys(key for values in found for key in values):
            row(f"{baseline}: {name}", [values.get(name) for values in found], style="dim")
    Console().print(table)

"""Configs for tests: what conf/ composes to, with little data and few steps."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict

from multimodal.config import conf_dir, register, resolved

SMALL = (
    "data.num_train_scenes=64",
    "data.num_eval_scenes=16",
    "data.gallery_scenes=16",
    "loader.batch_size=16",
    "loader.eval_batch_size=7",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=1",
)
MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
TASKS = sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved config of some overrides, with the choices that `multimodal train` would note."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
    plain = resolved(cfg)
    plain["choices"] = {group: choices[group] for group in ("model", "size", "vision", "data", "task")}
    return plain


def small(*overrides: str) -> dict[str, Any]:
    """`composed`, small enough for a unit test."""
    return composed(*SMALL, *overrides)

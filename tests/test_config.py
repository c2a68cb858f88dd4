"""A config is right, or says all that is wrong with it before any data is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from multimodal.config import ConfigError, check, conf_dir, config_hash, instantiate, register, resolved
from multimodal.overrides import explain

register()
CONF = conf_dir()
OPTIONS = [
    (path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("hydra",)
]


def composed(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return resolved(compose("train", overrides=list(overrides)))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_yaml_composes_and_fits_its_class(group: str, option: str) -> None:
    plain = composed(f"{group}={option}")
    if group == "vision" and option == "regions":
        assert plain["image"]["visual"] == "regions"
    check(plain)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("model", ["visualbert", "lxmert", "clip"])
def test_every_model_has_every_size(model: str, size: str) -> None:
    check(composed(f"model={model}", f"size={size}"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=lxmertt", ["model=lxmertt", "clip", "lxmert", "visualbert", "did you mean lxmert"]),
        ("optim.nosuchkey=1", ["optim.nosuchkey=1", "lr", "weight_decay"]),
        ("optim.lr=abc", ["optim.lr=abc", "Float"]),
        ("model.depth=3", ["model.depth=3", "layers"]),
        ("nosuch=1", ["nosuch=1", "seed"]),
        ("nosuch.key=1", ["nosuch.key=1", "optim"]),
        ("loader.batch_size=1.5", ["loader.batch_size=1.5", "Integer"]),
        ("seed", ["seed", "KEY=VALUE"]),
        ("optim.lr=[1", ["optim.lr=[1"]),
    ],
)
def test_a_wrong_override_is_named_with_what_is_allowed(override: str, said: list[str]) -> None:
    (problem,) = explain([override])
    for words in said:
        assert words in problem


def test_all_wrong_overrides_are_named_at_once() -> None:
    problems = explain(["model=lxmertt", "optim.lr=abc", "task=retrieval", "optim.beta3=1", "seed=1"])
    assert [problem.split("=")[0] for problem in problems] == ["model", "optim.lr", "optim.beta3"]


def test_right_overrides_are_not_complained_about() -> None:
    assert explain(["model=lxmert", "size=small", "optim.lr=3e-4", "+trainer.limit_train_batches=3", "ema=0.9"]) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("size.heads=7", "size.width=64"),
        ("optim.lr=-1", "optim.lr=-1"),
        ("optim.warmup=2", "optim.warmup=2"),
        ("text.tokenizer=sentencepiece", "text.tokenizer=sentencepiece"),
        ("text.tokenizer=wordpiece", "text.vocabulary=None"),
        ("text.max_length=2", "text.max_length=2"),
        ("loader.batch_size=0", "loader.batch_size=0"),
        ("ema=1.5", "ema=1.5"),
        ("overfit=0", "overfit=0"),
        ("find=depth", "find=depth"),
        ("resume=nowhere", "resume=nowhere"),
        ("size.block=postnorm", "model.block=postnorm"),
        ("model.layers=two", "model.layers=two"),
        ("+model.depth=2", "model.depth=2"),
        ("+trainer.limit_val_batches=2", "trainer.limit_val_batches=2"),
        ("+trainer.nosuch=2", "trainer.nosuch=2"),
        ("data.question_concepts=many", "data.question_concepts=many"),
    ],
)
def test_a_wrong_value_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(composed(override))
    assert said in str(error.value)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        check(composed("optim.lr=-1", "size.heads=7", "+model.depth=2"))
    assert len(error.value.problems) >= 3


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.utils.collect_env.run",
        "torch.hub.load",
        "torch.optim.AdamW",
        "multimodal.models.nosuch.Thing",
        "builtins.eval",
        "lightning.pytorch.Trainer",
        "multimodal.config.subprocess",
    ],
)
def test_a_target_that_is_no_model_is_refused(target: str, tmp_path: Path) -> None:
    plain = composed(f"model._target_={target}")
    with pytest.raises(ConfigError, match=r"model\._target_"):
        check(plain)
    with pytest.raises(ConfigError, match=r"model\._target_"):
        instantiate({"_target_": target, "command": f"touch {tmp_path}/run"}, "model", [])
    assert not list(tmp_path.iterdir())


def test_a_target_further_down_is_refused() -> None:
    plain = composed()
    plain["task"]["extra"] = {"_target_": "os.system", "command": "true"}
    with pytest.raises(ConfigError, match=r"task\.extra\._target_"):
        check(plain)


def test_the_hash_leaves_out_what_does_not_change_the_training() -> None:
    same = composed("seed=3", "study=other", "trainer.devices=2", "loader.num_workers=2", "runs_dir=elsewhere")
    assert config_hash(composed()) == config_hash(same)
    assert config_hash(composed()) != config_hash(composed("optim.lr=0.1"))


def test_an_experiment_may_change_what_train_yaml_says(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\noptim:\n  lr: 0.5\n")
    plain = composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert (plain["seed"], plain["optim"]["lr"]) == (7, 0.5)

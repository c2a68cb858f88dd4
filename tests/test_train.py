"""A run from config to record, in this process; tests/test_cli.py starts it as a user would."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

import multimodal
from multimodal.config import resumed
from multimodal.evaluate import evaluate
from multimodal.runs.record import read_status
from multimodal.train import execute, prepare
from tests.configs import MODELS, SMALL, TASKS, composed, small


def run(folder: Path, *overrides: str) -> Path:
    """Train in this process; returns the run folder."""
    execute(prepare(small(f"run_dir={folder}", *overrides)))
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_a_run_leaves_its_record_and_can_be_loaded(model: str, task: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", f"model={model}", f"task={task}")
    assert read_status(folder)["state"] == "done"
    result = result_of(folder)
    assert (result["model"], result["task"], result["seed"], result["steps"]) == (model, task, 0, 2)
    splits = ["test", "style_shift", "pair_shift"]
    assert [split for split in result["splits"] if split != "val"] == splits
    for split in splits:
        assert 0 <= result["splits"][split]["metrics"]["score"] <= 1
        table = pyarrow.parquet.read_table(folder / "predictions" / f"{split}.parquet")
        assert {"example", "prediction", "confidence", "score", "target", "type"} == set(table.column_names)
    assert result["cost"]["flops_per_sample"] > 0
    assert result["cost"]["parameters"]["trained"] > 0
    assert "step,metric,value" in (folder / "metrics.csv").read_text()

    loaded = multimodal.load(folder)
    trained = {name.removeprefix("model."): v for name, v in weights(folder, "best").items() if name[:6] == "model."}
    assert_same(dict(loaded.model.state_dict()), trained)
    assert loaded.tokenizer.hash == result["tokenizer_hash"]


def test_vqa_scores_are_those_of_its_predictions(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    for split, scored in result_of(folder)["splits"].items():
        table = pyarrow.parquet.read_table(folder / "predictions" / f"{split}.parquet").to_pydict()
        right = [p == t for p, t in zip(table["prediction"], table["target"], strict=True)]
        assert scored["metrics"]["score"] == pytest.approx(sum(right) / len(right))
        assert set(scored["by_family"]) == set(table["type"])
        assert split == "val" or {"majority", "question only"} <= set(scored["baselines"])


def test_evaluating_a_run_again_gives_the_same_scores(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "task=retrieval")
    again = evaluate(folder, [])
    assert again is not None
    before, after = result_of(folder)["splits"], result_of(again)["splits"]
    assert {k: v["metrics"] for k, v in after.items()} == {k: before[k]["metrics"] for k in after}
    assert evaluate(folder, ["loader.eval_batch_size=3"]) != again


def test_one_seed_gives_one_run(tmp_path: Path) -> None:
    one, same, other = (run(tmp_path / str(i), f"seed={seed}", "size.dropout=0.1") for i, seed in enumerate((5, 5, 6)))
    assert_same(weights(one), weights(same))
    assert not torch.equal(*(weights(folder)["head.answers.weight"] for folder in (one, other)))
    assert result_of(one)["order_hash"] == result_of(same)["order_hash"] != result_of(other)["order_hash"]


def test_seed_0_is_a_seed(tmp_path: Path) -> None:
    run(tmp_path / "a", "seed=0")
    torch.rand(3)
    run(tmp_path / "b", "seed=0")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def stopped(folder: Path, *overrides: str) -> None:
    """A run that broke off in its fifth step, validated and saved at its third."""
    prepared = prepare(small(f"run_dir={folder}", *SIX_STEPS, *overrides))
    step = prepared.task.training_step

    def breaking(batch: Any, batch_idx: int) -> torch.Tensor:
        if prepared.task.global_step == 4:
            raise RuntimeError("power cut")
        return step(batch, batch_idx)

    prepared.task.training_step = breaking  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        execute(prepared)
    assert prepared.folder is not None
    os.close(prepared.folder._lock)  # what the end of the process does


SIX_STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=3")


@pytest.mark.parametrize(("task", "changes"), [("vqa", ()), ("retrieval", ("ema=0.9",))])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(task: str, changes: tuple[str, ...], tmp_path: Path) -> None:
    """With dropout and drawn negatives: what is random in a step depends on seed and step alone."""
    overrides = (f"task={task}", "model=lxmert", "size.dropout=0.1", *changes)
    whole, cut = run(tmp_path / "whole", *SIX_STEPS, *overrides), tmp_path / "cut"
    stopped(cut, *overrides)
    assert read_status(cut)["state"] == "failed"
    execute(prepare({**resumed(cut, []), "resume": str(cut)}))
    assert read_status(cut)["state"] == "done"
    assert_same(weights(whole), weights(cut))


def test_a_resume_that_cannot_be_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="resume: the run read its examples in the order of"):
        prepare({**resumed(tmp_path / "run", ["loader.batch_size=8"]), "resume": str(tmp_path / "run")})
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_another_run_s_folder_is_refused_whatever_became_of_it(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run \(failed\)"):
        prepare(small(f"run_dir={tmp_path / 'run'}"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loader.batch_size=1000000", "loader.batch_size=1000000"),
        ("trainer.devices=0", "trainer:"),
        ("trainer.precision=8-true", "trainer.precision=8-true"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        prepare(small(f"runs_dir={tmp_path / 'runs'}", override))
    assert not list(tmp_path.iterdir())


def test_other_answers_than_the_checkpoint_s_are_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    with pytest.raises(ValueError, match="answers: the data gives"):
        prepare({**small("data.question_concepts=30"), "resume": str(folder), "run_dir": str(tmp_path / "new")})
    with pytest.raises(ValueError, match="answers: the data gives"):
        evaluate(folder, ["data.question_concepts=30"])
    assert not (tmp_path / "new").exists()


def test_fast_dev_run_keeps_nothing(tmp_path: Path) -> None:
    execute(prepare(small("fast_dev_run=true", f"runs_dir={tmp_path}")))
    assert not list(tmp_path.iterdir())


def test_averaged_weights_are_what_is_kept(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "ema=0.5", "trainer.max_steps=3")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not torch.equal(
        checkpoint["state_dict"]["head.answers.weight"], checkpoint["current_model_state"]["head.answers.weight"]
    )


def test_early_stopping_stops(tmp_path: Path) -> None:
    overrides = ("early_stopping=1", "trainer.val_check_interval=1", "trainer.max_steps=50", "optim.lr=1e-9")
    assert result_of(run(tmp_path / "run", *overrides))["steps"] < 50


def test_overfitting_validates_on_what_it_trains_on(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "overfit=1", "trainer.max_steps=60", "trainer.val_check_interval=60")
    assert result_of(folder)["best_val_score"] == 1


@pytest.mark.parametrize("what", ["lr", "batch_size"])
def test_finders_suggest_and_keep_nothing(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    execute(prepare(small(f"find={what}", "trainer.max_steps=20", "data.num_train_scenes=256")))
    assert {"lr": "optim.lr=", "batch_size": "loader.batch_size="}[what] in capsys.readouterr().out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("vision=patches", "image.size=32"),
        ("vision=grid", "image.size=64"),
        ("data=pictotext", "vision=patches", "image.size=32"),
        ("data=pictotext", "vision=patches", "image.size=32", "task=retrieval", "model=clip"),
        ("size=small",),
        ("size=small", "size.block=paper", "model=clip", "task=retrieval"),
        ("trainer.precision=bf16-mixed",),
        ("loader.num_workers=1",),
    ],
    ids=" ".join,
)
def test_what_readme_offers_trains(overrides: tuple[str, ...], tmp_path: Path) -> None:
    if "data=pictotext" in overrides:
        base = [override for override in SMALL if not override.startswith("data.")]
        execute(prepare(composed(f"run_dir={tmp_path / 'run'}", *base, *overrides)))
    else:
        run(tmp_path / "run", *overrides)
    assert result_of(tmp_path / "run")["steps"] == 2

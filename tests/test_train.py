"""A run from config to record, in this process; the slow tests start it as a user would."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

import multimodal
from multimodal.evaluate import evaluate
from multimodal.runs.record import read_config, read_status
from multimodal.train import execute, prepare
from tests.configs import MODELS, TASKS, small


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
        assert {"majority", "question only"} <= set(scored["baselines"])


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


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.max_epochs=-1")
    cut = tmp_path / "cut"
    prepared = prepare(small(f"run_dir={cut}", "trainer.max_steps=6", "trainer.val_check_interval=3"))
    stop = prepared.task.training_step

    def stopping(batch: Any, index: int) -> torch.Tensor:
        if prepared.task.global_step == 4:
            raise RuntimeError("power cut")
        return stop(batch, index)

    prepared.task.training_step = stopping  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        execute(prepared)
    assert read_status(cut)["state"] == "failed"
    os.close(prepared.folder._lock)  # type: ignore[union-attr]  # what the end of the process does
    execute(prepare({**read_config(cut), "resume": str(cut), "run_dir": None}))
    assert read_status(cut)["state"] == "done"
    assert_same(weights(whole), weights(cut))


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


def test_patches_and_early_stopping_and_overfit(tmp_path: Path) -> None:
    overrides = ("vision=patches", "image.size=32", "overfit=16", "early_stopping=1", "trainer.val_check_interval=1")
    folder = run(tmp_path / "run", *overrides, "trainer.max_steps=50", "optim.lr=1e-9")
    assert result_of(folder)["steps"] < 50


def test_finders_suggest_and_keep_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(prepare(small("find=batch_size", f"runs_dir={tmp_path}", "trainer.max_steps=1")))
    assert "loader.batch_size=" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())

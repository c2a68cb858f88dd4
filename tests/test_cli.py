"""Commands as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import SMALL

MULTIMODAL = [str(Path(sys.executable).parent / "multimodal")]
TRAIN = [sys.executable, "-m", "multimodal.train"]
TWO_RANKS = ("trainer.devices=2", "strategy=ddp", "loader.batch_size=8")


def call(command: list[str], cwd: Path, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a command with the environment of a user: no ranks, no run to go on with."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    }
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    if expect is not None:
        assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_help_lists_the_commands(tmp_path: Path) -> None:
    assert "train" in call([*MULTIMODAL, "--help"], tmp_path).stdout
    assert "allowed: train, evaluate" in call([*MULTIMODAL, "trian"], tmp_path, expect=1).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "model=lxmertt"], ["model=lxmertt", "did you mean lxmert?"]),
        (["train", "optim.nosuchkey=1", "optim.lr=abc"], ["optim.nosuchkey=1", "optim.lr=abc", "2 problems"]),
        (["train", "model.depth=3"], ["model.depth=3", "layers"]),
        (["train", "resume=nowhere"], ["resume=nowhere"]),
        (["train", "text.tokenizer=wordpiece", "text.vocabulary=no.txt"], ["text.vocabulary=no.txt"]),
        (["train", "data.question_concepts=100000"], ["data.question_concepts=100000"]),
        (["train", "loader.batch_size=10000000"], ["loader.batch_size=10000000"]),
        (["evaluate", "run=nowhere"], ["run=nowhere", "not a run folder"]),
        (["evaluate"], ["usage", "run="]),
    ],
)
def test_a_mistake_is_one_screen_and_nothing_is_written(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    done = call([*MULTIMODAL, *arguments], tmp_path, expect=None)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 24
    for words in said:
        assert words in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "retrieval"])
@pytest.mark.parametrize("start", ["console script", "-m", "torchrun"])
def test_two_ranks_make_one_run(start: str, task: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    commands = {"console script": [*MULTIMODAL, "train"], "-m": TRAIN, "torchrun": [*torchrun, "multimodal.train"]}
    call([*commands[start], f"task={task}", "model=lxmert", *SMALL, *TWO_RANKS], tmp_path)
    (folder,) = (tmp_path / "runs" / "default").iterdir()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    result = json.loads((folder / "result.json").read_text())
    assert (result["world_size"], result["global_batch_size"], result["steps"]) == (2, 16, 2)
    one = call([*TRAIN, f"task={task}", "model=lxmert", *SMALL, "run_dir=one"], tmp_path)
    assert one.returncode == 0
    assert json.loads((tmp_path / "one" / "result.json").read_text())["order_hash"] == result["order_hash"]
    call([*MULTIMODAL, "evaluate", f"run={folder}", "trainer.devices=1"], tmp_path)
    again = json.loads(next((folder / "evaluations").glob("*/result.json")).read_text())
    for split, scored in again["splits"].items():
        assert scored["metrics"] == pytest.approx(result["splits"][split]["metrics"])


@pytest.mark.slow
def test_a_run_is_known_by_its_own_config(tmp_path: Path) -> None:
    """Going on with a run, or judging it again, speaks of its own keys, and of its own answers."""
    call([*TRAIN, *SMALL, "model=clip", "task=retrieval", "run_dir=run"], tmp_path)
    call([*MULTIMODAL, "evaluate", "run=run", "task.rerank=4"], tmp_path)
    more = call([*MULTIMODAL, "train", "resume=run", "trainer.max_steps=3", "task.rerank=8"], tmp_path)
    assert "step 3/3" in more.stdout
    assert len(list((tmp_path / "runs" / "default").iterdir())) == 1  # the finished run stays as it is
    call([*TRAIN, *SMALL, "run_dir=vqa"], tmp_path)
    for command in (["evaluate", "run=vqa"], ["train", "resume=vqa"]):
        done = call([*MULTIMODAL, *command, "data.question_concepts=30"], tmp_path, expect=1)
        assert "answers: the data gives" in done.stderr
        assert "Traceback" not in done.stderr
        wrong = call([*MULTIMODAL, *command, "optim.nosuch=1", "optim.lr=abc"], tmp_path, expect=1)
        assert "optim.nosuch" in wrong.stderr
        assert "optim.lr" in wrong.stderr
        assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_the_profiler_tells_what_it_found(tmp_path: Path) -> None:
    done = call([*TRAIN, *SMALL, "trainer.profiler=simple", "run_dir=run"], tmp_path)
    assert "run_training_batch" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_config_can_be_printed(tmp_path: Path) -> None:
    printed = call([*MULTIMODAL, "train", "--cfg", "job", "--resolve", "model=clip"], tmp_path).stdout
    assert "multimodal.models.clip.Clip" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    call([*TRAIN, *SMALL, "run_dir=run"], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = call([*TRAIN, *SMALL, "run_dir=run"], tmp_path, expect=1)
    assert "run_dir=run: holds a run (done)" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}

"""The run folder: never shared, never overwritten, whole files only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from multimodal.runs.record import RunFolder, read_config, read_status, write_predictions


def test_five_runs_of_one_second_get_five_folders(tmp_path: Path) -> None:
    code = f"from multimodal.runs.record import *; print(RunFolder.unique(Path({str(tmp_path)!r}), 'job').path)"
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(5)]
    paths = {child.communicate()[0].strip() for child in children}
    assert len(paths) == 5
    assert {Path(path) for path in paths} == set(tmp_path.iterdir())


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    held = RunFolder(tmp_path / "run")
    code = f"from multimodal.runs.record import *; RunFolder(Path({str(held.path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "another process writes to it" in done.stderr


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = f"from multimodal.runs.record import *; RunFolder(Path({str(tmp_path)!r})); import os; os._exit(1)"
    subprocess.run([sys.executable, "-c", code], check=False)
    RunFolder(tmp_path)


def test_a_finished_folder_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_status("done")
    with pytest.raises(ValueError, match=r"holds a run \(done\)"):
        RunFolder(tmp_path / "run")


def test_status_and_config_come_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    plain = {"seed": 1, "optim": {"lr": 1e-3, "eps": 1e-8}, "resume": None, "allow": ["a"], "study": "off"}
    folder.write_config(plain)
    folder.write_status("failed", exception="ValueError: no")
    assert read_config(folder.path) == plain
    assert read_status(folder.path)["exception"] == "ValueError: no"
    assert not list(folder.path.glob("*.tmp"))
    assert not list(folder.path.glob(".*.tmp"))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"run={tmp_path}"):
        read_config(tmp_path)


def test_predictions_are_a_table(tmp_path: Path) -> None:
    write_predictions(tmp_path, "test", {"example": [0, 1], "prediction": ["a", "b"]})
    assert pyarrow.parquet.read_table(tmp_path / "predictions" / "test.parquet").to_pydict() == {
        "example": [0, 1], "prediction": ["a", "b"],
    }  # fmt: skip

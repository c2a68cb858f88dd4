"""The run folder: the contract between training and everything that comes after it.

    RUNS_DIR/STUDY/JOB/
        config.yaml     the whole config, resolved
        status.json     running | done | failed, since when, and why
        metrics.csv     step, metric, value: one line a logged number
        checkpoints/    best.ckpt, last.ckpt
        predictions/    SPLIT.parquet: example, prediction, confidence, score, target, type
        result.json     scores by split and family, baselines, cost, versions, hardware

Only rank 0 writes. Files appear whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

import pyarrow
import pyarrow.parquet
from omegaconf import OmegaConf


class RunFolder:
    """A run's folder, held by a lock as long as its process lives.

    Args:
        path: the folder; made if it isn't there.
        going_on: whether it holds the unfinished run that is to go on.

    Raises:
        ValueError: the folder holds another run, or another process is writing to it.
    """

    def __init__(self, path: Path, going_on: bool = False) -> None:
        state = read_status(path).get("state")
        if state == "done" or (state and not going_on):
            raise ValueError(f"run_dir={path}: holds a run ({state}); allowed: a new folder, or resume={path} to go on")
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.absolute()
        self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)  # closed, and so released, when the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(f"run_dir={path}: another process writes to it; allowed: a folder of its own") from None

    def discard(self) -> None:
        """Take an empty folder away again, with RUNS_DIR/STUDY if they are empty too: the run didn't come about."""
        if {path.name for path in self.path.iterdir()} == {".lock"}:
            (self.path / ".lock").unlink()
            for folder in (self.path, self.path.parent, self.path.parent.parent):
                if any(folder.iterdir()):
                    break
                folder.rmdir()

    @classmethod
    def unique(cls, parent: Path, name: str) -> Self:
        """A new folder below `parent`, whoever else is making one in the same second."""
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            path = parent / f"{name}_{stamp}-{secrets.token_hex(2)}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return cls(path)

    def write_config(self, plain: dict[str, Any]) -> None:
        """Keep the resolved config."""
        _write(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain)))

    def write_status(self, state: str, **more: Any) -> None:
        """Say how far the run is: "running", "done" or "failed" with its exception."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path / "status.json", {"state": state, "time": now, "pid": os.getpid(), **more})

    def write_result(self, result: dict[str, Any]) -> None:
        """Keep the result; there is none before the run has ended well."""
        write_json(self.path / "result.json", result)


def read_status(path: Path) -> dict[str, Any]:
    """The status of a run folder, {} if it has none."""
    try:
        status: dict[str, Any] = json.loads((path / "status.json").read_text())
    except FileNotFoundError:
        return {}
    return status


def read_config(path: Path, key: str = "run") -> dict[str, Any]:
    """The resolved config of a run; `key` is what the user named it by.

    Raises:
        ValueError: there is no run folder at `path`.
    """
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{key}={path}: not a run folder, it has no config.yaml; allowed: RUNS_DIR/STUDY/JOB")
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path / "config.yaml")))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    _write(path, json.dumps(content, indent=1) + "\n")


def write_predictions(folder: Path, split: str, columns: dict[str, Any]) -> None:
    """Keep what was predicted for each example of a split, whole or not at all."""
    path = folder / "predictions" / f"{split}.parquet"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    temporary.replace(path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)

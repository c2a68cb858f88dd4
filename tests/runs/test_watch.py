"""What is measured and logged while a run is under way."""

from __future__ import annotations

import csv
from pathlib import Path

from multimodal.runs.watch import MetricsLog


def test_metrics_are_only_ever_added(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    MetricsLog(path).log_metrics({"train/loss": 2.0, "epoch": 0}, step=1)
    MetricsLog(path).log_metrics({"val/score": 0.5}, step=2)
    with path.open() as file:
        assert list(csv.reader(file)) == [
            ["step", "metric", "value"], ["1", "train/loss", "2.0"], ["2", "val/score", "0.5"],
        ]  # fmt: skip

"""Vision-language architectures side by side: one recipe, one table.

model, tokenizer, transform = multimodal.load("runs/default/JOB")
"""

from __future__ import annotations

from typing import Any


def load(run: Any) -> Any:
    """The model of a run folder with its tokenizer and image transform: see `multimodal.evaluate.load`."""
    from multimodal import evaluate  # Lightning and Hydra only for those who ask: models import without them

    return evaluate.load(run)

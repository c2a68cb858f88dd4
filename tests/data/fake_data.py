"""A data set small enough to check by hand: image i shows the i-th thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from multimodal.data.dataset import Captions, Questions
from multimodal.types import Regions

THINGS = ("cow", "goose", "t-shirt", "car", "tree", "fish", "moon")


class FakeImages:
    """Regions whose features say which image they are; remembers what was asked of it."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.asked: list[np.ndarray] = []

    def __len__(self) -> int:
        return self.n

    def __call__(self, index: np.ndarray) -> Regions:
        self.asked.append(index)
        features = torch.from_numpy(index)[:, None, None].float().expand(-1, 2, 3).clone()
        return Regions(features, torch.zeros(len(index), 2, 4), torch.ones(len(index), 2, dtype=torch.bool))


class FakeData:
    """Tables of the given lengths; two questions an image, captions in pairs (i, i + 1)."""

    name = "fake"
    eval_splits = ("val", "test", "shift")

    def __init__(self, *, train: int = 24, val: int = 7, tables: Sequence[str] = ("questions", "captions")) -> None:
        self.sizes = {"train": train, "val": val, "test": 5, "shift": 0}
        self.tables = tables
        self.calls: list[tuple[str, str]] = []

    def _size(self, table: str, split: str) -> int:
        self.calls.append((table, split))
        if table not in self.tables:
            raise ValueError(f"fake has no {table}")
        if split not in self.sizes:
            raise ValueError(f"fake has no split {split!r}")
        return self.sizes[split]

    def questions(self, split: str) -> Questions:
        n = self._size("questions", split)
        things = [THINGS[i % len(THINGS)] for i in range(n)]
        return Questions(
            images=FakeImages(n // 2 + 1),
            text=[f"What is left of the {thing}{', really' * (i % 3)}?" for i, thing in enumerate(things)],
            image=np.arange(n) // 2,
            answers=[[thing] for thing in things],
            family=["query"] * n,
            guesses={"any": things},
        )

    def captions(self, split: str) -> Captions:
        n = self._size("captions", split)
        return Captions(
            images=FakeImages(n),
            text=[f"a {THINGS[i % len(THINGS)]} beside a lamp" for i in range(n)],
            image=np.arange(n),
            relevant=np.eye(n, dtype=bool),
            swapped=np.arange(n) ^ 1,
            group=2,
            oracles={"bag": np.eye(n, dtype=np.float32)},
        )

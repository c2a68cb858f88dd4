"""What every data set turns its files into: pictures, and a table of questions or captions about them.

A data set is one file with one class that has these methods, and one yaml in conf/data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from multimodal.types import ImageInput

VisualInput = Literal["regions", "pixels"]


class Images(Protocol):
    """The pictures of one table, in the form that the data set's `visual` setting asked for."""

    def __len__(self) -> int:
        """Number of distinct images."""
        ...

    def __call__(self, index: np.ndarray) -> ImageInput:
        """The images `index int[U]`, in this order. A function of the index alone."""
        ...


@dataclass(frozen=True)
class Questions:
    """n questions about some images, in columns."""

    images: Images
    text: list[str]  # n
    image: np.ndarray  # int[n]  row of `images`
    answers: list[list[str]]  # n x the answers people gave: one for a generated question, ten in VQAv2
    family: list[str]  # n  kind of question, for tables by family
    guesses: dict[str, list[str]] = field(default_factory=dict)  # named baselines: n predictions each


@dataclass(frozen=True)
class Captions:
    """n captions of some images, in columns."""

    images: Images
    text: list[str]  # n
    image: np.ndarray  # int[n]  row of `images` that each caption was written for
    relevant: np.ndarray | None = None  # bool[U, n]  every caption true of an image; none: its own captions are
    swapped: np.ndarray | None = None  # int[n]  row of the caption with the roles exchanged, -1 for none
    meaning: np.ndarray | None = None  # int[U]  images with one number show the same; none: each shows its own
    group: int = 1  # this many consecutive rows stay in one training batch (a scene and its twin)
    oracles: dict[str, np.ndarray] = field(default_factory=dict)  # named baselines: similarity float[U, n] each


class VisionLanguageData(Protocol):
    """A data set. Everything it returns is a function of its own settings and the arguments alone."""

    name: str
    tables: tuple[Literal["questions", "captions"], ...]  # which of the two it has
    eval_splits: tuple[str, ...]  # "val" first, then "test", then shift splits

    def questions(self, split: str) -> Questions:
        """The questions of "train" or of one of `eval_splits`.

        Raises:
            ValueError: no such split.
        """
        ...

    def captions(self, split: str) -> Captions:
        """The captions of "train", or the retrieval gallery of one of `eval_splits`.

        Raises:
            ValueError: no such split.
        """
        ...

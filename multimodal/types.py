"""What passes between the rooms.

Legend, used in every docstring of the package:

    B texts   U distinct images   P pairs   T text tokens   N visual tokens   L tokens of either kind
    D width   E embedding size    F visual feature size     A answers

Masks are bool and True means a real token, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class Tensors:
    """A dataclass of tensors (or of such dataclasses) that moves between devices as one."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply `function` to every tensor; fields that hold none are left as they are."""

        def apply(value: object) -> object:
            if isinstance(value, Tensor):
                return function(value)
            return value.map(function) if isinstance(value, Tensors) else value

        changes = {field.name: apply(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Move every tensor. Lightning calls this instead of walking the dataclass itself."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Pin every tensor, for the data loader."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class TextInput(Tensors):
    """Token ids of B texts, each `[start] words... [end]`, padded on the right."""

    ids: Tensor  # int[B, T]
    mask: Tensor  # bool[B, T]


@dataclass(frozen=True)
class Pixels(Tensors):
    """Pictures as the backbone wants them: resized and normalised."""

    pixels: Tensor  # float[U, 3, H, W]


@dataclass(frozen=True)
class Regions(Tensors):
    """Visual features computed before, one row a region, each with its place in the picture."""

    features: Tensor  # float[U, N, F]
    boxes: Tensor  # float[U, N, 4]  x1, y1, x2, y2 in 0..1
    mask: Tensor  # bool[U, N]


ImageInput = Pixels | Regions


@dataclass(frozen=True)
class Batch(Tensors):
    """B texts about U distinct images; the model reads each image once."""

    text: TextInput
    image: ImageInput
    image_of_text: Tensor  # int[B]  row of `image` that each text is about
    example_id: Tensor  # int[B]  row of the split's table


@dataclass(frozen=True)
class VqaBatch(Batch):
    """Questions with the score of every answer of the vocabulary."""

    target: Tensor  # float[B, A]  in 0..1


@dataclass(frozen=True)
class RetrievalBatch(Batch):
    """Captions; images of one meaning are never negatives of each other's captions, whatever rank holds them."""

    image_id: Tensor  # int[U]  row of the split's images
    meaning: Tensor  # int[U]  the image id, unless the data set knows of images that show the same


@dataclass(frozen=True)
class Stream(Tensors):
    """What a model knows of one modality before the two meet."""

    states: Tensor  # float[., L, D]
    mask: Tensor  # bool[., L]

    def select(self, index: Tensor) -> Stream:
        """Pick rows, `index int[P]`: one image read once serves all its questions."""
        return self.map(lambda tensor: tensor[index])


@dataclass(frozen=True)
class Fused(Tensors):
    """What a model knows of P pairs after the two have met.

    `text` and `image` are there only if the caller asked for them with `reads`.
    """

    pooled: Tensor  # float[P, D]
    text: Stream | None = None
    image: Stream | None = None


@dataclass(frozen=True)
class Evaluation:
    """What is known of a split after a pass over it; every report is made from these."""

    metrics: dict[str, float]  # "score" is the one that checkpoints are chosen by
    by_family: dict[str, float] = field(default_factory=dict)  # question family -> score
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)  # baseline -> metric or family -> value
    predictions: dict[str, Any] = field(default_factory=dict)  # columns of equal length, a row an example
    cost: dict[str, float] = field(default_factory=dict)  # what judging took: pairs/s

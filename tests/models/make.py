"""Small models and inputs for the tests of this folder."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import torch
from torch import Tensor, nn

from multimodal import models
from multimodal.models import vision
from multimodal.models.contract import VERBS
from multimodal.types import Pixels, Regions, TextInput

VOCAB_SIZE, MAX_TEXT_LENGTH, WIDTH, FEATURE_SIZE, EMBEDDING_SIZE = 40, 12, 16, 10, 6
IMAGE_SIZE, PATCH_SIZE = 12, 4


def architectures() -> list[type[nn.Module]]:
    """Every class with the five verbs in multimodal/models, so that a new file is tested with no edit here."""
    found = []
    for path in sorted(Path(models.__path__[0]).glob("*.py")):
        module = importlib.import_module(f"multimodal.models.{path.stem}")
        found += [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and value.__module__ == module.__name__
            and issubclass(value, nn.Module)
            and all(hasattr(value, verb) for verb in VERBS)
        ]
    return found


def make_model(
    architecture: type[nn.Module], block: str, stem: vision.Stem | None = None, **changes: object
) -> nn.Module:
    """A model of the least size, in evaluation mode.

    Its arguments come from the signature: all architectures share most names, and what else they have are numbers of
    layers.
    """
    known = {
        "vision": stem or vision.Regions(feature_size=FEATURE_SIZE),
        "vocab_size": VOCAB_SIZE,
        "max_text_length": MAX_TEXT_LENGTH,
        "width": WIDTH,
        "heads": 2,
        "feedforward": 24,
        "dropout": 0.0,
        "embedding_size": EMBEDDING_SIZE,
        "block": block,
    }
    arguments = {}
    for name, parameter in inspect.signature(architecture).parameters.items():
        if name in known:
            arguments[name] = known[name]
        elif parameter.default is inspect.Parameter.empty:
            assert "layers" in name, f"{architecture.__name__}: don't know a small value for {name}"
            arguments[name] = 2
    return architecture(**arguments | changes).eval()


def make_stem(kind: str) -> vision.Stem:
    if kind == "regions":
        return vision.Regions(feature_size=FEATURE_SIZE)
    return vision.Patches(patch_size=PATCH_SIZE, image_size=IMAGE_SIZE)


def make_text(lengths: list[int], pad_to: int | None = None) -> TextInput:
    mask = lengths_to_mask(lengths, pad_to)
    return TextInput(ids=torch.randint(0, VOCAB_SIZE, mask.shape), mask=mask)


def make_regions(lengths: list[int], pad_to: int | None = None, feature_size: int = FEATURE_SIZE) -> Regions:
    mask = lengths_to_mask(lengths, pad_to)
    return Regions(features=torch.randn(*mask.shape, feature_size), boxes=torch.rand(*mask.shape, 4), mask=mask)


def make_pixels(images: int, size: int = IMAGE_SIZE) -> Pixels:
    return Pixels(torch.randn(images, 3, size, size))


def lengths_to_mask(lengths: list[int], pad_to: int | None = None) -> Tensor:
    return torch.arange(pad_to or max(lengths)) < torch.tensor(lengths).unsqueeze(1)

"""The sizes of conf/: at tiny and small the architectures are equal in width and in what does the reading."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multimodal.models import vision
from multimodal.models.layers import trunk_parameters
from tests.configs import MODELS, composed
from tests.models.make import architectures

ARCHITECTURES = {f"{architecture.__module__}.{architecture.__name__}": architecture for architecture in architectures()}


def make(model: str, size: str) -> nn.Module:
    """As the command line would, but without memory for its weights."""
    settings = composed(f"model={model}", f"size={size}")["model"]
    architecture = ARCHITECTURES[settings.pop("_target_")]
    with torch.device("meta"):
        stem = vision.Patches(patch_size=32, image_size=224)
        return architecture(vision=stem, vocab_size=100, max_text_length=32, **settings)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_equal_width_and_trunk_within_five_percent(size: str) -> None:
    models = {name: make(name, size) for name in MODELS}
    trunks = {name: trunk_parameters(model) for name, model in models.items()}
    assert len({model.width for model in models.values()}) == 1
    assert max(trunks.values()) <= 1.05 * min(trunks.values()), trunks
    assert all(model.block == "common" for model in models.values())


def test_base_is_the_papers_shape() -> None:
    models = {name: make(name, "base") for name in ("visualbert", "lxmert", "clip")}
    assert all(model.width == 768 and model.block == "paper" for model in models.values())
    visualbert, lxmert, clip = models.values()
    encoders = [lxmert.text_encoder, lxmert.image_encoder, clip.image_encoder, clip.text_encoder, visualbert.encoder]
    assert [len(encoder.blocks) for encoder in encoders] == [9, 5, 12, 12, 12]
    assert len(lxmert.cross_layers) == 5
    assert [encoder.feedforward for encoder in encoders] == [3072, 3072, 3072, 2048, 3072]
    assert [encoder.heads for encoder in encoders] == [12, 12, 12, 8, 12]
    assert clip.text_encoder.width == 512

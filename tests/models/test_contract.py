"""What holds of every architecture, found by walking multimodal/models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from multimodal.models import vision
from multimodal.models.contract import Reads
from multimodal.models.heads import EmbeddingHead
from multimodal.types import Fused, Regions, TextInput
from tests.models.make import (
    EMBEDDING_SIZE,
    FEATURE_SIZE,
    MAX_TEXT_LENGTH,
    VOCAB_SIZE,
    WIDTH,
    architectures,
    make_model,
    make_pixels,
    make_regions,
    make_stem,
    make_text,
)

ARCHITECTURES = architectures()
BLOCKS = ("common", "paper")
every_model = pytest.mark.parametrize(
    "model",
    [pytest.param((a, block), id=f"{a.__name__}-{block}") for a in ARCHITECTURES for block in BLOCKS],
    indirect=True,
)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A small model whose every parameter matters: no bias is zero, no box projection is."""
    torch.manual_seed(0)
    architecture, block = request.param
    model = make_model(architecture, block)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def read(model: nn.Module, image: Regions, text: TextInput, reads: Reads = "both") -> Fused:
    return model.fuse(model.encode_image(image), model.encode_text(text), reads=reads)


def outputs(model: nn.Module, image: Regions, text: TextInput) -> dict[str, Tensor]:
    """All that a model says of pairs of images and texts, at the real tokens."""
    streams = model.encode_image(image), model.encode_text(text)
    fused = model.fuse(*streams, reads="both")
    return {
        "pooled": fused.pooled,
        "text": fused.text.states[fused.text.mask],
        "image": fused.image.states[fused.image.mask],
        "image embedding": model.embed_image(streams[0]),
        "text embedding": model.embed_text(streams[1]),
    }


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def differs(first: Tensor, second: Tensor) -> bool:
    return (first - second).abs().max().item() > 1e-3


def test_the_three_architectures_are_found() -> None:
    assert {"Clip", "Lxmert", "VisualBert"} <= {architecture.__name__ for architecture in ARCHITECTURES}


@every_model
def test_contract_and_shapes(model: nn.Module) -> None:
    image, text = make_regions([3, 4]), make_text([5, 7, 2])
    pick = torch.tensor([1, 0, 1])
    encoded_image, encoded_text = model.encode_image(image), model.encode_text(text)
    assert encoded_image.states.shape[:2] == encoded_image.mask.shape
    assert encoded_image.states.shape[2] == WIDTH
    assert encoded_image.mask.sum() - image.mask.sum() in (0, len(image.mask)), "the regions, and maybe a class token"
    assert encoded_text.states.shape == (3, 7, WIDTH)
    assert torch.equal(encoded_text.mask, text.mask)

    fused = model.fuse(encoded_image.select(pick), encoded_text, reads="both")
    assert fused.pooled.shape == (3, model.width) == (3, WIDTH)
    assert fused.text.states.shape == (3, 7, WIDTH)
    assert fused.image.states.shape == encoded_image.select(pick).states.shape
    assert torch.equal(fused.image.mask, encoded_image.mask[pick])
    assert model.embed_image(encoded_image).shape == (2, EMBEDDING_SIZE)
    assert model.embed_text(encoded_text).shape == (3, EMBEDDING_SIZE)

    assert isinstance(model.embedding, EmbeddingHead)
    assert model.word_embeddings.weight.shape == (VOCAB_SIZE, WIDTH)


@every_model
def test_padding_changes_nothing(model: nn.Module) -> None:
    image, text = make_regions([3, 1]), make_text([5, 2])
    longer_image, longer_text = make_regions([3, 1], pad_to=6), make_text([5, 2], pad_to=9)
    longer_image.features[:, :3][image.mask] = image.features[image.mask]
    longer_image.boxes[:, :3][image.mask] = image.boxes[image.mask]
    longer_image.features[~longer_image.mask] = torch.nan  # whatever is there
    longer_text.ids[:, :5][text.mask] = text.ids[text.mask]
    assert_same(outputs(model, longer_image, longer_text), outputs(model, image, text))


@every_model
def test_every_real_token_counts(model: nn.Module) -> None:
    image, text = make_regions([3]), make_text([5])
    before = outputs(model, image, text)
    for token in range(3):
        features, boxes = image.features.clone(), image.boxes.clone()
        features[0, token] += 1
        boxes[0, token] = 1 - boxes[0, token]
        for changed in (replace(image, features=features), replace(image, boxes=boxes)):
            after = outputs(model, changed, text)
            assert differs(after["pooled"], before["pooled"])
            assert differs(after["image embedding"], before["image embedding"])
            assert torch.equal(after["text embedding"], before["text embedding"])
    for token in range(5):
        ids = text.ids.clone()
        ids[0, token] = (ids[0, token] + 1) % VOCAB_SIZE
        after = outputs(model, image, replace(text, ids=ids))
        assert differs(after["pooled"], before["pooled"])
        assert differs(after["text embedding"], before["text embedding"])
        assert torch.equal(after["image embedding"], before["image embedding"])


@every_model
def test_regions_have_no_order_and_words_have(model: nn.Module) -> None:
    image, text = make_regions([4]), make_text([5])
    before = outputs(model, image, text)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = outputs(model, image.map(lambda tensor: tensor[:, order]), text)
    for name in ("pooled", "image embedding"):
        torch.testing.assert_close(shuffled[name], before[name], rtol=1e-5, atol=1e-5)

    order = torch.tensor([0, 2, 1, 3, 4])
    swapped = outputs(model, image, text.map(lambda tensor: tensor[:, order]))
    for name in ("pooled", "text embedding"):
        assert differs(swapped[name], before[name])


@every_model
def test_encode_once_equals_encode_each(model: nn.Module) -> None:
    image, text = make_regions([3, 1, 4]), make_text([5, 2, 6, 3])
    pick = torch.tensor([2, 0, 2, 1])
    once = model.fuse(model.encode_image(image).select(pick), model.encode_text(text), reads="both")
    each = read(model, image.map(lambda tensor: tensor[pick]), text)
    torch.testing.assert_close(once.pooled, each.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.text.states, each.text.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.image.states, each.image.states, rtol=1e-5, atol=1e-5)


@every_model
def test_reads_leaves_out_only_what_is_not_read(model: nn.Module) -> None:
    image, text = make_regions([3, 1]), make_text([5, 2])
    pooled, with_text, both = (read(model, image, text, reads) for reads in ("pooled", "text", "both"))
    assert pooled.text is None
    assert pooled.image is None
    assert with_text.image is None
    torch.testing.assert_close(pooled.pooled, both.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(with_text.pooled, both.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(with_text.text.states, both.text.states, rtol=1e-5, atol=1e-5)


@every_model
def test_an_image_without_regions_gives_numbers(model: nn.Module) -> None:
    """And they don't depend on how far it is padded."""
    text = make_text([5, 2])
    seen = []
    for padding in (2, 3):
        image = make_regions([padding, 0], pad_to=padding)
        found = outputs(model, image, text)
        sum(values.sum() for values in found.values()).backward()
        assert all(values.isfinite().all() for values in found.values())
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        seen.append((found["pooled"][1], found["image embedding"][1]))
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-5)


@every_model
def test_no_parameter_is_dead(model: nn.Module) -> None:
    loss = sum((values**2).sum() for values in outputs(model, make_regions([3, 4]), make_text([5, 7])).values())
    (loss * model.embedding.scale()).backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not dead


@every_model
def test_dropout_drops_in_training_only(model: nn.Module) -> None:
    model = make_model(type(model), model.block, dropout=0.5)
    image, text = make_regions([3]), make_text([5])
    assert_same(outputs(model, image, text), outputs(model, image, text))
    model.train()
    assert differs(outputs(model, image, text)["pooled"], outputs(model, image, text)["pooled"])


@every_model
def test_initial_outputs_have_a_healthy_scale(model: nn.Module) -> None:
    """At any width: neither vanishing nor exploding, and not the same for every pair."""
    for width in (16, 128):
        model = make_model(type(model), model.block, width=width, heads=4, feedforward=2 * width)
        with torch.no_grad():
            found = outputs(model, make_regions([4] * 32), make_text([6] * 32))
        for name in ("pooled", "image embedding", "text embedding"):
            assert 0.03 < found[name].std(dim=0).mean() < 3, (width, name)


@every_model
def test_patches_too(model: nn.Module) -> None:
    model = make_model(type(model), model.block, make_stem("patches"))
    pixels, text = make_pixels(2), make_text([5, 3])
    found = outputs(model, pixels, text)
    assert all(values.isfinite().all() for values in found.values())
    assert differs(outputs(model, replace(pixels, pixels=pixels.pixels + 1), text)["pooled"], found["pooled"])


@every_model
def test_user_mistakes_are_named(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"max_text_length={MAX_TEXT_LENGTH}\b.* {MAX_TEXT_LENGTH + 1} tokens"):
        model.encode_text(make_text([MAX_TEXT_LENGTH + 1]))
    with pytest.raises(ValueError, match=r"vision=regions .*Pixels"):
        model.encode_image(make_pixels(1))
    with pytest.raises(ValueError, match=r"feature_size=10\b.*\b11\b"):
        model.encode_image(make_regions([2], feature_size=FEATURE_SIZE + 1))
    with pytest.raises(ValueError, match="block='papre': allowed are common, paper"):
        make_model(type(model), "papre")
    with pytest.raises(ValueError, match=r"width=16 .* heads=3"):
        make_model(type(model), "common", heads=3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_stem_learns_along_if_it_can(architecture: type[nn.Module]) -> None:
    class Learning(vision.Regions):
        def __init__(self) -> None:
            super().__init__(feature_size=FEATURE_SIZE)
            self.gain = nn.Parameter(torch.ones(FEATURE_SIZE))

        def forward(self, image: Regions) -> vision.Tokens:
            features, boxes, mask = super().forward(image)
            return features * self.gain, boxes, mask

    model = make_model(architecture, "common", Learning())
    read(model, make_regions([3]), make_text([4])).pooled.square().sum().backward()
    assert model.vision.gain.grad.all()

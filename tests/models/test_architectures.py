"""What is peculiar to each architecture: where the two modalities meet, and what its paper says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from multimodal.models import Clip, Lxmert, VisualBert
from multimodal.models.layers import masked_mean
from multimodal.types import Stream, TextInput
from tests.models.make import (
    EMBEDDING_SIZE,
    MAX_TEXT_LENGTH,
    VOCAB_SIZE,
    make_model,
    make_pixels,
    make_regions,
    make_stem,
    make_text,
)

BLOCKS = ("common", "paper")


def without_gradient(model: nn.Module, loss: Tensor) -> set[str]:
    """The parameters that a loss can't reach, by the module that they belong to."""
    loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


def starting_with(model: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


# ---- VisualBERT


@pytest.mark.parametrize("block", BLOCKS)
def test_visualbert_encodes_by_embedding_alone(block: str) -> None:
    """All that a stream knows of a token is the token: no other one."""
    model = make_model(VisualBert, block)
    image, text = make_regions([3]), make_text([4])
    one = replace(image, features=image.features[:, :1], boxes=image.boxes[:, :1], mask=image.mask[:, :1])
    torch.testing.assert_close(model.encode_image(one).states, model.encode_image(image).states[:, :1])
    first = TextInput(ids=text.ids[:, :1], mask=text.mask[:, :1])
    torch.testing.assert_close(model.encode_text(first).states, model.encode_text(text).states[:, :1])


def test_visualbert_box_projection_starts_at_zero_and_learns() -> None:
    model = make_model(VisualBert, "paper")
    assert not model.visual_embedding.boxes.weight.any()
    fused = model.fuse(model.encode_image(make_regions([3])), model.encode_text(make_text([4])))
    fused.pooled.square().sum().backward()
    assert model.visual_embedding.boxes.weight.grad.all()


@pytest.mark.parametrize("block", BLOCKS)
def test_visualbert_gradients(block: str) -> None:
    model = make_model(VisualBert, block)
    fused = model.fuse(model.encode_image(make_regions([3])), model.encode_text(make_text([4])))
    assert without_gradient(model, fused.pooled.sum()) == starting_with(model, "embedding.")

    model = make_model(VisualBert, block)
    image, text = model.encode_image(make_regions([3])), model.encode_text(make_text([4]))
    loss = (model.embed_image(image) * model.embed_text(text)).sum() * model.embedding.scale()
    assert without_gradient(model, loss) == starting_with(model, "pooler.")


# ---- LXMERT


def test_lxmert_shares_cross_attention_between_directions() -> None:
    """One set of weights, and a gradient from either direction."""
    model = make_model(Lxmert, "paper", cross_layers=1)
    names = [name for name, _ in model.named_parameters() if "cross_attention.attention.query_key_value" in name]
    assert names == [
        "cross_layers.0.cross_attention.attention.query_key_value.weight",
        "cross_layers.0.cross_attention.attention.query_key_value.bias",
    ]
    weight = model.cross_layers[0].cross_attention.attention.query_key_value.weight
    gradients = []
    for kind in ("text", "image"):
        fused = model.fuse(model.encode_image(make_regions([3])), model.encode_text(make_text([4])), reads="both")
        states = getattr(fused, kind).states
        gradients.append(torch.autograd.grad((states * torch.randn_like(states)).sum(), weight)[0])
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("block", BLOCKS)
def test_lxmert_both_directions_read_what_came_in(block: str) -> None:
    """Exchanging the modalities, and the blocks that follow, exchanges the result: neither goes first."""
    layer = make_model(Lxmert, block).cross_layers[0]
    a, b = torch.randn(2, 3, 16), torch.randn(2, 4, 16)
    a_mask, b_mask = torch.ones(2, 1, 3, dtype=torch.bool), torch.ones(2, 1, 4, dtype=torch.bool)
    new_a, new_b = layer(a, b, a_mask, b_mask, "both")
    layer.text_block, layer.image_block = layer.image_block, layer.text_block
    swapped_b, swapped_a = layer(b, a, b_mask, a_mask, "both")
    torch.testing.assert_close((swapped_a, swapped_b), (new_a, new_b))


@pytest.mark.parametrize("block", BLOCKS)
def test_lxmert_gradients(block: str) -> None:
    """The last image branch is there for who reads it; a question doesn't."""
    unread = ("cross_layers.1.image_block.", "image_output_norm.")
    for reads in ("pooled", "text"):
        model = make_model(Lxmert, block)
        fused = model.fuse(model.encode_image(make_regions([3])), model.encode_text(make_text([4])), reads)
        assert without_gradient(model, fused.pooled.sum()) == starting_with(model, "embedding.", *unread)

    model = make_model(Lxmert, block)
    image, text = model.encode_image(make_regions([3])), model.encode_text(make_text([4]))
    loss = (model.embed_image(image) * model.embed_text(text)).sum() * model.embedding.scale()
    fusing = ("cross_layers.", "text_output_norm.", "image_output_norm.", "pooler.")
    assert without_gradient(model, loss) == starting_with(model, *fusing)


def test_lxmert_needs_a_cross_layer() -> None:
    with pytest.raises(ValueError, match="cross_layers=0"):
        make_model(Lxmert, "common", cross_layers=0)


# ---- CLIP


@pytest.mark.parametrize("block", BLOCKS)
def test_clip_pools_the_last_real_token(block: str) -> None:
    """Whatever follows it, and whatever its id: in a text cut to length, too, the last one is [end]."""
    model = make_model(Clip, block)
    text = make_text([5, MAX_TEXT_LENGTH, 2])
    stream = model.encode_text(text)
    ends = torch.stack([stream.states[row, length - 1] for row, length in enumerate([5, MAX_TEXT_LENGTH, 2])])
    torch.testing.assert_close(model.embed_text(stream), model.embedding.text_projection(ends))
    image = model.encode_image(make_regions([3, 2, 1]))
    vector = image.states[:, 0] if block == "paper" else masked_mean(image.states, image.mask)
    torch.testing.assert_close(model.fuse(image, stream).pooled, model.meeting(vector, ends))


def test_clip_reads_text_from_left_to_right_in_the_paper_only() -> None:
    text = make_text([6])
    changed = replace(text, ids=text.ids.clone())
    changed.ids[0, -1] = (changed.ids[0, -1] + 1) % VOCAB_SIZE
    for block, same in (("paper", True), ("common", False)):
        model = make_model(Clip, block)
        before, after = model.encode_text(text).states, model.encode_text(changed).states
        assert torch.allclose(before[:, :-1], after[:, :-1]) == same


@pytest.mark.parametrize("block", BLOCKS)
def test_clip_towers_never_read_each_other(block: str) -> None:
    model = make_model(Clip, block)
    image, text = model.encode_image(make_regions([3, 2])), model.encode_text(make_text([4, 5]))
    fused = model.fuse(image, text, reads="both")
    assert fused.image is image
    assert fused.text is text
    # The pair is known by two vectors: what keeps both of them may be anything else.
    if block == "paper":
        first = torch.zeros_like(image.states).index_copy(1, torch.tensor([0]), image.states[:, :1])
        other = Stream(states=first, mask=image.mask)
    else:
        mean = masked_mean(image.states, image.mask).unsqueeze(1)
        other = Stream(states=mean, mask=image.mask[:, :1])
    torch.testing.assert_close(model.fuse(other, text).pooled, fused.pooled)


@pytest.mark.parametrize("block", BLOCKS)
def test_clip_towers_may_differ_in_width(block: str) -> None:
    model = make_model(Clip, block, text_width=20, text_heads=5, text_feedforward=28)
    image, text = model.encode_image(make_regions([3])), model.encode_text(make_text([4]))
    assert image.states.shape[-1] == model.width == 16
    assert text.states.shape[-1] == model.word_embeddings.embedding_dim == 20
    assert model.fuse(image, text).pooled.shape == (1, 16)
    assert model.embed_text(text).shape == model.embed_image(image).shape == (1, EMBEDDING_SIZE)


def test_clip_positions_are_a_table_for_patches_and_boxes_for_regions() -> None:
    assert make_model(Clip, "paper", make_stem("patches")).image_positions.weight.shape == (1 + 9, 16)
    assert make_model(Clip, "paper").image_positions is None
    pixels = make_pixels(1)
    turned = replace(pixels, pixels=pixels.pixels.flip(-1))  # the same patches elsewhere, each of them mirrored
    constant = replace(pixels, pixels=pixels.pixels.mean(dim=-1, keepdim=True).expand_as(pixels.pixels).clone())
    constant.pixels[..., :4] += 1
    moved = replace(constant, pixels=constant.pixels.roll(4, dims=-1))  # the same patches, one column further
    for block in BLOCKS:
        model = make_model(Clip, block, make_stem("patches"))
        for first, second in ((pixels, turned), (constant, moved)):
            found = [model.embed_image(model.encode_image(image)) for image in (first, second)]
            assert not torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_clip_gradients(block: str) -> None:
    model = make_model(Clip, block)
    fused = model.fuse(model.encode_image(make_regions([3])), model.encode_text(make_text([4])))
    assert without_gradient(model, fused.pooled.sum()) == starting_with(model, "embedding.")

    model = make_model(Clip, block)
    image, text = model.encode_image(make_regions([3])), model.encode_text(make_text([4]))
    loss = (model.embed_image(image) * model.embed_text(text)).sum() * model.embedding.scale()
    assert without_gradient(model, loss) == starting_with(model, "meeting.")

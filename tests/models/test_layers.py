from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from multimodal.models import VisualBert, layers, vision
from multimodal.models.layers import BERT, COMMON, Attention, Block, Encoder, masked_mean, readable, trunk_parameters
from tests.models.make import lengths_to_mask, make_model


def attend_slowly(attention: Attention, queries: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """The formula of "Attention Is All You Need", section 3.2, one head after the other."""
    width = queries.shape[-1]
    q_weight, k_weight, v_weight = attention.query_key_value.weight.chunk(3)
    q_bias, k_bias, v_bias = attention.query_key_value.bias.chunk(3)
    q, k, v = queries @ q_weight.T + q_bias, context @ k_weight.T + k_bias, context @ v_weight.T + v_bias
    size = width // attention.heads
    found = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        found.append(scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v[..., part])
    return attention.output(torch.cat(found, dim=-1))


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(width=12, heads=3, dropout=0.0)
    states, context = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    own_mask, context_mask = readable(lengths_to_mask([5, 3])), readable(lengths_to_mask([2, 4]))
    torch.testing.assert_close(attention(states, own_mask), attend_slowly(attention, states, states, own_mask))
    torch.testing.assert_close(
        attention(states, context_mask, context), attend_slowly(attention, states, context, context_mask)
    )


def test_readable() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert readable(mask).tolist() == [[[True, True, False]], [[True, True, True]]]
    assert readable(mask, causal=True)[0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    assert readable(mask, causal=True)[1].tolist() == [[True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("style", [COMMON, BERT, layers.CLIP])
def test_first_computes_the_first_tokens_as_they_would_be(style: layers.BlockStyle) -> None:
    torch.manual_seed(0)
    encoder = Encoder(layers=2, width=12, heads=3, feedforward=20, dropout=0.0, style=style)
    states, mask = torch.randn(2, 5, 12), lengths_to_mask([5, 3])
    whole, first = encoder(states, mask), encoder(states, mask, first=2)
    assert first.shape == (2, 2, 12)
    torch.testing.assert_close(first, whole[:, :2])


def test_pre_norm_block_is_a_sum_and_post_norm_block_is_normed() -> None:
    """With weights of zero, a pre-norm block passes its input on and a post-norm block norms it."""
    states, mask = torch.randn(2, 5, 12), readable(lengths_to_mask([5, 3]))
    for style, expected in ((COMMON, states), (BERT, nn.functional.layer_norm(states, (12,)))):
        block = Block(width=12, heads=3, feedforward=20, dropout=0.0, style=style)
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        torch.testing.assert_close(block(states, mask), expected, rtol=1e-4, atol=1e-4)


def test_causal_encoder_knows_nothing_of_later_tokens() -> None:
    torch.manual_seed(0)
    encoder = Encoder(layers=2, width=12, heads=3, feedforward=20, dropout=0.0, style=layers.CLIP, causal=True)
    states, mask = torch.randn(2, 5, 12), lengths_to_mask([5, 4])
    later = states.clone()
    later[:, 3:] += torch.randn(2, 2, 12)
    before, after = encoder(states, mask), encoder(later, mask)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3], before[:, 3])


def test_masked_mean() -> None:
    states = torch.tensor([[[1.0], [3.0], [50.0]], [[7.0], [8.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(states, mask).tolist() == [[2.0], [0.0]]


def test_initialise_matches_the_papers_at_their_width() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(768, 768), nn.Linear(64, 64), nn.Embedding(100, 64))
    layers.initialise(model)
    assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.06)
    assert model[1].weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)
    assert not model[0].bias.any()


def test_trunk_leaves_out_what_depends_on_data_and_task() -> None:
    small = make_model(VisualBert, "common")
    for changes in (
        {"vocab_size": 999},
        {"embedding_size": 99},
        {"stem": vision.Regions(feature_size=99)},
        {"stem": vision.Grid(backbone="resnet18", pretrained=False, trainable=True)},
    ):
        assert trunk_parameters(make_model(VisualBert, "common", **changes)) == trunk_parameters(small)
    assert trunk_parameters(make_model(VisualBert, "common", layers=3)) > trunk_parameters(small)

"""What the architectures are built from.

Two kinds of transformer block are in use. Post-norm, "Attention Is All You Need" (arXiv:1706.03762, section 3) as BERT
has it (arXiv:1810.04805): VisualBERT and LXMERT. Pre-norm, as GPT-2 and the Vision Transformer have it
(arXiv:2010.11929, section 3.1): CLIP, and the common block that fair comparisons use.

Shapes: B rows, L tokens, Q tokens that read, K tokens that are read, D width, F visual feature size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockStyle:
    """What differs between the blocks of published models of one shape."""

    norm: Literal["pre", "post"]
    activation: Literal["gelu", "quick_gelu"]
    eps: float  # of every LayerNorm


COMMON = BlockStyle(norm="pre", activation="gelu", eps=1e-5)  # the same for all, to compare only where they fuse
BERT = BlockStyle(norm="post", activation="gelu", eps=1e-12)
CLIP = BlockStyle(norm="pre", activation="quick_gelu", eps=1e-5)


def block_style(block: str, paper: BlockStyle) -> BlockStyle:
    """The style that the setting `block` names: the common one, or the paper's own.

    Raises:
        ValueError: `block` is neither "common" nor "paper".
    """
    styles = {"common": COMMON, "paper": paper}
    if block not in styles:
        raise ValueError(f"block={block!r}: allowed are {', '.join(styles)}")
    return styles[block]


class Attention(nn.Module):
    """Multi-head attention, of a sequence to itself or to another one."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} can't be divided by heads={heads}")
        self.heads = heads
        self.dropout = dropout  # of the attention weights
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Let `queries float[B, Q, D]` read `context float[B, K, D]`, or themselves: `float[B, Q, D]`.

        `mask bool[B, Q or 1, K]` tells which tokens may be read, at least one by each (see `readable`).
        """
        if context is None:
            q, k, v = self.query_key_value(queries).chunk(3, dim=-1)
        else:
            width = queries.shape[-1]
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            q = F.linear(queries, weight[:width], bias[:width])
            k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self._split(q),
            self._split(k),
            self._split(v),
            attn_mask=mask.unsqueeze(1),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, states: Tensor) -> Tensor:
        """`float[B, L, D]` to `float[B, heads, L, D / heads]`."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def readable(mask: Tensor, causal: bool = False) -> Tensor:
    """Turn a token mask `bool[B, L]` into what may be read, `bool[B, 1, L]`, or `bool[B, L, L]` if causal.

    A row without any real token may read its padding: nobody looks at what comes of it, and a softmax over nothing
    would give NaN.
    """
    mask = (mask | ~mask.any(dim=1, keepdim=True)).unsqueeze(1)
    if not causal:
        return mask
    length = mask.shape[-1]
    return mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()


class QuickGELU(nn.Module):
    """The cheaper GELU that CLIP was trained with; exact GELU instead costs its weights some accuracy."""

    def forward(self, states: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return states * torch.sigmoid(1.702 * states)


class AttentionLayer(nn.Module):
    """Attention with its norm, dropout and residual connection."""

    def __init__(self, width: int, heads: int, dropout: float, style: BlockStyle) -> None:
        super().__init__()
        self.pre = style.norm == "pre"
        self.attention = Attention(width, heads, dropout)
        self.norm = nn.LayerNorm(width, eps=style.eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """As `Attention.forward`."""
        if self.pre:
            context = None if context is None else self.norm(context)
            return queries + self.dropout(self.attention(self.norm(queries), mask, context))
        return self.norm(queries + self.dropout(self.attention(queries, mask, context)))


class FeedForwardLayer(nn.Module):
    """Two linear layers, each token by itself, with their norm, dropout and residual connection."""

    def __init__(self, width: int, feedforward: int, dropout: float, style: BlockStyle) -> None:
        super().__init__()
        self.pre = style.norm == "pre"
        self.inner = nn.Linear(width, feedforward)
        self.activation = nn.GELU() if style.activation == "gelu" else QuickGELU()
        self.output = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width, eps=style.eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """`float[B, L, D]` to `float[B, L, D]`."""
        if self.pre:
            return states + self._branch(self.norm(states))
        return self.norm(states + self._branch(states))

    def _branch(self, states: Tensor) -> Tensor:
        return self.dropout(self.output(self.activation(self.inner(states))))


class Block(nn.Module):
    """One transformer layer: self-attention, then feed-forward."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, style: BlockStyle) -> None:
        super().__init__()
        self.self_attention = AttentionLayer(width, heads, dropout, style)
        self.feedforward = FeedForwardLayer(width, feedforward, dropout, style)

    def forward(self, states: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """`float[B, L, D]` to the same, or to `float[B, first, D]`: only the first tokens, which still read all.

        `mask bool[B, L or 1, L]` tells which tokens may be read.
        """
        if first is None:
            return self.feedforward(self.self_attention(states, mask))
        return self.feedforward(self.self_attention(states[:, :first], mask, context=states))


class Encoder(nn.Module):
    """A stack of blocks; pre-norm blocks need a norm at its end."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        style: BlockStyle,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.feedforward = feedforward
        self.causal = causal
        self.blocks = nn.ModuleList(Block(width, heads, feedforward, dropout, style) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=style.eps) if style.norm == "pre" else nn.Identity()

    def forward(self, states: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """`float[B, L, D]` with `mask bool[B, L]` to the same, or to `float[B, first, D]`.

        With `first` the last layer computes these tokens only, and they come out as they would without it. Causal
        encoders have no use for it, their first tokens know nothing.
        """
        mask = readable(mask, self.causal)
        for number, block in enumerate(self.blocks, start=1):
            states = block(states, mask, first if number == len(self.blocks) else None)
        return self.norm(states)


class TextEmbedding(nn.Module):
    """What BERT adds to a word: its place, and the segment it belongs to (arXiv:1810.04805, section 3.2)."""

    def __init__(self, max_text_length: int, width: int, segments: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_text_length, width)
        self.segments = nn.Embedding(segments, width)

    def forward(self, words: Tensor) -> Tensor:
        """Word vectors `float[B, T, D]` to `float[B, T, D]`, all of the first segment; no norm yet.

        Raises:
            ValueError: the text is longer than `max_text_length`.
        """
        return words + positions_of(self.positions, words.shape[1]) + self.segments.weight[0]


def positions_of(table: nn.Embedding, length: int) -> Tensor:
    """The vectors of the first `length` places: `float[length, D]`.

    Raises:
        ValueError: the table is shorter than that.
    """
    if length > table.num_embeddings:
        raise ValueError(f"max_text_length={table.num_embeddings}, but a text has {length} tokens")
    return table.weight[:length]


class VisualEmbedding(nn.Module):
    """What a region looks like and where it is, in equal parts (LXMERT, arXiv:1908.07490, section 2.1)."""

    def __init__(self, feature_size: int, width: int, eps: float) -> None:
        super().__init__()
        self.features = nn.Linear(feature_size, width)
        self.feature_norm = nn.LayerNorm(width, eps=eps)
        self.boxes = nn.Linear(4, width)
        self.box_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`float[U, N, F]` and `float[U, N, 4]` to `float[U, N, D]`."""
        return (self.feature_norm(self.features(features)) + self.box_norm(self.boxes(boxes))) / 2


class Pooler(nn.Module):
    """One vector from the first token (BERT): `float[B, L, D]` to `float[B, D]` in -1..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """`float[B, L, D]` to `float[B, D]`."""
        return torch.tanh(self.dense(states[:, 0]))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens: `float[B, L, D]` and `bool[B, L]` to `float[B, D]`; zeros where there is none."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fill fresh weights: the same rule for every architecture and width.

    A linear layer gets a normal of 1 / sqrt(3 fan_in): at 768 inputs that is 0.021, the 0.02 of BERT and CLIP, and a
    narrow layer passes on as much of its signal as a wide one, which 0.02 at width 64 would not. An embedding gets
    1 / sqrt(width): of BERT's 0.02 the first few steps of Adam would leave nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(3 * module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.embedding_dim))


def trunk_parameters(model: nn.Module) -> int:
    """Number of parameters that do the reading and the fusing, for comparisons at equal size.

    Left out is what depends on the data or the task and not on the architecture: the stem, the table of words, the
    embedding of visual features, and the head for embeddings.
    """
    outside = ("vision.", "word_embeddings.", "visual_embedding.", "embedding.")
    return sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith(outside))

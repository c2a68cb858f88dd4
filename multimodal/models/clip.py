"""CLIP: two towers that never read each other; what they have to say meets as two vectors.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020),
section 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from multimodal.models.contract import Reads
from multimodal.models.heads import EmbeddingHead
from multimodal.models.layers import (
    CLIP,
    Encoder,
    TextEmbedding,
    VisualEmbedding,
    block_style,
    initialise,
    masked_mean,
    positions_of,
)
from multimodal.models.vision import Stem
from multimodal.types import Fused, ImageInput, Stream, TextInput


class Clip(nn.Module):
    """A dual encoder: late fusion.

    Args:
        vision: the stem (`multimodal.models.vision`).
        vocab_size: V.
        max_text_length: longest text, in tokens.
        width: D, of the image tower and of `Fused.pooled`.
        image_layers: transformer layers of the image tower.
        text_layers: transformer layers of the text tower.
        heads: attention heads of each layer.
        feedforward: inner width of each layer's feed-forward network.
        text_width: width of the text tower; none: as the image tower. So the next two.
        text_heads: its attention heads.
        text_feedforward: its feed-forward width.
        dropout: of embeddings, attention weights and residual branches (0 in the paper).
        embedding_size: E.
        block: "paper", CLIP's own block and embeddings with text that reads from left to right, or "common", the
            block and embeddings that all architectures share.
    """

    def __init__(
        self,
        *,
        vision: Stem,
        vocab_size: int,
        max_text_length: int,
        width: int,
        image_layers: int,
        text_layers: int,
        heads: int,
        feedforward: int,
        text_width: int | None = None,
        text_heads: int | None = None,
        text_feedforward: int | None = None,
        dropout: float,
        embedding_size: int,
        block: Literal["common", "paper"],
    ) -> None:
        super().__init__()
        style = block_style(block, paper=CLIP)
        text_width = width if text_width is None else text_width
        text_heads = heads if text_heads is None else text_heads
        text_feedforward = feedforward if text_feedforward is None else text_feedforward
        self.width = width
        self.block = block
        self.vision = vision
        self.word_embeddings = nn.Embedding(vocab_size, text_width)
        self.text_embedding: TextEmbedding | PaperTextEmbedding
        self.visual_embedding: VisualEmbedding | PaperVisualEmbedding
        self.image_positions: nn.Embedding | None = None
        if block == "common":
            self.text_embedding = TextEmbedding(max_text_length, text_width, segments=1)
            self.text_norm: nn.Module = nn.LayerNorm(text_width, eps=style.eps)
            self.visual_embedding = VisualEmbedding(vision.feature_size, width, style.eps)
            self.image_norm: nn.Module = nn.Identity()
        else:
            num_tokens = vision.num_tokens  # none: regions have no order, and their boxes stand in for the positions
            self.text_embedding = PaperTextEmbedding(max_text_length, text_width)
            self.text_norm = nn.Identity()
            self.visual_embedding = PaperVisualEmbedding(vision.feature_size, width, boxes=num_tokens is None)
            self.image_norm = nn.LayerNorm(width, eps=style.eps)
            if num_tokens is not None:
                self.image_positions = nn.Embedding(1 + num_tokens, width)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.image_encoder = Encoder(image_layers, width, heads, feedforward, dropout, style)
        self.text_encoder = Encoder(
            text_layers, text_width, text_heads, text_feedforward, dropout, style, causal=block == "paper"
        )
        self.meeting = Meeting(image_width=width, text_width=text_width, width=width)
        self.embedding = EmbeddingHead(image_width=width, text_width=text_width, size=embedding_size)
        initialise(self)
        self.meeting.initialise()

    def encode_image(self, image: ImageInput) -> Stream:
        """The whole image tower: states `float[U, 1 + N, D]`, the class token first."""
        features, boxes, mask = self.vision(image)
        tokens = self.visual_embedding(features, boxes)
        states = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        if self.image_positions is not None:
            states = states + self.image_positions.weight
        return Stream(states=self.image_encoder(self.dropout(self.image_norm(states)), mask), mask=mask)

    def encode_text(self, text: TextInput) -> Stream:
        """The whole text tower: states `float[B, T, text width]`."""
        states = self.text_norm(self.text_embedding(self.word_embeddings(text.ids)))
        return Stream(states=self.text_encoder(self.dropout(states), text.mask), mask=text.mask)

    def fuse(self, image: Stream, text: Stream, reads: Reads = "pooled") -> Fused:
        """A small network on the two towers' vectors; the tokens stay what they were."""
        return Fused(
            pooled=self.meeting(self._pool_image(image), last_token(text)),
            text=None if reads == "pooled" else text,
            image=image if reads == "both" else None,
        )

    def embed_image(self, image: Stream) -> Tensor:
        """The tower's one vector, projected: `float[U, E]`."""
        return self.embedding.image_projection(self._pool_image(image))

    def embed_text(self, text: Stream) -> Tensor:
        """The [end] token, projected: `float[B, E]`."""
        return self.embedding.text_projection(last_token(text))

    def _pool_image(self, image: Stream) -> Tensor:
        """The class token; in the common block the mean of all tokens, that one included: `float[U, D]`.

        A mean shows what is there before any layer has learned to look, and the class token's share of it shows how
        many there are: without one, counting takes twice the steps.
        """
        return image.states[:, 0] if self.block == "paper" else masked_mean(image.states, image.mask)


def last_token(text: Stream) -> Tensor:
    """The state of the last real token, which is [end] even in a text that was cut: `float[B, T, D]` to `float[B, D]`.

    By the mask and not by an id, so that any vocabulary will do.
    """
    B, T = text.mask.shape
    last = (text.mask * torch.arange(T, device=text.mask.device)).argmax(dim=1)
    return text.states[torch.arange(B, device=last.device), last]


class Meeting(nn.Module):
    """Two vectors to one: an addition of this project, so that a dual tower can answer questions and match.

    CLIP itself has only the cosine of the two vectors. Here the text gates what is known of the image, a low-rank
    bilinear product (Kim et al. 2017, arXiv:1610.04325, section 3). A network over the two vectors side by side
    needs several times as many steps to find out whether one thing is in both.
    """

    RANK = 4  # of the product, in widths

    def __init__(self, *, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, self.RANK * width)
        self.text = nn.Linear(text_width, self.RANK * width)
        self.output = nn.Linear(self.RANK * width, width)

    def initialise(self) -> None:
        """Three times the variance of other layers, or the product of two small numbers would be smaller still."""
        for layer in (self.image, self.text, self.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """`float[P, image width]` and `float[P, text width]` to `float[P, D]`."""
        return self.output(nn.functional.gelu(self.image(image)) * self.text(text))


class PaperTextEmbedding(nn.Module):
    """A word and its place."""

    def __init__(self, max_text_length: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_text_length, width)

    def forward(self, words: Tensor) -> Tensor:
        """Word vectors `float[B, T, D]` to `float[B, T, D]`.

        Raises:
            ValueError: the text is longer than `max_text_length`.
        """
        return words + positions_of(self.positions, words.shape[1])


class PaperVisualEmbedding(nn.Module):
    """A patch, projected; and its box, where there is no table of positions."""

    def __init__(self, feature_size: int, width: int, boxes: bool) -> None:
        super().__init__()
        self.features = nn.Linear(feature_size, width, bias=False)
        self.boxes = nn.Linear(4, width) if boxes else None

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`float[U, N, F]` and `float[U, N, 4]` to `float[U, N, D]`."""
        tokens = self.features(features)
        return tokens if self.boxes is None else tokens + self.boxes(boxes)

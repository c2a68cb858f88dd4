"""VisualBERT: the two modalities meet at once, in one transformer over the words and the regions.

Li, Yatskar, Yin, Hsieh, Chang 2019, "VisualBERT: A Simple and Performant Baseline for Vision and Language"
(arXiv:1908.03557), section 3.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from multimodal.models.contract import Reads
from multimodal.models.heads import EmbeddingHead
from multimodal.models.layers import (
    BERT,
    Encoder,
    Pooler,
    TextEmbedding,
    VisualEmbedding,
    block_style,
    initialise,
    masked_mean,
)
from multimodal.models.vision import Stem
from multimodal.types import Fused, ImageInput, Stream, TextInput


class VisualBert(nn.Module):
    """A single-stream encoder: early fusion.

    Args:
        vision: the stem (`multimodal.models.vision`).
        vocab_size: V.
        max_text_length: longest text, in tokens.
        width: D.
        layers: transformer layers.
        heads: attention heads of each layer.
        feedforward: inner width of each layer's feed-forward network.
        dropout: of embeddings, attention weights and residual branches.
        embedding_size: E.
        block: "paper", the post-norm block of BERT, or "common", the block that all architectures share.
        segments: rows of the tables of segments.
    """

    def __init__(
        self,
        *,
        vision: Stem,
        vocab_size: int,
        max_text_length: int,
        width: int,
        layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        embedding_size: int,
        block: Literal["common", "paper"],
        segments: int = 2,
    ) -> None:
        super().__init__()
        style = block_style(block, paper=BERT)
        self.width = width
        self.block = block
        self.vision = vision
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.text_embedding = TextEmbedding(max_text_length, width, segments)
        self.visual_embedding: VisualEmbedding | PaperVisualEmbedding
        if block == "common":
            self.visual_embedding = VisualEmbedding(vision.feature_size, width, style.eps)
        else:
            self.visual_embedding = PaperVisualEmbedding(vision.feature_size, width, max_text_length, segments)
        self.norm = nn.LayerNorm(width, eps=style.eps)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(layers, width, heads, feedforward, dropout, style)
        self.pooler = Pooler(width)
        self.embedding = EmbeddingHead(image_width=width, text_width=width, size=embedding_size)
        initialise(self)
        if isinstance(self.visual_embedding, PaperVisualEmbedding):
            nn.init.zeros_(self.visual_embedding.boxes.weight)

    def encode_image(self, image: ImageInput) -> Stream:
        """The visual embedding only: states `float[U, N, D]`."""
        features, boxes, mask = self.vision(image)
        return Stream(states=self.visual_embedding(features, boxes), mask=mask)

    def encode_text(self, text: TextInput) -> Stream:
        """The text embedding only: states `float[B, T, D]`."""
        return Stream(states=self.text_embedding(self.word_embeddings(text.ids)), mask=text.mask)

    def fuse(self, image: Stream, text: Stream, reads: Reads = "pooled") -> Fused:
        """All layers over the words and the regions in one sequence, words first; pooled from [start]."""
        length = text.states.shape[1]
        states = torch.cat([text.states, image.states], dim=1)
        mask = torch.cat([text.mask, image.mask], dim=1)
        states = self._trunk(states, mask, first={"pooled": 1, "text": length, "both": None}[reads])
        return Fused(
            pooled=self.pooler(states),
            text=None if reads == "pooled" else Stream(states=states[:, :length], mask=text.mask),
            image=Stream(states=states[:, length:], mask=image.mask) if reads == "both" else None,
        )

    def embed_image(self, image: Stream) -> Tensor:
        """All layers over the regions alone, their mean, projected: `float[U, E]`."""
        return self.embedding.image_projection(masked_mean(self._trunk(image.states, image.mask), image.mask))

    def embed_text(self, text: Stream) -> Tensor:
        """All layers over the words alone, their mean, projected: `float[B, E]`."""
        return self.embedding.text_projection(masked_mean(self._trunk(text.states, text.mask), text.mask))

    def _trunk(self, states: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """`float[B, L, D]` to the same, or to its first tokens."""
        return self.encoder(self.dropout(self.norm(states)), mask, first)


class PaperVisualEmbedding(nn.Module):
    """Features, projected, plus one vector for the segment and one for the place that all regions share.

    The paper has no boxes: where a thing is could not be known. They are added through a projection that starts at
    zero, so that a published checkpoint computes what it always did until training moves it.
    """

    SEGMENT = 1  # of regions, as transformers has it; the first release of VisualBERT used 0
    POSITION = 0

    def __init__(self, feature_size: int, width: int, positions: int, segments: int) -> None:
        super().__init__()
        self.features = nn.Linear(feature_size, width)
        self.boxes = nn.Linear(4, width, bias=False)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(segments, width)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`float[U, N, F]` and `float[U, N, 4]` to `float[U, N, D]`; no norm yet."""
        same_for_all = self.positions.weight[self.POSITION] + self.segments.weight[self.SEGMENT]
        return self.features(features) + self.boxes(boxes) + same_for_all

"""LXMERT: two encoders read by themselves, then cross-modality layers let them meet.

Tan, Bansal 2019, "LXMERT: Learning Cross-Modality Encoder Representations from Transformers" (arXiv:1908.07490),
section 2.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from multimodal.models.contract import Reads
from multimodal.models.heads import EmbeddingHead
from multimodal.models.layers import (
    BERT,
    AttentionLayer,
    Block,
    BlockStyle,
    Encoder,
    Pooler,
    TextEmbedding,
    VisualEmbedding,
    block_style,
    initialise,
    masked_mean,
    readable,
)
from multimodal.models.vision import Stem
from multimodal.types import Fused, ImageInput, Stream, TextInput


class Lxmert(nn.Module):
    """A dual-stream encoder with cross-attention: middle fusion.

    Args:
        vision: the stem (`multimodal.models.vision`).
        vocab_size: V.
        max_text_length: longest text, in tokens.
        width: D.
        text_layers: layers that read the text alone (9 in the paper).
        image_layers: layers that read the image alone (5 in the paper).
        cross_layers: layers in which each reads the other (5 in the paper).
        heads: attention heads of each layer.
        feedforward: inner width of each layer's feed-forward network.
        dropout: of embeddings, attention weights and residual branches.
        embedding_size: E.
        block: "paper", the post-norm block of BERT, or "common", the block that all architectures share.
        segments: rows of the table of segments.
    """

    def __init__(
        self,
        *,
        vision: Stem,
        vocab_size: int,
        max_text_length: int,
        width: int,
        text_layers: int,
        image_layers: int,
        cross_layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        embedding_size: int,
        block: Literal["common", "paper"],
        segments: int = 2,
    ) -> None:
        super().__init__()
        if cross_layers < 1:
            raise ValueError(f"cross_layers={cross_layers}: at least 1, or the image and the text never meet")
        style = block_style(block, paper=BERT)
        self.width = width
        self.block = block
        self.vision = vision
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.text_embedding = TextEmbedding(max_text_length, width, segments)
        self.text_norm = nn.LayerNorm(width, eps=style.eps)
        self.visual_embedding = VisualEmbedding(vision.feature_size, width, style.eps)
        self.dropout = nn.Dropout(dropout)
        self.text_encoder = Encoder(text_layers, width, heads, feedforward, dropout, style)
        self.image_encoder = Encoder(image_layers, width, heads, feedforward, dropout, style)
        self.cross_layers = nn.ModuleList(
            CrossLayer(width, heads, feedforward, dropout, style) for _ in range(cross_layers)
        )
        # Pre-norm layers need a norm at their end, post-norm layers bring it along.
        self.text_output_norm = nn.LayerNorm(width, eps=style.eps) if style.norm == "pre" else nn.Identity()
        self.image_output_norm = nn.LayerNorm(width, eps=style.eps) if style.norm == "pre" else nn.Identity()
        self.pooler = Pooler(width)
        self.embedding = EmbeddingHead(image_width=width, text_width=width, size=embedding_size)
        initialise(self)

    def encode_image(self, image: ImageInput) -> Stream:
        """The layers for images: states `float[U, N, D]`."""
        features, boxes, mask = self.vision(image)
        states = self.dropout(self.visual_embedding(features, boxes))
        return Stream(states=self.image_encoder(states, mask), mask=mask)

    def encode_text(self, text: TextInput) -> Stream:
        """The layers for text: states `float[B, T, D]`."""
        states = self.dropout(self.text_norm(self.text_embedding(self.word_embeddings(text.ids))))
        return Stream(states=self.text_encoder(states, text.mask), mask=text.mask)

    def fuse(self, image: Stream, text: Stream, reads: Reads = "pooled") -> Fused:
        """The cross-modality layers; pooled from the text's [start], so the last layer needs no image branch."""
        image_states, text_states = image.states, text.states
        image_mask, text_mask = readable(image.mask), readable(text.mask)
        for number, layer in enumerate(self.cross_layers, start=1):
            wanted = reads if number == len(self.cross_layers) else "both"
            image_states, text_states = layer(image_states, text_states, image_mask, text_mask, wanted)
        text_states = self.text_output_norm(text_states)
        return Fused(
            pooled=self.pooler(text_states),
            text=None if reads == "pooled" else Stream(states=text_states, mask=text.mask),
            image=Stream(states=self.image_output_norm(image_states), mask=image.mask) if reads == "both" else None,
        )

    def embed_image(self, image: Stream) -> Tensor:
        """Mean of the image encoder's output, projected: `float[U, E]`. The cross-modality layers take no part."""
        return self.embedding.image_projection(masked_mean(image.states, image.mask))

    def embed_text(self, text: Stream) -> Tensor:
        """Mean of the text encoder's output, projected: `float[B, E]`. The cross-modality layers take no part."""
        return self.embedding.text_projection(masked_mean(text.states, text.mask))


class CrossLayer(nn.Module):
    """Each modality reads the other, then itself, then goes through its feed-forward network (section 2.2).

    Both directions share the weights of the cross-attention, and both read what came in, not what the other direction
    has just made of it.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, style: BlockStyle) -> None:
        super().__init__()
        self.cross_attention = AttentionLayer(width, heads, dropout, style)
        self.text_block = Block(width, heads, feedforward, dropout, style)
        self.image_block = Block(width, heads, feedforward, dropout, style)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor, text_mask: Tensor, reads: Reads
    ) -> tuple[Tensor | None, Tensor]:
        """`image float[P, N, D]` and `text float[P, T, D]` to what `reads` asks for of both.

        "both": the same shapes. "text": none and `float[P, T, D]`. "pooled": none and the text's first token,
        `float[P, 1, D]`. The masks, `bool[P, 1, N]` and `bool[P, 1, T]`, tell which tokens may be read.
        """
        first = 1 if reads == "pooled" else None
        new_text = self.text_block(self.cross_attention(text, image_mask, context=image), text_mask, first)
        if reads != "both":
            return None, new_text
        return self.image_block(self.cross_attention(image, text_mask, context=text), image_mask), new_text

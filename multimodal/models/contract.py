"""The one idea: a vision-language model reads an image, reads a text, and at some depth lets them meet.

Where the two meet is all that tells the architectures of this field apart: VisualBERT meets after the embeddings
(early fusion), LXMERT after two encoders (middle), CLIP after two whole towers (late).
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from multimodal.models.heads import EmbeddingHead
from multimodal.types import Fused, ImageInput, Stream, TextInput

# Everything a task may call on a model. Wrappers that shard or compile a model walk this tuple.
VERBS = ("encode_image", "encode_text", "fuse", "embed_image", "embed_text")

Reads = Literal["pooled", "text", "both"]


class VisionLanguageModel(Protocol):
    """What every architecture offers, and all that a task may use."""

    width: int  # D
    vision: nn.Module  # the stem: multimodal/models/vision.py
    word_embeddings: nn.Embedding  # [V, D], for heads that are tied to it
    embedding: EmbeddingHead  # projections and logit scale

    def encode_image(self, image: ImageInput) -> Stream:
        """Read U images alone: states `float[U, N, D]`."""
        ...

    def encode_text(self, text: TextInput) -> Stream:
        """Read B texts alone: states `float[B, T, D]`."""
        ...

    def fuse(self, image: Stream, text: Stream, reads: Reads = "pooled") -> Fused:
        """Let P images meet P texts, row by row; computes no more than `reads` asks for."""
        ...

    def embed_image(self, image: Stream) -> Tensor:
        """One vector an image, projected, not normalised: `float[U, E]`."""
        ...

    def embed_text(self, text: Stream) -> Tensor:
        """One vector a text, projected, not normalised: `float[B, E]`."""
        ...

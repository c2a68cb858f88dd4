"""Heads that belong to a model rather than to one task: the map into a space where an image and a text compare."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

INITIAL_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
MAX_SCALE = math.log(100.0)


class EmbeddingHead(nn.Module):
    """Projections of both modalities into one space, and the learned temperature of their similarity.

    Radford et al. 2021 (CLIP, arXiv:2103.00020), section 2.5. The same class serves every architecture.
    """

    def __init__(self, *, image_width: int, text_width: int, size: int) -> None:
        super().__init__()
        self.image_projection = nn.Linear(image_width, size, bias=False)
        self.text_projection = nn.Linear(text_width, size, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def scale(self) -> Tensor:
        """The factor on cosine similarities, `float[]` in 1..100, in fp32."""
        return self.logit_scale.float().exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Hold the factor in 1..100. Call after the optimizer's step: before it, the step can leave the range."""
        self.logit_scale.clamp_(0.0, MAX_SCALE)

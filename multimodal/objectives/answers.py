"""Visual question answering as classification over an answer vocabulary, with soft labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def answer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every answer, summed over answers, mean over questions.

    Teney et al. 2018 (Tips and Tricks, arXiv:1708.02711), section 3.7. The mean over answers, which PyTorch takes by
    default, would make gradients as many times smaller as there are answers.

    Args:
        logits: `float[B, A]`, in any precision; the loss is taken in fp32 or better.
        target: `float[B, A]`, score of each answer in 0..1.

    Returns:
        `float[]`; 0, connected to the graph, for B = 0.
    """
    B, _ = logits.shape
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="sum") / max(B, 1)

"""Image-text matching: does this text belong to this image?

Binary classification of fused pairs against negatives of the same batch, as in ALBEF (Li et al. 2021,
arXiv:2107.07651, section 3.2), but captions of one image are never each other's negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def draw_negatives(
    similarity: Tensor, image_id: Tensor, generator: torch.Generator | None, hard: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one negative image for each text and one negative text for each image.

    Args:
        similarity: `float[B, B]`, row an image, column a text, as logits (temperature included).
        image_id: `int[B]`, image of row and column b.
        generator: on the device of `similarity`; none for PyTorch's own.
        hard: share of rows, 0..1, that draw with probability softmax(similarity) over the allowed ones (ALBEF); the
            others draw evenly. Hard ones alone leave a fresh model nothing easy to begin with.

    Returns:
        image_for_text: `int[B]`, row of an image that text b does not belong to.
        text_for_image: `int[B]`, column of a text that does not belong to image b.
        valid: `bool[B]`, false where every other row is of the same image; both indices are then b itself.
    """
    B, _ = similarity.shape
    different = image_id[:, None] != image_id
    valid = different.any(1)
    candidates = different | torch.diag(~valid)
    by_similarity = torch.rand(B, 1, device=similarity.device, generator=generator) < hard

    def draw(scores: Tensor) -> Tensor:
        logits = torch.where(by_similarity, scores.float(), 0.0).masked_fill(~candidates, -torch.inf)
        return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)

    return draw(similarity.T), draw(similarity), valid


def matching_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy on logits, mean over all pairs.

    Args:
        positive: `float[B]`, logits of pairs that belong together, in any precision.
        negative: `float[M]`, logits of pairs that don't.

    Returns:
        `float[]`, in fp32 or better; 0, connected to the graph, without any pair.
    """
    logits = torch.cat([positive, negative])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / max(len(logits), 1)

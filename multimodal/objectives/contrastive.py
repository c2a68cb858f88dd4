"""Contrastive alignment of images and texts over the batches of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist


def info_nce(image: Tensor, text: Tensor, scale: Tensor, image_id: Tensor) -> Tensor:
    """Symmetric InfoNCE: each image finds its text, and each text its image, among those of all ranks.

    Radford et al. 2021 (CLIP, arXiv:2103.00020), figure 3; van den Oord et al. 2018 (arXiv:1807.03748), equation 4.

    Row b is a caption and its image. Another row of the same image is no negative of row b: it is left out of b's
    columns, so the loss is the one on columns without it. For the other rows it is a negative like any.

    Each rank scores its own rows against the columns of all ranks, and gradients flow back to the rank that a column
    came from. The mean of the ranks' losses is the loss of the global batch on one device, and the mean of their
    gradients, which DDP takes, is its gradient: no factor of the number of ranks belongs anywhere.

    Args:
        image: `float[B, E]`, unnormalised, in any precision, B and E the same on every rank.
        text: `float[B, E]`.
        scale: `float[]`, factor on cosine similarities (the inverse of the temperature), not its logarithm.
        image_id: `int[B]`, unique over all ranks' images.

    Returns:
        `float[]`, mean over own rows and both directions, in fp32 or better.
    """
    B, _ = image.shape
    with torch.autocast(image.device.type, enabled=False):
        image, text = _unit(image), _unit(text)
        all_image, all_text, all_id = gather_with_grad(image), gather_with_grad(text), gather_with_grad(image_id)
        own = torch.arange(B, device=image.device) + B * _rank()
        left_out = image_id[:, None] == all_id
        left_out[torch.arange(B, device=image.device), own] = False
        image_to_text = (scale * image @ all_text.T).masked_fill(left_out, -torch.inf)
        text_to_image = (scale * text @ all_image.T).masked_fill(left_out, -torch.inf)
        return (F.cross_entropy(image_to_text, own) + F.cross_entropy(text_to_image, own)) / 2


def gather_with_grad(x: Tensor) -> Tensor:
    """Rows of all ranks in order of rank, `float[W*b, ...]`, for `x float[b, ...]` of equal shape on every rank.

    Backward adds up what every rank's loss says about a row, and gives it to the rank that the row came from; so every
    rank must run backward. Without an initialised process group, x itself.
    """
    if not _is_distributed():
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """torch.distributed.nn.functional.all_gather does the same, but is deprecated since PyTorch 2.14."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0

"""The optimizer every task uses: AdamW, linear warm-up, cosine to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING
from torch import nn


@dataclass
class Optim:
    """The keys of conf/optim/*.yaml."""

    lr: float = MISSING
    weight_decay: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    eps: float = MISSING
    warmup: float = MISSING  # share of all steps, 0..1

    def optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        """AdamW over the trainable parameters, fused where the device has such a kernel."""
        groups = parameter_groups(module, self.weight_decay)
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=fused or None)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning rate of each of `steps` optimizer steps."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, self.warmup))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: norms, biases and scales are vectors or scalars and go without."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: linear to 1 over the first share `warmup` of all steps, cosine to 0 at the end."""
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

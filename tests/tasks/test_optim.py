"""Which parameters decay, and how the learning rate moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multimodal.models.heads import EmbeddingHead
from multimodal.tasks.optim import Optim, parameter_groups, warmup_cosine


def test_norms_biases_and_scales_do_not_decay() -> None:
    net = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 2),
            "norm": nn.LayerNorm(3),
            "words": nn.Embedding(5, 3),
            "head": EmbeddingHead(image_width=3, text_width=3, size=2),
            "frozen": nn.Linear(3, 3).requires_grad_(False),
        }
    )
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(net, 0.1))
    assert sorted(decayed) == [
        "head.image_projection.weight", "head.text_projection.weight", "linear.weight", "words.weight",
    ]  # fmt: skip
    assert sorted(plain) == ["head.logit_scale", "linear.bias", "norm.bias", "norm.weight"]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0), (120, 0.0)]
)
def test_warm_up_then_cosine(step: int, factor: float) -> None:
    assert warmup_cosine(step, steps=100, warmup=0.1) == pytest.approx(factor, abs=1e-9)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert warmup_cosine(0, steps=10, warmup=0.0) == 1.0


def test_the_optimizer_has_what_the_config_says() -> None:
    optim = Optim(lr=0.01, weight_decay=0.2, beta1=0.8, beta2=0.95, eps=1e-7, warmup=0.5)
    optimizer = optim.optimizer(nn.Linear(2, 2))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert all(group["betas"] == (0.8, 0.95) and group["eps"] == 1e-7 for group in optimizer.param_groups)
    scheduler = optim.scheduler(optimizer, steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(rates, [0.005, 0.01, 0.01, 0.005])

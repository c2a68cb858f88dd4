from __future__ import annotations

import math

import pytest
import torch

from multimodal.objectives import answer_loss


def test_sums_over_answers_and_averages_over_questions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    loss = answer_loss(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)

    want = 0.0
    for b in range(5):
        for a in range(7):
            p, t = 1 / (1 + math.exp(-logits[b, a].item())), target[b, a].item()
            want -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / 5
            assert gradient[b, a].item() == pytest.approx((p - t) / 5, abs=1e-12)
    assert loss.item() == pytest.approx(want, abs=1e-12)


def test_half_precision_logits_are_scored_in_fp32() -> None:
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.zeros(4, 3000)
    loss = answer_loss(logits, target)
    assert loss.dtype == torch.float32
    assert loss == answer_loss(logits.float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        assert answer_loss(logits, target) == loss


def test_no_question_is_zero_on_the_graph() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = answer_loss(logits, torch.zeros(0, 4))
    assert loss == 0
    loss.backward()
    assert logits.grad is not None

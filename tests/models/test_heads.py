from __future__ import annotations

import math

import pytest
import torch

from multimodal.models.heads import EmbeddingHead


def test_scale_starts_at_one_over_seven_hundredths() -> None:
    head = EmbeddingHead(image_width=3, text_width=4, size=2)
    assert head.scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert head.logit_scale.item() == pytest.approx(2.6592, abs=1e-4)


@pytest.mark.parametrize("learned, held", [(9.0, 100.0), (-2.0, 1.0), (2.0, math.exp(2.0))])
def test_clamp_holds_the_scale_in_1_to_100(learned: float, held: float) -> None:
    head = EmbeddingHead(image_width=3, text_width=4, size=2)
    with torch.no_grad():
        head.logit_scale.fill_(learned)
    head.clamp_scale()
    assert head.scale().item() == pytest.approx(held, rel=1e-5)


def test_scale_is_fp32_in_a_half_precision_model() -> None:
    assert EmbeddingHead(image_width=3, text_width=4, size=2).bfloat16().scale().dtype == torch.float32

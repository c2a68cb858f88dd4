from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multimodal.objectives import draw_negatives, matching_loss

IDS = torch.tensor([7, 3, 7, 9, 3, 7])
DRAWS = 4000


def frequencies(similarity: Tensor, image_id: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """How often each text drew each image `[text, image]`, and each image each text `[image, text]`."""
    generator = torch.Generator().manual_seed(0)
    B = len(image_id)
    images, texts = torch.zeros(B, B), torch.zeros(B, B)
    rows = torch.arange(B)
    for _ in range(DRAWS):
        image_for_text, text_for_image, _ = draw_negatives(similarity, image_id, generator, hard)
        images[rows, image_for_text] += 1 / DRAWS
        texts[rows, text_for_image] += 1 / DRAWS
    return images, texts


def probabilities(similarity: Tensor, image_id: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """The same by a loop over the definition."""
    B = len(image_id)
    images, texts = torch.zeros(B, B), torch.zeros(B, B)
    for b in range(B):
        for c in range(B):
            if image_id[b] != image_id[c]:
                images[b, c] = math.exp(similarity[c, b]) if hard else 1
                texts[b, c] = math.exp(similarity[b, c]) if hard else 1
    return images / images.sum(1, keepdim=True), texts / texts.sum(1, keepdim=True)


@pytest.mark.parametrize("hard", [False, True])
def test_negatives_are_drawn_as_defined_and_never_of_the_same_image(hard: bool) -> None:
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    got, want = frequencies(similarity, IDS, hard), probabilities(similarity, IDS, hard)
    for frequency, probability in zip(got, want, strict=True):
        assert frequency[probability == 0].eq(0).all()
        torch.testing.assert_close(frequency, probability, atol=0.04, rtol=0)  # five standard errors
    # Rows and columns mean different things, and the test can tell.
    if hard:
        assert (want[0] - want[1]).abs().max() > 0.2


def test_a_generator_decides() -> None:
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))

    def draw(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.stack(draw_negatives(similarity, IDS, generator, hard=True)) for _ in range(5)]

    assert all(a.equal(b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not all(a.equal(b) for a, b in zip(draw(1), draw(2), strict=True))
    assert draw_negatives(similarity, IDS, None, hard=True)[2].all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("image_id", [[5], [5, 5, 5]])
def test_without_a_negative_the_row_is_invalid(image_id: list[int], hard: bool) -> None:
    B = len(image_id)
    image_for_text, text_for_image, valid = draw_negatives(torch.randn(B, B), torch.tensor(image_id), None, hard)
    assert valid.dtype == torch.bool
    assert not valid.any()
    assert image_for_text.tolist() == text_for_image.tolist() == list(range(B))


def test_extreme_and_half_precision_similarities() -> None:
    similarity = (100 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).half().requires_grad_()
    for _ in range(20):
        image_for_text, text_for_image, valid = draw_negatives(similarity, IDS, None, hard=True)
        assert valid.all()
        assert (IDS[image_for_text] != IDS).all()
        assert (IDS[text_for_image] != IDS).all()


@pytest.mark.parametrize(("positives", "negatives"), [(3, 5), (4, 0), (1, 2)])
def test_matching_loss_is_the_mean_over_all_pairs(positives: int, negatives: int) -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(positives, generator=generator, dtype=torch.float64, requires_grad=True)
    negative = torch.randn(negatives, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = matching_loss(positive, negative)
    of_positive, of_negative = torch.autograd.grad(loss, [positive, negative])

    pairs = positives + negatives
    want = sum(math.log1p(math.exp(-x)) for x in positive.tolist())
    want += sum(math.log1p(math.exp(x)) for x in negative.tolist())
    assert loss.item() == pytest.approx(want / pairs, abs=1e-12)
    assert of_positive.tolist() == pytest.approx([-1 / (1 + math.exp(x)) / pairs for x in positive.tolist()])
    assert of_negative.tolist() == pytest.approx([1 / (1 + math.exp(-x)) / pairs for x in negative.tolist()])


def test_no_pair_is_zero_on_the_graph() -> None:
    positive, negative = torch.zeros(0, requires_grad=True), torch.zeros(0, requires_grad=True)
    loss = matching_loss(positive, negative)
    assert loss == 0
    loss.backward()
    assert positive.grad is not None


def test_half_precision_logits_are_scored_in_fp32() -> None:
    positive, negative = torch.randn(8).bfloat16(), torch.randn(9).bfloat16()
    loss = matching_loss(positive, negative)
    assert loss.dtype == torch.float32
    assert loss == matching_loss(positive.float(), negative.float())

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise, permutations
from math import comb
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from multimodal.metrics import RetrievalRecall, recall, retrieval, retrieval_recall, role_swap_accuracy, ties


def searches(similarity: Tensor, relevant: Tensor, direction: str) -> Iterator[tuple[list[float], list[bool]]]:
    if direction == "t2i":
        similarity, relevant = similarity.T, relevant.T
    for scores, right in zip(similarity.tolist(), relevant.tolist(), strict=True):
        if any(right):
            yield scores, right


def by_enumeration(scores: list[float], right: list[bool], k: int) -> Fraction:
    """Share of hits among all orders of the gallery that agree with the scores."""
    orders = [
        order for order in permutations(range(len(scores))) if all(scores[i] >= scores[j] for i, j in pairwise(order))
    ]
    return Fraction(sum(any(right[i] for i in order[:k]) for order in orders), len(orders))


def by_formula(scores: list[float], right: list[bool], k: int) -> Fraction:
    """The published rule, applied to every right candidate's level from the top."""
    for level in sorted(set(scores), reverse=True):
        above = sum(score > level for score in scores)
        level_right = sum(score == level and hit for score, hit in zip(scores, right, strict=True))
        tied = scores.count(level)
        if level_right:
            taken = min(max(k - above, 0), tied)
            return 1 - Fraction(comb(tied - level_right, taken), comb(tied, taken))
    raise AssertionError("nothing is right")


def naive(
    similarity: Tensor, relevant: Tensor, ks: tuple[int, ...], probability: Callable[..., Fraction]
) -> dict[str, float]:
    result = {}
    for direction in ("i2t", "t2i"):
        found = list(searches(similarity, relevant, direction))
        for k in ks:
            result[f"{direction}_r@{k}"] = float(sum(probability(*search, k) for search in found) / len(found))
    return result


def own(image_of_text: Tensor, images: int) -> Tensor:
    return torch.arange(images)[:, None] == image_of_text


@pytest.mark.parametrize("seed", range(6))
def test_ties_are_the_mean_over_all_orders(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(0, 3, (4, 6), generator=generator).float()  # three values: ties everywhere
    relevant = torch.rand(4, 6, generator=generator) < 0.4
    ks = (1, 2, 3, 4, 5, 6, 9)
    assert recall(similarity, relevant, ks) == pytest.approx(naive(similarity, relevant, ks, by_enumeration), abs=1e-14)


@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_agrees_with_the_formula_on_larger_galleries(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    similarity = torch.randint(0, levels, (40, 150), generator=generator).float()
    image_of_text = torch.randint(0, 40, (150,), generator=generator)
    ks = (1, 5, 10, 37, 40, 149, 1000)
    want = naive(similarity, own(image_of_text, 40), ks, by_formula)
    assert retrieval_recall(similarity, image_of_text, ks) == pytest.approx(want, abs=1e-13)


def test_without_ties_it_is_topk() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(30, 90, generator=generator)
    image_of_text = torch.randint(0, 30, (90,), generator=generator)
    relevant = own(image_of_text, 30)
    asked = relevant.any(1)
    result = retrieval_recall(similarity, image_of_text)
    for k in (1, 5, 10):
        i2t = relevant.gather(1, similarity.topk(k, 1).indices).any(1)[asked].double().mean()
        t2i = relevant.gather(0, similarity.topk(k, 0).indices).any(0).double().mean()
        assert result[f"i2t_r@{k}"] == pytest.approx(float(i2t), abs=1e-14)
        assert result[f"t2i_r@{k}"] == pytest.approx(float(t2i), abs=1e-14)


def test_a_hand_made_case() -> None:
    # Three images with 4, 2 and 1 captions.
    similarity = torch.tensor(
        [
            [0.1, 0.2, 0.3, 0.9, 0.8, 0.0, 0.7],
            [0.9, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1],
            [0.0, 0.1, 0.6, 0.2, 0.1, 0.7, 0.5],
        ]
    )
    image_of_text = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    result = retrieval_recall(similarity, image_of_text, (1, 2, 3))
    # Image 0 finds its fourth caption first, image 1 its fifth second, image 2 its own third.
    assert [result[f"i2t_r@{k}"] for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]
    # Captions find their image at ranks 2, 1, 2, 1, 2, 2, 2.
    assert [result[f"t2i_r@{k}"] for k in (1, 2, 3)] == [2 / 7, 1.0, 1.0]
    assert list(result) == ["i2t_r@1", "i2t_r@2", "i2t_r@3", "t2i_r@1", "t2i_r@2", "t2i_r@3"]


def test_a_right_one_above_settles_it_whatever_is_tied_below() -> None:
    similarity = torch.tensor([[3.0, 1.0, 1.0, 1.0]])
    assert recall(similarity, torch.tensor([[True, True, False, False]]), (1,))["i2t_r@1"] == 1
    assert recall(similarity, torch.tensor([[False, True, True, False]]), (1, 2, 3)) == pytest.approx(
        {"i2t_r@1": 0, "i2t_r@2": 2 / 3, "i2t_r@3": 1, "t2i_r@1": 1, "t2i_r@2": 1, "t2i_r@3": 1}
    )


@pytest.mark.parametrize("images", [1, 3, 7, 10, 49, 500, 1000])
@pytest.mark.parametrize("captions", [1, 3, 5])
def test_constant_similarity_is_chance(images: int, captions: int) -> None:
    image_of_text = torch.arange(images).repeat(captions)
    result = retrieval_recall(torch.full((images, images * captions), 0.25), image_of_text, (1, 3, 5, 10))
    for k in (1, 3, 5, 10):
        assert result[f"t2i_r@{k}"] == min(k / images, 1)  # to the last bit
        texts, taken = images * captions, min(k, images * captions)
        chance = 1 - Fraction(comb(texts - captions, taken), comb(texts, taken))
        assert result[f"i2t_r@{k}"] == pytest.approx(float(chance), abs=1e-12)


def test_perfect_and_hopeless() -> None:
    image_of_text = torch.tensor([2, 0, 1, 1])
    similarity = own(image_of_text, 3).float()
    assert set(retrieval_recall(similarity, image_of_text).values()) == {1.0}
    assert retrieval_recall(-similarity, image_of_text, (1,)) == {"i2t_r@1": 0.0, "t2i_r@1": 0.0}


def test_images_without_captions_only_distract() -> None:
    image_of_text = torch.tensor([0, 2])  # nothing is said of image 1
    similarity = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]])
    assert retrieval_recall(similarity, image_of_text, (1, 2)) == {
        "i2t_r@1": 1.0,
        "i2t_r@2": 1.0,
        "t2i_r@1": 0.0,
        "t2i_r@2": 1.0,
    }


def test_a_candidate_that_was_ruled_out_ties_with_the_other_ruled_out_ones() -> None:
    ruled_out = -torch.inf
    similarity = torch.tensor([[1.0, ruled_out, ruled_out]])
    assert recall(similarity, torch.tensor([[False, True, False]]), (1, 2, 3)) == pytest.approx(
        {"i2t_r@1": 0, "i2t_r@2": 0.5, "i2t_r@3": 1, "t2i_r@1": 1, "t2i_r@2": 1, "t2i_r@3": 1}
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_other_precisions(dtype: torch.dtype) -> None:
    similarity = torch.randint(-3, 4, (6, 9), generator=torch.Generator().manual_seed(1))
    image_of_text = torch.arange(9) % 6
    want = retrieval_recall(similarity.float(), image_of_text)
    assert retrieval_recall(similarity.to(dtype), image_of_text) == want


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 9, (23, 61), generator=generator).float()
    image_of_text = torch.randint(0, 23, (61,), generator=generator)
    whole = retrieval_recall(similarity, image_of_text)
    for chunk in (1, 61, 100, 500):
        monkeypatch.setattr(retrieval, "_CHUNK", chunk)
        assert retrieval_recall(similarity, image_of_text) == whole


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that was made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_CHUNK", 50_000)
    similarity = torch.randn(512, 3000, generator=torch.Generator().manual_seed(0))
    relevant = own(torch.arange(3000) % 512, 512)
    with Largest() as largest:
        recall(similarity, relevant)
        ties(similarity, relevant)
    assert 0 < largest.bytes <= 4 * 50_000  # of 6 MB of similarities


@pytest.mark.slow
def test_a_large_gallery() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(512, 30_000, generator=generator)
    image_of_text = torch.arange(30_000) % 512
    similarity[image_of_text, torch.arange(30_000)] += 2
    result = retrieval_recall(similarity, image_of_text)
    top = similarity.argmax(0) == image_of_text
    assert result["t2i_r@1"] == pytest.approx(float(top.double().mean()), abs=1e-12)


def test_ties_are_counted() -> None:
    similarity = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.2, 0.3]])
    relevant = torch.tensor([[True, True, False], [False, False, True]])
    # Image 0's two captions tie with one another only; caption 0 ties with the wrong image.
    assert ties(similarity, relevant) == {"i2t_ties": 0, "t2i_ties": 1}
    assert ties(torch.zeros(2, 3), relevant) == {"i2t_ties": 2, "t2i_ties": 3}


@pytest.mark.parametrize(
    ("similarity", "image_of_text", "ks", "message"),
    [
        (torch.full((2, 2), torch.nan), [0, 1], (1,), "NaN"),
        (torch.tensor([[1.0, 0.0], [torch.nan, 1.0]]), [0, 1], (1,), "NaN"),
        (torch.zeros(2, 2), [0, 2], (1,), r"0\.\.2; allowed: 0\.\.1"),
        (torch.zeros(2, 2), [-1, 1], (1,), "image_of_text"),
        (torch.zeros(2, 2), [0, 1, 1], (1,), r"\[2, 2\].*\[3\]"),
        (torch.zeros(2, 2), [0.0, 1.0], (1,), "float32"),
        (torch.zeros(2), [0, 1], (1,), r"\[2\]"),
        (torch.zeros(2, 0), torch.zeros(0, dtype=torch.int64), (1,), "nothing is relevant"),
        (torch.zeros(2, 2), [0, 1], (1, 0), "below 1"),
    ],
)
def test_mistakes_are_named(similarity: Tensor, image_of_text: Any, ks: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_recall(similarity, torch.as_tensor(image_of_text), ks)


def test_recall_wants_bool() -> None:
    with pytest.raises(ValueError, match="float32"):
        recall(torch.zeros(2, 2), torch.eye(2))
    with pytest.raises(ValueError, match="nothing is relevant"):
        recall(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))


def test_role_swap_accuracy() -> None:
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.5, 0.5, 9.0],
            [0.9, 0.8, 0.5, 0.5, 9.0],
        ]
    )
    image_of_text = torch.tensor([0, 1, 0, 1, 0])
    swapped = torch.tensor([1, 0, 3, 2, -1])
    # Won, lost, tied, tied, left out.
    assert role_swap_accuracy(similarity, image_of_text, swapped) == (1 + 0 + 0.5 + 0.5) / 4
    assert role_swap_accuracy(torch.zeros(2, 5), image_of_text, swapped) == 0.5
    with pytest.raises(ValueError, match="-1 everywhere"):
        role_swap_accuracy(similarity, image_of_text, torch.full((5,), -1))
    with pytest.raises(ValueError, match="swapped"):
        role_swap_accuracy(similarity, image_of_text, torch.full((5,), 5))
    with pytest.raises(ValueError, match="NaN"):
        role_swap_accuracy(similarity * torch.nan, image_of_text, swapped)


def test_metric_takes_texts_in_any_order_and_more_than_once() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(4, 7, generator=generator)
    relevant = own(torch.arange(7) % 4, 4)
    metric = RetrievalRecall(relevant, (1, 2))
    for ids in ([6, 0], [3, 1, 2], [5, 4, 6]):
        metric.update(torch.tensor(ids), similarity[:, ids])
    assert metric.compute() == recall(similarity, relevant, (1, 2))
    assert metric.full_similarity().equal(similarity)


def test_metric_notices_what_is_missing_or_foreign() -> None:
    metric = RetrievalRecall(own(torch.arange(7) % 4, 4))
    metric.update(torch.arange(5), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"2 of 7 texts.*\[5, 6\]"):
        metric.compute()
    with pytest.raises(ValueError, match=r"2 of 7 texts.*\[5, 6\]"):
        metric.full_similarity()
    with pytest.raises(ValueError, match="text_id"):
        metric.update(torch.tensor([7]), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"\[4, 2\]"):
        metric.update(torch.tensor([5, 6]), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="NaN"):
        metric.update(torch.tensor([5]), torch.full((4, 1), torch.nan))

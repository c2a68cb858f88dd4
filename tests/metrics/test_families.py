from __future__ import annotations

import pytest
import torch

from multimodal.metrics import by_family, majority_guess, question_only_guess


def test_by_family() -> None:
    score = torch.tensor([1.0, 0.0, 0.5, 1.0])
    assert by_family(score, ["query", "count", "query", "exist"]) == {"count": 0.0, "exist": 1.0, "query": 0.75}
    with pytest.raises(ValueError, match="argument"):
        by_family(score, ["query"])


def test_majority_guess() -> None:
    train = [("count", "2"), ("count", "1"), ("count", "2"), ("exist", "yes"), ("exist", "no"), ("color", "2")]
    # Ties go by the alphabet; a family not seen in training gets the most frequent answer of all.
    assert majority_guess(train, ["exist", "count", "query"]) == ["no", "2", "2"]
    assert majority_guess(train[::-1], ["exist", "count", "query"]) == ["no", "2", "2"]
    with pytest.raises(ValueError, match="train is empty"):
        majority_guess([], ["exist"])


def test_question_only_guess() -> None:
    guess = question_only_guess(
        train_text=["how many cows?", "how many cows?", "how many cows?", "how many geese?", "how many geese?"],
        train_answer=["1", "3", "3", "1", "1"],
        train_family=["count"] * 5,
        text=["how many cows?", "how many pigs?", "is there a cow?"],
        family=["count", "count", "exist"],
    )
    assert guess == ["3", "1", "1"]

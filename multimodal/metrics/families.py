"""Scores by kind of question, and what can be had without looking at the picture."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor

K = TypeVar("K")


def by_family(score: Tensor, family: list[str]) -> dict[str, float]:
    """Mean score of each kind of question, in alphabetical order.

    Args:
        score: `float[n]`.
        family: n names.

    Raises:
        ValueError: the two differ in length.
    """
    grouped: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(family, score.tolist(), strict=True):
        grouped[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(grouped.items())}


def majority_guess(train: list[tuple[str, str]], families: list[str]) -> list[str]:
    """Answer each question with the most frequent training answer of its family, or of all if the family is new.

    Args:
        train: (family, answer) of the training questions.
        families: of the questions to answer.

    Returns:
        One answer for each of `families`. Of equally frequent answers the first in the alphabet, so that the guess
        doesn't depend on the order of the questions.

    Raises:
        ValueError: no training questions.
    """
    if not train:
        raise ValueError("train is empty: there is no most frequent answer")
    of_family = _most_frequent(train)
    overall = _most_frequent((None, answer) for _, answer in train)[None]
    return [of_family.get(family, overall) for family in families]


def question_only_guess(
    train_text: list[str], train_answer: list[str], train_family: list[str], text: list[str], family: list[str]
) -> list[str]:
    """Answer each question with the most frequent training answer to the very same text, else `majority_guess`.

    The bias baseline of Goyal et al. 2017 (VQA v2, arXiv:1612.00837), without a learned language model.

    Args:
        train_text: n training questions.
        train_answer: n.
        train_family: n.
        text: m questions to answer.
        family: m.

    Raises:
        ValueError: lists that belong together differ in length, or no training questions.
    """
    of_text = _most_frequent(zip(train_text, train_answer, strict=True))
    fallback = majority_guess(list(zip(train_family, train_answer, strict=True)), family)
    return [of_text.get(question, guess) for question, guess in zip(text, fallback, strict=True)]


def _most_frequent(pairs: Iterable[tuple[K, str]]) -> dict[K, str]:
    counts: dict[K, Counter[str]] = defaultdict(Counter)
    for key, answer in pairs:
        counts[key][answer] += 1
    return {key: min(counter, key=lambda answer: (-counter[answer], answer)) for key, counter in counts.items()}

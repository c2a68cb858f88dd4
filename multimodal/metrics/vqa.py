"""VQA accuracy.

Antol et al. 2015 (VQA, arXiv:1505.00468), section 4, with the text processing of the official evaluator:
GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, HEAD of 2021-03-11.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from multimodal.metrics.examples import all_reduce_max, check_complete, check_ids
from multimodal.metrics.vqa_tables import ARTICLES, CONTRACTIONS, NUMBER_WORDS, PUNCTUATION

Mode = Literal["official", "consistent"]
SoftTarget = Literal["official", "n_over_3"]

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The evaluator's pattern has `(?!<=\d)` in front: a look-behind gone wrong that never forbids anything.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # The evaluator passes the flag re.UNICODE, which is 32, where `sub` takes its count.


def vqa_score(prediction: str, answers: list[str], mode: Mode = "official") -> float:
    """Score one predicted answer against what people answered, in 0..1.

    Every annotator is left out once; the prediction earns min(1, matches among the others / 3); the mean of these
    counts. Of ten annotators 1, 2, 3, 4 matches give 0.3, 0.6, 0.9, 1. The same rule holds for fewer annotators
    (three who agree: 2/3), except that nobody is left to agree with a single one: there a match is 1.

    Args:
        prediction: the model's answer.
        answers: one a person; order and ids don't matter.
        mode: "official" is the official evaluator's behaviour: where all people gave the same answer, prediction and
            answers are compared as they stand ("Yes." against ten times "yes" is 0), else both are normalised.
            "consistent" always normalises both.

    Raises:
        ValueError: an unknown mode, or no answers.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r} is not a way to score VQA; allowed: {', '.join(get_args(Mode))}")
    if not answers:
        raise ValueError("answers is empty: a prediction can't be scored without at least one answer")
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if mode == "consistent" or len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    return _leave_one_out(answers.count(prediction), len(answers))


def soft_scores(answers: list[str], target: SoftTarget = "official") -> dict[str, float]:
    """Score of each distinct normalised answer of one question, in 0..1: the soft labels of training.

    Args:
        answers: one a person.
        target: "official" is `vqa_score` in its consistent mode (of ten annotators 0.3, 0.6, 0.9, 1 for 1 to 4
            matches); "n_over_3" is min(1, matches / 3) of many public code bases. A single answer scores 1 in both.

    Raises:
        ValueError: an unknown target.
    """
    if target not in get_args(SoftTarget):
        raise ValueError(f"target={target!r} is not a soft label; allowed: {', '.join(get_args(SoftTarget))}")
    counts = Counter(normalize_answer(answer) for answer in answers)
    if target == "official" or len(answers) == 1:
        return {answer: _leave_one_out(count, len(answers)) for answer, count in counts.items()}
    return {answer: min(1.0, count / 3) for answer, count in counts.items()}


@lru_cache(maxsize=1 << 16)  # VQAv2 has 4.4 million training answers, most of them one of a few thousand
def normalize_answer(text: str) -> str:
    """Normalise an answer as the official evaluator does: punctuation, case, number words, articles, contractions.

    The evaluator's quirks are kept: "none" becomes "0", "a" becomes "", and applying it twice can differ from once.
    """
    text = _strip_punctuation(_one_line(text))
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    """Delete a mark that touches a space anywhere in the text, and all marks if a number has a comma; else space it."""
    has_comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        # Looked up in `text`, not in `stripped`: spaces put in for earlier marks don't count.
        delete = has_comma_in_number or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", stripped, count=_MAX_PERIODS)


def _leave_one_out(matches: int, annotators: int) -> float:
    """Mean over annotators of min(1, matches among the others / 3)."""
    if annotators == 1:
        return float(matches)
    # Counted in thirds, so that 0.3 is 0.3 and not the rounding of a sum.
    thirds = matches * min(3, matches - 1) + (annotators - matches) * min(3, matches)
    return thirds / (3 * annotators)


class VqaAccuracy(Metric):
    """Mean score over a split, whoever of the ranks scored which example, and however often.

    Args:
        num_examples: n, rows of the split's table; example ids are 0..n-1.
    """

    full_state_update = False
    score: Tensor  # float[n]

    def __init__(self, num_examples: int) -> None:
        super().__init__(dist_sync_fn=all_reduce_max)
        self.add_state("score", torch.full((num_examples,), -torch.inf), dist_reduce_fx="max")

    def update(self, example_id: Tensor, score: Tensor) -> None:
        """Take the scores of a batch.

        Args:
            example_id: `int[B]`, rows of the split's table.
            score: `float[B]`, finite, usually from `vqa_score`.

        Raises:
            ValueError: shapes differ, an id outside 0..n-1, or a score that isn't finite.
        """
        check_ids("example_id", example_id, len(self.score))
        if score.shape != example_id.shape or not score.isfinite().all():
            raise ValueError(f"score must be finite and [{len(example_id)}], as example_id, not {list(score.shape)}")
        self.score[example_id.to(self.score.device)] = score.to(self.score)

    def compute(self) -> float:
        """Mean over all n examples.

        Raises:
            ValueError: some example never came, on no rank.
        """
        check_complete("examples", self.score.isfinite())
        return self.score.cpu().double().mean().item()

    def per_example(self) -> Tensor:
        """Score of each example over all ranks, `float[n]` by id. Every rank must call it.

        Raises:
            ValueError: some example never came, on no rank.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            score = self.score.clone()
        check_complete("examples", score.isfinite())
        return score

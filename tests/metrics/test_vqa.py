from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from multimodal.metrics import VqaAccuracy, normalize_answer, soft_scores, vqa_score

# Inputs and what the official evaluator makes of them.
OFFICIAL = json.loads(Path(__file__).with_name("vqa_official.json").read_text())


def test_normalises_as_the_official_evaluator() -> None:
    assert len(OFFICIAL["normalized"]) > 300
    wrong = [(text, want) for text, want in OFFICIAL["normalized"] if normalize_answer(text) != want]
    assert not wrong


def test_scores_as_the_official_evaluator() -> None:
    assert len(OFFICIAL["scores"]) > 200
    wrong = [case for case in OFFICIAL["scores"] if vqa_score(case[0], case[1]) != pytest.approx(case[2], abs=1e-11)]
    assert not wrong


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
@pytest.mark.parametrize("mode", ["official", "consistent"])
def test_leave_one_out_of_ten(matches: int, score: float, mode: str) -> None:
    assert vqa_score("red", ["red"] * matches + ["blue"] * (10 - matches), mode) == score  # type: ignore[arg-type]


def test_agreement_switches_normalisation_off_in_official_mode_only() -> None:
    assert vqa_score("Yes.", ["yes"] * 10) == 0
    assert vqa_score("Yes.", ["yes"] * 10, "consistent") == 1
    assert vqa_score("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vqa_score("yes", ["Yes."] * 10) == 0
    assert vqa_score("yes", ["Yes."] * 10, "consistent") == 1
    # White space at the ends is no disagreement.
    assert vqa_score("Yes.", ["yes", "yes\n", "\tyes"] + ["yes"] * 7) == 0
    assert vqa_score("yes\n", ["yes"] * 10) == 1
    assert vqa_score("no\tway", ["no way"] * 9 + ["no\nway"]) == 1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("None", "0"),
        ("a", ""),
        ("t-shirt", "t shirt"),
        ("t - shirt", "t shirt"),
        ("x-\ty-z", "x yz"),  # a tab is a space
        ("1,000-2,000", "10002000"),  # a comma in a number deletes all punctuation
        ("Dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("." * 33, "."),  # at most 32 periods go
    ],
)
def test_quirks(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_normalises_once() -> None:
    assert normalize_answer("1,0,00") == "1000"
    once = normalize_answer("'ows'at")
    assert once == "'ow's'at"
    assert normalize_answer("a/one") == "1"
    assert normalize_answer(normalize_answer("." * 40)) != normalize_answer("." * 40)


def test_few_annotators() -> None:
    assert vqa_score("cat", ["cat"]) == 1
    assert vqa_score("cat", ["dog"]) == 0
    assert vqa_score("The cat.", ["cat"]) == 0
    assert vqa_score("The cat.", ["cat"], "consistent") == 1
    assert vqa_score("cat", ["cat"] * 2) == pytest.approx(1 / 3)
    assert vqa_score("cat", ["cat"] * 3) == pytest.approx(2 / 3)
    assert vqa_score("cat", ["cat"] * 4) == 1
    assert vqa_score("cat", ["cat", "dog", "dog"]) == pytest.approx((0 + 1 / 3 + 1 / 3) / 3)


def test_scoring_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"strict.*official, consistent"):
        vqa_score("cat", ["cat"], "strict")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="answers"):
        vqa_score("cat", [])
    with pytest.raises(ValueError, match=r"n_over_4.*official, n_over_3"):
        soft_scores(["cat"], "n_over_4")  # type: ignore[arg-type]


def test_soft_scores() -> None:
    answers = ["Red", "red", "the blue", "green.", "green", "green", "two", "2", "2", "2"]
    assert soft_scores(answers) == {"red": 0.6, "blue": 0.3, "green": 0.9, "2": 1.0}
    assert soft_scores(answers, "n_over_3") == {"red": 2 / 3, "blue": 1 / 3, "green": 1.0, "2": 1.0}
    assert soft_scores(["Goose"]) == soft_scores(["Goose"], "n_over_3") == {"goose": 1.0}
    assert soft_scores([]) == {}


def test_soft_scores_are_what_predictions_earn() -> None:
    for _, answers, _ in OFFICIAL["scores"]:
        for answer, score in soft_scores(answers).items():
            # Normalising an answer again can change it, so the score of its own text stands for it.
            own = next(text for text in answers if normalize_answer(text) == answer)
            assert vqa_score(own, answers, "consistent") == score


def test_accuracy_counts_each_example_once() -> None:
    metric = VqaAccuracy(3)
    metric.update(torch.tensor([2, 0]), torch.tensor([0.3, 1.0]))
    metric.update(torch.tensor([1, 0]), torch.tensor([0.0, 1.0]))
    assert metric.compute() == pytest.approx(1.3 / 3)
    assert metric.per_example().tolist() == pytest.approx([1.0, 0.0, 0.3])
    metric.reset()
    metric.update(torch.tensor([0, 1, 2]), torch.zeros(3))
    assert metric.compute() == 0


def test_accuracy_notices_what_is_missing_or_foreign() -> None:
    metric = VqaAccuracy(3)
    metric.update(torch.tensor([2, 0]), torch.tensor([0.3, 1.0]))
    with pytest.raises(ValueError, match=r"1 of 3 examples.*\[1\]"):
        metric.compute()
    with pytest.raises(ValueError, match=r"1 of 3 examples.*\[1\]"):
        metric.per_example()
    with pytest.raises(ValueError, match=r"0\.\.3; allowed: 0\.\.2"):
        metric.update(torch.tensor([0, 3]), torch.zeros(2))
    with pytest.raises(ValueError, match="example_id"):
        metric.update(torch.tensor([-1]), torch.zeros(1))
    with pytest.raises(ValueError, match="score"):
        metric.update(torch.tensor([1]), torch.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        metric.update(torch.tensor([1]), torch.tensor([torch.nan]))

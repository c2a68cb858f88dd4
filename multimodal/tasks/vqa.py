"""Visual question answering as classification over the answers of the training split.

Soft labels and binary cross-entropy: Teney et al. 2018 (arXiv:1708.02711), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multimodal.data.dataset import Questions
from multimodal.data.vocabularies import Vocabularies
from multimodal.metrics import VqaAccuracy, by_family, majority_guess, question_only_guess, vqa_score
from multimodal.objectives.answers import answer_loss
from multimodal.tasks.base import Rows, Step, Task, gather_rows
from multimodal.tasks.optim import Optim
from multimodal.types import Evaluation, Fused, VqaBatch


class AnswerHead(nn.Module):
    """From what a model knows of a question and its image to a logit for each answer."""

    def __init__(self, *, width: int, num_answers: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.answers = nn.Linear(2 * width, num_answers)

    def forward(self, fused: Fused) -> Tensor:
        """Logits `float[P, A]`."""
        return self.answers(self.norm(nn.functional.gelu(self.hidden(fused.pooled))))


class Vqa(Task):
    """Answer questions about images; the same head and the same loss for every architecture."""

    table = "questions"

    def __init__(self, *, model: nn.Module, vocabularies: Vocabularies, optim: Optim) -> None:
        super().__init__(model=model, vocabularies=vocabularies, optim=optim)
        if vocabularies.answers is None:
            raise ValueError("task=vqa: the data set gives no answers; allowed: a data set with questions")
        self.answers = vocabularies.answers
        self.head = AnswerHead(width=self.model.width, num_answers=len(self.answers))
        self._accuracy: dict[str, VqaAccuracy] = {}
        self._rows: dict[str, list[Rows]] = {}

    def step(self, batch: VqaBatch) -> Step:
        """Encode each image once, however many of the batch's questions are about it."""
        image = self.model.encode_image(batch.image)
        text = self.model.encode_text(batch.text)
        fused = self.model.fuse(image.select(batch.image_of_text), text, reads="pooled")
        logits = self.head(fused)
        return Step({"answer": answer_loss(logits, batch.target)}, logits)

    def collect(self, split: str, batch: VqaBatch) -> None:
        """Score the most probable answer of each question."""
        confidence, index = self.step(batch).predictions.float().sigmoid().max(dim=-1)
        rows = {"example": batch.example_id, "answer": index, "confidence": confidence}
        columns = {name: value.cpu().numpy() for name, value in rows.items()}
        true = self._questions(split).answers
        score = [
            vqa_score(self.answers[a], true[e]) for a, e in zip(columns["answer"], columns["example"], strict=True)
        ]
        self._metric(split).update(batch.example_id, torch.tensor(score, device=self.device))
        self._rows.setdefault(split, []).append(columns)

    def evaluate(self, split: str) -> Evaluation:
        """Official VQA accuracy, over all and by question family, beside what one gets without looking."""
        questions = self._questions(split)
        score = self._metric(split).per_example().cpu()
        del self._accuracy[split]
        rows = gather_rows(self._rows.pop(split, []), key="example")
        return Evaluation(
            metrics={"score": score.mean().item()},
            by_family=by_family(score, questions.family),
            baselines=self._baselines(questions) if self.trainer.testing else {},
            predictions={
                "example": rows["example"],
                "prediction": [self.answers.answers[index] for index in rows["answer"]],
                "confidence": rows["confidence"],
                "score": score.numpy(),
                "target": [" | ".join(dict.fromkeys(answers)) for answers in questions.answers],
                "type": questions.family,
            },
        )

    def _questions(self, split: str) -> Questions:
        return self.trainer.datamodule.table(split)  # type: ignore[attr-defined]

    def _metric(self, split: str) -> VqaAccuracy:
        if split not in self._accuracy:
            self._accuracy[split] = VqaAccuracy(num_examples=len(self._questions(split).text)).to(self.device)
        return self._accuracy[split]

    def _baselines(self, questions: Questions) -> dict[str, dict[str, float]]:
        """What is reached without looking at the image, and by what else the data set knows how to guess."""
        train = self._questions("train")
        answer = [answers[0] for answers in train.answers]
        guesses = {
            "majority": majority_guess(list(zip(train.family, answer, strict=True)), questions.family),
            "question only": question_only_guess(train.text, answer, train.family, questions.text, questions.family),
            **questions.guesses,
        }
        return {name: _guess_score(guess, questions) for name, guess in guesses.items()}


def _guess_score(guess: list[str], questions: Questions) -> dict[str, float]:
    """Score of a baseline by family, and over all if it has a guess, which is not "", for every question."""
    made = [row for row, answer in enumerate(guess) if answer]
    score = torch.tensor([vqa_score(guess[row], questions.answers[row]) for row in made])
    families = by_family(score, [questions.family[row] for row in made])
    return {"score": score.mean().item(), **families} if len(made) == len(guess) else families

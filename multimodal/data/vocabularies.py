"""What a model's token ids and answer rows mean: the part of the data that has to travel with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from multimodal.data.text import AnswerVocabulary, Tokenizer, tokenizer_from_state


@dataclass(frozen=True)
class Vocabularies:
    """A tokenizer, and the answers where the task has any."""

    tokenizer: Tokenizer
    answers: AnswerVocabulary | None

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, with the hashes that tell two apart."""
        return {
            "tokenizer": self.tokenizer.state(),
            "tokenizer_hash": self.tokenizer.hash,
            "answers": None if self.answers is None else list(self.answers.answers),
            "answers_hash": None if self.answers is None else self.answers.hash,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The vocabularies whose `state()` this is; needs no files."""
        answers = None if state["answers"] is None else AnswerVocabulary(state["answers"])
        return cls(tokenizer_from_state(state["tokenizer"]), answers)

    def require_equal(self, saved: Vocabularies) -> None:
        """Refuse weights whose ids mean something else.

        Args:
            saved: those of a checkpoint.

        Raises:
            ValueError: the tokenizer or the answers differ; says how.
        """
        problems = []
        if self.tokenizer.hash != saved.tokenizer.hash:
            problems.append(
                f"tokenizer: the data gives {self.tokenizer.vocab_size} tokens ({self.tokenizer.hash[:12]}), "
                f"the checkpoint was trained with {saved.tokenizer.vocab_size} ({saved.tokenizer.hash[:12]})"
            )
        ours, theirs = (v.answers.answers if v.answers else () for v in (self, saved))
        if ours != theirs:
            missing, new = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
            problems.append(
                f"answers: the data gives {len(ours)}, the checkpoint was trained with {len(theirs)}; "
                f"only in the checkpoint: {missing[:5]}, only in the data: {new[:5]}"
            )
        if problems:
            allowed = "allowed: the `data` and `text` settings of the run that wrote the checkpoint"
            raise ValueError("the vocabularies don't match the checkpoint; " + "; ".join([*problems, allowed]))

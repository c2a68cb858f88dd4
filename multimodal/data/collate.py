"""Rows of a table become a batch, all rows of the batch at once.

The tables are a few flat arrays: they pickle small, workers share their pages, and a batch is a handful of
vectorised look-ups, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch.utils.data import Dataset

from multimodal.data.dataset import Captions, Questions
from multimodal.data.text import AnswerVocabulary, Tokenizer
from multimodal.types import Batch, RetrievalBatch, TextInput, VqaBatch


@dataclass(frozen=True)
class Ragged:
    """n rows of different length in one flat array."""

    values: np.ndarray  # [sum of lengths]
    offsets: np.ndarray  # int[n + 1]  row i is values[offsets[i] : offsets[i + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], dtype: type[np.generic]) -> Ragged:
        """Pack rows."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(np.fromiter(chain.from_iterable(rows), dtype, count=offsets[-1]), offsets)

    def pick(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All values of the rows `index int[B]`: their row 0..B-1 int[k], their column int[k], the values [k]."""
        first, length = self.offsets[index], self.offsets[index + 1] - self.offsets[index]
        row = np.repeat(np.arange(len(index)), length)
        column = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
        return row, column, self.values[first[row] + column]


class Examples(Dataset[Batch]):
    """A table whose `examples[index int[B]]` is a batch.

    Args:
        table: n texts and the images they are about.
        tokenizer: turns them into ids, once.
        max_text_length: tokens a text, start and end counted; longer ones lose their tail.
    """

    def __init__(self, table: Questions | Captions, *, tokenizer: Tokenizer, max_text_length: int) -> None:
        self.images = table.images
        self.image = np.asarray(table.image)
        distinct = list(dict.fromkeys(table.text))  # generated questions repeat a lot
        ids = dict(zip(distinct, tokenizer.encode(distinct, max_text_length), strict=True))
        self.tokens = Ragged.of([ids[one] for one in table.text], np.int32)
        self.pad_id = tokenizer.pad_id
        inner = np.ones(len(self.tokens.values), bool)
        inner[self.tokens.offsets[:-1]] = inner[self.tokens.offsets[1:] - 1] = False  # start and end
        unknown = self.tokens.values[inner] == tokenizer.unk_id
        self.unknown = float(unknown.mean()) if unknown.size else 0.0  # share of words the tokenizer does not know

    def __len__(self) -> int:
        return len(self.image)

    def text(self, index: np.ndarray) -> TextInput:
        """The texts `index int[B]`, padded to the longest of them."""
        row, column, token = self.tokens.pick(index)
        shape = (len(index), int(column.max()) + 1)
        ids, mask = np.full(shape, self.pad_id, np.int64), np.zeros(shape, bool)
        ids[row, column], mask[row, column] = token, True
        return TextInput(torch.from_numpy(ids), torch.from_numpy(mask))

    def image_of_text(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct images of some texts, int[U], and the place of each text's own among them, int[B]."""
        return np.unique(self.image[index], return_inverse=True)


class VqaExamples(Examples):
    """Questions with targets over an answer vocabulary."""

    def __init__(
        self, table: Questions, *, tokenizer: Tokenizer, answers: AnswerVocabulary, max_text_length: int
    ) -> None:
        super().__init__(table, tokenizer=tokenizer, max_text_length=max_text_length)
        self.num_answers = len(answers)
        targets = answers.targets(table.answers)
        self.answer = Ragged.of([index for index, _ in targets], np.int32)
        self.score = Ragged.of([score for _, score in targets], np.float32)

    def __getitem__(self, index: np.ndarray) -> VqaBatch:
        image, image_of_text = self.image_of_text(index)
        row, _, answer = self.answer.pick(index)
        target = np.zeros((len(index), self.num_answers), np.float32)
        target[row, answer] = self.score.pick(index)[2]
        return VqaBatch(
            text=self.text(index),
            image=self.images(image),
            image_of_text=torch.from_numpy(image_of_text),
            example_id=torch.from_numpy(index),
            target=torch.from_numpy(target),
        )


class RetrievalExamples(Examples):
    """Captions."""

    def __init__(self, table: Captions, *, tokenizer: Tokenizer, max_text_length: int) -> None:
        super().__init__(table, tokenizer=tokenizer, max_text_length=max_text_length)
        self.meaning = np.arange(len(table.images)) if table.meaning is None else table.meaning

    def __getitem__(self, index: np.ndarray) -> RetrievalBatch:
        image, image_of_text = self.image_of_text(index)
        return RetrievalBatch(
            text=self.text(index),
            image=self.images(image),
            image_of_text=torch.from_numpy(image_of_text),
            example_id=torch.from_numpy(index),
            image_id=torch.from_numpy(image),
            meaning=torch.from_numpy(self.meaning[image]),
        )

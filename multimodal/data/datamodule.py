"""The loaders of one data set for one task: training in a fixed order, evaluation over every example once."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from multimodal.data.collate import Examples, RetrievalExamples, VqaExamples
from multimodal.data.dataset import Captions, Images, Questions, VisionLanguageData
from multimodal.data.sampler import EvaluationSampler, ResumableLoader, TrainingSampler
from multimodal.data.text import AnswerVocabulary, Tokenizer, WordTokenizer
from multimodal.data.vocabularies import Vocabularies
from multimodal.types import Batch, ImageInput

MAX_UNKNOWN = 0.5  # share of unknown tokens in a split above which the vocabulary must be the wrong one


class DataModule(L.LightningDataModule):
    """Batches of a data set for Lightning. Use it with `Trainer(use_distributed_sampler=False)`.

    Args:
        dataset: where the tables come from.
        table: which of them: "questions" gives `VqaBatch`, "captions" gives `RetrievalBatch`.
        tokenizer: none: word level, built from all texts of the training split.
        answers: none: all answers of the training split. Captions need none.
        batch_size: training examples a step of one device.
        eval_batch_size: the same for evaluation.
        num_workers: processes that assemble batches; 0 does it in the training process.
        seed: decides the order of training.
        max_text_length: tokens a text, start and end counted.
        limit: train and validate on so many first training examples only; none: on all.

    Raises:
        ValueError: the limit is not positive.
    """

    tokenizer: Tokenizer
    answers: AnswerVocabulary | None

    def __init__(
        self,
        *,
        dataset: VisionLanguageData,
        table: Literal["questions", "captions"],
        tokenizer: Tokenizer | None,
        answers: AnswerVocabulary | None,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        max_text_length: int,
        limit: int | None,
    ) -> None:
        super().__init__()
        if limit is not None and limit < 1:
            raise ValueError(f"overfit={limit}: must be 1 or more, or null for the whole training split")
        self.dataset = dataset
        self.table_name = table
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.answers = answers
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_text_length = max_text_length
        self.limit = limit
        self._splits: dict[str, Questions | Captions] = {}  # as the data set gives them
        self._tables: dict[str, Questions | Captions] = {}  # as the loaders read them
        self._examples: dict[str, Examples] = {}

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The splits of `test_dataloader`, in its order."""
        return tuple(split for split in self.dataset.eval_splits if split != "val")

    def setup(self, stage: str | None = None) -> None:
        """Build the tokenizer and the answer vocabulary from the training split where none was given."""
        if not hasattr(self, "tokenizer"):
            self.tokenizer = WordTokenizer.build(self._training_text())
        if self.answers is None and self.table_name == "questions":
            table = self._load("train")
            assert isinstance(table, Questions)
            self.answers = AnswerVocabulary.build(table.answers, size=None, min_count=1)

    def table(self, split: str) -> Questions | Captions:
        """The table that the loader of `split` reads; `example_id` is a row of it.

        Raises:
            ValueError: no such split, or its table is empty.
        """
        if split == "val" and self.limit is not None:
            return self.table("train")
        if split not in self._tables:
            table = self._load(split)
            self._tables[split] = table if split != "train" or self.limit is None else _head(table, self.limit)
        return self._tables[split]

    def train_dataloader(self) -> ResumableLoader:
        """Batches in an order that is a function of seed and epoch, the last incomplete one left out."""
        return ResumableLoader(
            self.examples("train"),
            self.training_sampler(*_rank_and_world()),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation example once."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """One loader a split in `test_splits`, every example once."""
        return [self._evaluation_loader(split) for split in self.test_splits]

    def example_batch(self, n: int) -> Batch:
        """The first n training rows, or all if there are fewer."""
        examples = self.examples("train")
        return examples[np.arange(min(n, len(examples)))]

    def order_hash(self, batches: int) -> str:
        """sha256 of the examples in the first `batches` global batches of training (optimizer steps x accumulation).

        Equal for two runs exactly if both read the same batches in the same order, on however many devices.
        """
        return self.training_sampler(*_rank_and_world()).order_hash(batches)

    @property
    def vocabularies(self) -> Vocabularies:
        """What the ids and targets of the batches mean, after `setup`."""
        return Vocabularies(self.tokenizer, self.answers)

    def examples(self, split: str) -> Examples:
        """The table of a split, ready to give batches.

        Raises:
            ValueError: the texts are mostly unknown to the tokenizer, or the table is empty.
        """
        if split not in self._examples:
            self._examples[split] = self._tokenised(split)
        return self._examples[split]

    def _tokenised(self, split: str) -> Examples:
        table = self.table(split)
        if isinstance(table, Questions):
            assert self.answers is not None, "call setup() first"
            examples: Examples = VqaExamples(
                table, tokenizer=self.tokenizer, answers=self.answers, max_text_length=self.max_text_length
            )
        else:
            examples = RetrievalExamples(table, tokenizer=self.tokenizer, max_text_length=self.max_text_length)
        if examples.unknown > MAX_UNKNOWN:
            raise ValueError(
                f"text.vocabulary: this tokenizer does not know {examples.unknown:.0%} of the tokens in the {split} "
                f"texts of {self.dataset.name}, {table.text[0]!r} for one; at most {MAX_UNKNOWN:.0%} is allowed"
            )
        return examples

    def training_sampler(self, rank: int, world: int) -> TrainingSampler:
        """The order of training of one rank.

        Raises:
            ValueError: the batch size doesn't fit the training table.
        """
        table = self.table("train")
        return TrainingSampler(
            n=len(table.text),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            group=table.group if isinstance(table, Captions) else 1,
        )

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        examples = self.examples(split)
        rank, world = _rank_and_world()
        return DataLoader(
            examples,
            sampler=EvaluationSampler(n=len(examples), batch_size=self.eval_batch_size, rank=rank, world=world),
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _load(self, split: str) -> Questions | Captions:
        if split not in self._splits:
            table = self.dataset.questions(split) if self.table_name == "questions" else self.dataset.captions(split)
            if not table.text:
                raise ValueError(f"data: {self.dataset.name} has no {self.table_name} in its split {split!r}")
            self._splits[split] = table
        return self._splits[split]

    def _training_text(self) -> list[str]:
        """Questions and captions alike, so that both tasks share one vocabulary."""
        text = list(self._load("train").text)
        if self.table_name == "questions" and "captions" in self.dataset.tables:
            text += self.dataset.captions("train").text
        elif self.table_name == "captions" and "questions" in self.dataset.tables:
            text += self.dataset.questions("train").text
        return text


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class _Chosen:
    """Some images of a table, as a table's images."""

    def __init__(self, images: Images, index: np.ndarray) -> None:
        self.images, self.index = images, index

    def __len__(self) -> int:
        return len(self.index)

    def __call__(self, index: np.ndarray) -> ImageInput:
        return self.images(self.index[index])


def _head(table: Questions | Captions, n: int) -> Questions | Captions:
    """The first n rows, and only the images that they are about."""
    kept, image = np.unique(table.image[:n], return_inverse=True)
    images, text = _Chosen(table.images, kept), table.text[:n]
    if isinstance(table, Questions):
        return replace(
            table,
            images=images,
            text=text,
            image=image,
            answers=table.answers[:n],
            family=table.family[:n],
            guesses={name: guess[:n] for name, guess in table.guesses.items()},
        )
    return replace(
        table,
        images=images,
        text=text,
        image=image,
        meaning=None if table.meaning is None else table.meaning[kept],
        relevant=None if table.relevant is None else table.relevant[kept][:, :n],
        swapped=None if table.swapped is None else np.where(table.swapped[:n] < n, table.swapped[:n], -1),
        oracles={name: similarity[kept][:, :n] for name, similarity in table.oracles.items()},
    )

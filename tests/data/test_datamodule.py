from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from multimodal.data.datamodule import DataModule
from multimodal.data.dataset import Captions, Questions
from multimodal.data.text import AnswerVocabulary, WordPieceTokenizer, WordTokenizer
from multimodal.types import Batch, RetrievalBatch, VqaBatch
from tests.data.fake_data import THINGS, FakeData


def datamodule(dataset: FakeData | None = None, **changes: Any) -> DataModule:
    settings: dict[str, Any] = {
        "dataset": dataset or FakeData(),
        "table": "questions",
        "tokenizer": None,
        "answers": None,
        "batch_size": 4,
        "eval_batch_size": 3,
        "num_workers": 0,
        "seed": 0,
        "max_text_length": 16,
        "limit": None,
    }
    made = DataModule(**settings | changes)
    made.setup()
    return made


def ids(loader: Any) -> list[list[int]]:
    return [batch.example_id.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for field in fields(value):  # type: ignore[arg-type]
            yield from tensors(getattr(value, field.name))


def test_both_tasks_share_one_vocabulary() -> None:
    questions, captions = datamodule(), datamodule(table="captions")
    assert questions.tokenizer.hash == captions.tokenizer.hash
    assert {"left", "lamp"} <= set(questions.tokenizer.state()["tokens"])
    assert questions.answers is not None
    assert set(questions.answers.answers) == set(THINGS)
    assert captions.answers is None
    assert questions.vocabularies.answers is questions.answers
    assert questions.vocabularies.tokenizer is questions.tokenizer
    only = datamodule(FakeData(tables=["captions"]), table="captions")
    assert "left" not in only.tokenizer.state()["tokens"]


def test_given_vocabularies_are_kept() -> None:
    tokenizer = WordTokenizer.build(["what is left of the cow, goose? really"])
    answers = AnswerVocabulary(("cow", "goose"))
    data = datamodule(tokenizer=tokenizer, answers=answers)
    assert data.tokenizer is tokenizer
    assert next(iter(data.train_dataloader())).target.shape == (4, 2)


def test_batches_are_of_the_kind_of_their_table() -> None:
    assert isinstance(next(iter(datamodule().train_dataloader())), VqaBatch)
    assert isinstance(next(iter(datamodule(table="captions").train_dataloader())), RetrievalBatch)
    assert isinstance(datamodule().table("val"), Questions)
    assert isinstance(datamodule(table="captions").table("val"), Captions)


def test_training_reads_whole_batches_and_changes_order_by_epoch() -> None:
    loader = datamodule(FakeData(train=23)).train_dataloader()
    first = ids(loader)
    assert len(loader) == len(first) == 5
    assert {len(batch) for batch in first} == {4}
    assert ids(loader) == first
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert ids(loader) != first


def test_captions_keep_their_groups() -> None:
    batches = ids(datamodule(table="captions").train_dataloader())
    assert all(batch[1::2] == [i + 1 for i in batch[::2]] for batch in batches)


def test_evaluation_reads_every_example_once_in_order() -> None:
    data = datamodule()
    assert ids(data.val_dataloader()) == [[0, 1, 2], [3, 4, 5], [6]]
    data.dataset.sizes["shift"] = 4  # type: ignore[attr-defined]
    assert data.test_splits == ("test", "shift")
    assert [ids(loader) for loader in data.test_dataloader()] == [[[0, 1, 2], [3, 4]], [[0, 1, 2], [3]]]


@pytest.mark.parametrize("table", ["questions", "captions"])
def test_workers_change_nothing(table: str) -> None:
    for split in ("train", "val"):
        alone, helped = (
            list(getattr(datamodule(table=table, num_workers=workers), f"{split}_dataloader")()) for workers in (0, 2)
        )
        assert len(alone) == len(helped) > 1
        for ours, theirs in zip(alone, helped, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))


def test_overfitting_trains_and_validates_on_the_first_examples() -> None:
    dataset = FakeData()
    data = datamodule(dataset, limit=10)
    assert data.vocabularies.tokenizer.hash == datamodule().tokenizer.hash
    assert data.answers is not None
    assert len(data.answers) == len(THINGS)
    table = data.table("val")
    assert isinstance(table, Questions)
    assert table is data.table("train")
    full = dataset.questions("train")
    assert (table.text, table.answers) == (full.text[:10], full.answers[:10])
    assert {len(column) for column in (table.image, table.family, table.guesses["any"])} == {10}
    assert len(table.images) == 5
    assert set(flat(ids(data.train_dataloader()))) < set(range(10))
    assert flat(ids(data.val_dataloader())) == list(range(10))
    assert isinstance(data.table("test"), Questions)
    assert len(data.table("test").text) == 5


def test_overfitting_captions_keeps_truth_and_twins_among_them() -> None:
    table = datamodule(table="captions", limit=5, batch_size=2).table("train")
    assert isinstance(table, Captions)
    assert table.relevant is not None
    assert table.swapped is not None
    assert table.relevant.tolist() == np.eye(5, dtype=bool).tolist()
    assert table.swapped.tolist() == [1, 0, 3, 2, -1]
    assert table.oracles["bag"].shape == (len(table.images), 5) == (5, 5)


def test_images_of_an_overfitting_run_are_those_of_the_texts() -> None:
    batch = datamodule(limit=10).example_batch(10)
    assert batch.image.features[batch.image_of_text, 0, 0].tolist() == [i // 2 for i in range(10)]  # type: ignore[union-attr]


def test_example_batch_is_the_first_rows() -> None:
    assert datamodule().example_batch(5).example_id.tolist() == [0, 1, 2, 3, 4]


def test_order_hash_is_that_of_the_training_batches() -> None:
    data = datamodule()
    assert data.order_hash(9) == data.train_dataloader().order.order_hash(9)
    assert data.order_hash(9) == datamodule(num_workers=2, eval_batch_size=5).order_hash(9)
    assert data.order_hash(9) != datamodule(seed=1).order_hash(9)


def test_mistakes_name_their_key() -> None:
    with pytest.raises(ValueError, match=r"loader\.batch_size=25: must be 1 to the 24 training examples"):
        datamodule(batch_size=25).train_dataloader()
    with pytest.raises(ValueError, match=r"loader\.batch_size=4: must be 1 to the 3 training examples"):
        datamodule(limit=3).train_dataloader()
    with pytest.raises(ValueError, match="overfit=0: must be 1 or more"):
        datamodule(limit=0)
    with pytest.raises(ValueError, match=r"text\.max_length=2: needs 3"):
        datamodule(max_text_length=2).train_dataloader()
    with pytest.raises(ValueError, match="data: fake has no questions in its split 'train'"):
        datamodule(FakeData(train=0))
    with pytest.raises(ValueError, match="data: fake has no questions in its split 'shift'"):
        datamodule().test_dataloader()
    with pytest.raises(ValueError, match="fake has no questions"):
        datamodule(FakeData(tables=["captions"]))


def test_a_wrong_vocabulary_does_not_go_unnoticed(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nwas\nist\n?\n")
    data = datamodule(tokenizer=WordPieceTokenizer(vocabulary=vocabulary))
    with pytest.raises(
        ValueError, match=r"text\.vocabulary: .* does not know \d+% of the tokens in the val texts of fake"
    ):
        data.val_dataloader()


def test_vocabularies_of_another_data_set_are_refused() -> None:
    ours = datamodule().vocabularies
    ours.require_equal(datamodule().vocabularies)
    with pytest.raises(ValueError, match=ours.tokenizer.hash[:12]):
        ours.require_equal(datamodule(FakeData(tables=["questions"])).vocabularies)
    with pytest.raises(ValueError, match="answers"):
        ours.require_equal(datamodule(answers=AnswerVocabulary(("cow",))).vocabularies)


def test_ranks_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    one = datamodule(batch_size=4)
    train, val, order = ids(one.train_dataloader()), ids(one.val_dataloader()), one.order_hash(7)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        data = datamodule(batch_size=2)
        ranks.append((ids(data.train_dataloader()), ids(data.val_dataloader())))
        assert data.order_hash(7) == order
    assert [first + second for first, second in zip(ranks[0][0], ranks[1][0], strict=True)] == train
    assert flat(ranks[0][1] + ranks[1][1]) == flat(val) == list(range(7))


class Recorder(L.LightningModule):
    """Writes down what it is trained on, and stops like a killed process after so many batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.stop_after = stop_after

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append((self.current_epoch, batch.example_id.tolist()))
        return self.weight * 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, checkpoint: ModelCheckpoint, resume: Path | None, workers: int, **settings: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **settings,
    )
    data = datamodule(num_workers=workers)  # 24 examples, 6 batches an epoch
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        assert module.stop_after is not None


AFTER_EACH_STEP = {"every_n_train_steps": 1}
AFTER_VALIDATION: dict[str, int] = {}
AFTER_EPOCH = {"save_on_train_epoch_end": True}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "saved", "settings", "stops"),
    [
        (0, AFTER_EACH_STEP, {}, (1, 4, 5, 6, 8, 12)),
        (0, AFTER_EACH_STEP, {"val_check_interval": 2}, (1, 2, 5, 6, 8)),
        (0, AFTER_EACH_STEP, {"limit_train_batches": 5}, (4, 5, 6, 10)),
        (0, AFTER_VALIDATION, {"val_check_interval": 2}, (2, 6, 8, 12)),
        (0, AFTER_VALIDATION, {}, (6, 12)),
        (0, AFTER_EPOCH, {}, (6, 12)),
        (2, AFTER_EACH_STEP, {}, (4, 6)),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_where_it_stopped(
    workers: int, saved: dict[str, Any], settings: dict[str, Any], stops: tuple[int, ...], tmp_path: Path
) -> None:
    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, enable_version_counter=False, **saved)

    whole = Recorder()
    fit(whole, checkpoint(), None, workers, **settings)
    assert len(whole.seen) == 3 * settings.get("limit_train_batches", 6)
    assert len({tuple(batch) for _, batch in whole.seen}) == len(whole.seen)
    for stop in stops:
        file = tmp_path / f"step={stop}.ckpt"
        file.unlink()
        killed, resumed = Recorder(stop_after=stop), Recorder()
        fit(killed, checkpoint(), None, workers, **settings)
        fit(resumed, checkpoint(), file, workers, **settings)
        assert killed.seen + resumed.seen == whole.seen, stop

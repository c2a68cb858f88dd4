from __future__ import annotations

import pickle
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from multimodal.data.collate import Ragged, RetrievalExamples, VqaExamples
from multimodal.data.dataset import Questions
from multimodal.data.text import AnswerVocabulary, WordTokenizer
from multimodal.types import Regions
from tests.data.fake_data import FakeData, FakeImages

QUESTIONS = FakeData(train=30).questions("train")
CAPTIONS = FakeData(train=30).captions("train")
TOKENIZER = WordTokenizer.build([*QUESTIONS.text, *CAPTIONS.text])
ANSWERS = AnswerVocabulary(("goose", "fish", "cow", "moon", "cat", "dog"))
INDEX = np.array([7, 3, 2, 29, 6, 7, 0])


def examples(table: Questions = QUESTIONS, max_text_length: int = 20) -> VqaExamples:
    return VqaExamples(table, tokenizer=TOKENIZER, answers=ANSWERS, max_text_length=max_text_length)


def regions(image: object) -> Regions:
    assert isinstance(image, Regions)
    return image


def test_ragged_rows_come_back() -> None:
    rows = [[3, 1, 4], [], [1, 5], [9]]
    row, column, value = Ragged.of(rows, np.int32).pick(np.array([2, 1, 0, 2]))
    assert row.tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert column.tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert value.tolist() == [1, 5, 3, 1, 4, 1, 5]


def test_a_batch_holds_what_its_rows_say() -> None:
    batch = examples()[INDEX]
    texts = TOKENIZER.encode([QUESTIONS.text[i] for i in INDEX], 20)
    assert batch.text.ids.shape == (len(INDEX), max(map(len, texts)))
    assert batch.text.ids.dtype == torch.int64
    for ids, mask, text in zip(batch.text.ids, batch.text.mask, texts, strict=True):
        assert ids[mask].tolist() == text
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert (ids[~mask] == TOKENIZER.pad_id).all()
    shown = regions(batch.image).features[batch.image_of_text, 0, 0]
    assert shown.tolist() == [QUESTIONS.image[i] for i in INDEX]
    assert batch.example_id.tolist() == INDEX.tolist()
    for target, i in zip(batch.target, INDEX, strict=True):
        right = [ANSWERS.answers.index(a) for a in QUESTIONS.answers[i] if a in ANSWERS.answers]
        assert target.nonzero().flatten().tolist() == right
        assert target.sum() == len(right)


def test_text_is_trimmed_to_the_longest_of_the_batch() -> None:
    short, long = examples()[np.array([0, 3])], examples()[np.array([0, 2])]
    assert short.text.ids.shape[1] < long.text.ids.shape[1]
    assert short.text.mask.all()
    cut = examples(max_text_length=5)[INDEX]
    assert cut.text.ids.shape == (len(INDEX), 5)
    assert (cut.text.ids[:, -1] == TOKENIZER.end_id).all()


def test_each_image_is_read_once() -> None:
    images = FakeImages(4)
    table = Questions(images, ["what?"] * 6, np.array([3, 1, 3, 3, 0, 1]), [["cow"]] * 6, ["q"] * 6)
    batch = examples(table)[np.array([0, 2, 5, 1])]
    assert [asked.tolist() for asked in images.asked] == [[1, 3]]
    assert batch.image_of_text.tolist() == [1, 1, 0, 0]
    assert len(regions(batch.image).features) == 2


def test_scores_of_several_people() -> None:
    answers = [["cat"] * 6 + ["dog"] * 2 + ["fish"] + ["bird"], ["none of these"] * 10, ["dog"]]
    table = Questions(FakeImages(1), ["what?"] * 3, np.zeros(3, int), answers, ["q"] * 3)
    target = examples(table)[np.array([2, 1, 0])].target
    assert target.dtype == torch.float32
    rows = [dict(zip(ANSWERS.answers, row.tolist(), strict=True)) for row in target]
    nothing = dict.fromkeys(ANSWERS.answers, 0.0)
    assert rows[0] == nothing | {"dog": 1.0}
    assert rows[1] == nothing
    assert rows[2] == pytest.approx(nothing | {"cat": 1.0, "dog": 0.6, "fish": 0.3})


def test_image_ids_of_captions_are_those_of_the_split() -> None:
    batch = RetrievalExamples(CAPTIONS, tokenizer=TOKENIZER, max_text_length=20)[np.array([9, 4, 21])]
    assert batch.image_id.tolist() == [4, 9, 21]
    assert batch.image_id[batch.image_of_text].tolist() == [9, 4, 21]
    assert batch.meaning.tolist() == [4, 9, 21]
    assert regions(batch.image).features[:, 0, 0].tolist() == [4, 9, 21]


def test_unknown_words_are_counted_without_start_and_end() -> None:
    def unknown(*text: str) -> float:
        n = len(text)
        table = Questions(FakeImages(1), list(text), np.zeros(n, int), [["cow"]] * n, ["q"] * n)
        return examples(table).unknown

    assert unknown("what is left") == 0.0
    assert unknown("what is zebra", "") == pytest.approx(1 / 3)
    assert unknown("zebra", "yak yak") == 1.0
    assert unknown("") == 0.0


def big_table(n: int) -> Questions:
    draw = np.random.default_rng(0)
    words = ["cow", "goose", "car", "tree", "moon"]
    text = [f"what is left of the {words[a]} beside the {words[b]}?" for a, b in draw.integers(0, 5, (n, 2))]
    return Questions(
        FakeImages(n // 6 + 1), text, np.arange(n) // 6, [[words[i]] for i in draw.integers(0, 5, n)], ["q"] * n
    )


def test_a_table_pickles_to_a_few_bytes_a_question() -> None:
    size = {n: len(pickle.dumps(examples(big_table(n)))) for n in (2_000, 12_000)}
    assert (size[12_000] - size[2_000]) / 10_000 < 120  # a list of Python objects would need a thousand
    copy = pickle.loads(pickle.dumps(examples()))
    assert torch.equal(copy[INDEX].text.ids, examples()[INDEX].text.ids)


def test_throughput_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    table = examples(big_table(20_000))
    order = np.random.default_rng(1).permutation(20_000)
    start = time.perf_counter()
    total: Tensor = sum((table[batch].target.sum() for batch in order.reshape(-1, 200)), torch.zeros(()))
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f" {20_000 / seconds:,.0f} questions/s without their images", end="")
    assert total > 0

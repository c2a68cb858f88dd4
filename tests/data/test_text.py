from __future__ import annotations

import gzip
import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from multimodal.data.text import (
    AnswerVocabulary,
    ClipTokenizer,
    Tokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    tokenizer_from_state,
)

PIECES = [
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(
        "what",
        "is",
        "left",
        "of",
        "the",
        "cow",
        "##s",
        "goo",
        "##se",
        "?",
        "!",
        "'",
        "-",
        ",",
        "a",
        "b",
        "##b",
        "e",
        "日",
    ),
]
MERGES = [
    *("t h", "th e</w>", "c o", "co w</w>", "l e", "f t</w>", "le ft</w>", "i s</w>", "g o", "o s", "w h", "wh a"),
    *("wha t</w>", "' s</w>", "1 2</w>", "! !", "!! !</w>"),
]
TEXTS = [
    "what is left of the cow?",
    "What's  LEFT\tof\nthe Cows!!",
    "",
    "   ",
    "goose, goose-cow a bbb 123 4,000.50",
    "naïve café №5 日本語 🐄🐮 e\u0301 ﬁ İ ß\u00a0x",
    "don't I'LL we've the's",
    "the [SEP] cow [MASK] <|endoftext|> is",
    "x" * 300,
]
_ALPHABET = "what is the cow's LEFT !?,.-'\t\n0123éßñ日🐄\u00ad\u200d"
_random = random.Random(0)
TEXTS += ["".join(_random.choice(_ALPHABET) for _ in range(_random.randrange(50))) for _ in range(300)]


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """OpenAI's layout: a gzipped line of version, then a merge a line."""
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(('"bpe_simple_vocab_16e6.txt#version: 0.2\n' + "\n".join(MERGES) + "\n").encode()))
    return path


def clip_vocabulary() -> dict[str, int]:
    """CLIP's ids as its authors number them, by another implementation of the byte table."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES)]
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


@pytest.fixture(params=["words", "wordpiece", "clip"])
def tokenizer(request: pytest.FixtureRequest, pieces: Path, bpe: Path) -> Tokenizer:
    make: dict[str, Callable[[], Tokenizer]] = {
        "words": lambda: WordTokenizer.build(TEXTS),
        "wordpiece": lambda: WordPieceTokenizer(vocabulary=pieces),
        "clip": lambda: ClipTokenizer(vocabulary=bpe),
    }
    return make[request.param]()


def test_words_come_by_frequency_then_alphabet() -> None:
    tokenizer = WordTokenizer.build(["the cow, the goose", "The car"])
    assert tokenizer.state()["tokens"] == ["[pad]", "[start]", "[end]", "[unk]", "the", ",", "car", "cow", "goose"]
    assert tokenizer.encode(["the cow saw The goose"], 20) == [[1, 4, 7, 3, 4, 8, 2]]
    assert WordTokenizer.build(["The car", "the cow, the goose"]).hash == tokenizer.hash


def test_wordpiece_of_a_known_sentence(pieces: Path) -> None:
    ids = WordPieceTokenizer(vocabulary=pieces).encode(["What is left of the cows?"], 20)
    assert [PIECES[i] for i in ids[0]] == ["[CLS]", "what", "is", "left", "of", "the", "cow", "##s", "?", "[SEP]"]


def test_wordpiece_equals_transformers(pieces: Path) -> None:
    reference = BertTokenizer(vocab=str(pieces))
    ours = WordPieceTokenizer(vocabulary=pieces)
    assert WordPieceTokenizer(vocabulary=pieces.parent).hash == ours.hash
    for max_length in (5, 64):
        assert ours.encode(TEXTS, max_length) == reference(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    assert (ours.pad_id, ours.start_id, ours.end_id, ours.unk_id) == (0, 3, 4, 2)


@pytest.mark.parametrize("layout", ["openai", "folder", "vocab.json"])
def test_clip_equals_transformers(layout: str, bpe: Path, tmp_path: Path) -> None:
    vocabulary = clip_vocabulary()
    reference = CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in MERGES])
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    ours = ClipTokenizer(vocabulary={"openai": bpe, "folder": tmp_path}.get(layout, tmp_path / layout))
    for max_length in (5, 77):
        assert ours.encode(TEXTS, max_length) == reference(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    assert ours.vocab_size == len(vocabulary)
    assert (ours.start_id, ours.end_id) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.pad_id == reference.pad_token_id
    for text, ids in zip(TEXTS, ours.encode(TEXTS, 77), strict=True):
        if "<|" not in text:  # of special tokens in a text, we leave out more than transformers does
            assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True).strip()


def test_clip_reads_as_many_merges_as_clip_has(tmp_path: Path) -> None:
    letters = list(bytes_to_unicode().values())
    pairs = [f"{left} {right}" for left in letters for right in letters]
    path = tmp_path / "bpe.txt"
    path.write_text("#version: 0.2\n" + "\n".join(pairs), encoding="utf-8")
    tokenizer = ClipTokenizer(vocabulary=path)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)


def test_truncation_keeps_start_and_end(tokenizer: Tokenizer) -> None:
    long, short = tokenizer.encode(["the cow is left of the goose and what a cow the goose is", "cow"], 6)
    assert len(long) == 6
    assert (long[0], long[-1]) == (tokenizer.start_id, tokenizer.end_id)
    assert long[1:-1] == tokenizer.encode(["the cow is left of the goose"], 50)[0][1:5]
    assert len(short) < 6
    assert short[-1] == tokenizer.end_id


def test_no_room_for_a_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(["the cow"], 3)[0]) == 3
    with pytest.raises(ValueError, match=r"text\.max_length=2: needs 3 or more"):
        tokenizer.encode(["the cow"], 2)


def test_ids_are_in_range_and_many_texts_are_one_by_one(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer.encode(TEXTS, 30)
    assert {i for row in ids for i in row} <= set(range(tokenizer.vocab_size))
    monkeypatch.setattr("multimodal.data.text.CHUNK", 7)
    assert tokenizer.encode(TEXTS, 30) == ids
    assert [tokenizer.encode([text], 30)[0] for text in TEXTS] == ids


def test_decode_gives_the_words_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["What is left of the cow?"], 20)[0]
    assert tokenizer.decode([*ids, tokenizer.pad_id]).replace(" ", "") == "whatisleftofthecow?"


def test_state_survives_a_checkpoint_without_the_files(tokenizer: Tokenizer, pieces: Path, bpe: Path) -> None:
    file = io.BytesIO()
    torch.save(tokenizer.state(), file)
    pieces.unlink()
    bpe.unlink()
    file.seek(0)
    loaded = tokenizer_from_state(torch.load(file, weights_only=True))
    assert loaded.hash == tokenizer.hash
    assert loaded.encode(TEXTS, 20) == tokenizer.encode(TEXTS, 20)
    assert [loaded.pad_id, loaded.unk_id] == [tokenizer.pad_id, tokenizer.unk_id]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS, 20) == tokenizer.encode(TEXTS, 20)


def test_hash_changes_with_all_that_changes_the_ids(tokenizer: Tokenizer) -> None:
    state = tokenizer.state()
    swapped = [*state["tokens"][:-2], state["tokens"][-1], state["tokens"][-2]]
    others = [
        state | {"tokens": [*state["tokens"], "new"]},
        state | {"tokens": swapped},
        state | {"merges": state["merges"][:-1]} if state["merges"] else state | {"tokens": ["new", *state["tokens"]]},
    ]
    hashes = {tokenizer_from_state(other).hash for other in others}
    assert len(hashes) == 3
    assert tokenizer.hash not in hashes
    assert len(tokenizer.hash) == 64


def test_kind_is_part_of_the_hash() -> None:
    tokens = ["[pad]", "[start]", "[end]", "[unk]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "cow"]
    words, pieces = (
        tokenizer_from_state({"kind": kind, "tokens": tokens, "merges": []}) for kind in ("words", "wordpiece")
    )
    assert words.hash != pieces.hash


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (WordPieceTokenizer, "no/vocab.txt"),
        (WordPieceTokenizer, "."),
        (ClipTokenizer, "bpe_simple_vocab_16e6.txt.gz"),
        (ClipTokenizer, "."),
        (ClipTokenizer, "vocab.json"),
    ],
)
def test_a_missing_file_is_named(make: Callable[..., Tokenizer], name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text\.vocabulary=.*: there is no such file") as error:
        make(vocabulary=tmp_path / name)
    assert str(tmp_path) in str(error.value)


def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path, pieces: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the\ncow\n")
    with pytest.raises(ValueError, match=r"text\.vocabulary: a wordpiece vocabulary needs .* lacks \['\[PAD\]'"):
        WordPieceTokenizer(vocabulary=other)
    other.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(ValueError, match="nothing but special tokens"):
        WordPieceTokenizer(vocabulary=other)
    with pytest.raises(ValueError, match=r"text\.vocabulary=.*holds two tokens, not '\[PAD\]'"):
        ClipTokenizer(vocabulary=pieces)
    with pytest.raises(ValueError, match="nothing but special tokens"):
        WordTokenizer.build([])


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match=r"merges\.txt makes 'ab', vocab\.json lacks it"):
        ClipTokenizer(vocabulary=tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 3}))
    with pytest.raises(ValueError, match=r"the ids of vocab\.json are not 0 to 2"):
        ClipTokenizer(vocabulary=tmp_path)


def test_answers_come_by_frequency_then_alphabet() -> None:
    answers = [["no"], ["yes"], ["cow"], ["yes"], ["no"], ["yes"], ["bee"]]
    assert AnswerVocabulary.build(answers, size=None, min_count=1).answers == ("yes", "no", "bee", "cow")
    assert AnswerVocabulary.build(answers, size=3, min_count=1).answers == ("yes", "no", "bee")
    assert AnswerVocabulary.build(answers, size=None, min_count=2).answers == ("yes", "no")
    with pytest.raises(ValueError, match="one or more answers"):
        AnswerVocabulary.build(answers, size=None, min_count=9)


def test_a_single_answer_is_taken_as_it_is() -> None:
    answers = [["t-shirt"], ["none"], ["The A"]]  # normalised they would be "t shirt", "0" and ""
    vocabulary = AnswerVocabulary.build(answers, size=None, min_count=1)
    assert set(vocabulary.answers) == {"t-shirt", "none", "The A"}
    assert vocabulary.target(["none"]) == ([vocabulary.answers.index("none")], [1.0])
    assert vocabulary[0] == vocabulary.answers[0]


def test_a_question_counts_once_for_its_majority() -> None:
    answers = [["Red."] * 6 + ["blue"] * 4, ["blue"] * 6 + ["red", "Red", "green", "the green"]]
    vocabulary = AnswerVocabulary.build(answers, size=None, min_count=1)
    assert vocabulary.answers == ("blue", "red")
    index, score = vocabulary.target(answers[1])
    assert dict(zip(index, score, strict=True)) == pytest.approx({0: 1.0, 1: 0.6})  # green is not in the vocabulary
    assert vocabulary.targets(answers)[1] == vocabulary.target(answers[1])


def test_coverage_and_the_best_score_in_reach() -> None:
    vocabulary = AnswerVocabulary(("yes", "cat"))
    answers = [["yes"], ["no"], ["cat"] * 2 + ["dog"] * 8, ["bee"] * 10]
    assert vocabulary.coverage(answers) == 0.5
    assert vocabulary.oracle(answers) == pytest.approx((1 + 0 + 0.6 + 0) / 4)


def test_answers_stand_once_and_their_order_counts() -> None:
    with pytest.raises(ValueError, match="each once"):
        AnswerVocabulary(["yes", "no", "yes"])
    assert AnswerVocabulary(["yes", "no"]).hash == AnswerVocabulary(("yes", "no")).hash
    assert AnswerVocabulary(["yes", "no"]).hash != AnswerVocabulary(["no", "yes"]).hash
    assert AnswerVocabulary(["yes, no"]).hash != AnswerVocabulary(["yes", " no"]).hash

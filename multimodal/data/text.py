"""Text becomes token ids, and answers become classes.

Every tokenizer is a vocabulary (and BPE merges) read into the `tokenizers` library, so that what a checkpoint
has to carry is plain strings, and what tells two tokenizers apart is a hash of them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from multimodal.metrics import normalize_answer, soft_scores

Kind = Literal["words", "wordpiece", "clip"]

CHUNK = 10_000  # texts a call of the backend: bounds the memory of its rich results


class Special(NamedTuple):
    """The tokens with a meaning of their own."""

    pad: str
    start: str
    end: str
    unk: str


WORDS_SPECIAL = Special("[pad]", "[start]", "[end]", "[unk]")
WORDPIECE_SPECIAL = Special("[PAD]", "[CLS]", "[SEP]", "[UNK]")
# CLIP pads with its end token, which is also what an unknown byte becomes.
CLIP_SPECIAL = Special("<|endoftext|>", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>")

# Radford et al. 2021: what counts as one word before byte pairs are merged.
CLIP_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Text to ids and back: `[start] tokens... [end]`, lower case.

    Use `WordTokenizer`, `WordPieceTokenizer` or `ClipTokenizer` to make one, `tokenizer_from_state` to load one.

    Raises:
        ValueError: the vocabulary lacks a special token or holds nothing else.
    """

    def __init__(self, *, kind: Kind, tokens: Sequence[str], merges: Sequence[str]) -> None:
        self.kind: Kind = kind
        self._tokens = list(tokens)
        self._merges = list(merges)
        vocabulary = {token: index for index, token in enumerate(self._tokens)}
        special, make = _KINDS[kind]
        missing = [token for token in special if token not in vocabulary]
        if missing or len(vocabulary) <= len(set(special)):
            found = f"lacks {missing}" if missing else "holds nothing but special tokens"
            raise ValueError(f"text.vocabulary: a {kind} vocabulary needs {list(special)} and words; this one {found}")
        self.pad_id, self.start_id, self.end_id, self.unk_id = (vocabulary[token] for token in special)
        self._backend = make(vocabulary, self._merges)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self._tokens)

    @property
    def hash(self) -> str:
        """sha256 of all that changes the ids: the kind, the tokens, the merges."""
        return _sha256(self.state())

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Ids of each text, `[start] ... [end]`; a longer text loses its tail and keeps its `[end]`.

        Raises:
            ValueError: `max_length` has no room for a single token between start and end.
        """
        if max_length < 3:
            raise ValueError(f"text.max_length={max_length}: needs 3 or more, for [start], one token and [end]")
        ids: list[list[int]] = []
        for first in range(0, len(texts), CHUNK):
            chunk = list(texts[first : first + CHUNK])
            encodings = self._backend.encode_batch_fast(chunk, add_special_tokens=False)
            ids += [[self.start_id, *encoding.ids[: max_length - 2], self.end_id] for encoding in encodings]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without padding, start and end."""
        skip = {self.pad_id, self.start_id, self.end_id}
        text: str = self._backend.decode([i for i in map(int, ids) if i not in skip], skip_special_tokens=False)
        return text.replace("</w>", " ").strip() if self.kind == "clip" else text

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `tokenizer_from_state` needs no files."""
        return {"kind": self.kind, "tokens": self._tokens, "merges": self._merges}


def tokenizer_from_state(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `state()` this is."""
    return Tokenizer(**state)


class WordTokenizer(Tokenizer):
    """One id a lower-case word or punctuation mark.

    Args:
        words: the vocabulary after the four special tokens.
    """

    def __init__(self, *, words: Sequence[str]) -> None:
        super().__init__(kind="words", tokens=[*WORDS_SPECIAL, *words], merges=())

    @classmethod
    def build(cls, texts: Iterable[str]) -> WordTokenizer:
        """All words of `texts`, most frequent first, ties in alphabetical order.

        Raises:
            ValueError: there is not a single word.
        """
        count: Counter[str] = Counter()
        backend = _words_backend({"[unk]": 0}, [])
        for text, times in Counter(texts).items():
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
                count[word] += times
        return cls(words=_most_frequent(count))


class WordPieceTokenizer(Tokenizer):
    """BERT's pieces of words, uncased; equal to transformers' BertTokenizer. Wu et al. 2016 (arXiv:1609.08144).

    Args:
        vocabulary: a `vocab.txt` of one token a line, or the folder that holds it.

    Raises:
        ValueError: no such file, or not a WordPiece vocabulary.
    """

    def __init__(self, *, vocabulary: str | Path) -> None:
        path = Path(vocabulary)
        path = _existing(path / "vocab.txt" if path.is_dir() else path)
        super().__init__(kind="wordpiece", tokens=path.read_text("utf-8").removesuffix("\n").split("\n"), merges=())


class ClipTokenizer(Tokenizer):
    """CLIP's byte pairs; equal to transformers' CLIPTokenizer. Radford et al. 2021 (arXiv:2103.00020), section 2.4.

    Args:
        vocabulary: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or a folder with `vocab.json` and `merges.txt`,
            or the path of that `vocab.json`.

    Raises:
        ValueError: no such file, or not a CLIP vocabulary.
    """

    def __init__(self, *, vocabulary: str | Path) -> None:
        path = Path(vocabulary)
        if path.is_dir() or path.suffix == ".json":
            folder = path if path.is_dir() else path.parent
            merges = _merges(folder / "merges.txt")
            ids: dict[str, int] = json.loads(_existing(folder / "vocab.json").read_text("utf-8"))
            tokens = sorted(ids, key=ids.__getitem__)
            if [ids[token] for token in tokens] != list(range(len(tokens))):
                raise ValueError(f"text.vocabulary={path}: the ids of vocab.json are not 0 to {len(tokens) - 1}")
            if unknown := {"".join(merge.split()) for merge in merges} - ids.keys():
                raise ValueError(f"text.vocabulary={path}: merges.txt makes {min(unknown)!r}, vocab.json lacks it")
        else:
            merges = _merges(path)
            letters = _byte_letters()
            tokens = [*letters, *(letter + "</w>" for letter in letters)]
            tokens += ["".join(merge.split()) for merge in merges]
            tokens += [CLIP_SPECIAL.start, CLIP_SPECIAL.end]
        super().__init__(kind="clip", tokens=tokens, merges=merges)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"text.vocabulary={path}: there is no such file")
    return path


# OpenAI's file lists more merges than CLIP uses: its vocabulary is 49,408 less 512 bytes and 2 special tokens.
CLIP_MERGES = 48_894


def _merges(path: Path) -> list[str]:
    """Read one merge of two tokens a line; a line that names the version may stand first."""
    content = _existing(path).read_bytes()
    lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").splitlines()
    first = 1 if lines and "#version" in lines[0] else 0
    merges = [line for line in lines[first : first + CLIP_MERGES] if line]
    if wrong := [line for line in merges if len(line.split()) != 2]:
        raise ValueError(f"text.vocabulary={path}: a line of byte-pair merges holds two tokens, not {wrong[0]!r}")
    return merges


def _byte_letters() -> list[str]:
    """A visible character for each of the 256 bytes, in the order of CLIP's ids (the table of GPT-2).

    Visible bytes come first and stand for themselves; the others are moved up to 256 and beyond.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(visible)
    return [chr(code) for code in [*visible, *range(256, 256 + hidden)]]


def _words_backend(vocabulary: dict[str, int], merges: list[str]) -> Backend:
    backend = Backend(models.WordLevel(vocabulary, unk_token=WORDS_SPECIAL.unk))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _wordpiece_backend(vocabulary: dict[str, int], merges: list[str]) -> Backend:
    backend = Backend(models.WordPiece(vocabulary, unk_token=WORDPIECE_SPECIAL.unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([*WORDPIECE_SPECIAL, "[MASK]"] if "[MASK]" in vocabulary else [*WORDPIECE_SPECIAL])
    return backend


def _clip_backend(vocabulary: dict[str, int], merges: list[str]) -> Backend:
    pairs = [(left, right) for left, right in (merge.split() for merge in merges)]
    backend = Backend(
        models.BPE(
            vocabulary, pairs, unk_token=CLIP_SPECIAL.unk, continuing_subword_prefix="", end_of_word_suffix="</w>"
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([CLIP_SPECIAL.start, CLIP_SPECIAL.end])
    return backend


_KINDS: dict[Kind, tuple[Special, Callable[[dict[str, int], list[str]], Backend]]] = {
    "words": (WORDS_SPECIAL, _words_backend),
    "wordpiece": (WORDPIECE_SPECIAL, _wordpiece_backend),
    "clip": (CLIP_SPECIAL, _clip_backend),
}


class AnswerVocabulary:
    """The A answers that a model can give, as classes 0 to A - 1.

    Raises:
        ValueError: there is no answer, or one stands twice.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = tuple(answers)
        self._index = {answer: index for index, answer in enumerate(self.answers)}
        if not self.answers or len(self._index) < len(self.answers):
            raise ValueError(f"answers: needs one or more answers, each once, not {self.answers[:10]}")

    @classmethod
    def build(cls, answers: Iterable[Sequence[str]], *, size: int | None, min_count: int) -> AnswerVocabulary:
        """The answers of a training split, most frequent first, ties in alphabetical order.

        Each question counts once, for the answer that most people gave to it.

        Args:
            answers: the answers people gave to each question.
            size: at most so many answers; none: no limit.
            min_count: an answer must be that of at least so many questions.
        """
        count: Counter[str] = Counter()
        for given, times in Counter(map(tuple, answers)).items():
            count[_majority(given)] += times
        frequent = Counter({answer: times for answer, times in count.items() if times >= min_count})
        return cls(_most_frequent(frequent)[:size])

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> str:
        return self.answers[index]

    @property
    def hash(self) -> str:
        """sha256 of the answers in their order."""
        return _sha256(list(self.answers))

    def target(self, answers: Sequence[str]) -> tuple[list[int], list[float]]:
        """The k classes of one question that score above zero: their indices, and their scores in 0..1."""
        scores = {self._index[a]: score for a, score in _scores(answers).items() if score > 0 and a in self._index}
        return list(scores), list(scores.values())

    def targets(self, answers: Iterable[Sequence[str]]) -> list[tuple[list[int], list[float]]]:
        """`target` of many questions; equal answers share one result."""
        distinct: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        return [distinct.get(given) or distinct.setdefault(given, self.target(given)) for given in map(tuple, answers)]

    def coverage(self, answers: Iterable[Sequence[str]]) -> float:
        """Share of questions with at least one right answer in the vocabulary, 0..1."""
        return float(np.mean([len(score) > 0 for _, score in self.targets(answers)]))

    def oracle(self, answers: Iterable[Sequence[str]]) -> float:
        """The best mean score that this vocabulary can reach, 0..1."""
        return float(np.mean([max(score, default=0.0) for _, score in self.targets(answers)]))


def _scores(given: Sequence[str]) -> dict[str, float]:
    """The score of each answer. A generated question has one, which is taken as it is: "t-shirt" stays "t-shirt"."""
    return {given[0]: 1.0} if len(given) == 1 else soft_scores(list(given))


def _majority(given: Sequence[str]) -> str:
    """The answer that most people gave, as `_scores` writes it; ties in alphabetical order."""
    return given[0] if len(given) == 1 else _most_frequent(Counter(map(normalize_answer, given)))[0]


def _most_frequent(count: Counter[str]) -> list[str]:
    """All keys, most frequent first, ties in alphabetical order."""
    return sorted(count, key=lambda key: (-count[key], key))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()

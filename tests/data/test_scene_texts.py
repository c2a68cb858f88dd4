"""Questions and captions are true of their scenes, balanced, and about nothing in doubt."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

from multimodal.data.scene_texts import Asked, Words, Writer, caption_texts
from multimodal.data.scenes import Cast, held_out_pairs, sample_scenes, scene_keys
from tests.data.scene_truth import Thing, answer, is_true

FAMILIES = ("exist", "count", "query", "compare", "relation")
CONCEPTS, KINDS, SCENES = 35, 5, 600

KIND = np.sort(np.arange(CONCEPTS) % KINDS)
WORDS = Words(
    noun=np.array([f"thing{i}" for i in range(CONCEPTS)], dtype=object),
    a_noun=np.array([f"a thing{i}" for i in range(CONCEPTS)], dtype=object),
    kinds=np.array([f"kinds{k}" for k in range(KINDS)], dtype=object),
)


@lru_cache
def writer(split: str) -> Writer:
    rng = np.random.default_rng(0)
    cast = Cast(
        KIND, np.arange(2 * CONCEPTS).reshape(CONCEPTS, 2), rng.uniform(0.5, 2, 2 * CONCEPTS), held_out_pairs(KIND)
    )
    keys = scene_keys(0, split, SCENES)
    shift = split == "pair_shift"
    return Writer(scenes=sample_scenes(cast, keys, shift), keys=keys, cast=cast, words=WORDS, pair_shift=shift)


def things(of: Writer, row: int) -> list[Thing]:
    places = np.flatnonzero(of.scenes.present[row])
    concepts = of.scenes.concept[row, places]
    return [
        Thing(WORDS.noun[c], WORDS.a_noun[c], WORDS.kinds[of.cast.kind[c]], tuple(of.scenes.boxes[row, place].tolist()))
        for c, place in zip(concepts, places, strict=True)
    ]


@pytest.fixture(scope="module")
def train() -> Writer:
    return writer("train")


@pytest.fixture(scope="module")
def asked(train: Writer) -> Asked:
    return train.questions(rounds=2)


def test_every_answer_is_the_only_right_one(train: Writer, asked: Asked) -> None:
    for scene, text, given in zip(asked.scene, asked.text, asked.answer, strict=True):
        assert answer(text, things(train, scene)) == given, text


def test_every_family_is_asked_up_to_twice_a_scene_and_never_the_same(asked: Asked) -> None:
    rows = list(zip(asked.scene.tolist(), asked.family, asked.text, strict=True))
    assert len(set(rows)) == len(rows)
    numbers = Counter((scene, family) for scene, family, _ in rows)
    for family in FAMILIES:
        counts = [numbers[scene, family] for scene in range(SCENES)]
        assert max(counts) == 2
        assert np.mean(counts) > 1.5
    assert (np.diff(asked.scene) >= 0).all()


def test_one_round_asks_what_the_first_of_two_asks(train: Writer, asked: Asked) -> None:
    once = train.questions(rounds=1)
    both = set(zip(asked.scene.tolist(), asked.text, strict=True))
    assert set(zip(once.scene.tolist(), once.text, strict=True)) < both
    assert max(Counter(zip(once.scene.tolist(), once.family, strict=True)).values()) == 1


@pytest.mark.parametrize("split", ["train", "val", "pair_shift"])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("family", ["exist", "compare"])
def test_half_of_each_yes_no_family_is_yes(split: str, rounds: int, family: str) -> None:
    parts = getattr(writer(split), family)(rounds)
    answers = Counter(np.concatenate([part.answer for part in parts]))
    assert answers == {"yes": SCENES * rounds / 2, "no": SCENES * rounds / 2}


def test_of_half_of_what_is_not_there_the_kind_is(train: Writer, asked: Asked) -> None:
    kind_of = dict(zip(WORDS.a_noun, WORDS.kinds[train.cast.kind], strict=True))
    chosen = (asked.family == "exist") & (asked.answer == "no")
    alike = [
        kind_of[text.removeprefix("is there ").removesuffix("?")] in [thing.kinds for thing in things(train, scene)]
        for scene, text in zip(asked.scene[chosen], asked.text[chosen], strict=True)
    ]
    assert 0.6 < np.mean(alike) < 0.8  # half by intention, some of the rest by chance: there are five kinds


def test_counts_go_from_0_to_5_and_none_is_the_rule(asked: Asked) -> None:
    share = Counter(asked.answer[asked.family == "count"])
    total = share.total()
    assert set(share) == set("012345")
    assert max(share.values()) < 0.35 * total
    assert min(share.values()) > 0.05 * total


def test_the_text_of_a_yes_no_question_tells_nothing(train: Writer) -> None:
    """The most frequent answer to the same text elsewhere is right half of the time."""
    seen, new = train.questions(rounds=2), writer("val").questions(rounds=2)
    answers: dict[str, Counter[str]] = {}
    for text, given in zip(seen.text, seen.answer, strict=True):
        answers.setdefault(text, Counter())[given] += 1
    for family in ("exist", "compare"):
        rows = [row for row in np.flatnonzero(new.family == family) if new.text[row] in answers]
        assert len(rows) > SCENES
        right = np.mean([answers[new.text[row]].most_common(1)[0][0] == new.answer[row] for row in rows])
        assert 0.44 < right < 0.56


def test_guesses_are_drawings_of_the_scene_that_the_question_does_not_name(train: Writer, asked: Asked) -> None:
    right = Counter()
    for scene, family, text, given, guess in zip(
        asked.scene, asked.family, asked.text, asked.answer, asked.guess, strict=True
    ):
        if family in ("query", "relation"):
            assert guess in [thing.noun for thing in things(train, scene)]
            assert f"{guess}?" not in text
            right[family] += guess == given
        else:
            assert guess == ""
    assert 0.2 < right["query"] / (asked.family == "query").sum() < 0.35
    assert 0.25 < right["relation"] / (asked.family == "relation").sum() < 0.4


def test_relation_is_more_than_which_thing_is_furthest(asked: Asked, train: Writer) -> None:
    """The thing furthest to the asked side is the answer only now and then, so the named thing has to be found."""
    chosen = np.flatnonzero(asked.family == "relation")
    furthest = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "below": (1, -1)}
    hits = []
    for row in chosen:
        axis, sign = furthest[asked.text[row].split()[2]]
        first = min(things(train, asked.scene[row]), key=lambda thing: sign * thing.centre[axis])
        hits.append(first.noun == asked.answer[row])
    assert np.mean(hits) < 0.45


@pytest.mark.parametrize("split", ["train", "pair_shift"])
def test_captions_are_true_of_the_scene_and_swapped_ones_of_the_twin(split: str) -> None:
    of = writer(split)
    a, direction, b = of.captions()
    both = of.scenes.with_twins(a, b)
    of_twins = Writer(scenes=both, keys=of.keys.repeat(2), cast=of.cast, words=WORDS, pair_shift=False)
    concept_a, concept_b = (of.scenes.concept[np.arange(SCENES), place] for place in (a, b))
    own = caption_texts(WORDS, concept_a, direction, concept_b)
    swapped = caption_texts(WORDS, concept_b, direction, concept_a)
    for row in range(SCENES):
        scene, twin = things(of_twins, 2 * row), things(of_twins, 2 * row + 1)
        assert [is_true(own[row], scene), is_true(own[row], twin)] == [True, False]
        assert [is_true(swapped[row], scene), is_true(swapped[row], twin)] == [False, True]
    assert len(set(direction)) == 4
    if split == "pair_shift":
        assert of.cast.held_out[concept_a, concept_b].all()


def test_pair_shift_asks_relations_about_held_out_pairs() -> None:
    of = writer("pair_shift")
    held_out = of.cast.held_out
    number = {noun: concept for concept, noun in enumerate(WORDS.noun)}
    (part,) = of.relation(1)
    assert len(part.text) > SCENES / 2
    for text, given in zip(part.text, part.answer, strict=True):
        assert held_out[number[text.removesuffix("?").split()[-1]], number[given]]

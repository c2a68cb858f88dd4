"""PictoScenes: splits, galleries and pictures of the real drawings."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from multimodal.data.pictoscenes import PictoScenes
from multimodal.data.pictotext import load_art
from multimodal.types import Pixels, Regions
from tests.data.scene_truth import Thing, answer, is_true

SETTINGS: dict[str, Any] = {
    "visual": "regions",
    "image_size": 96,
    "question_concepts": 40,
    "caption_concepts": 160,
    "num_train_scenes": 1000,
    "num_eval_scenes": 200,
    "gallery_scenes": 200,
    "questions_per_family": 1,
    "held_out_style": "twemoji",
    "seed": 0,
}
SPLITS = ("train", *PictoScenes.eval_splits)


def build(**changes: object) -> PictoScenes:
    return PictoScenes(**{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def data() -> PictoScenes:
    return build()


@pytest.fixture(scope="module")
def pixel_data() -> PictoScenes:
    return build(visual="pixels", image_size=128)


def things(images: Any, row: int) -> list[Thing]:
    """What stands in an image, by the drawings and boxes that a model is given."""
    art = load_art_once()
    found = []
    for drawing, box in zip(images._drawing[row].tolist(), images._boxes[row].tolist(), strict=True):
        if drawing >= 0:
            one = art.concepts[art.concept[drawing]]
            found.append(Thing(one.noun, f"{one.article} {one.noun}", one.kinds, tuple(box)))
    return found


def load_art_once(art: list[Any] = []) -> Any:  # noqa: B006
    if not art:
        art.append(load_art().things())
    return art[0]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_what_the_model_is_given(data: PictoScenes, split: str) -> None:
    questions = data.questions(split)
    for row in range(0, len(questions.text), len(questions.text) // 200):
        scene = things(questions.images, questions.image[row])
        assert questions.answers[row] == [answer(questions.text[row], scene)]


@pytest.mark.parametrize("split", SPLITS)
def test_yes_and_no_are_equally_many(data: PictoScenes, split: str) -> None:
    questions = data.questions(split)
    for family in ("exist", "compare"):
        given = [
            answers[0] for answers, asked in zip(questions.answers, questions.family, strict=True) if asked == family
        ]
        assert given.count("yes") == given.count("no") == len(questions.images) / 2


def test_shifts_show_what_training_does_not(data: PictoScenes) -> None:
    art = load_art_once()
    styles, pairs = {}, {}
    for split in SPLITS:
        drawing = data.questions(split).images._drawing
        styles[split] = {art.styles[style] for style in art.style[drawing[drawing >= 0]]}
        concept = np.where(drawing >= 0, art.concept[drawing], -1)
        pairs[split] = {
            frozenset((a, b)) for row in concept.tolist() for a in row for b in row if a != b and min(a, b) >= 0
        }
    assert styles["train"] == set(art.styles) - {"twemoji"}
    assert styles["style_shift"] == {"twemoji"}
    for split in ("val", "test", "pair_shift"):
        assert "twemoji" not in styles[split]
    held_out = pairs["pair_shift"] - pairs["train"]
    assert len(held_out) >= 40  # about a tenth of the 780 pairs
    for split in ("val", "test", "style_shift"):
        assert len(pairs[split] - pairs["train"]) < 10  # rare, not forbidden


def test_captions_give_nothing_away_of_what_questions_hold_out(data: PictoScenes) -> None:
    """Pretraining on captions sees all things that questions are about, and none of the pairs they keep."""
    art = load_art_once()

    def concepts(table: Any) -> np.ndarray:
        return np.where(table.images._drawing >= 0, art.concept[table.images._drawing], -1)

    def pairs(rows: np.ndarray) -> set[frozenset[int]]:
        return {frozenset((a, b)) for row in rows.tolist() for a in row for b in row if a != b and min(a, b) >= 0}

    asked, told = concepts(data.questions("train")), concepts(data.captions("train"))
    assert set(asked.ravel()) <= set(told.ravel())
    held_out = pairs(concepts(data.questions("pair_shift"))) - pairs(asked)
    assert data._asked.cast.held_out.sum() // 2 <= len(held_out)
    rows, columns = np.nonzero(data._asked.cast.held_out)
    nouns = data._asked.words.noun
    kept = {frozenset((nouns[a], nouns[b])) for a, b in zip(rows, columns, strict=True)}
    noun = np.array([concept.noun for concept in art.concepts], dtype=object)
    assert not kept & {frozenset(noun[list(pair)]) for pair in pairs(told)}


@pytest.mark.parametrize("split", PictoScenes.eval_splits)
def test_the_gallery_knows_the_whole_truth(data: PictoScenes, split: str) -> None:
    captions = data.captions(split)
    assert captions.relevant is not None
    assert captions.relevant.shape == (len(captions.images), len(captions.text)) == (200, 200)
    for image in range(0, 200, 9):
        scene = things(captions.images, image)
        named = [thing.a_noun for thing in scene]
        for row, text in enumerate(captions.text):
            assert captions.relevant[image, row] == is_true(text, scene)
            ends = any(text.startswith(f"{noun} ") for noun in named) and any(
                text.endswith(f" {noun}") for noun in named
            )
            assert captions.oracles["bag_of_objects"][image, row] == ends


@pytest.mark.parametrize("split", SPLITS)
def test_captions_come_in_pairs_of_scene_and_twin(data: PictoScenes, split: str) -> None:
    captions = data.captions(split)
    rows = np.arange(len(captions.text))
    assert captions.group == 2
    assert (captions.image == rows).all()
    assert captions.swapped is not None
    assert (captions.swapped == (rows ^ 1)).all()
    for row in range(0, len(rows), 16):
        scene, twin = things(captions.images, row), things(captions.images, row + 1)
        assert [thing.noun for thing in scene] == [thing.noun for thing in twin]
        moved = [one.noun for one, other in zip(scene, twin, strict=True) if one.box != other.box]
        assert len(moved) == 2
        assert sorted(captions.text[row].split()) == sorted(captions.text[row + 1].split())
        assert is_true(captions.text[row], scene)
        assert not is_true(captions.text[row], twin)
        assert is_true(captions.text[row + 1], twin)
        assert not is_true(captions.text[row + 1], scene)


@pytest.mark.parametrize("split", PictoScenes.eval_splits)
def test_a_bag_of_objects_finds_the_scene_and_its_twin_and_no_other(split: str) -> None:
    captions = build(gallery_scenes=512).captions(split)
    assert captions.relevant is not None
    both = captions.oracles["bag_of_objects"] > 0
    assert (both.sum(axis=0) == 2).all()
    assert (both.sum(axis=1) == 2).all()
    assert (both & captions.relevant).sum() == len(captions.text)  # so that R@1 is one half for who sees no order


def test_every_word_and_answer_is_learnt_in_training(data: PictoScenes) -> None:
    def words(split: str) -> set[str]:
        return set(" ".join([*data.questions(split).text, *data.captions(split).text]).replace("?", "").split())

    for split in data.eval_splits:
        assert words(split) <= words("train")
        assert {a for (a,) in data.questions(split).answers} <= {a for (a,) in data.questions("train").answers}


def test_two_data_sets_of_one_seed_are_equal_and_other_seeds_differ(data: PictoScenes) -> None:
    again, other = build(), build(seed=1)
    index = np.arange(200)
    for split in SPLITS:
        one, same, different = data.questions(split), again.questions(split), other.questions(split)
        assert one.text == same.text
        assert one.answers == same.answers
        assert one.guesses == same.guesses
        for name in ("features", "boxes", "mask"):
            assert torch.equal(getattr(one.images(index), name), getattr(same.images(index), name))
        assert one.text != different.text
    assert len({tuple(data.questions(split).text[:100]) for split in SPLITS}) == len(SPLITS)


def test_more_scenes_leave_the_first_ones_as_they_are(data: PictoScenes) -> None:
    more = build(num_train_scenes=1200)
    few = data.questions("train")
    assert more.questions("train").text[: len(few.text)] == few.text
    assert more.captions("train").text[:2000] == data.captions("train").text


GOLDEN = "65444e3b470e18db7e018a29f862725e62a92f5a19f30ef33b039c7e4450fd00"


def test_golden(data: PictoScenes) -> None:
    """The words, answers and boxes of PictoScenes are its identity: results before and after a change don't compare."""
    digest = hashlib.sha256()
    for split in SPLITS:
        questions, captions = data.questions(split), data.captions(split)
        answers = [one for (one,) in questions.answers]
        digest.update("\n".join([*questions.text, *answers, *captions.text]).encode())
        for images in (questions.images, captions.images):
            digest.update((images(np.arange(200)).boxes.numpy() * 1e4).round().astype("<i4").tobytes())
    assert digest.hexdigest() == GOLDEN


def test_regions_are_the_drawings_features_and_boxes(data: PictoScenes) -> None:
    art, images = load_art_once(), data.questions("val").images
    index = np.array([7, 3, 3, 150])
    regions = images(index)
    assert isinstance(regions, Regions)
    assert regions.features.dtype == regions.boxes.dtype == torch.float32
    assert regions.features.shape == (4, 5, 1280)
    assert torch.equal(regions.features[1], regions.features[2])
    for row, image in enumerate(index):
        drawing = images._drawing[image]
        assert (regions.mask[row] == (drawing >= 0)).all()
        for place in range(5):
            if drawing[place] >= 0:
                assert (regions.features[row, place].numpy() == art.features[drawing[place]].astype(np.float32)).all()
            else:
                assert not regions.features[row, place].any()
                assert not regions.boxes[row, place].any()
    assert ((regions.boxes >= 0) & (regions.boxes <= 1)).all()


def test_the_canvas_shows_the_regions(data: PictoScenes, pixel_data: PictoScenes) -> None:
    regions, canvases = data.questions("val").images, pixel_data.questions("val").images
    assert pixel_data.questions("val").text == data.questions("val").text
    batch = canvases(np.arange(3))
    assert isinstance(batch, Pixels)
    assert batch.pixels.shape == (3, 3, 128, 128)
    for row in range(20):
        canvas, covered = canvases.canvas(row), np.zeros((128, 128), dtype=bool)
        for x1, y1, x2, y2 in regions._boxes[row][regions._drawing[row] >= 0].numpy() * 128:
            inside = canvas[round(float(y1)) : round(float(y2)), round(float(x1)) : round(float(x2))]
            assert (inside < 240).any()  # something is drawn
            covered[int(y1) : int(y2) + 2, int(x1) : int(x2) + 2] = True
        assert (canvas[~covered] == 255).all()


def test_an_image_is_a_function_of_its_index_alone(data: PictoScenes, pixel_data: PictoScenes) -> None:
    for images in (data.questions("val").images, pixel_data.questions("val").images):
        alone, among = images(np.array([11])), images(np.array([4, 11, 2]))
        for name in vars(alone):
            assert torch.equal(getattr(alone, name)[0], getattr(among, name)[1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("visual", "patches"),
        ("image_size", 8),
        ("question_concepts", 11),
        ("caption_concepts", 10_000),
        ("num_train_scenes", 0),
        ("num_train_scenes", 101),
        ("num_eval_scenes", 3),
        ("gallery_scenes", 501),
        ("questions_per_family", 3),
        ("held_out_style", "openmoji"),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"data\.{key}={value}: must be"):
        build(**{key: value})


def test_an_unknown_split_is_named(data: PictoScenes) -> None:
    for table in (data.questions, data.captions):
        with pytest.raises(ValueError, match="split dev: PictoScenes has train, val, test, style_shift, pair_shift"):
            table("dev")


def test_a_gallery_that_the_concepts_cannot_fill_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.gallery_scenes=512: must be \d+ or less"):
        build(question_concepts=12, caption_concepts=12, gallery_scenes=512).captions("val")

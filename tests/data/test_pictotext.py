from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from multimodal.data import pictotext
from multimodal.data.pictotext import ASSETS, CELL, STYLES, Art, PictoText, all_features, drawings_of, load_art
from multimodal.types import Pixels, Regions

MAX_MB = 12
SPLITS = ("train", *PictoText.eval_splits)


@pytest.fixture(scope="module")
def art() -> Art:
    return load_art()


@pytest.fixture(scope="module")
def data() -> PictoText:
    return PictoText(visual="pixels", image_size=32, seed=0)


def manifest() -> dict:
    return json.loads((ASSETS / "manifest.json").read_text())


# The committed files


def test_files_are_those_of_the_manifest() -> None:
    files = manifest()["files"]
    for name, entry in files.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == entry["sha256"], name
    by_hand = {"manifest.json", "nouns.tsv", "NOTICE"}
    assert {path.name for path in ASSETS.iterdir() if path.is_file()} == files.keys() | by_hand


def test_all_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= MAX_MB * 1e6


def test_every_source_is_credited() -> None:
    notice = (ASSETS / "NOTICE").read_text()
    assert all(f"{style}.webp" in notice for style in STYLES)
    named = set(re.findall(r"licenses/[\w.-]+\.txt", notice))
    assert named == {f"licenses/{path.name}" for path in (ASSETS / "licenses").iterdir()}


def test_the_counts_are_the_manifests(art: Art) -> None:
    counts = manifest()["counts"]
    assert counts["concepts"] == len(art.concepts) == len({concept.label for concept in art.concepts})
    assert counts["drawings"] == len(art.concept) == len(set(zip(art.concept, art.style, strict=True)))
    assert counts["families"] == len({concept.family for concept in art.concepts})
    assert counts["things"] == len(art.things().concepts)


def test_neither_flags_nor_skin_tones(art: Art) -> None:
    tones = {f"1f3f{digit}" for digit in "bcdef"}
    for concept in art.concepts:
        assert concept.group not in ("flags", "component")
        assert not tones & set(concept.id.split("-")), concept.label
        assert not all(0x1F1E6 <= int(part, 16) <= 0x1F1FF for part in concept.id.split("-")), concept.label


def test_a_family_is_in_one_split(art: Art) -> None:
    splits = defaultdict(set)
    for concept in art.concepts:
        splits[concept.family].add(concept.split)
    assert all(len(of) == 1 for of in splits.values())
    share = Counter(next(iter(of)) for of in splits.values())
    assert {split: round(count / len(splits), 1) for split, count in share.items()} == {
        "train": 0.7,
        "val": 0.1,
        "test": 0.2,
    }


@pytest.mark.parametrize(
    "labels",
    [
        ("man walking", "woman walking", "person walking", "person walking: facing right"),
        ("cat", "cat face", "grinning cat"),
        ("taxi", "oncoming taxi"),
        ("white large square", "white small square"),
        ("family: man, woman, boy", "family: adult, child"),
        ("prince", "princess"),
    ],
)
def test_what_is_drawn_alike_is_one_family(art: Art, labels: tuple[str, ...]) -> None:
    families = {concept.label: concept.family for concept in art.concepts}
    assert len({families[label] for label in labels}) == 1


def test_things_have_good_names(art: Art) -> None:
    things = art.things().concepts
    assert len({thing.noun for thing in things}) == len({thing.plural for thing in things}) == len(things)
    for thing in things:
        assert len(thing.noun.split()) <= 2
        assert thing.article == ("an" if thing.noun[0] in "aeiou" and thing.noun != "unicorn" else "a"), thing.noun
        assert thing.plural != thing.noun
    kinds = Counter(thing.kind for thing in things)
    assert len(kinds) >= 8
    assert min(kinds.values()) >= 10


def test_things_have_features_and_are_drawn_by_nearly_all(art: Art) -> None:
    things = art.things()
    for index, thing in enumerate(things.concepts):
        styles = {STYLES[style] for style in things.style[things.concept == index]}
        assert "twemoji" in styles, thing.noun
        assert len(styles) >= 4, thing.noun
    assert things.features.dtype == np.float16
    assert things.features.shape == (len(things.concept), 1280)
    assert np.isfinite(things.features).all()
    assert len(np.unique(things.features, axis=0)) == len(things.features)


def test_things_are_the_same_drawings(art: Art) -> None:
    things = art.things()
    row = 700
    noun, style = things.concepts[things.concept[row]].noun, things.style[row]
    (same,) = (i for i in np.flatnonzero(art.style == style) if art.concepts[art.concept[i]].noun == noun)
    np.testing.assert_array_equal(things.square(row), art.square(same))
    np.testing.assert_array_equal(things.features[row], art.features[art.feature_row[same]])


def test_drawings_are_cut_to_their_ink(art: Art) -> None:
    assert (art.size.max(axis=1) == CELL).all()
    for row in range(0, len(art.concept), 500):
        sprite, square = art.sprite(row), art.square(row)
        width, height = art.size[row]
        assert sprite.shape == (height, width, 3)
        assert square.shape == (CELL, CELL, 3)
        ink, cut = ((255 - part.astype(int)).sum() for part in (square, sprite))
        assert 0 < cut <= ink < 1.02 * cut  # compression leaves a breath of colour around the ink
    aspect = dict(zip(zip(art.concept, art.style, strict=True), art.aspect, strict=True))
    row = {concept.label: i for i, concept in enumerate(art.concepts)}
    assert aspect[row["bottle with popping cork"], 0] < 1 < aspect[row["ambulance"], 0]


def test_locales(art: Art) -> None:
    (dog,) = (concept for concept in art.concepts if concept.label == "dog")
    assert len(dog.labels) == 27
    assert dog.labels["fr"] == "chien"
    assert dog.labels["de"] == "Hund"


def test_missing_and_cut_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json: missing"):
        load_art(tmp_path)
    for path in ASSETS.iterdir():
        (tmp_path / path.name).symlink_to(path)
    load_art(tmp_path)
    (tmp_path / "noto.webp").unlink()
    with pytest.raises(ValueError, match=r"noto\.webp: missing"):
        load_art(tmp_path)
    (tmp_path / "noto.webp").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"noto\.webp: .*bytes long"):
        load_art(tmp_path)


# The data set


def test_splits_hold_out_families_and_a_style(art: Art) -> None:
    rows = {split: drawings_of(art, split) for split in SPLITS}
    families = {split: {art.concepts[i].family for i in art.concept[rows[split]]} for split in SPLITS}
    styles = {split: {STYLES[style] for style in art.style[rows[split]]} for split in SPLITS}
    assert not families["train"] & families["val"]
    assert not families["train"] & families["test"]
    assert not families["val"] & families["test"]
    assert families["style_shift"] <= families["train"]
    assert styles.pop("style_shift") == {"twemoji"}
    assert all(of == set(STYLES) - {"twemoji"} for of in styles.values())


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_can_be_answered_by_what_training_knows(data: PictoText, split: str) -> None:
    known = {answer for (answer,) in data.questions("train").answers}
    questions = data.questions(split)
    assert {answer for (answer,) in questions.answers} <= known
    assert ("name" in questions.family) == (split in ("train", "style_shift"))
    assert {"kind", "is_a"} <= set(questions.family)
    assert len(questions.text) == len(questions.image) == len(questions.answers) == len(questions.family)
    assert questions.image.max() < len(questions.images)
    assert len(set(zip(questions.image.tolist(), questions.text, strict=True))) == len(questions.text)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true(data: PictoText, art: Art, split: str) -> None:
    questions = data.questions(split)
    concepts = [art.concepts[i] for i in art.concept[drawings_of(art, split)]]
    for text, image, (answer,), family in zip(
        questions.text, questions.image, questions.answers, questions.family, strict=True
    ):
        concept = concepts[image]
        if family == "is_a":
            asked = re.fullmatch(r"is this an? (.+)\?", text)
            assert asked is not None
            assert answer == ("yes" if concept.kind == asked[1] else "no")
            assert concept.kind
        else:
            assert answer == (concept.kind if family == "kind" else concept.noun) != ""


@pytest.mark.parametrize("split", SPLITS)
def test_the_words_of_a_yes_no_question_say_nothing(data: PictoText, split: str) -> None:
    questions = data.questions(split)
    answers = defaultdict(Counter)
    for text, (answer,), family in zip(questions.text, questions.answers, questions.family, strict=True):
        if family == "is_a":
            answers[text][answer] += 1
    assert answers
    assert all(count["yes"] == count["no"] for count in answers.values())


def test_no_is_said_of_neighbours(data: PictoText, art: Art) -> None:
    """Food is denied of drinks and plants rather than of faces."""
    questions = data.questions("train")
    concepts = [art.concepts[i] for i in art.concept[drawings_of(art, "train")]]
    denied = [
        concepts[image].kind
        for text, image, (answer,) in zip(questions.text, questions.image, questions.answers, strict=True)
        if text == "is this a drink?" and answer == "no"
    ]
    assert set(denied) <= {"food", "household item", "building", "vehicle"}


def test_galleries_show_each_concept_once(data: PictoText, art: Art) -> None:
    for split in PictoText.eval_splits:
        captions = data.captions(split)
        concepts = np.unique(art.concept[drawings_of(art, split)])
        assert len(captions.text) == len(captions.images) == len(concepts) == len(set(captions.text))
        np.testing.assert_array_equal(captions.image, np.arange(len(concepts)))
        relevant = captions.relevant
        assert relevant is not None
        family = [art.concepts[i].family for i in concepts]
        for u in range(len(concepts)):
            assert [family[n] for n in np.flatnonzero(relevant[u])] == [family[u]] * int(relevant[u].sum())
        assert relevant.diagonal().all()
        assert relevant.sum() == sum(count**2 for count in Counter(family).values())


def test_training_captions_name_every_drawing(data: PictoText, art: Art) -> None:
    captions = data.captions("train")
    rows = drawings_of(art, "train")
    assert len(captions.text) == len(rows)
    for text, concept in zip(captions.text, art.concept[rows], strict=True):
        label = art.concepts[concept].label.lower()
        tags = text.removeprefix(label).split(", ")
        assert tags[0] == ""
        assert not set(label.split()) & set(tags)


def test_the_seed_decides(data: PictoText) -> None:
    same, other = (PictoText(visual="pixels", image_size=32, seed=seed) for seed in (0, 1))
    first, again, different = (one.questions("test") for one in (data, same, other))
    assert (first.text, first.answers) == (again.text, again.answers)
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, different.image)
    first, again, different = (one.captions("test").images(np.arange(3)) for one in (data, same, other))
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, different.pixels)


def test_pixels(data: PictoText, art: Art) -> None:
    images = data.questions("val").images
    pixels = images(np.array([3, 0, 3]))
    assert isinstance(pixels, Pixels)
    assert pixels.pixels.shape == (3, 3, 32, 32)
    assert torch.equal(pixels.pixels[0], pixels.pixels[2])
    row = drawings_of(art, "val")[0]
    assert torch.equal(pixels.pixels[1], pictotext.to_pixels(art.square(row)[None], 32)[0])


def test_features_are_computed_once(art: Art, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Fake:
        def extract(self, images: np.ndarray) -> np.ndarray:
            seen.append(len(images))
            means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)
            return np.repeat(means[:, None], 1280, axis=1).astype(np.float16)

    monkeypatch.setenv("MULTIMODAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pictotext, "Lite0", Fake)
    features = all_features(art)
    assert features.shape == (len(art.concept), 1280)
    assert sum(seen) == (art.feature_row < 0).sum()
    thing, other = np.flatnonzero(art.feature_row >= 0)[5], np.flatnonzero(art.feature_row < 0)[-1]
    np.testing.assert_array_equal(features[thing], art.features[art.feature_row[thing]])
    assert features[other, 0] == np.float16(art.square(other).mean(dtype=np.float32))
    assert len(list((tmp_path / "cache").iterdir())) == 1

    calls = len(seen)
    data = PictoText(visual="regions", image_size=32, seed=0)
    regions = data.captions("train").images(np.array([4, 2]))
    assert len(seen) == calls
    assert isinstance(regions, Regions)
    assert regions.features.shape == (2, 1, 1280)
    assert regions.boxes.tolist() == [[[0.0, 0.0, 1.0, 1.0]]] * 2
    assert regions.mask.all()
    rows = drawings_of(art, "train")[[4, 2]]
    np.testing.assert_array_equal(regions.features[:, 0].numpy(), features[rows].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual": "grid"}, "data.visual=grid: must be regions or pixels"),
        ({"image_size": 0}, "data.image_size=0: must be 1 or more"),
        ({"seed": -1}, "data.seed=-1: must be 0 or more"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PictoText(**{"visual": "pixels", "image_size": 32, "seed": 0, **change})


def test_bad_splits_are_named(data: PictoText) -> None:
    for table in (data.questions, data.captions):
        with pytest.raises(ValueError, match="split pair_shift: PictoText has train, val, test, style_shift"):
            table("pair_shift")


# The builder


@pytest.mark.slow
@pytest.mark.skipif("PICTOTEXT_PACKS" not in os.environ, reason="PICTOTEXT_PACKS names no folder with the npm archives")
def test_the_builder_gives_the_committed_bytes(tmp_path: Path) -> None:
    """About four minutes. `PICTOTEXT_PACKS=DIR pytest -m slow tests/data/test_pictotext.py`."""
    from multimodal.data.build_pictotext import build, made_with

    if made_with() != manifest()["made_with"]:
        pytest.skip("other versions of the renderers than those that made the committed files")
    build(Path(os.environ["PICTOTEXT_PACKS"]), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest()


def test_the_builder_refuses_other_archives(tmp_path: Path) -> None:
    from multimodal.data.build_pictotext import build

    for package, entry in manifest()["sources"].items():
        name = f"{package.removeprefix('@').replace('/', '-')}-{entry['version']}.tgz"
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        build(tmp_path, tmp_path / "out")


def test_drawings_of_one_family_are_of_one_meaning() -> None:
    data = PictoText(visual="pixels", image_size=32, seed=0)
    captions = data.captions("train")
    assert captions.meaning is not None
    by_text: dict[str, set[int]] = {}
    for text, meaning in zip(captions.text, captions.meaning.tolist(), strict=True):
        by_text.setdefault(text, set()).add(meaning)
    assert all(len(meanings) == 1 for meanings in by_text.values())  # several styles, one thing
    assert 1 < len(np.unique(captions.meaning)) < len(by_text)  # and some things are of one family

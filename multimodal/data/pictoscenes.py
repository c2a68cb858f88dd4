"""PictoScenes: two to five PictoText drawings on one canvas, with questions, captions and a gallery of twins.

Made anew from a seed at each start: only the drawings and their features lie on disk.

    train, val, test   the same concepts, five styles mixed in a scene, no held-out pair of concepts
    style_shift        every drawing in a style that training never shows
    pair_shift         two concepts that training never shows together, and questions and captions about the two
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from PIL import Image

from multimodal.data.dataset import Captions, Images, Questions, VisualInput
from multimodal.data.features import to_pixels
from multimodal.data.pictotext import STYLES, Art, load_art
from multimodal.data.scene_texts import Words, Writer, caption_texts
from multimodal.data.scenes import Cast, Scenes, held_out_pairs, sample_scenes, scene_keys
from multimodal.types import Pixels, Regions

_PER_KIND = 6  # concepts of a kind at least: five may stand in one scene, and a sixth is asked for in vain


class PictoScenes:
    """Scenes of PictoText drawings.

    Args:
        visual: "regions", each drawing's features and box, or "pixels", the canvas.
        image_size: side of the canvas in pixels; only "pixels" reads it.
        caption_concepts: how many things appear in scenes with captions, evenly from as many kinds as can give six.
        question_concepts: how many of these appear in scenes with questions, where they have to be named.
        num_train_scenes: training scenes; each is asked about, and captioned together with its twin.
        num_eval_scenes: scenes with questions in each evaluation split.
        gallery_scenes: images in the retrieval gallery of each evaluation split, half of them twins.
        questions_per_family: at most so many questions of each family on a scene, 1 or 2.
        held_out_style: the art style of `style_shift`, in no other split.
        seed: of the scenes.

    Raises:
        ValueError: a setting is out of its range.
    """

    name = "pictoscenes"
    tables = ("questions", "captions")
    eval_splits = ("val", "test", "style_shift", "pair_shift")

    def __init__(
        self,
        *,
        visual: VisualInput,
        image_size: int,
        question_concepts: int,
        caption_concepts: int,
        num_train_scenes: int,
        num_eval_scenes: int,
        gallery_scenes: int,
        questions_per_family: int,
        held_out_style: str,
        seed: int,
    ) -> None:
        _check("visual", visual, visual in ("regions", "pixels"), "regions or pixels")
        _check("image_size", image_size, image_size >= 32, "32 or more")
        sizes = {"num_train_scenes": num_train_scenes, "num_eval_scenes": num_eval_scenes}
        for key, count in {**sizes, "gallery_scenes": gallery_scenes}.items():
            _check(key, count, count >= 2 and count % 2 == 0, "an even number from 2 on, because halves are balanced")
        _check("questions_per_family", questions_per_family, questions_per_family in (1, 2), "1 or 2")
        _check("held_out_style", held_out_style, held_out_style in STYLES, ", ".join(STYLES))
        _check("seed", seed, 0 <= seed < 2**64, "0 to 2**64 - 1")
        self.visual, self.image_size, self.seed = visual, image_size, seed
        self.num_train_scenes, self.num_eval_scenes = num_train_scenes, num_eval_scenes
        self.gallery_scenes, self.questions_per_family = gallery_scenes, questions_per_family

        self._art = load_art().things()
        usable = _usable(self._art, held_out_style)
        told = _choose(self._art, usable, "caption_concepts", caption_concepts)
        asked = _choose(self._art, told, "question_concepts", question_concepts)
        asked_apart, told_apart = (held_out_pairs(_kinds(self._art, rows)) for rows in (asked, told))
        # What questions keep for `pair_shift` captions keep too: learning from captions first gives nothing away.
        place = [told.tolist().index(row) for row in asked]
        told_apart[np.ix_(place, place)] |= asked_apart
        self._asked = _world(self._art, asked, asked_apart, held_out_style)
        self._told = _world(self._art, told, told_apart, held_out_style)
        self._questions: dict[str, Questions] = {}
        self._captions: dict[str, Captions] = {}

    def questions(self, split: str) -> Questions:
        """The questions of a split, made at the first call. `guesses`: some other drawing of the scene.

        Raises:
            ValueError: no such split.
        """
        if split not in self._questions:
            writer = self._writer(
                self._asked, split, self.num_train_scenes if split == "train" else self.num_eval_scenes
            )
            asked = writer.questions(self.questions_per_family)
            self._questions[split] = Questions(
                images=self._images(writer.scenes),
                text=asked.text.tolist(),
                image=asked.scene,
                answers=[[answer] for answer in asked.answer],
                family=asked.family.tolist(),
                guesses={"any_drawing": asked.guess.tolist()},
            )
        return self._questions[split]

    def captions(self, split: str) -> Captions:
        """Scenes and their twins in turn: image 2i + 1 is image 2i with the two drawings of its caption exchanged.

        Caption 2i is true of image 2i, caption 2i + 1 has the roles exchanged and is true of the twin. An evaluation
        split has the whole truth, and the oracle `bag_of_objects`: 1 where both named things are in the image.

        Raises:
            ValueError: no such split.
        """
        if split not in self._captions:
            training = split == "train"
            writer = self._writer(self._told, split, self.num_train_scenes if training else 4 * self.gallery_scenes)
            place_a, direction, place_b = writer.captions()
            a, b = (writer.scenes.concept[writer.every, place] for place in (place_a, place_b))
            keep = writer.every if training else _apart(writer.scenes, a, b, self.gallery_scenes // 2)
            scenes = writer.scenes.select(keep).with_twins(place_a[keep], place_b[keep])
            a, b = np.stack([a, b], axis=1)[keep].ravel(), np.stack([b, a], axis=1)[keep].ravel()
            direction, row = direction[keep].repeat(2), np.arange(len(a))
            captions = Captions(
                images=self._images(scenes),
                text=caption_texts(self._told.words, a, direction, b),
                image=row,
                swapped=row ^ 1,
                group=2,
            )
            if not training:
                both, true = _truth(scenes, a, direction, b)
                captions = replace(captions, relevant=true, oracles={"bag_of_objects": both.astype(np.float32)})
            self._captions[split] = captions
        return self._captions[split]

    def _writer(self, world: _World, split: str, count: int) -> Writer:
        if split not in ("train", *self.eval_splits):
            raise ValueError(f"split {split}: PictoScenes has train, {', '.join(self.eval_splits)}")
        keys = scene_keys(self.seed, split, count)
        cast = world.style_shift if split == "style_shift" else world.cast
        pair_shift = split == "pair_shift"
        scenes = sample_scenes(cast, keys, pair_shift)
        return Writer(scenes=scenes, keys=keys, cast=cast, words=world.words, pair_shift=pair_shift)

    def _images(self, scenes: Scenes) -> Images:
        if self.visual == "regions":
            return RegionImages(scenes, self._art)
        return CanvasImages(scenes, self._art, self.image_size)


class RegionImages:
    """Each drawing is one region: its features, computed once per drawing, and its box."""

    def __init__(self, scenes: Scenes, art: Art) -> None:
        nothing = np.zeros_like(art.features[:1])  # the last row, which -1 picks
        self._features = torch.from_numpy(np.concatenate([art.features, nothing]))  # half[rows + 1, F]
        self._drawing = torch.from_numpy(scenes.drawing)
        self._boxes = torch.from_numpy(scenes.boxes.astype(np.float32))

    def __len__(self) -> int:
        return len(self._drawing)

    def __call__(self, index: np.ndarray) -> Regions:
        """Regions of the images `index int[U]`, padded to five."""
        drawing = self._drawing[index]
        return Regions(features=self._features[drawing].float(), boxes=self._boxes[index], mask=drawing >= 0)


class CanvasImages:
    """Drawings pasted on a white canvas, each into its box."""

    def __init__(self, scenes: Scenes, art: Art, size: int) -> None:
        self._sprites = {row: art.sprite(row) for row in np.unique(scenes.drawing[scenes.present]).tolist()}
        self._drawing, self._boxes, self._size = scenes.drawing, scenes.boxes, size

    def __len__(self) -> int:
        return len(self._drawing)

    def __call__(self, index: np.ndarray) -> Pixels:
        """Canvases of the images `index int[U]`, as the backbones want them."""
        return Pixels(to_pixels(np.stack([self.canvas(row) for row in index]), self._size))

    def canvas(self, row: int) -> np.ndarray:
        """One picture: `uint8[size, size, 3]`."""
        canvas = np.full((self._size, self._size, 3), 255, dtype=np.uint8)
        edges = np.rint(self._boxes[row] * self._size).astype(np.int64)
        for drawing, (left, top, right, bottom) in zip(self._drawing[row].tolist(), edges.tolist(), strict=True):
            if drawing >= 0:
                sprite = Image.fromarray(self._sprites[drawing])
                resized = sprite.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
                canvas[top:bottom, left:right] = np.asarray(resized)
        return canvas


@dataclass(frozen=True)
class _World:
    """The things that may appear, what they are called, and how they are drawn."""

    words: Words
    cast: Cast
    style_shift: Cast  # the same things in the style that training never shows


def _world(art: Art, chosen: np.ndarray, held_out: np.ndarray, held_out_style: str) -> _World:
    concepts = [art.concepts[row] for row in chosen]
    words = Words(
        noun=np.array([concept.noun for concept in concepts], dtype=object),
        a_noun=np.array([f"{concept.article} {concept.noun}" for concept in concepts], dtype=object),
        kinds=np.array(list(dict.fromkeys(concept.kinds for concept in concepts)), dtype=object),
    )
    kind, drawings = _kinds(art, chosen), _drawings(art)[chosen]
    shown = np.array([style != held_out_style for style in art.styles])
    train, shift = (Cast(kind, drawings[:, styles], art.aspect, held_out) for styles in (shown, ~shown))
    return _World(words, train, shift)


def _kinds(art: Art, chosen: np.ndarray) -> np.ndarray:
    """Kind of each chosen concept: `int[C]`, 0..K-1, ascending."""
    kinds = [art.concepts[row].kind for row in chosen]
    number = {kind: index for index, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([number[kind] for kind in kinds])


def _usable(art: Art, held_out_style: str) -> np.ndarray:
    """Rows of `art.concepts` that are drawn in the held-out style and in some other."""
    drawn = _drawings(art) >= 0
    shown = np.array([style != held_out_style for style in art.styles])
    return np.flatnonzero(drawn[:, ~shown].all(axis=1) & drawn[:, shown].any(axis=1))


def _choose(art: Art, usable: np.ndarray, key: str, num_concepts: int) -> np.ndarray:
    """Rows of `art.concepts` that appear: `int[C]`, from as many kinds as can give `_PER_KIND`, as evenly as they last.

    Of each kind every so-many-th, since neighbours in the art's order look alike.
    """
    kinds: dict[str, list[int]] = {}
    for concept in usable.tolist():
        kinds.setdefault(art.concepts[concept].kind, []).append(concept)
    members = [rows for rows in kinds.values() if len(rows) >= _PER_KIND]
    most = sum(map(len, members))
    allowed = f"{2 * _PER_KIND} (two kinds) to {most}"
    _check(key, num_concepts, 2 * _PER_KIND <= num_concepts <= most, allowed)
    members = members[: num_concepts // _PER_KIND]
    quota = [0] * len(members)
    while sum(quota) < num_concepts:
        open_kinds = [i for i, rows in enumerate(members) if quota[i] < len(rows)]
        quota[min(open_kinds, key=lambda i: quota[i])] += 1
    return np.concatenate([np.array(r)[np.arange(q) * len(r) // q] for r, q in zip(members, quota, strict=True)])


def _drawings(art: Art) -> np.ndarray:
    """Rows of the art by concept and style: `int[concepts, styles]`, -1 where the style lacks the concept."""
    rows = np.full((len(art.concepts), len(art.styles)), -1)
    rows[art.concept, art.style] = np.arange(len(art.concept))
    return rows


def _check(key: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"data.{key}={value}: must be {allowed}")


def _apart(scenes: Scenes, a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """The first scenes, int[count], of which none shows the two things that another one's caption names.

    Knowing what is in a picture then leads to a scene and its twin and no further: the rest is who stands where.

    Raises:
        ValueError: there are too few such scenes.
    """
    kept: list[int] = []
    shown: set[tuple[int, int]] = set()  # pairs in the kept scenes
    named: set[tuple[int, int]] = set()  # pairs in their captions
    for scene, (concepts, present) in enumerate(zip(scenes.concept.tolist(), scenes.present.tolist(), strict=True)):
        there = sorted(concept for concept, is_there in zip(concepts, present, strict=True) if is_there)
        pairs = set(combinations(there, 2))
        caption = (min(a[scene], b[scene]), max(a[scene], b[scene]))
        if len(kept) < count and caption not in shown and not pairs & named:
            kept.append(scene)
            shown |= pairs
            named.add(caption)
    if len(kept) < count:
        allowed = f"{2 * len(kept)} or less: data.caption_concepts gives no more captions that are about one scene only"
        raise ValueError(f"data.gallery_scenes={2 * count}: must be {allowed}")
    return np.array(kept)


def _truth(scenes: Scenes, a: np.ndarray, direction: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of captions about the concepts `a int[n]` and `b int[n]`: are both in the image, and so? Two `bool[U, n]`."""
    images = np.arange(len(scenes.concept))[:, None]
    place = np.full((len(scenes.concept), max(a.max(), b.max(), scenes.concept.max()) + 1), -1)
    image, where = np.nonzero(scenes.present)
    place[image, scenes.concept[image, where]] = where
    both = (place[:, a] >= 0) & (place[:, b] >= 0)
    return both, both & scenes.relations()[images, direction, place[:, a], place[:, b]]

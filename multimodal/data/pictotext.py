"""PictoText: 1,644 concepts, each drawn by up to six teams of artists, with their human names and keywords.

The drawings are emoji of six permissively licensed sets, the words are Unicode's. assets/pictotext/NOTICE has the
credits; build_pictotext.py makes the files.

    train        70 % of the concept families, in the five styles other than Twemoji
    val, test    10 and 20 % of the families, in the same five styles: unseen concepts
    style_shift  the training concepts as Twemoji draws them: the one style with no sibling among the six

Families keep the man, the woman and the person that do the same in one split; they are drawn alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from multimodal.data.dataset import Captions, Images, Questions, VisualInput
from multimodal.data.features import FEATURE_SIZE, Lite0, to_pixels
from multimodal.types import ImageInput, Pixels, Regions

ASSETS = Path(__file__).parent / "assets" / "pictotext"
STYLES = ("noto", "noto-v1", "fluent", "fluent-flat", "emojione", "twemoji")
CELL = 80  # side of a drawing's cell in its style's sheet, pixels
COLUMNS = 40  # cells in a row of the sheet

_SHIFT_STYLE = "twemoji"
_NEIGHBOURHOOD = 4  # drawings to deny a kind of are drawn from the nearest ones, so many times as many as needed


@dataclass(frozen=True)
class Concept:
    """One thing, whoever draws it. `noun`, `article` and `plural` are "" unless the thing is fit for scenes."""

    id: str  # Unicode code points
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    family: str
    split: str  # train, val or test
    labels: dict[str, str]  # by locale, without English
    kind: str  # "animal"; "" where there is no everyday word
    kinds: str  # "animals"
    noun: str  # "cow"
    article: str  # "a"
    plural: str  # "cows"


@dataclass(frozen=True, eq=False, repr=False)
class Art:
    """n drawings in columns. Decodes a style's sheet when first asked for one of its drawings."""

    concepts: tuple[Concept, ...]
    concept: np.ndarray  # int[n]  row of `concepts`
    style: np.ndarray  # int[n]  row of `styles`
    size: np.ndarray  # int[n, 2]  width, height of the ink in pixels; the longer one is CELL
    features: np.ndarray  # float16[m, 1280]  EfficientNet-Lite0 features of the drawings that have any
    feature_row: np.ndarray  # int[n]  row of `features`, -1 for none
    cell: np.ndarray  # int[n]  place in the style's sheet
    folder: Path
    styles: tuple[str, ...] = STYLES
    _sheets: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def aspect(self) -> np.ndarray:
        """Width / height of the ink, float[n]."""
        return self.size[:, 0] / self.size[:, 1]

    def things(self) -> Self:
        """Only the concepts fit for scenes, and their drawings; drawing i has row i of `features`."""
        chosen = np.array([concept.noun != "" for concept in self.concepts])
        rows = np.flatnonzero(chosen[self.concept])
        return replace(
            self,
            concepts=tuple(concept for concept in self.concepts if concept.noun),
            concept=(np.cumsum(chosen) - 1)[self.concept[rows]],
            style=self.style[rows],
            size=self.size[rows],
            features=self.features[self.feature_row[rows]],
            feature_row=np.arange(len(rows)),
            cell=self.cell[rows],
        )

    def square(self, drawing: int) -> np.ndarray:
        """A drawing in the middle of a white square, `uint8[CELL, CELL, 3]`."""
        style = self.styles[self.style[drawing]]
        if style not in self._sheets:
            self._sheets[style] = np.asarray(Image.open(self.folder / f"{style}.webp").convert("RGB"))
        row, column = divmod(int(self.cell[drawing]), COLUMNS)
        return self._sheets[style][row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]

    def sprite(self, drawing: int) -> np.ndarray:
        """A drawing cut to its ink, on white, `uint8[height, width, 3]`."""
        width, height = self.size[drawing].tolist()
        top, left = (CELL - height) // 2, (CELL - width) // 2
        return self.square(drawing)[top : top + height, left : left + width]


def load_art(folder: Path = ASSETS) -> Art:
    """The committed drawings, or those that the builder wrote to another folder.

    Raises:
        ValueError: a file is missing or not as long as the manifest says.
    """
    for name, entry in _manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{path}: missing or not {entry['bytes']} bytes long; reinstall the package")
    art = read_drawings(folder)
    features = np.load(folder / "features.npy")
    is_thing = np.array([concept.noun != "" for concept in art.concepts])[art.concept]
    if is_thing.sum() != len(features):
        raise ValueError(f"{folder / 'features.npy'}: {len(features)} rows for {is_thing.sum()} drawings; reinstall")
    return replace(art, features=features, feature_row=np.where(is_thing, np.cumsum(is_thing) - 1, -1))


def read_drawings(folder: Path) -> Art:
    """The drawings of a folder, without features."""
    concepts, drawings = [], []
    for index, line in enumerate((folder / "concepts.jsonl").read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        drawn = row.pop("drawings")
        concepts.append(Concept(**{**row, "tags": tuple(row["tags"])}))
        drawings += [(index, STYLES.index(style), *place) for style, place in drawn.items()]
    concept, style, cell, width, height = np.array(drawings).T
    return Art(
        concepts=tuple(concepts),
        concept=concept,
        style=style,
        size=np.stack([width, height], axis=1),
        features=np.empty((0, FEATURE_SIZE), np.float16),
        feature_row=np.full(len(concept), -1),
        cell=cell,
        folder=folder,
    )


def drawings_of(art: Art, split: str) -> np.ndarray:
    """The drawings of a split of PictoText, int[n].

    Raises:
        ValueError: no such split.
    """
    if split not in ("train", *PictoText.eval_splits):
        raise ValueError(f"split {split}: PictoText has train, {', '.join(PictoText.eval_splits)}")
    shift = split == "style_shift"
    concepts = np.array([concept.split for concept in art.concepts]) == ("train" if shift else split)
    return np.flatnonzero(concepts[art.concept] & ((art.style == STYLES.index(_SHIFT_STYLE)) == shift))


class PictoText:
    """Retrieval picture <-> name, and questions about single drawings.

    Questions of three families: `kind` ("what kind of thing is this?"), `is_a` ("is this an animal?", half of them
    yes, the others about things of neighbouring kinds) and `name` ("what is this?", where training has the answer:
    in train and style_shift).

    Args:
        visual: "regions", one region with the drawing's features, or "pixels", the drawing.
        image_size: side of the picture in pixels; only "pixels" reads it.
        seed: of the choice of negatives and of the galleries' drawings.

    Raises:
        ValueError: a setting is out of its range.
    """

    name = "pictotext"
    tables = ("questions", "captions")
    eval_splits = ("val", "test", "style_shift")

    def __init__(self, *, visual: VisualInput, image_size: int, seed: int) -> None:
        if visual not in ("regions", "pixels"):
            raise ValueError(f"data.visual={visual}: must be regions or pixels")
        if image_size < 1:
            raise ValueError(f"data.image_size={image_size}: must be 1 or more")
        if seed < 0:
            raise ValueError(f"data.seed={seed}: must be 0 or more")
        self.visual, self.image_size, self.seed = visual, image_size, seed
        self._art = load_art()
        self._features: torch.Tensor | None = None

    def questions(self, split: str) -> Questions:
        """The questions of a split. Images are all its drawings.

        Raises:
            ValueError: no such split.
        """
        rows = drawings_of(self._art, split)
        concepts = [self._art.concepts[index] for index in self._art.concept[rows]]
        asked = [
            (image, "what kind of thing is this?", one.kind, "kind") for image, one in enumerate(concepts) if one.kind
        ]
        asked += self._is_a(split, rows)
        if split in ("train", "style_shift"):
            asked += [(image, "what is this?", one.noun, "name") for image, one in enumerate(concepts) if one.noun]
        image, text, answer, family = zip(*asked, strict=True)
        return Questions(
            images=self._images(rows),
            text=list(text),
            image=np.array(image),
            answers=[[one] for one in answer],
            family=list(family),
        )

    def captions(self, split: str) -> Captions:
        """Drawings with their names and keywords: all drawings in train, one for each concept in a gallery.

        In a gallery the name of any member of the drawing's family is a hit.

        Raises:
            ValueError: no such split.
        """
        rows = drawings_of(self._art, split)
        relevant = None
        if split != "train":
            shuffled = self._generator(split, "gallery").permutation(rows)
            rows = shuffled[np.unique(self._art.concept[shuffled], return_index=True)[1]]
            family = np.array([self._art.concepts[index].family for index in self._art.concept[rows]])
            relevant = family[:, None] == family
        text = [_caption(self._art.concepts[index]) for index in self._art.concept[rows]]
        meaning = np.unique([self._art.concepts[i].family for i in self._art.concept[rows]], return_inverse=True)[1]
        return Captions(
            images=self._images(rows), text=text, image=np.arange(len(rows)), relevant=relevant, meaning=meaning
        )

    def _rows(self, split: str) -> np.ndarray:
        """Drawings of a split."""
        if split not in ("train", *self.eval_splits):
            raise ValueError(f"split {split}: PictoText has train, {', '.join(self.eval_splits)}")
        shift = split == "style_shift"
        of_concept = np.array([one.split for one in self._art.concepts]) == ("train" if shift else split)
        return np.flatnonzero(
            of_concept[self._art.concept] & ((self._art.style == STYLES.index(_SHIFT_STYLE)) == shift)
        )

    def _is_a(self, split: str, rows: np.ndarray) -> list[tuple[int, str, str, str]]:
        """As many drawings of each kind as of its neighbours in Unicode's order: image, question, answer, family."""
        concept = self._art.concept[rows]
        kind = np.array([self._art.concepts[index].kind for index in concept])
        asked = []
        for one in np.unique(kind[kind != ""]).tolist():
            text = f"is this {'an' if one[0] in 'aeiou' else 'a'} {one}?"
            yes, others = np.flatnonzero(kind == one), np.flatnonzero((kind != one) & (kind != ""))
            distance = np.abs(concept[others][:, None] - np.unique(concept[yes])).min(axis=1)
            near = others[np.argsort(distance, kind="stable")][: _NEIGHBOURHOOD * len(yes)]
            assert len(near) >= len(yes)
            no = self._generator(split, one).choice(near, size=len(yes), replace=False)
            asked += [(image, text, "yes", "is_a") for image in yes.tolist()]
            asked += [(image, text, "no", "is_a") for image in no.tolist()]
        return asked

    def _generator(self, *purpose: str) -> np.random.Generator:
        digest = hashlib.sha256("/".join(purpose).encode()).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest[:8], "little")])

    def _images(self, rows: np.ndarray) -> Images:
        if self.visual == "pixels":
            return PixelDrawings(self._art, rows, self.image_size)
        if self._features is None:
            self._features = torch.from_numpy(all_features(self._art))
        return RegionDrawings(self._features[torch.from_numpy(rows)])


class RegionDrawings:
    """Each picture is one region, the whole of it."""

    def __init__(self, features: torch.Tensor) -> None:
        self._features = features  # half[n, F]

    def __len__(self) -> int:
        return len(self._features)

    def __call__(self, index: np.ndarray) -> ImageInput:
        """Features of the drawings `index int[U]`, each in the box 0, 0, 1, 1."""
        features = self._features[torch.from_numpy(index)].float()[:, None]
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(index), 1, 4)
        return Regions(features=features, boxes=boxes.clone(), mask=torch.ones(len(index), 1, dtype=torch.bool))


class PixelDrawings:
    """Each picture is the drawing in the middle of a white square."""

    def __init__(self, art: Art, rows: np.ndarray, image_size: int) -> None:
        self._art, self._rows, self._image_size = art, rows, image_size

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, index: np.ndarray) -> ImageInput:
        """The drawings `index int[U]`, as the backbones want them."""
        squares = np.stack([self._art.square(row) for row in self._rows[index]])
        return Pixels(to_pixels(squares, self._image_size))


def all_features(art: Art) -> np.ndarray:
    """Features of all drawings, `float16[n, 1280]`: the committed ones, the others computed once and kept in the cache.

    Raises:
        ValueError: they are not in the cache and the weights are not installed.
    """
    sheets = "".join(entry["sha256"] for entry in _manifest(ASSETS)["files"].values())
    path = cache_folder() / f"pictotext-lite0-{hashlib.sha256(sheets.encode()).hexdigest()[:16]}.npy"
    if path.exists():
        return np.load(path)
    features = np.empty((len(art.concept), FEATURE_SIZE), np.float16)
    features[art.feature_row >= 0] = art.features[art.feature_row[art.feature_row >= 0]]
    missing = np.flatnonzero(art.feature_row < 0)
    network = Lite0()
    batches = np.array_split(missing, -(-len(missing) // 64))
    for rows in track(batches, description="features of the drawings, once"):
        features[rows] = network.extract(np.stack([art.square(row) for row in rows]))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a run that is cut off, or another one at work, never leaves half a file.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
        np.save(file, features)
    Path(file.name).replace(path)
    return features


def cache_folder() -> Path:
    """Where computed files are kept: $MULTIMODAL_CACHE, else `multimodal` in the user's cache folder."""
    if own := os.environ.get("MULTIMODAL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multimodal"


def _caption(concept: Concept) -> str:
    """The name, then the keywords that say more."""
    known = set(concept.label.lower().split())
    return ", ".join([concept.label.lower(), *(tag for tag in concept.tags if tag not in known)])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder / 'manifest.json'}: missing; reinstall the package") from error

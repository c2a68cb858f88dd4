"""Scene graphs of PictoScenes: which drawing stands where, and what is therefore true.

Two to five drawings of different things stand in the cells of a 3 x 3 grid, each a little off its cell's centre. Cells
leave no doubt about a place: along an axis two centres differ by less than 0.1 (level) or by more than 0.23 (apart), so
`APART` lies in a gap, and no two boxes overlap.

Legend: S scenes, O = 5 places for drawings (the first ones used, in random order), C concepts, K kinds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

MAX_DRAWINGS = 5
DIRECTIONS = ("left", "right", "above", "below")
APART = 1 / 6  # of the canvas, between centres

_GRID = 3
_SIZE = (0.2, 0.32)  # long side of a drawing, of the canvas; a cell is 0.333
_JITTER = 0.05
_NUMBER = np.array([2, 3, 3, 4, 4, 4, 5, 5, 5, 5])  # drawings in a scene: many, so that guessing pays little


@dataclass(frozen=True)
class Cast:
    """The concepts that may appear and how they are drawn."""

    kind: np.ndarray  # int[C]  kind of each concept, 0..K-1, ascending
    drawings: np.ndarray  # int[C, styles]  rows of the art, -1 where a style lacks the concept
    aspect: np.ndarray  # float[rows of the art]  width / height of the ink
    held_out: np.ndarray  # bool[C, C]  pairs that only the split `pair_shift` shows together


@dataclass(frozen=True)
class Scenes:
    """S scenes, in columns."""

    concept: np.ndarray  # int[S, O]  -1 where nothing stands
    drawing: np.ndarray  # int[S, O]  rows of the art, -1 where nothing stands
    boxes: np.ndarray  # float[S, O, 4]  x1, y1, x2, y2 in 0..1, y downwards; 0 where nothing stands

    @property
    def present(self) -> np.ndarray:
        """Where a drawing stands: `bool[S, O]`."""
        return self.concept >= 0

    def sides(self) -> np.ndarray:
        """Who lies to which side of whom: `bool[S, 4, O, O]`, [s, d, a, b] = a further to `DIRECTIONS[d]` than b."""
        dx, dy = self._differences()
        apart = np.stack([dx < -APART, dx > APART, dy < -APART, dy > APART], axis=1)
        return apart & (self.present[:, :, None] & self.present[:, None, :])[:, None]

    def relations(self) -> np.ndarray:
        """Who stands how to whom: `bool[S, 4, O, O]`, [s, d, a, b] = a stands `DIRECTIONS[d]` of b.

        That is, to this side and in line. Of two drawings on a diagonal none is said, so that naming a thing says where
        to look.
        """
        level, upright = (np.abs(difference) < APART for difference in self._differences()[::-1])
        return self.sides() & np.stack([level, level, upright, upright], axis=1)

    def extremes(self) -> np.ndarray:
        """The drawing furthest to each side: `int[S, 4]` in 0..O-1, or -1 where it leads by less than `APART`."""
        x, y = self._centres()
        ahead = np.stack([x, -x, y, -y], axis=1)
        ahead[~np.broadcast_to(self.present[:, None], ahead.shape)] = np.inf
        first, second = np.sort(ahead, axis=2)[:, :, :2].transpose(2, 0, 1)
        return np.where(second - first > APART, ahead.argmin(axis=2), -1)

    def select(self, index: np.ndarray) -> Scenes:
        """The scenes `index int[n]`."""
        return Scenes(self.concept[index], self.drawing[index], self.boxes[index])

    def with_twins(self, a: np.ndarray, b: np.ndarray) -> Scenes:
        """Each scene and then its twin: 2S scenes.

        In the twin the drawings `a int[S]` and `b int[S]` (in 0..O-1) have changed places; each takes the other's long
        side and keeps its own aspect.
        """
        everyone, places = np.arange(len(self.concept)), np.arange(MAX_DRAWINGS)
        order = np.tile(places, (len(everyone), 1))
        order[everyone, a], order[everyone, b] = b, a
        centre = (self.boxes[..., :2] + self.boxes[..., 2:]) / 2
        extent = self.boxes[..., 2:] - self.boxes[..., :2]
        longest = extent.max(axis=2, keepdims=True)
        new_centre, new_longest = (np.take_along_axis(old, order[..., None], axis=1) for old in (centre, longest))
        moved = (order != places)[..., None]
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing stands
            twins = np.where(moved, _boxes(new_centre, new_longest * extent / longest), self.boxes)
        both = np.stack([self.boxes, twins], axis=1).reshape(-1, MAX_DRAWINGS, 4)
        return Scenes(self.concept.repeat(2, axis=0), self.drawing.repeat(2, axis=0), both)

    def _centres(self) -> tuple[np.ndarray, np.ndarray]:
        centre = (self.boxes[..., :2] + self.boxes[..., 2:]) / 2
        return centre[..., 0], centre[..., 1]

    def _differences(self) -> tuple[np.ndarray, np.ndarray]:
        """How far each drawing lies from each other in x and in y, `float[S, O, O]` both."""
        x, y = self._centres()
        return x[:, :, None] - x[:, None, :], y[:, :, None] - y[:, None, :]


def held_out_pairs(kind: np.ndarray) -> np.ndarray:
    """Pairs for `pair_shift`, of concepts of the kinds `kind int[C]`: `bool[C, C]`, symmetric.

    A tenth of all pairs, each of two kinds: those at certain distances in the circle of concepts. So every concept
    misses equally many others, and how often one appears says nothing about an answer.
    """
    concepts = len(kind)
    distances = np.arange(np.bincount(kind).max(), concepts // 2 + 1)  # no shorter than a kind is long
    order = np.argsort(draw(distances.astype(np.uint64), "held-out distance"))
    held_out = distances[order[: max(1, concepts // 20)]]
    difference = np.abs(np.arange(concepts)[:, None] - np.arange(concepts))
    return np.isin(np.minimum(difference, concepts - difference), held_out)


def sample_scenes(cast: Cast, keys: np.ndarray, pair_shift: bool) -> Scenes:
    """Draw one scene for each key: `keys uint64[S]`, from `scene_keys`.

    Every scene has a thing furthest to some side and two things in line, so that each can be asked about. No scene
    shows a held-out pair, or, for `pair_shift`, each has one in line.
    """
    shape = (len(keys), MAX_DRAWINGS)
    scenes = Scenes(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty((*shape, 4)))
    number = _NUMBER[choose(len(_NUMBER), draw(keys, "number"))]  # before rejection, which would thin out the full ones
    pending, attempt = np.arange(len(keys)), 0
    while len(pending):
        candidates = _propose(cast, keys[pending], number[pending], attempt)
        in_line = candidates.relations().any(axis=1)
        together = candidates.present[:, :, None] & candidates.present[:, None, :]
        held = cast.held_out[candidates.concept[:, :, None], candidates.concept[:, None, :]] & together
        paired = np.any(held & in_line, axis=(1, 2)) if pair_shift else ~np.any(held, axis=(1, 2))
        good = np.any(in_line, axis=(1, 2)) & np.any(candidates.extremes() >= 0, axis=1) & paired
        done = pending[good]
        scenes.concept[done] = candidates.concept[good]
        scenes.drawing[done] = candidates.drawing[good]
        scenes.boxes[done] = candidates.boxes[good]
        pending, attempt = pending[~good], attempt + 1
    return scenes


def _propose(cast: Cast, keys: np.ndarray, number: np.ndarray, attempt: int) -> Scenes:
    """One candidate for each scene; what it draws depends on the scene's key and on `attempt`."""
    shape = (len(keys), MAX_DRAWINGS)
    present = np.arange(MAX_DRAWINGS) < number[:, None]

    def roll(name: str, *each: int) -> np.ndarray:
        return draw(keys, f"{name} {attempt}", *each)

    # A share of the scene drawn first makes every count of its main kind equally likely (beta-binomial).
    kinds = int(cast.kind.max()) + 1
    main, other = choose(kinds, roll("main kind", 1)), choose(kinds, roll("other kind", 1))
    any_kind = choose(kinds, roll("any kind", MAX_DRAWINGS))
    kind = np.where(roll("of other kind", MAX_DRAWINGS) < 0.75, other, any_kind)
    kind = np.where(roll("of main kind", MAX_DRAWINGS) < roll("share", 1), main, kind)

    concept = np.full(shape, -1)
    of_kind = cast.kind[None, :] == np.arange(kinds)[:, None]
    for place, chance in enumerate(roll("concept", MAX_DRAWINGS).T):
        free = of_kind[kind[:, place]]
        for earlier in range(place):
            free[np.arange(len(free)), concept[:, earlier]] = False
        concept[:, place] = pick(free, chance)
    drawn = cast.drawings[concept]
    style = pick((drawn >= 0).reshape(-1, drawn.shape[2]), roll("style", MAX_DRAWINGS).ravel()).reshape(shape)
    drawing = np.take_along_axis(drawn, style[..., None], axis=2)[..., 0]

    cell = np.argsort(roll("cell", _GRID**2), axis=1)[:, :MAX_DRAWINGS]
    longest = _SIZE[0] + (_SIZE[1] - _SIZE[0]) * roll("size", MAX_DRAWINGS)[..., None]
    reach = np.minimum(_JITTER, (1 / _GRID - longest) / 2)
    centre = (np.stack([cell % _GRID, cell // _GRID], axis=2) + 0.5) / _GRID
    centre = centre + reach * (2 * roll("offset", MAX_DRAWINGS, 2) - 1)
    aspect = cast.aspect[drawing]
    extent = longest * np.stack([np.minimum(aspect, 1), np.minimum(1 / aspect, 1)], axis=2)
    boxes = _boxes(centre, extent) * present[..., None]
    return Scenes(np.where(present, concept, -1), np.where(present, drawing, -1), boxes)


def _boxes(centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
    return np.concatenate([centre - extent / 2, centre + extent / 2], axis=-1)


# Random numbers as a function of the scene's key and the name of what is drawn: unlike a generator's stream they stay
# the same whatever else is drawn, however many scenes are made, and in every version of NumPy.

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def scene_keys(seed: int, split: str, count: int) -> np.ndarray:
    """One key for each scene of a split: `uint64[count]`. Scene i's does not depend on `count`."""
    start = _mix(np.array([seed], dtype=np.uint64) * _GOLDEN + _name_bits(split))
    return _mix(start + np.arange(count, dtype=np.uint64) * _GOLDEN)


def draw(keys: np.ndarray, name: str, *shape: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for each key: `float[S, *shape]`.

    The mixing is that of splitmix64: Steele, Lea and Flood 2014 (OOPSLA), figure 15.
    """
    counter = np.arange(1, 1 + int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    bits = _mix(_mix(keys + _name_bits(name))[:, None] + counter * _GOLDEN)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(len(keys), *shape)


def choose(count: int, chance: np.ndarray) -> np.ndarray:
    """An integer in 0..count-1 for each uniform number."""
    return (chance * count).astype(np.int64)


def pick(valid: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """A random true column of each row: `valid bool[S, M]`, `chance float[S]` uniform; -1 where no column is true."""
    so_far = valid.cumsum(axis=1, dtype=np.int32)
    count = so_far[:, -1]
    column = (so_far > (chance * count).astype(np.int32)[:, None]).argmax(axis=1)
    return np.where(count > 0, column, -1)


def _name_bits(name: str) -> np.uint64:
    return np.uint64(zlib.crc32(name.encode()))


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))

"""Scene graphs: where things stand, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from multimodal.data.scenes import (
    APART,
    DIRECTIONS,
    Cast,
    Scenes,
    draw,
    held_out_pairs,
    pick,
    sample_scenes,
    scene_keys,
)

CONCEPTS, KINDS, STYLES = 30, 4, 3


@pytest.fixture(scope="module")
def cast() -> Cast:
    rng = np.random.default_rng(0)
    drawings = np.arange(CONCEPTS * STYLES).reshape(CONCEPTS, STYLES)
    drawings = np.where((rng.random(drawings.shape) < 0.3) & (np.arange(STYLES) > 0), -1, drawings)
    kind = np.sort(np.arange(CONCEPTS) % KINDS)
    return Cast(kind, drawings, rng.uniform(0.4, 2.5, CONCEPTS * STYLES), held_out_pairs(kind))


@pytest.fixture(scope="module")
def scenes(cast: Cast) -> Scenes:
    return sample_scenes(cast, scene_keys(0, "train", 400), pair_shift=False)


def drawings_of(scenes: Scenes, row: int) -> list[int]:
    return np.flatnonzero(scenes.present[row]).tolist()


def centre(scenes: Scenes, row: int, place: int) -> tuple[float, float]:
    x1, y1, x2, y2 = scenes.boxes[row, place].tolist()
    return (x1 + x2) / 2, (y1 + y2) / 2


def stands(scenes: Scenes, row: int, direction: str, a: int, b: int) -> bool:
    """Written again, one pair at a time."""
    (ax, ay), (bx, by) = centre(scenes, row, a), centre(scenes, row, b)
    if direction in ("left", "right"):
        return abs(ay - by) < APART and (bx - ax if direction == "left" else ax - bx) > APART
    return abs(ax - bx) < APART and (by - ay if direction == "above" else ay - by) > APART


def test_two_to_five_different_things_inside_the_canvas_without_overlap(scenes: Scenes) -> None:
    numbers = []
    for row in range(len(scenes.concept)):
        places = drawings_of(scenes, row)
        numbers.append(len(places))
        assert places == list(range(len(places)))
        assert len({scenes.concept[row, place] for place in places}) == len(places)
        for a in places:
            x1, y1, x2, y2 = scenes.boxes[row, a]
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            for b in places[:a]:
                u1, v1, u2, v2 = scenes.boxes[row, b]
                assert x2 <= u1 or u2 <= x1 or y2 <= v1 or v2 <= y1
    assert set(numbers) == {2, 3, 4, 5}
    assert not scenes.boxes[~scenes.present].any()


def test_drawings_are_of_their_concept_in_its_own_aspect(scenes: Scenes, cast: Cast) -> None:
    for row in range(len(scenes.concept)):
        for place in drawings_of(scenes, row):
            drawing = scenes.drawing[row, place]
            assert drawing in cast.drawings[scenes.concept[row, place]]
            x1, y1, x2, y2 = scenes.boxes[row, place]
            assert (x2 - x1) / (y2 - y1) == pytest.approx(cast.aspect[drawing])
            assert 0.2 <= max(x2 - x1, y2 - y1) <= 0.32
    assert (scenes.drawing[~scenes.present] == -1).all()


def test_styles_mix_in_a_scene(scenes: Scenes) -> None:
    styles = [{int(scenes.drawing[row, place]) % STYLES for place in drawings_of(scenes, row)} for row in range(100)]
    assert sum(len(used) > 1 for used in styles) > 50


def test_no_place_is_in_doubt(scenes: Scenes) -> None:
    for row in range(len(scenes.concept)):
        for a in drawings_of(scenes, row):
            for b in range(a):
                for one, other in zip(centre(scenes, row, a), centre(scenes, row, b), strict=True):
                    assert not 0.101 < abs(one - other) < 0.233


def test_relations_and_extremes_are_those_of_the_boxes(scenes: Scenes) -> None:
    relations, extremes = scenes.relations(), scenes.extremes()
    for row in range(200):
        places = drawings_of(scenes, row)
        for d, direction in enumerate(DIRECTIONS):
            held = {(a, b) for a in places for b in places if a != b and stands(scenes, row, direction, a, b)}
            assert held == set(zip(*np.nonzero(relations[row, d]), strict=True))
        for d, (axis, sign) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1)]):
            ranked = sorted((sign * centre(scenes, row, place)[axis], place) for place in places)
            clear = ranked[1][0] - ranked[0][0] > APART
            assert extremes[row, d] == (ranked[0][1] if clear else -1)
    assert relations.any(axis=(1, 2, 3)).all()
    assert (extremes >= 0).any(axis=1).all()


def test_a_twin_differs_by_an_exchange_alone(scenes: Scenes, cast: Cast) -> None:
    a, b = np.zeros(400, dtype=np.int64), np.ones(400, dtype=np.int64)
    both = scenes.with_twins(a, b)
    for row in range(400):
        assert (both.boxes[2 * row] == scenes.boxes[row]).all()
        assert (both.drawing[2 * row] == both.drawing[2 * row + 1]).all()
        assert (both.concept[2 * row + 1] == scenes.concept[row]).all()
        assert (both.boxes[2 * row + 1, 2:] == scenes.boxes[row, 2:]).all()
        for one, other in ((0, 1), (1, 0)):
            assert centre(both, 2 * row + 1, one) == pytest.approx(centre(scenes, row, other))
            x1, y1, x2, y2 = both.boxes[2 * row + 1, one]
            assert (x2 - x1) / (y2 - y1) == pytest.approx(cast.aspect[scenes.drawing[row, one]])
            long = max(scenes.boxes[row, other, 2:] - scenes.boxes[row, other, :2])
            assert max(x2 - x1, y2 - y1) == pytest.approx(long)


def test_a_scene_depends_on_seed_split_and_number_alone(cast: Cast, scenes: Scenes) -> None:
    few = sample_scenes(cast, scene_keys(0, "train", 50), pair_shift=False)
    assert (few.boxes == scenes.boxes[:50]).all()
    assert (few.drawing == scenes.drawing[:50]).all()
    for keys in (scene_keys(1, "train", 50), scene_keys(0, "val", 50)):
        other = sample_scenes(cast, keys, pair_shift=False)
        assert (other.concept == few.concept).all(axis=1).mean() < 0.1


def test_held_out_pairs_appear_in_pair_shift_alone(cast: Cast, scenes: Scenes) -> None:
    held_out = held_out_pairs(cast.kind)
    assert (held_out == held_out.T).all()
    assert len(set(held_out.sum(axis=1))) == 1  # each concept misses equally many
    assert 0.02 < held_out.mean() < 0.15
    assert not (held_out & (cast.kind[:, None] == cast.kind)).any()

    def held(scenes: Scenes, row: int) -> list[tuple[int, int]]:
        places, concept = drawings_of(scenes, row), scenes.concept[row]
        return [(a, b) for a in places for b in places if held_out[concept[a], concept[b]]]

    assert not any(held(scenes, row) for row in range(400))
    shifted = sample_scenes(cast, scene_keys(0, "pair_shift", 100), pair_shift=True)
    for row in range(100):
        assert any(stands(shifted, row, way, a, b) for a, b in held(shifted, row) for way in DIRECTIONS)


def test_every_count_of_a_kind_comes_up(scenes: Scenes, cast: Cast) -> None:
    most = [np.bincount(cast.kind[row[row >= 0]]).max() for row in scenes.concept]
    assert (np.bincount(most, minlength=6)[1:] > 20).all()


def test_random_numbers_are_uniform_and_told_apart_by_name() -> None:
    keys = scene_keys(0, "train", 20_000)
    one, other = draw(keys, "one", 2), draw(keys, "other", 2)
    for column in (*one.T, *other.T):
        assert column.min() >= 0
        assert column.max() < 1
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert np.abs(counts - 2000).max() < 200
    correlation = np.corrcoef([*one.T, *other.T])
    assert np.abs(correlation - np.eye(4)).max() < 0.03


def test_pick_takes_each_true_column_equally_often() -> None:
    valid = np.tile([False, True, True, False, True], (3000, 1))
    chosen = pick(valid, draw(scene_keys(0, "pick", 3000), "x"))
    assert set(chosen) == {1, 2, 4}
    assert np.bincount(chosen).max() < 1150
    assert (pick(np.zeros((3, 5), dtype=bool), np.array([0.0, 0.5, 0.99])) == -1).all()

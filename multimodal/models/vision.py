"""Visual stems: what turns an image into tokens that all carry a box.

A region, a grid cell and a patch are then the same thing to a model, and any stem goes with any architecture. A class
token or a table of positions belongs to the model.

Shapes: U images, N visual tokens, F feature size. Boxes are x1, y1, x2, y2 in 0..1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from multimodal import types
from multimodal.types import ImageInput, Pixels

Tokens = tuple[Tensor, Tensor, Tensor]


class Stem(nn.Module):
    """What every stem offers, and all that a model may use."""

    feature_size: int  # F
    num_tokens: int | None  # N, if it is one number for every image and the tokens have a fixed order

    def forward(self, image: ImageInput) -> Tokens:
        """An image to `features float[U, N, F]`, `boxes float[U, N, 4]`, `mask bool[U, N]`.

        Raises:
            ValueError: this stem reads another kind of image.
        """
        raise NotImplementedError


class Regions(Stem):
    """Features computed before, by a detector or a frozen network, taken as they are."""

    def __init__(self, *, feature_size: int) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.num_tokens = None

    def forward(self, image: ImageInput) -> Tokens:
        """Regions to `features float[U, N, F]`, `boxes float[U, N, 4]`, `mask bool[U, N]`.

        Raises:
            ValueError: the image comes as pixels, or with features of another size.
        """
        if not isinstance(image, types.Regions):
            raise ValueError(f"vision=regions reads Regions (features and boxes), but got {type(image).__name__}")
        if image.features.shape[-1] != self.feature_size:
            raise ValueError(f"vision.feature_size={self.feature_size}, but the data has {image.features.shape[-1]}")
        # Padding may hold anything; a NaN there would get through an attention weight of zero.
        padding = ~image.mask.unsqueeze(-1)
        return image.features.masked_fill(padding, 0), image.boxes.masked_fill(padding, 0), image.mask


class StandardisedRegions(Regions):
    """Features computed before, each of the F brought to mean 0 and deviation 1 over the training data.

    Activations of a frozen network share a large common part, which a fresh linear layer has to unlearn first:
    PictoScenes takes several times as many steps without this. Mean and deviation travel with the weights.
    """

    mean: Tensor  # float[F]
    deviation: Tensor  # float[F]

    def __init__(self, *, feature_size: int) -> None:
        super().__init__(feature_size=feature_size)
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("deviation", torch.ones(feature_size))

    @torch.no_grad()
    def measure(self, image: types.Regions) -> None:
        """Take mean and deviation from some training images."""
        real = image.features[image.mask].float()  # float[regions, F]
        self.mean.copy_(real.mean(dim=0))
        self.deviation.copy_(real.std(dim=0, correction=0).clamp(min=1e-3))  # a feature that never varies stays 0

    def forward(self, image: ImageInput) -> Tokens:
        """Regions to standardised `features float[U, N, F]`, `boxes float[U, N, 4]`, `mask bool[U, N]`.

        Raises:
            ValueError: the image comes as pixels, or with features of another size.
        """
        features, boxes, mask = super().forward(image)
        return ((features - self.mean) / self.deviation).masked_fill(~mask.unsqueeze(-1), 0), boxes, mask


class Patches(Stem):
    """Squares of pixels, flattened (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1).

    Nothing to learn here: the projection that every model gives its visual features is the one linear layer, and
    equals a convolution with stride `patch_size` whose weights are flattened in the order channel, row, column.
    """

    def __init__(self, *, patch_size: int, image_size: int) -> None:
        super().__init__()
        if image_size < patch_size:
            raise ValueError(f"vision.image_size={image_size} is smaller than vision.patch_size={patch_size}")
        self.patch_size = patch_size
        self.image_size = image_size
        self.feature_size = 3 * patch_size**2
        side = image_size // patch_size  # a rest at the right and lower edge is cut off
        self.num_tokens = side**2
        self.boxes: Tensor
        self.register_buffer("boxes", cells(side, side) * (side * patch_size / image_size), persistent=False)

    def forward(self, image: ImageInput) -> Tokens:
        """Pixels to `features float[U, N, 3 * patch_size^2]`, `boxes float[U, N, 4]`, `mask bool[U, N]`.

        Raises:
            ValueError: the image comes as regions, or in another size.
        """
        pixels = pixels_of(image, "patches")
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            height, width = pixels.shape[-2:]
            raise ValueError(f"vision.image_size={self.image_size}, but the data has {height} x {width} pixels")
        features = F.unfold(pixels, kernel_size=self.patch_size, stride=self.patch_size).transpose(1, 2)
        return features, *_same_for_all(self.boxes, len(pixels))


class Grid(Stem):
    """Cells of the last map of a convolutional network (Jiang et al. 2020, arXiv:2001.03615).

    Args:
        backbone: name of a timm model.
        pretrained: path of its weights (.safetensors, or a state dict that torch.load reads), or false.
        trainable: whether it learns along; otherwise it stays in evaluation mode and keeps no graph.
    """

    def __init__(self, *, backbone: str, pretrained: str | Literal[False], trainable: bool) -> None:
        import timm  # takes seconds, and this stem alone needs it

        super().__init__()
        if not timm.is_model(backbone):
            similar = ", ".join(timm.list_models(f"{backbone[:6]}*")[:8])
            raise ValueError(f"vision.backbone={backbone!r} is not a timm model; similar names: {similar or 'none'}")
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, global_pool="")
        self.feature_size = int(self.backbone.num_features)
        self.num_tokens = None  # depends on the size of the image
        self.trainable = trainable
        if pretrained:
            self._load(Path(pretrained))
        self.requires_grad_(trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> Grid:
        """As `nn.Module.train`, but a frozen network keeps its batch statistics."""
        super().train(mode)
        self.backbone.train(mode and self.trainable)
        return self

    def forward(self, image: ImageInput) -> Tokens:
        """Pixels to `features float[U, h * w, F]`, `boxes float[U, h * w, 4]`, `mask bool[U, h * w]`.

        Raises:
            ValueError: the image comes as regions, or the backbone's last map is not `float[U, F, h, w]`.
        """
        pixels = pixels_of(image, "grid")
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            maps = self.backbone.forward_features(pixels)
        if maps.dim() != 4 or maps.shape[1] != self.feature_size:
            raise ValueError(f"vision.backbone: a CNN is needed, this one gives {list(maps.shape)}, not [U, F, h, w]")
        boxes = cells(*maps.shape[-2:]).to(maps.device)
        return maps.flatten(2).transpose(1, 2), *_same_for_all(boxes, len(pixels))

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"vision.pretrained={path}: no such file")
        is_safetensors = path.suffix == ".safetensors"
        weights = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
        missing, unexpected = self.backbone.load_state_dict(weights, strict=False)
        classifier = self.backbone.pretrained_cfg["classifier"]  # the one part of the file that has no place here
        unexpected = [name for name in unexpected if not name.startswith(f"{classifier}.")]
        if missing or unexpected:
            raise ValueError(f"vision.pretrained={path} doesn't fit: missing {missing}, unexpected {unexpected}")


def pixels_of(image: ImageInput, stem: str) -> Tensor:
    """The pixels `float[U, 3, H, W]` of an image.

    Raises:
        ValueError: it comes as regions.
    """
    if not isinstance(image, Pixels):
        raise ValueError(f"vision={stem} reads Pixels, but got {type(image).__name__}")
    return image.pixels


def cells(rows: int, columns: int) -> Tensor:
    """Boxes of the cells of a grid, row by row: `float[rows * columns, 4]`, x1, y1, x2, y2 in 0..1."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], dim=-1).flatten(0, 1)


def _same_for_all(boxes: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The boxes `float[U, N, 4]` and the mask `bool[U, N]` of images that all have the same, real tokens."""
    mask = torch.ones(images, len(boxes), dtype=torch.bool, device=boxes.device)
    return boxes.expand(images, -1, -1), mask

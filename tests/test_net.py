"""The network, the colour feature and the checkpoints, against plain sums and torchvision."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from net import (
    LENGTH,
    Architecture,
    EmbeddingNet,
    FeatureNet,
    extract_features,
    find_model,
    initial_net,
    load_net,
    read_checkpoint,
    read_split,
    save_checkpoint,
)
from network.backbones import build_backbone
from network.color import ColorFeature, Palette
from network.device import autocast, to_device
from tests.fake_cuda import pictures as fake_pictures
from utils import UserError

ARCHITECTURE = Architecture("resnet18", 16, ["Tee", "Blouse", "Tank"], 72, 64)
OF_2018 = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def pictures(side: int = 64) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def untrained(architecture: Architecture = ARCHITECTURE, seed: int = 0) -> EmbeddingNet:
    torch.manual_seed(seed)
    return initial_net(architecture, "none").eval()


@pytest.mark.parametrize(("inter_dim", "dim"), [(16, 16), (0, 512)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_embedding_and_logits_are_linear_in_the_mean_of_the_conv_map(inter_dim, dim, dtype) -> None:
    net = untrained(Architecture("resnet18", inter_dim, ["a", "b", "c"], 72, 64))
    with torch.inference_mode(), autocast(torch.device("cpu"), dtype):
        logits, embedding, conv_map = net(pictures())
    assert conv_map.dtype == (dtype or torch.float32)
    assert logits.dtype == embedding.dtype == torch.float32
    weights = {key: value.double().numpy() for key, value in net.state_dict().items()}
    expected = conv_map.double().numpy().sum((2, 3)) / 4  # of 2 x 2 cells
    if inter_dim:
        expected = expected @ weights["fc.weight"].T + weights["fc.bias"]
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-5)
    assert embedding.shape == (3, dim)
    expected = expected @ weights["fc2.weight"].T + weights["fc2.bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert logits.shape == (3, 3)


def test_a_frozen_backbone_keeps_weights_and_statistics_until_it_is_unfrozen() -> None:
    net = untrained()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)

    def changed_by_a_step() -> set[str]:
        net.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(pictures())[0], torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        state = net.state_dict()
        return {key for key in before if not torch.equal(state[key], before[key])}

    net.freeze_backbone(True)
    heads = {"fc.weight", "fc.bias", "fc2.weight", "fc2.bias"}
    assert changed_by_a_step() == heads
    net.freeze_backbone(False)
    assert changed_by_a_step() == set(before)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_2018_gives_the_features_of_torchvisions_resnet50(
    tmp_path: Path, prefix: str
) -> None:
    torch.manual_seed(7)
    resnet = models.resnet50(weights=None).eval()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    fc, fc2 = nn.Linear(2048, 512), nn.Linear(512, 20)
    state = {}
    for key, value in resnet.state_dict().items():
        name, rest = key.split(".", 1)
        if name != "fc" and "num_batches" not in rest:  # PyTorch 0.4 did not write those
            state[f"{prefix}backbone.{OF_2018[name]}.{rest}"] = value
    for name, layer in (("fc", fc), ("fc2", fc2)):
        state |= {f"{prefix}{name}.{key}": value for key, value in layer.state_dict().items()}
    torch.save(state, tmp_path / "model_best.pth.tar")

    bare = Architecture("resnet50", 64, [f"category {i}" for i in range(50)], 256, 224)
    net = load_net(tmp_path / "model_best.pth.tar", bare)
    network = net.architecture
    assert (network.inter_dim, network.categories) == (512, bare.categories[:20])
    resnet.avgpool.register_forward_hook(lambda *hooked: seen.append(hooked[2].flatten(1)))
    seen: list[Tensor] = []
    with torch.inference_mode():
        logits, embedding, conv_map = net(pictures(96))
        resnet(pictures(96))
        torch.testing.assert_close(conv_map.mean((2, 3)), seen[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(embedding, fc(seen[0]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, fc2(fc(seen[0])), rtol=1e-5, atol=1e-5)
    assert embedding.std() > 0.01


def test_a_checkpoint_comes_back_and_equal_weights_are_equal_files(tmp_path: Path) -> None:
    net = untrained()
    save_checkpoint(tmp_path / "a.pth.tar", net, epoch=3)
    again = load_net(tmp_path / "a.pth.tar", Architecture("alexnet", 9, ["x"], 1, 1))
    assert again.architecture == ARCHITECTURE
    assert not again.training
    with torch.inference_mode():
        for found, expected in zip(again(pictures()), net(pictures()), strict=True):
            assert torch.equal(found, expected)
    save_checkpoint(
        tmp_path / "other_name.pth", again.to(memory_format=torch.channels_last), epoch=3
    )
    one, other = ((tmp_path / name).read_bytes() for name in ("a.pth.tar", "other_name.pth"))
    assert one == other
    save_checkpoint(tmp_path / "b.pth.tar", untrained(seed=1), epoch=3)
    assert (tmp_path / "b.pth.tar").read_bytes() != one


@pytest.mark.parametrize("inter_dim", [16, 8])
def test_training_starts_from_a_checkpoint_of_the_project(tmp_path: Path, inter_dim: int) -> None:
    """Its backbone whatever the embedding; its heads where they have the same shape."""
    net = untrained()
    save_checkpoint(tmp_path / "model.pth.tar", net)
    wanted = Architecture("resnet18", inter_dim, ARCHITECTURE.categories, 72, 64)
    found = initial_net(wanted, str(tmp_path / "model.pth.tar")).state_dict()
    for key, value in net.state_dict().items():
        if key.startswith("backbone.") or inter_dim == 16:
            assert torch.equal(found[key], value), key
    assert found["fc.weight"].shape == (inter_dim, 512)


def test_training_starts_from_pretrained_weights_with_distances_kept(shared: Path) -> None:
    """Up to 1280 dimensions nothing is lost: the embedding's distances are the conv map's."""
    path = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    net = initial_net(Architecture("mobilenet_v2", 1280, ["a"], 72, 64), str(path)).eval()
    with torch.inference_mode():
        _, embedding, conv_map = net(pictures())
    torch.testing.assert_close(torch.pdist(embedding), torch.pdist(conv_map.mean((2, 3))))


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o, 2))]
)
def test_a_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path: Path, write) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    write({"fc2.weight": Malicious(marker)}, path)
    with pytest.raises(UserError, match=r"model\.pth"):
        load_net(path, ARCHITECTURE)
    assert not marker.exists()


def _truncated(path: Path) -> None:
    save_checkpoint(path, untrained())
    path.write_bytes(path.read_bytes()[:-1000])


def _without(*gone: str):
    def write(path: Path) -> None:
        state = untrained().state_dict()
        torch.save({k: v for k, v in state.items() if not k.startswith(gone)}, path)

    return write


def _of_mobilenet(path: Path) -> None:
    net = untrained()
    net.architecture = replace(ARCHITECTURE, backbone="mobilenet_v2")
    save_checkpoint(path, net)


def _saved(content):
    return lambda path: torch.save(content, path)


NO_CHECKPOINTS = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "no checkpoint"),
    "text": (lambda path: path.write_text("404: not found"), "no checkpoint"),
    "truncated": (_truncated, "no checkpoint"),
    "a list": (_saved([1, 2]), "no checkpoint, but a list"),
    "an empty dict": (_saved({}), "no state dict"),
    "a list as state": (_saved({"state_dict": [1, 2]}), "no state dict"),
    "numbers as state": (_saved({"state_dict": {1: 2}}), "no state dict"),
    "no heads": (_without("fc2"), "fc2.weight"),
    "a layer is missing": (_without("backbone.7"), "not the weights of a resnet18"),
    "other backbone": (_of_mobilenet, "not the weights of a mobilenet_v2"),
    "other version": (
        _saved(
            {"network": {"backbone": "resnet18"}, "state_dict": {"fc2.weight": torch.ones(2, 2)}}
        ),
        "train again",
    ),
}


@pytest.mark.parametrize(("write", "said"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_whole_checkpoint_is_refused_by_name(tmp_path: Path, write, said: str) -> None:
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(UserError, match=said) as caught:
        load_net(path, ARCHITECTURE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_backbone_cannot_start_training(tmp_path: Path) -> None:
    torch.save(build_backbone(ARCHITECTURE).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"PRETRAINED .*other.pth.*mobilenet_v2"):
        initial_net(
            Architecture("mobilenet_v2", 16, ["a"], 72, 64),
            str(tmp_path / "other.pth"),
        )


def test_pictures_too_small_for_the_backbone_are_refused() -> None:
    with pytest.raises(UserError, match="CROP_SIZE"):
        initial_net(Architecture("alexnet", 16, ["a"], 16, 16), "none")


def test_a_model_is_found_as_given_or_below_models(tmp_path: Path) -> None:
    base = tmp_path / "data"
    (base / "models").mkdir(parents=True)
    (base / "models" / "m.pth").touch()
    Path("here.pth").touch()
    assert find_model(base, "m.pth") == base / "models" / "m.pth"
    assert find_model(base, "here.pth").samefile(tmp_path / "here.pth")
    with pytest.raises(UserError, match=r"DUMPED_MODEL gone.pth.*train.py"):
        find_model(base, "gone.pth")


@pytest.mark.parametrize("pooling", ["avg", "avgmax", "gem"])
def test_a_normalised_network_by_plain_sums(pooling: str) -> None:
    """Pooling and LayerNorm. Logits are 10 times the cosines with the classes; the embedding holds
    roots of probabilities and a linear map, each scaled to the length of the root of 50."""
    net = untrained(replace(ARCHITECTURE, pooling=pooling, normalised=True))
    with torch.no_grad():  # or LayerNorm's own parameters would not show
        net.norm.weight.uniform_(0.5, 2)
        net.norm.bias.uniform_(-1, 1)
        logits, embedding, conv_map = net(pictures())
    cells = conv_map.double().numpy().reshape(3, 512, -1)
    power = (np.maximum(cells, 1e-6) ** 3).mean(2) ** (1 / 3)
    pooled = {"avg": cells.mean(2), "avgmax": cells.mean(2) + cells.max(2), "gem": power}[pooling]
    weights = {key: value.double().numpy() for key, value in net.state_dict().items()}
    centred = pooled - pooled.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    classes = weights["fc2.weight"]
    lengths = np.linalg.norm(normed, axis=1)[:, None] * np.linalg.norm(classes, axis=1)
    expected = 10 * normed @ classes.T / lengths
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert net.category_dims == 3
    powers = np.exp(expected)
    roots = np.sqrt(50 * powers / powers.sum(1, keepdims=True))
    np.testing.assert_allclose(embedding[:, :3], roots, rtol=1e-3, atol=1e-4)
    linear = normed @ weights["fc.weight"].T + weights["fc.bias"]
    linear *= np.sqrt(50) / np.linalg.norm(linear, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding[:, 3:], linear, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_classifier_orders_categories_as_the_logits_do(normalised: bool) -> None:
    net = untrained(replace(ARCHITECTURE, normalised=normalised))
    with torch.inference_mode():
        logits, embedding, _ = net(pictures())
    weight, bias = net.classifier()
    scores = embedding @ weight.T + bias
    np.testing.assert_array_equal(scores.argsort(1), logits.argsort(1))
    if not normalised:
        np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-5)


def test_more_categories_than_the_embedding_has_room_for_are_one_line() -> None:
    with pytest.raises(UserError, match="INTER_DIM=3 has no room beside 3 categories"):
        initial_net(replace(ARCHITECTURE, inter_dim=3, normalised=True), "none")


@pytest.mark.parametrize("normalised", [False, True])
def test_flip_embeds_the_mirror_image_too(normalised: bool) -> None:
    net = untrained(replace(ARCHITECTURE, normalised=normalised))
    images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        both, colors = FeatureNet(net, [ColorFeature(4)], flip=True)(images)
        plain, same_colors = FeatureNet(net, [ColorFeature(4)], flip=False)(images)
        mirrored = net(net.normalize(images.flip(2)))[1]
    expected = (plain + mirrored) / 2
    if normalised:
        expected = LENGTH * expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(both, plain, atol=1e-3)
    np.testing.assert_array_equal(colors, same_colors)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_a_normalised_checkpoint_comes_back(tmp_path: Path, pooling: str) -> None:
    network = replace(ARCHITECTURE, pooling=pooling, normalised=True)
    net = untrained(network)
    save_checkpoint(tmp_path / "a.pth.tar", net)
    again = load_net(tmp_path / "a.pth.tar")
    assert again.architecture == network
    with torch.inference_mode():
        np.testing.assert_array_equal(again(pictures())[1], net(pictures())[1])


def test_a_checkpoint_from_before_pooling_was_a_choice_loads(tmp_path: Path) -> None:
    net = untrained()
    save_checkpoint(tmp_path / "new.pth.tar", net)
    content = read_checkpoint(tmp_path / "new.pth.tar")
    del content["network"]["pooling"], content["network"]["normalised"]
    torch.save(content, tmp_path / "old.pth.tar")
    assert load_net(tmp_path / "old.pth.tar").architecture == ARCHITECTURE


@pytest.mark.parametrize("held_out", [None, {"inshop": True, "val_share": 0.2, "digest": "0123"}])
def test_a_checkpoint_says_what_was_held_out_of_its_training(tmp_path: Path, held_out) -> None:
    net = untrained()
    save_checkpoint(tmp_path / "said.pth.tar", net, held_out=held_out)
    save_checkpoint(tmp_path / "silent.pth.tar", net)
    torch.save(net.state_dict(), tmp_path / "bare.pth.tar")
    assert read_split(tmp_path / "said.pth.tar") == held_out
    assert read_split(tmp_path / "silent.pth.tar") == "unknown"
    assert read_split(tmp_path / "bare.pth.tar") == "unknown"


@pytest.mark.parametrize("pooling", ["avg", "avgmax", "gem"])
@pytest.mark.parametrize("normalised", [False, True])
def test_features_are_computed_on_cuda(
    fake_cuda: torch.device, pooling: str, normalised: bool
) -> None:
    """Seen to fail where `Normalize.mean` or `Palette.bins` was a tensor and no buffer."""
    net = initial_net(replace(ARCHITECTURE, pooling=pooling, normalised=normalised), "none")
    features = FeatureNet(net, [ColorFeature(4), Palette()], flip=True).eval()
    to_device(features, fake_cuda)
    for dtype in (None, torch.bfloat16):
        found = extract_features(features, fake_pictures(2), fake_cuda, dtype)
        assert [array.shape for array in found] == [(2, 16), (2, 12), (2, 512)]
    weight, bias = net.classifier()
    assert weight.device == bias.device == fake_cuda


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {f"model.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {}, "model_ema": {"state_dict": state}, "args": "--lr 1"},
        lambda state: {
            "n_averaged": torch.tensor(7),
            **{f"module._orig_mod.{key}": value for key, value in state.items()},
        },
    ],
)
def test_weights_are_found_in_what_programs_wrap_them_in(tmp_path: Path, wrap) -> None:
    torch.manual_seed(3)
    resnet = models.resnet18(weights=None)
    torch.save(wrap(resnet.state_dict()), tmp_path / "weights.pth")
    net = initial_net(ARCHITECTURE, str(tmp_path / "weights.pth"))
    assert torch.equal(net.backbone[0].weight, resnet.conv1.weight)


def test_what_is_no_weights_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"model": models.resnet18(weights=None)}, tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"could run code; .* torch\.save\(model\.state_dict"):
        initial_net(ARCHITECTURE, str(tmp_path / "whole.pth"))
    torch.save({"model": {"weight": [1.0, 2.0]}}, tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"no state dict, for weight is not a tensor; .* save"):
        initial_net(ARCHITECTURE, str(tmp_path / "list.pth"))

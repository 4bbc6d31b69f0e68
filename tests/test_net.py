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

from backbones import build_backbone
from net import (
    ColorFeature,
    EmbeddingNet,
    FeatureNet,
    Network,
    amp_type,
    autocast,
    find_model,
    initial_net,
    load_net,
    pick_device,
    save_checkpoint,
)
from utils import UserError

NETWORK = Network("resnet18", 16, ["Tee", "Blouse", "Tank"], 72, 64)
OF_2018 = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def pictures(side: int = 64) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def untrained(network: Network = NETWORK, seed: int = 0) -> EmbeddingNet:
    torch.manual_seed(seed)
    return initial_net(network, "none").eval()


@pytest.mark.parametrize(("inter_dim", "dim"), [(16, 16), (0, 512)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_embedding_and_logits_are_linear_in_the_mean_of_the_conv_map(inter_dim, dim, dtype) -> None:
    net = untrained(Network("resnet18", inter_dim, ["a", "b", "c"], 72, 64))
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


def colors_by_loops(picture: np.ndarray, conv_map: np.ndarray, top_n: int) -> list[float]:
    """The colour feature of a picture whose sides are multiples of the map's."""
    _, height, width = conv_map.shape
    high, wide = picture.shape[1] // height, picture.shape[2] // width
    cells = [(row, column) for row in range(height) for column in range(width)]
    strength = {cell: sum(channel[cell] for channel in conv_map) for cell in cells}
    strongest = sorted(cells, key=lambda cell: (-strength[cell], cell))[:top_n]
    return [
        float(channel[r * high : (r + 1) * high, c * wide : (c + 1) * wide].mean())
        for channel in picture
        for r, c in strongest
    ]


@pytest.mark.parametrize(
    ("shape", "side", "top_n"), [((7, 7), 14, 10), ((7, 7), 224, 1), ((4, 4), 32, 16)]
)
def test_color_feature_equals_a_loop_over_the_cells(shape, side: int, top_n: int) -> None:
    """Small whole numbers as response: most cells tie, and the first in reading order leads."""
    rng = np.random.default_rng(0)
    picture = rng.random((2, 3, side, side), np.float32)
    conv_map = rng.integers(0, 3, (2, 5, *shape)).astype(np.float32)
    found = ColorFeature(top_n)(torch.from_numpy(picture), torch.from_numpy(conv_map))
    assert found.dtype == torch.float32
    expected = [colors_by_loops(p, m, top_n) for p, m in zip(picture, conv_map, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_color_feature_of_a_picture_worked_out_by_hand() -> None:
    """Strongest is the lower right cell, then, of two equal ones, the upper left: R, then G, B."""
    conv_map = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 9.0]]]])
    red = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    picture = torch.stack([red, red * 10, red * 100])[None].repeat_interleave(2, 2)
    picture = picture.repeat_interleave(2, 3)
    found = ColorFeature(3)(picture, conv_map)
    assert found.tolist() == [[4, 1, 3, 40, 10, 30, 400, 100, 300]]


def test_more_colors_than_cells_are_refused() -> None:
    with pytest.raises(UserError, match=r"COLOR_TOP_N is 5.* 4 cells"):
        FeatureNet(untrained(), 5)(pictures())


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

    bare = Network("resnet50", 64, [f"category {i}" for i in range(50)], 256, 224)
    net, network = load_net(tmp_path / "model_best.pth.tar", bare)
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
    save_checkpoint(tmp_path / "a.pth.tar", net, NETWORK, epoch=3)
    again, network = load_net(tmp_path / "a.pth.tar", Network("alexnet", 9, ["x"], 1, 1))
    assert network == NETWORK
    assert not again.training
    with torch.inference_mode():
        for found, expected in zip(again(pictures()), net(pictures()), strict=True):
            assert torch.equal(found, expected)
    save_checkpoint(
        tmp_path / "other_name.pth", again.to(memory_format=torch.channels_last), network, epoch=3
    )
    one, other = ((tmp_path / name).read_bytes() for name in ("a.pth.tar", "other_name.pth"))
    assert one == other
    save_checkpoint(tmp_path / "b.pth.tar", untrained(seed=1), NETWORK, epoch=3)
    assert (tmp_path / "b.pth.tar").read_bytes() != one


@pytest.mark.parametrize("inter_dim", [16, 8])
def test_training_starts_from_a_checkpoint_of_the_project(tmp_path: Path, inter_dim: int) -> None:
    """Its backbone whatever the embedding; its heads where they have the same shape."""
    net = untrained()
    save_checkpoint(tmp_path / "model.pth.tar", net, NETWORK)
    wanted = Network("resnet18", inter_dim, NETWORK.categories, 72, 64)
    found = initial_net(wanted, str(tmp_path / "model.pth.tar")).state_dict()
    for key, value in net.state_dict().items():
        if key.startswith("backbone.") or inter_dim == 16:
            assert torch.equal(found[key], value), key
    assert found["fc.weight"].shape == (inter_dim, 512)


def test_training_starts_from_pretrained_weights_with_distances_kept(shared: Path) -> None:
    """Up to 1280 dimensions nothing is lost: the embedding's distances are the conv map's."""
    path = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    net = initial_net(Network("mobilenet_v2", 1280, ["a"], 72, 64), str(path)).eval()
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
        load_net(path, NETWORK)
    assert not marker.exists()


def _truncated(path: Path) -> None:
    save_checkpoint(path, untrained(), NETWORK)
    path.write_bytes(path.read_bytes()[:-1000])


def _without(*gone: str):
    def write(path: Path) -> None:
        state = untrained().state_dict()
        torch.save({k: v for k, v in state.items() if not k.startswith(gone)}, path)

    return write


def _of_mobilenet(path: Path) -> None:
    save_checkpoint(path, untrained(), replace(NETWORK, backbone="mobilenet_v2"))


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
        load_net(path, NETWORK)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_backbone_cannot_start_training(tmp_path: Path) -> None:
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"PRETRAINED .*other.pth.*mobilenet_v2"):
        initial_net(
            Network("mobilenet_v2", 16, ["a"], 72, 64),
            str(tmp_path / "other.pth"),
        )


def test_pictures_too_small_for_the_backbone_are_refused() -> None:
    with pytest.raises(UserError, match="CROP_SIZE"):
        initial_net(Network("alexnet", 16, ["a"], 16, 16), "none")


def test_a_model_is_found_as_given_or_below_models(tmp_path: Path) -> None:
    base = tmp_path / "data"
    (base / "models").mkdir(parents=True)
    (base / "models" / "m.pth").touch()
    Path("here.pth").touch()
    assert find_model(base, "m.pth") == base / "models" / "m.pth"
    assert find_model(base, "here.pth").samefile(tmp_path / "here.pth")
    with pytest.raises(UserError, match=r"DUMPED_MODEL gone.pth.*train.py"):
        find_model(base, "gone.pth")


def test_devices_and_their_arithmetic() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"cuda:99.*devices"):
        pick_device("cuda:99")
    with pytest.raises(UserError, match="mps"):
        pick_device("mps")
    cpu = torch.device("cpu")
    wanted = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {amp: amp_type(cpu, amp) for amp in wanted} == wanted
    assert amp_type(cpu, "auto") in {None, torch.bfloat16}

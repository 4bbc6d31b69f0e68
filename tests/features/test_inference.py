"""Networks made faster: the same values, whatever way they take."""

import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from features.inference import WORTH, CompiledNet, faster, in_order, keeps_embeddings, one_core_each
from net import FeatureNet, Network, extract_features, initial_net
from network.color import ColorFeature, Palette

CPU = torch.device("cpu")
PICTURES = torch.randint(256, (8, 64, 64, 3), dtype=torch.uint8)


def feature_net() -> FeatureNet:
    """With batch norms that do something, as after training."""
    torch.manual_seed(0)
    net = initial_net(Network("resnet18", 16, ["a", "b"], 64, 64), "none")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    features = FeatureNet(net, [ColorFeature(4), Palette()], True, plain=True)
    return features.eval().to(memory_format=torch.channels_last)


def same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def test_compiled_gives_what_plain_gives() -> None:
    plain = extract_features(feature_net(), PICTURES, CPU, None)
    net = feature_net()
    with one_core_each(2):
        fast = faster(net, WORTH, len(PICTURES), 64, CPU, None)
        found = extract_features(fast, PICTURES, CPU, None)
        assert isinstance(fast, CompiledNet)
        same(found, plain, 1e-5)
        few = extract_features(fast, PICTURES[:3], CPU, None)
        assert all((one == other[:3]).all() for one, other in zip(few, found, strict=True))
        asked = [PICTURES[i : i + 4] for i in (0, 4, 0, 4)]
        ways = in_order(lambda batch: extract_features(fast, batch, CPU, None), asked, 2)
        for i, ours in enumerate(ways):  # two at once, each on its own core
            half = slice(0, 4) if i % 2 == 0 else slice(4, 8)
            assert all((one == other[half]).all() for one, other in zip(ours, found, strict=True))


class Untraceable(nn.Module):
    """A backbone that does different things with different pictures."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("traceable", [True, False])
def test_few_pictures_are_not_worth_compiling(traceable: bool) -> None:
    """Batch norms are folded where they can be."""
    plain = extract_features(feature_net(), PICTURES, CPU, None)
    net = feature_net()
    if not traceable:
        net.net.backbone = Untraceable(net.net.backbone)
    fast = faster(net, WORTH - 1, len(PICTURES), 64, CPU, None)
    assert fast is net
    folded = not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert folded == traceable
    same(extract_features(fast, PICTURES, CPU, None), plain, 1e-5)


def test_without_a_compiler_it_is_slower_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from torch._inductor import config

    plain = extract_features(feature_net(), PICTURES, CPU, None)
    with config.patch({"cpp.cxx": ("/nonexistent/g++",), "fx_graph_cache": False}):
        torch._dynamo.reset()
        fast = faster(feature_net(), WORTH, len(PICTURES), 64, CPU, None)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("extraction will be slower, torch.compile fails: ")
    same(extract_features(fast, PICTURES, CPU, None), plain, 1e-5)


def test_results_come_in_order_and_not_too_far_ahead() -> None:
    running, most, taken = [0], [0], [0]
    lock = threading.Lock()

    def slow(i: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02 * (i % 3 == 0))
        with lock:
            running[0] -= 1
        return i * i

    def items() -> object:
        for i in range(40):
            taken[0] += 1
            yield i

    found = []
    for result in in_order(slow, items(), 3):
        found.append(result)
        assert taken[0] - len(found) <= 2 * 3
    assert found == [i * i for i in range(40)]
    assert most[0] == 3
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // i, [1, 0, 2], 2))


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with suppress(KeyError), one_core_each(2):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_16_bits_are_used_where_embeddings_stay_the_same() -> None:
    net = feature_net()
    assert keeps_embeddings(net, PICTURES, CPU, torch.bfloat16)
    norm = nn.BatchNorm2d(512).eval()
    norm.running_mean.fill_(1000)  # differences of large numbers: 8 bits do not tell them apart
    shift = nn.BatchNorm2d(512).eval()
    shift.bias.data.fill_(1000)
    net.net.backbone.append(shift).append(norm)
    assert not keeps_embeddings(net, PICTURES, CPU, torch.bfloat16)

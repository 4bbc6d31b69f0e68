"""inference.py: features in order, whatever is computed at once; folded batch norms."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from features import extraction
from features.extraction import Readable
from features.inference import features_in_order, fold_batch_norms
from net import Architecture, EmbeddingNet, FeatureNet, extract_features, initial_net
from network.color import ColorFeature, Palette
from network.device import to_device
from network.distributed import Distributed
from tests.fake_cuda import pictures
from utils import UserError

CPU = torch.device("cpu")
PICTURES = torch.randint(256, (8, 64, 64, 3), dtype=torch.uint8)


def feature_net() -> FeatureNet:
    """With few layers, which compile fast; its batch norms do something, as after training."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, 2), nn.BatchNorm2d(after), nn.ReLU()]
    net = EmbeddingNet(nn.Sequential(*layers), 32, Architecture("", 16, ["a", "b"], 64, 64))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    features = FeatureNet(net, [ColorFeature(4), Palette()], True)
    return features.eval().to(memory_format=torch.channels_last)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


class Untraceable(nn.Module):
    """A backbone that does different things with different pictures."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("traceable", [True, False])
def test_batch_norms_are_folded_where_they_can_be(traceable: bool) -> None:
    """The features are the same to rounding."""
    plain = extract_features(feature_net(), PICTURES, CPU, None)
    net = feature_net()
    if not traceable:
        net.net.backbone = Untraceable(net.net.backbone)
    net.net.backbone = fold_batch_norms(net.net.backbone)
    folded = not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert folded == traceable
    assert_same(extract_features(net, PICTURES, CPU, None), plain, 1e-5)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of PyTorch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_batches_run_at_once_on_a_cpu(threads: Callable[[int], None]) -> None:
    """As many as there are threads, results in order; the first error is raised."""
    running, most, lock = [0], [0], threading.Lock()

    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            if not len(images):
                raise ValueError("no pictures")
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.02)
            with lock:
                running[0] -= 1
            return [images.flatten(1).float()[:, :2]]

    begun, found = [0], []

    def batches() -> Iterator[tuple[torch.Tensor, int]]:
        for i in range(16):
            begun[0] += 1
            yield [PICTURES[i % 8, None]], i

    threads(3)
    for features, (i,) in features_in_order([Slow()], batches(), CPU, None):
        assert torch.get_num_threads() == 1
        assert begun[0] - len(found) <= 7  # not too far ahead
        found.append((features, i))
    assert most[0] == 3
    assert torch.get_num_threads() == 3
    assert [number for _, number in found] == list(range(16))
    for features, i in found:
        np.testing.assert_array_equal(features[0], PICTURES[i % 8, None].flatten(1)[:, :2].float())
    with pytest.raises(ValueError, match="no pictures"):
        list(features_in_order([Slow()], [([PICTURES[:1]], 0), ([PICTURES[:0]], 1)], CPU, None))
    assert torch.get_num_threads() == 3


def test_the_mode_of_cudnn_is_restored() -> None:
    """It is one of the whole process, and slow where pictures have many sizes."""
    assert not torch.backends.cudnn.benchmark
    for _ in features_in_order([feature_net()], [([PICTURES], 0)], CPU, None):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_16_bits_are_used_where_embeddings_stay_the_same() -> None:
    class Dataset(list):
        sides = (64,)

    net, dataset = feature_net(), Dataset([([picture],) for picture in PICTURES])
    model = [SimpleNamespace(net=net)]
    assert extraction._keeps_embeddings(model, dataset, CPU, torch.bfloat16)
    norm = nn.BatchNorm2d(32).eval()
    norm.running_mean.fill_(1000)  # differences of large numbers: 8 bits do not tell them apart
    shift = nn.BatchNorm2d(32).eval()
    shift.bias.data.fill_(1000)
    net.net.backbone.append(shift).append(norm)
    assert not extraction._keeps_embeddings(model, dataset, CPU, torch.bfloat16)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_batches_on_a_gpu_stay_there(fake_cuda: torch.device, dtype: torch.dtype | None) -> None:
    """Both colour features and mirror images, in the way that an extraction runs on CUDA.

    Seen to fail where `to_device` was left out, or `Palette.bins` was no buffer.
    """
    net = initial_net(Architecture("resnet18", 16, ["a", "b"], 64, 64), "none")
    features = FeatureNet(net, [ColorFeature(4), Palette()], True).eval()
    to_device(features, fake_cuda)
    batches = [([pictures(count)], count) for count in (4, 4, 4, 2)]
    found = list(features_in_order([features], batches, fake_cuda, dtype))
    for arrays, (count,) in found:
        assert [array.shape for array in arrays] == [(count, n) for n in (16, 12, 512)]
        assert all(array.dtype == np.float32 for array in arrays)
    assert [count for _, (count,) in found] == [4, 4, 4, 2]


def test_a_gpu_without_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail, with a traceback, without `explain_out_of_memory` in `extract`."""

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(extraction, "features_in_order", exhausted)
    dataset = Readable(mock.MagicMock(), 64)
    model = extraction.LoadedModel(feature_net(), mock.Mock(), [])
    job = extraction.Job(Path(), [model], {"EXTRACT_BATCH_SIZE": 4}, 0, Distributed(), CPU)
    with pytest.raises(UserError, match="EXTRACT_BATCH_SIZE") as caught:
        extraction._extract_by(job, dataset, np.arange(3), Path(), None)
    assert "\n" not in str(caught.value)

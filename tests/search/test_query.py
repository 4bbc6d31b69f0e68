"""Features of query pictures, on a GPU too."""

import numpy as np
import pytest
import torch
from PIL import Image

from net import Architecture, FeatureNet, initial_net
from network.color import color_features
from network.device import to_device
from search.query import Query, extract_queries, mean_features
from tests.fake_cuda import pictures

SETTINGS = {"COLOR_TOP_N": 4, "PALETTE": True}


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_queries_are_embedded_on_cuda(fake_cuda: torch.device, stored: str) -> None:
    """Two models, batches of two. Seen to fail where a network was not moved by `to_device`."""
    nets = []
    for number in range(2):
        net = initial_net(Architecture("resnet18", 16, ["a", "b"], 64, 64), "none")
        colors = [] if number else color_features(SETTINGS)
        nets.append(to_device(FeatureNet(net, colors, flip=True).eval(), fake_cuda))
    thumbnail = Image.new("RGB", (8, 8))
    queries = [Query(str(i), [pictures(1)[0], pictures(1)[0]], thumbnail) for i in range(3)]
    found = extract_queries(nets, queries, fake_cuda, stored, 2)
    assert [array.shape for array in found] == [(3, 16), (3, 16), (3, 12), (3, 512)]
    assert all(array.dtype == np.float32 for array in found)


@pytest.mark.parametrize("rows", [[0, 2], [1], [3, 3]])
def test_joined_queries_by_hand(rows: list[int]) -> None:
    """Lengths of 1 are kept, other lengths are not made 1."""
    deep = np.float32([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]])
    color = np.float32([[2], [5], [4], [1]])
    joined = mean_features([deep[rows], color[rows]])
    total = deep[rows].sum(0)
    np.testing.assert_allclose(joined[0], [total / np.linalg.norm(total)], rtol=1e-6)
    np.testing.assert_array_equal(joined[1], [color[rows].mean(0)])
    assert [features.dtype for features in joined] == [np.float32] * 2

"""Whether training has settled, and the score that chooses the best epoch, by loops."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize

from net import Architecture, FeatureNet, initial_net
from network.color import Palette
from network.distributed import Distributed
from training.validation import is_stable, leave_one_out, retrieval_score, validate


@pytest.mark.parametrize(
    ("history", "stable"),
    [
        ([(1.0, 0.5)] * 3, False),  # nothing to compare with yet
        ([(1.0, 0.5)] * 4, True),
        ([(1.0, 0.5), (0.9, 0.5), (0.9, 0.5), (0.9, 0.5)], False),  # the loss still falls
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.52), (1.0, 0.5)], False),  # the accuracy still rises
        ([(1.0, 0.5), (0.995, 0.502), (1.1, 0.4), (1.0, 0.5)], True),  # by too little to count
    ],
)
def test_is_stable(history: list[tuple[float, float]], stable: bool) -> None:
    assert is_stable(history) == stable


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """N x H x W x 3 bytes -> the network's input, by torchvision."""
    scaled = pictures.permute(0, 3, 1, 2) / 255
    return normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def by_loop(distances: np.ndarray, labels: np.ndarray, of_items: bool) -> tuple[float, int]:
    """Mean reciprocal rank, or mAP@R, of those that have another one of their label; how many."""
    values = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        ranked = sorted(others, key=lambda j: distances[i, j])
        right = [labels[j] == labels[i] for j in ranked]
        count = sum(right)
        if count and labels[i] >= 0 and of_items:
            values.append(1 / (right.index(True) + 1))
        elif count and labels[i] >= 0:
            precision = [sum(right[: k + 1]) / (k + 1) for k in range(count) if right[k]]
            values.append(sum(precision) / count)
    return sum(values) / len(values), len(values)


@pytest.mark.parametrize("of_items", [False, True])
def test_leave_one_out_is_a_loop(rng: np.random.Generator, of_items: bool) -> None:
    points, labels = rng.normal(size=(40, 3)), rng.integers(7, size=40)
    labels[:2] = [70, 71]  # of labels that no other one has: they do not ask
    labels[2:5] = -1  # nor do those of no label
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = leave_one_out(torch.from_numpy(distances).clone(), labels, of_items)
    assert found == pytest.approx(by_loop(distances, labels, of_items))
    assert leave_one_out(torch.from_numpy(distances).clone(), np.arange(40), of_items) == (0, 0)


@pytest.mark.parametrize("of_items", [False, True])
@pytest.mark.parametrize("weight", [0.0, 6.0])
def test_the_score_is_of_embedding_and_palette_together(weight: float, of_items: bool) -> None:
    torch.manual_seed(0)
    net = initial_net(Architecture("resnet18", 8, ["a", "b"], 40, 32, normalised=True), "none")
    net.train()
    pictures = torch.randint(256, (10, 32, 32, 3), dtype=torch.uint8)
    categories, items = torch.tensor([0, 1] * 5), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, -1, -1])
    loader = DataLoader(list(zip(pictures, categories, items, strict=True)), batch_size=4)
    cpu = torch.device("cpu")
    features = FeatureNet(net, [Palette()], False)
    found = retrieval_score(features, weight, loader, of_items, cpu, None, Distributed())
    assert net.training, "the network is left as it was"
    with torch.inference_mode():
        embedding, palette = features.eval()(pictures)
    distances = torch.cdist(embedding, embedding) + weight * torch.cdist(palette, palette)
    labels = (items if of_items else categories).numpy()
    assert found == pytest.approx(by_loop(distances.numpy(), labels, of_items), abs=1e-6)


def test_validation_is_of_every_picture_once() -> None:
    torch.manual_seed(0)
    net = initial_net(Architecture("resnet18", 8, ["a", "b"], 40, 32), "none")
    pictures = torch.randint(256, (7, 32, 32, 3), dtype=torch.uint8)
    categories = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    loader = DataLoader(list(zip(pictures, categories, categories, strict=True)), batch_size=3)
    loss, accuracy = validate(net, loader, torch.device("cpu"), None, Distributed())
    with torch.inference_mode():
        logits = net.eval()(normalised(pictures))[0].numpy()
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(chances[range(7), categories.numpy()]).mean(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == categories.numpy()).mean())

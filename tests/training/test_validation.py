"""The figures of a validation, by loops."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize

from net import Architecture, EmbeddingNet, FeatureNet, initial_net
from network.color import Palette
from network.distributed import Distributed
from training.validation import (
    Predictions,
    is_stable,
    loss_and_accuracy,
    predict,
    retrieval_score,
)


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


def by_loop(distances: np.ndarray, labels: np.ndarray, by_item: bool) -> tuple[float, int]:
    """Mean reciprocal rank, or mAP@R, of those that have another one of their label; how many."""
    values = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        ranked = sorted(others, key=lambda j: distances[i, j])
        right = [labels[j] == labels[i] for j in ranked]
        count = sum(right)
        if count and labels[i] >= 0 and by_item:
            values.append(1 / (right.index(True) + 1))
        elif count and labels[i] >= 0:
            precision = [sum(right[: k + 1]) / (k + 1) for k in range(count) if right[k]]
            values.append(sum(precision) / count)
    return sum(values) / len(values), len(values)


@pytest.mark.parametrize("by_item", [False, True])
def test_each_picture_is_a_query_among_the_others(rng: np.random.Generator, by_item: bool) -> None:
    points, labels = rng.normal(size=(40, 3)), rng.integers(7, size=40)
    labels[:2] = [70, 71]  # no other picture has these labels: they are no queries
    labels[2:5] = -1  # nor are pictures without a label
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)

    def score(labels: np.ndarray) -> tuple[float, int]:
        none, both = torch.zeros(40, 1), 2 * [torch.from_numpy(labels)]
        return retrieval_score(
            Predictions(none, torch.from_numpy(points), none, *both), 40, 0, by_item, Distributed()
        )

    assert score(labels) == pytest.approx(by_loop(distances, labels, by_item))
    assert score(np.arange(40)) == (0, 0)


@pytest.fixture
def predicted() -> tuple[EmbeddingNet, torch.Tensor, Predictions]:
    """A network, ten pictures, and what it predicts for them in batches of four."""
    torch.manual_seed(0)
    net = initial_net(Architecture("resnet18", 8, ["a", "b"], 40, 32, normalised=True), "none")
    net.train()
    images = torch.randint(256, (10, 32, 32, 3), dtype=torch.uint8)
    categories, items = torch.tensor([0, 1] * 5), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, -1, -1])
    loader = DataLoader(list(zip(images, categories, items, strict=True)), batch_size=4)
    predictions = predict(net, Palette(), loader, torch.device("cpu"), None)
    assert net.training, "the network is left as it was"
    net.eval()
    return net, images, predictions


@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize("weight", [0.0, 6.0])
@pytest.mark.parametrize("count", [10, 7])
def test_the_score_is_of_embedding_and_palette_together(
    predicted, weight: float, by_item: bool, count: int
) -> None:
    net, images, predictions = predicted
    with torch.inference_mode():
        embedding, palette = FeatureNet(net, [Palette()], False)(images[:count])
    distances = torch.cdist(embedding, embedding) + weight * torch.cdist(palette, palette)
    labels = (predictions.items if by_item else predictions.categories)[:count].numpy()
    found = retrieval_score(predictions, count, weight, by_item, Distributed())
    assert found == pytest.approx(by_loop(distances.numpy(), labels, by_item), abs=1e-6)


def test_loss_and_accuracy_are_of_every_picture_once(predicted) -> None:
    net, images, predictions = predicted
    loss, accuracy = loss_and_accuracy(predictions, Distributed())
    with torch.inference_mode():
        logits, categories = net(normalised(images))[0].numpy(), np.array([0, 1] * 5)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(chances[range(10), categories]).mean(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == categories).mean())

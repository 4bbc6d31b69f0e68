"""The losses, by hand and by loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.losses import TrainingLoss, build_metric_loss


def test_triplet_loss_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    positive = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    negative = torch.tensor([[0.0, 4.5], [-1.0, 0.0]])
    # Distances 5 and 4.5, then sqrt(2) and 2: hinges 1.5 and 1 + sqrt(2) - 2.
    expected = (1.5 + math.sqrt(2) - 1) / 2
    euclidean, cosine = (build_metric_loss("triplet", 0, each, 4, 2) for each in (False, True))
    assert euclidean(anchor, positive, negative).item() == pytest.approx(expected, abs=1e-5)
    # Cosine distances of the second triplet: 1 and 2, so its hinge is 0.
    loss = cosine(anchor[1:], positive[1:], negative[1:])
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss = cosine(anchor[1:], negative[1:], positive[1:])
    assert loss.item() == pytest.approx(2, abs=1e-6)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_proxy_anchor_is_the_formula_of_the_paper(rng: np.random.Generator) -> None:
    """Equation (4) of Kim et al. (CVPR 2020) by loops, alpha 32, delta 0.1; unknown labels out."""
    loss = build_metric_loss("proxy_anchor", 4, False, classes=5, dim=6)
    embedding = rng.normal(size=(9, 6))
    labels = np.array([0, 0, 1, 1, 3, 3, -1, 3, -1])
    proxies = unit(loss.loss.proxies.detach().double().numpy())
    cosine = unit(embedding) @ proxies.T
    known = [i for i in range(9) if labels[i] >= 0]
    positive = [
        math.log(1 + sum(math.exp(-32 * (cosine[i, p] - 0.1)) for i in known if labels[i] == p))
        for p in (0, 1, 3)
    ]
    negative = [
        math.log(1 + sum(math.exp(32 * (cosine[i, p] + 0.1)) for i in known if labels[i] != p))
        for p in range(5)
    ]
    expected = sum(positive) / 3 + sum(negative) / 5
    found = loss(torch.from_numpy(embedding).float(), torch.from_numpy(labels))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative(rng) -> None:
    embedding = rng.normal(size=(8, 3))
    labels = np.repeat([0, 1, 2, 3], 2)
    x = unit(embedding)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    hinges = []
    for i in range(8):
        same = [distance[i, j] for j in range(8) if labels[j] == labels[i] and j != i]
        other = [distance[i, j] for j in range(8) if labels[j] != labels[i]]
        hinges.append(max(0, max(same) - min(other) + 0.2))
    expected = np.mean([hinge for hinge in hinges if hinge > 0])
    loss = build_metric_loss("batch_hard", 2, False, classes=4, dim=3)
    found = loss(torch.from_numpy(embedding).float(), torch.from_numpy(labels))
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cosine", [False, True])
def test_triplets_of_a_balanced_batch_are_all_that_break_the_margin(rng, cosine: bool) -> None:
    embedding = 0.3 * rng.normal(size=(8, 3))
    labels = np.repeat([0, 1, 2, 3], 2)
    x = unit(embedding)
    distance = 1 - x @ x.T
    if not cosine:
        distance = np.linalg.norm(embedding[:, None] - embedding[None], axis=2)
    hinges = [
        1 + distance[a, p] - distance[a, n]
        for a in range(8)
        for p in range(8)
        for n in range(8)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    expected = np.mean([hinge for hinge in hinges if hinge > 0])
    loss = build_metric_loss("triplet", 2, cosine, classes=4, dim=3)
    found = loss(torch.from_numpy(embedding).float(), torch.from_numpy(labels))
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("by_item", [False, True])
def test_the_loss_is_cross_entropy_plus_the_weighted_metric_loss(by_item: bool) -> None:
    """Of 6 pictures 4 are for cross entropy; sampled triplets are of the others only."""
    torch.manual_seed(0)
    logits, embedding = torch.randn(7, 3), torch.randn(7, 2)
    categories, items = torch.tensor([0, 2, 1, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 2, 2, -1])
    sampled = TrainingLoss(build_metric_loss("triplet", 0, False, 3, 2), 0.5, by_item, 0.1)
    found = sampled(logits, embedding, categories, items, 4)
    log = logits.log_softmax(1)
    right = log[range(4), categories[:4]]
    smoothed = -(0.9 * right + 0.1 * log[:4].mean(1)).mean()
    triplet = F.triplet_margin_loss(embedding[4:5], embedding[5:6], embedding[6:])
    torch.testing.assert_close(found["cross entropy"], smoothed)
    torch.testing.assert_close(found["metric"], triplet)
    torch.testing.assert_close(found["loss"], smoothed + 0.5 * triplet)
    hits = (logits[:4].argmax(1) == categories[:4]).float().mean()
    assert found["accuracy"] == hits

    labelled = TrainingLoss(build_metric_loss("batch_hard", 2, False, 3, 2), 0.5, by_item, 0.1)
    found = labelled(logits, embedding, categories, items, 4)["metric"]
    torch.testing.assert_close(found, labelled.metric(embedding, items if by_item else categories))
    items_part = TrainingLoss(labelled.metric, 0.5, by_item, 0.1, skipped=1)
    found = items_part(logits, embedding, categories, items, 4)["metric"]
    expected = labelled.metric(embedding[:, 1:], items if by_item else categories)
    torch.testing.assert_close(found, expected)
    alone = TrainingLoss(labelled.metric, 0, by_item, 0.1)(logits, embedding, categories, items, 4)
    assert alone["metric"] == 0
    assert alone["loss"] == alone["cross entropy"]

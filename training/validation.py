"""How good a network is in the middle of its training: loss, accuracy, retrieval."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from evaluation.metrics import validation_score
from net import EmbeddingNet, FeatureNet
from network.device import autocast
from network.distributed import Distributed


def is_stable(history: Sequence[tuple[float, float]], patience: int = 3) -> bool:
    """Whether training has settled: neither loss nor accuracy still gets better.

    Parameters
    ----------
    history : (loss, accuracy in 0 to 1) of each validation, in order
    patience : validations to look at

    Returns
    -------
    True where none of the last `patience` validations lowers the best loss before them by more
    than 1%, or raises the best accuracy by more than half a percentage point.
    """
    before, last = history[:-patience], history[-patience:]
    if not before:
        return False
    loss_falls = min(loss for loss, _ in last) < 0.99 * min(loss for loss, _ in before)
    accuracy_rises = max(a for _, a in last) > 0.005 + max(a for _, a in before)
    return not loss_falls and not accuracy_rises


@torch.inference_mode()
def validate(
    net: EmbeddingNet,
    loader: DataLoader,
    device: torch.device,
    amp: torch.dtype | None,
    distributed: Distributed,
) -> tuple[float, float]:
    """Mean cross entropy, and accuracy in 0 to 1, over the pictures of all processes."""
    training = net.training
    net.eval()
    sums = torch.zeros(3, device=device, dtype=torch.float32)  # of loss, right ones, pictures
    for images, categories, _ in loader:
        targets = categories.to(device)
        with autocast(device, amp):
            logits = net(net.normalize(images.to(device, non_blocking=True)))[0]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        right = (logits.argmax(1) == targets).sum()
        sums += torch.stack([loss, right, targets.new_tensor(len(targets))])
    net.train(training)
    loss, right, count = distributed.all_reduce(sums).tolist()
    return loss / count, right / count


@torch.inference_mode()
def retrieval_score(
    net: FeatureNet,
    palette_weight: float,
    loader: DataLoader,
    of_items: bool,
    device: torch.device,
    amp: torch.dtype | None,
    distributed: Distributed,
) -> tuple[float, int]:
    """How well the pictures of all processes find each other, by category (mAP@R) or item (MRR).

    Parameters
    ----------
    net : the network, with the palette
    palette_weight : of the palette's distance, which is added to the embedding's
    loader : this rank's pictures, with categories and items
    of_items : the others of its item are right, instead of those of its category
    device, amp : where and in which 16-bit type the network runs
    distributed : the processes, each with every W-th picture

    Returns
    -------
    See `evaluation.metrics.validation_score`.
    """
    training = net.net.training
    net.eval()
    batches, labels = [], []
    for images, categories, items in loader:
        with autocast(device, amp):
            found = net(images.to(device, non_blocking=True))
            batches.append([feature.float() for feature in found])
        labels.append(items if of_items else categories)
    net.train(training)
    own = [torch.cat(signal) for signal in zip(*batches, strict=True)]
    own.append(torch.cat(labels).to(device))
    total = int(distributed.all_reduce(own[-1].new_tensor(len(own[-1]))))
    embedding, palette, label = (distributed.all_gather(rows, total).cpu() for rows in own)
    distances = torch.cdist(embedding, embedding) + palette_weight * torch.cdist(palette, palette)
    return leave_one_out(distances, label.numpy(), of_items)


def leave_one_out(distances: Tensor, labels: np.ndarray, of_items: bool) -> tuple[float, int]:
    """`evaluation.metrics.validation_score` where every picture asks for the others of its label.

    Parameters
    ----------
    distances : N x N; changed
    labels : N; pictures whose label no other one has, or that are -1, do not ask
    of_items : see `evaluation.metrics.validation_score`
    """
    order = distances.fill_diagonal_(torch.inf).argsort(dim=1, stable=True)[:, :-1].numpy()
    hits = (labels[order] == labels[:, None]) & (labels[:, None] >= 0)
    return validation_score(hits, hits.sum(1), of_items)

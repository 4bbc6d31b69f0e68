"""How good a network is during its training: loss, accuracy, retrieval."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from evaluation.metrics import validation_score
from net import EmbeddingNet
from network.color import Palette
from network.device import autocast, copy_to
from network.distributed import Distributed


class Predictions(NamedTuple):
    """What a network computes for pictures, and their labels: logits N x K, embedding N x D,
    palette N x 512, categories and items N (int64, -1 where unknown)."""

    logits: Tensor
    embedding: Tensor
    palette: Tensor
    categories: Tensor
    items: Tensor


@torch.inference_mode()
def predict(
    net: EmbeddingNet,
    palette: Palette,
    loader: DataLoader,
    device: torch.device,
    amp: torch.dtype | None,
) -> Predictions:
    """Run a network in evaluation mode on all pictures of a loader."""
    training = net.training
    net.eval()
    batches = []
    for images, *labels in loader:
        x = net.normalize(copy_to(device, images))
        with autocast(device, amp):
            logits, embedding, conv_map = net(x)
            colors = palette(net.normalize.for_colors(x), conv_map)
        labels = [copy_to(device, values) for values in labels]
        batches.append((logits, embedding, colors, *labels))
    net.train(training)
    return Predictions(*map(torch.cat, zip(*batches, strict=True)))


def loss_and_accuracy(own: Predictions, distributed: Distributed) -> tuple[float, float]:
    """Mean cross entropy, and accuracy in 0 to 1, over the pictures of all processes."""
    loss = F.cross_entropy(own.logits, own.categories, reduction="sum")
    right = (own.logits.argmax(1) == own.categories).sum()
    count = torch.full_like(right, len(own.categories))
    total = distributed.all_reduce(torch.stack([loss, right, count]))
    loss_sum, right_sum, pictures = total.tolist()
    return loss_sum / pictures, right_sum / pictures


def retrieval_score(
    own: Predictions, total: int, palette_weight: float, by_item: bool, distributed: Distributed
) -> tuple[float, int]:
    """`evaluation.metrics.validation_score` of a network; each picture is a query among the others.

    Parameters
    ----------
    own : of this process's pictures, the scored ones first
    total : number of scored pictures of all processes
    palette_weight : of the palette's distance, which is added to the embedding's
    by_item : pictures are to find those of their item, else of their category
    distributed : the processes
    """
    parts = own.embedding, own.palette, own.items if by_item else own.categories
    embedding, palette, labels = (distributed.all_gather(part, total)[:total] for part in parts)
    distances = torch.cdist(embedding, embedding)
    distances += palette_weight * torch.cdist(palette, palette)
    order = distances.fill_diagonal_(torch.inf).argsort(dim=1, stable=True)[:, :-1]
    hits = (labels[order] == labels[:, None]) & (labels[:, None] >= 0)
    found = hits.cpu().numpy()
    return validation_score(found, found.sum(1), by_item)


def is_stable(history: Sequence[tuple[float, float]], patience: int = 3) -> bool:
    """Whether neither loss nor accuracy improves any more.

    True where none of the last `patience` validations lowers the best loss before them by more
    than 1%, or raises the best accuracy by more than half a percentage point. `history` has loss
    and accuracy, in 0 to 1, of each validation in order.
    """
    before, last = history[:-patience], history[-patience:]
    if not before:
        return False
    loss_falls = min(loss for loss, _ in last) < 0.99 * min(loss for loss, _ in before)
    accuracy_rises = max(a for _, a in last) > 0.005 + max(a for _, a in before)
    return not loss_falls and not accuracy_rises

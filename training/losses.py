"""What training minimises, and how: the metric losses, the optimizer and its learning rate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net import EmbeddingNet

MARGIN = 0.2  # of batch-hard triplets, between embeddings of length 1
PROXY_FACTOR = 100.0  # learning rate of proxies over the backbone's (Kim et al., section 4.1)
WARM_UP = 0.5  # epochs


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, cosine: bool) -> Tensor:
    """Triplet margin loss with margin 1.

    Parameters
    ----------
    anchor, positive, negative : N x D
    cosine : the distance is 1 - cosine similarity instead of the Euclidean one

    Returns
    -------
    Scalar: the mean of max(0, 1 + d(anchor, positive) - d(anchor, negative)).
    """
    if not cosine:
        return F.triplet_margin_loss(anchor, positive, negative)
    return F.triplet_margin_with_distance_loss(
        anchor,
        positive,
        negative,
        distance_function=lambda x, y: 1 - F.cosine_similarity(x, y),
    )


class SampledTriplets(nn.Module):
    """`triplet_loss` of a batch that holds anchors, then positives, then negatives."""

    def __init__(self, cosine: bool) -> None:
        super().__init__()
        self.cosine = cosine

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """3T x D -> scalar; the labels are in the order."""
        return triplet_loss(*embedding.chunk(3), cosine=self.cosine)


class LabelledLoss(nn.Module):
    """A loss of pytorch-metric-learning on the rows whose label is known.

    Parameters
    ----------
    loss, miner : of that library
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """N x D, N labels (-1: unknown) -> scalar."""
        embedding, labels = embedding[labels >= 0], labels[labels >= 0]
        chosen = self.miner(embedding, labels) if self.miner else None
        return self.loss(embedding, labels, chosen)


def build_metric_loss(
    kind: str, per_class: int, cosine: bool, classes: int, dim: int
) -> SampledTriplets | LabelledLoss:
    """Build the metric loss.

    Parameters
    ----------
    kind : proxy_anchor (Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020; alpha
        32, delta 0.1), batch_hard (Hermans et al., In Defense of the Triplet Loss, 2017) or
        triplet (all triplets of a balanced batch that break the margin, or the sampled ones)
    per_class : pictures of a label in a batch; 0 for sampled triplets
    cosine : of triplet
    classes : number of labels
    dim : D
    """
    # Takes seconds to import, and training alone needs it.
    from pytorch_metric_learning import distances, losses, miners

    if kind == "proxy_anchor":
        return LabelledLoss(losses.ProxyAnchorLoss(classes, dim, margin=0.1, alpha=32))
    if kind == "batch_hard":
        return LabelledLoss(losses.TripletMarginLoss(margin=MARGIN), miners.BatchHardMiner())
    if not per_class:
        return SampledTriplets(cosine)
    euclidean = distances.LpDistance(normalize_embeddings=False)
    distance = distances.CosineSimilarity() if cosine else euclidean
    return LabelledLoss(losses.TripletMarginLoss(margin=1, distance=distance))


def build_optimizer(
    kind: str, net: EmbeddingNet, metric: nn.Module, lr: float, momentum: float
) -> torch.optim.Optimizer:
    """An optimizer over the network and the metric loss's proxies.

    Parameters
    ----------
    kind : adamw or sgd
    lr : of SGD; with adamw, of all but the proxies (a cosine classifier's rows are proxies, too)
    momentum : of SGD
    """
    if kind == "sgd":
        parameters = [*net.parameters(), *metric.parameters()]
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    proxies = [*(net.fc2.parameters() if net.normalised else ()), *metric.parameters()]
    known = {id(parameter) for parameter in proxies}
    others = [parameter for parameter in net.parameters() if id(parameter) not in known]
    return torch.optim.AdamW(
        [
            {"params": others, "lr": lr},
            {"params": proxies, "lr": PROXY_FACTOR * lr, "weight_decay": 0.0},
        ],
        weight_decay=1e-4,
    )


def rate(step: int, warm: int, steps: int, epochs: int) -> float:
    """The factor of the learning rate: a linear warm-up, and half a cosine down to 0.

    Parameters
    ----------
    step : steps done since the beginning
    warm : steps done since all that is trained now has been trained
    steps : of an epoch
    epochs : of the run
    """
    warmed = min(1.0, (warm + 1) / max(1.0, WARM_UP * steps))
    return warmed * 0.5 * (1 + math.cos(math.pi * step / (steps * epochs)))

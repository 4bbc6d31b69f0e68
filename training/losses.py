"""What training minimises: cross entropy on categories and a metric loss on items."""

import torch.nn.functional as F
from torch import Tensor, nn

MARGIN = 0.2  # of batch-hard triplets, between embeddings of length 1


class SampledTriplets(nn.Module):
    """Triplet loss, margin 1, of a batch that holds anchors, then positives, then negatives.

    The distance is Euclidean, or with `cosine` 1 - cosine similarity.
    """

    def __init__(self, cosine: bool) -> None:
        super().__init__()
        self.cosine = cosine

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """3T x D -> scalar; the order stands for the labels, which are not used."""
        anchor, positive, negative = embedding.chunk(3)
        distance = (lambda x, y: 1 - F.cosine_similarity(x, y)) if self.cosine else None
        return F.triplet_margin_with_distance_loss(
            anchor, positive, negative, distance_function=distance
        )


class LabelledLoss(nn.Module):
    """A loss (and a miner) of pytorch-metric-learning on the rows whose label is known."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """N x D, N labels (-1: unknown) -> scalar."""
        embedding, labels = embedding[labels >= 0], labels[labels >= 0]
        mined = self.miner(embedding, labels) if self.miner else None
        return self.loss(embedding, labels, mined)


def build_metric_loss(
    kind: str, per_class: int, cosine: bool, classes: int, dim: int
) -> SampledTriplets | LabelledLoss:
    """Build the metric loss.

    Parameters
    ----------
    kind : proxy_anchor (Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020; alpha
        32, delta 0.1), batch_hard (Hermans et al., In Defense of the Triplet Loss, 2017) or
        triplet (all triplets of a balanced batch that violate the margin, or the sampled ones)
    per_class : pictures of each label in a batch; 0 for sampled triplets
    cosine : use cosine distance in the triplet loss
    classes : number of labels
    dim : length D of the embedding
    """
    # Takes seconds to import, and only training needs it.
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


class TrainingLoss(nn.Module):
    """Cross entropy plus a weighted metric loss.

    Parameters
    ----------
    metric : the metric loss
    weight : of the metric loss; 0 leaves it out
    by_item : the labels of the metric loss are items, else categories
    smoothing : label smoothing of cross entropy
    skipped : columns at the beginning of the embedding that the metric loss does not see, see
        `EmbeddingNet.category_dims`
    """

    def __init__(
        self,
        metric: SampledTriplets | LabelledLoss,
        weight: float,
        by_item: bool,
        smoothing: float,
        skipped: int = 0,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.weight = weight
        self.by_item = by_item
        self.smoothing = smoothing
        self.skipped = skipped

    def forward(
        self, logits: Tensor, embedding: Tensor, categories: Tensor, items: Tensor, count: int
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Parameters
        ----------
        logits : N x K
        embedding : N x D
        categories, items : N, int64; -1 where unknown
        count : the first `count` pictures are for cross entropy. The others are for the metric
            loss, which uses the first ones too, unless it is of sampled triplets

        Returns
        -------
        Scalars: "loss" is what to minimise, "cross entropy" and "metric" are its parts;
        "accuracy" of the categories, in 0 to 1.
        """
        logits, targets = logits[:count], categories[:count]
        cross_entropy = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        loss, metric = cross_entropy, cross_entropy.new_zeros(())
        if self.weight:
            labels = items if self.by_item else categories
            sampled = isinstance(self.metric, SampledTriplets)
            used = slice(count, None) if sampled else slice(None)
            metric = self.metric(embedding[used, self.skipped :], labels[used])
            loss = loss + self.weight * metric
        accuracy = (logits.argmax(1) == targets).float().mean()
        parts = {"cross entropy": cross_entropy, "metric": metric, "accuracy": accuracy}
        return {"loss": loss, **parts}

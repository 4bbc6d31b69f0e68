"""What training minimises: cross entropy on categories and a metric loss on items."""

import torch.nn.functional as F
from torch import Tensor, nn

from config import Config
from net import EmbeddingNet
from pictures.splits import Splits

MARGIN = 0.2  # of batch-hard triplets, between embeddings of length 1


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
) -> nn.TripletMarginWithDistanceLoss | LabelledLoss:
    """Build the metric loss: of (anchors, positives, negatives) or of (embedding, labels).

    Parameters
    ----------
    kind : proxy_anchor (Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020; alpha
        32, delta 0.1), batch_hard (Hermans et al., In Defense of the Triplet Loss, 2017) or
        triplet (margin 1, of all triplets of a balanced batch that violate it, or of sampled ones)
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
        by_cosine = (lambda x, y: 1 - F.cosine_similarity(x, y)) if cosine else None
        return nn.TripletMarginWithDistanceLoss(distance_function=by_cosine)
    euclidean = distances.LpDistance(normalize_embeddings=False)
    distance = distances.CosineSimilarity() if cosine else euclidean
    return LabelledLoss(losses.TripletMarginLoss(margin=1, distance=distance))


def build_loss(config: Config, splits: Splits, net: EmbeddingNet) -> "TrainingLoss":
    """What a run minimises: the metric loss by item where some of its pictures are drawn so."""
    by_item = config.inshop_share > 0
    items = set(splits.train.items.tolist()) - {""}
    classes = len(items if by_item else splits.category_names)
    kind, cosine = config.METRIC_LOSS, config.ENABLE_TRIPLET_WITH_COSINE
    dim = net.dim - net.category_dims
    metric = build_metric_loss(kind, config.PER_CLASS, cosine, classes, dim)
    smoothing = config.LABEL_SMOOTHING
    return TrainingLoss(metric, config.metric_weight, by_item, smoothing, net.category_dims)


class TrainingLoss(nn.Module):
    """Cross entropy plus a weighted metric loss.

    Parameters
    ----------
    metric : see `build_metric_loss`
    weight : of the metric loss; 0 leaves it out
    by_item : the labels of the metric loss are items, else categories
    smoothing : label smoothing of cross entropy
    skipped : columns at the beginning of the embedding that the metric loss does not see, see
        `EmbeddingNet.category_dims`
    """

    def __init__(
        self, metric: nn.Module, weight: float, by_item: bool, smoothing: float, skipped: int = 0
    ) -> None:
        super().__init__()
        self.metric, self.weight, self.by_item = metric, weight, by_item
        self.smoothing, self.skipped = smoothing, skipped

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
            embedding = embedding[:, self.skipped :]
            if isinstance(self.metric, LabelledLoss):
                metric = self.metric(embedding, items if self.by_item else categories)
            else:
                metric = self.metric(*embedding[count:].chunk(3))
            loss = loss + self.weight * metric
        accuracy = (logits.argmax(1) == targets).float().mean()
        parts = {"cross entropy": cross_entropy, "metric": metric, "accuracy": accuracy}
        return {"loss": loss, **parts}

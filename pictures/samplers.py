"""Which pictures make a batch of training: for cross entropy, and for the metric loss."""

from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field

import numpy as np
from torch.utils.data import Sampler

from pictures.table import Pictures
from utils import UserError


def sample_triplets(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw triplets: each picture whose label has another one is anchor in turn, in random order.

    The positive is another picture of the anchor's label. The negative's label is drawn evenly from
    the other labels, so that rare ones occur, then its picture evenly from that label.

    Parameters
    ----------
    labels : N, the category or item of each picture
    count : number of triplets
    rng : source of randomness

    Returns
    -------
    count x 3, int64: rows of anchor, positive and negative.

    Raises
    ------
    UserError : no label has two pictures, or there is one label only
    """
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    anchors = np.flatnonzero(sizes[label] > 1)
    if not len(anchors) or len(sizes) < 2:
        raise UserError(
            "no triplets can be drawn: they need two categories (items) or more, one of them with"
            " two pictures or more; see `python data.py check`, or set TRIPLET_WEIGHT to 0"
        )
    by_label = np.argsort(label, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    position = np.empty_like(by_label)  # of each picture within its label
    position[by_label] = np.arange(len(label)) - np.repeat(starts, sizes)

    rounds = -(-count // len(anchors))
    anchor = np.concatenate([rng.permutation(anchors) for _ in range(rounds)])[:count]
    own = label[anchor]
    step = 1 + rng.integers(sizes[own] - 1)
    positive = by_label[starts[own] + (position[anchor] + step) % sizes[own]]
    other = (own + 1 + rng.integers(len(sizes) - 1, size=count)) % len(sizes)
    negative = by_label[starts[other] + rng.integers(sizes[other])]
    return np.stack([anchor, positive, negative], axis=1)


def sample_balanced(
    labels: np.ndarray, per_class: int, width: int, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw batches with the same number of pictures of each label, by `MPerClassSampler`.

    Parameters
    ----------
    labels : N, the item or category of each picture
    per_class : pictures M of a label; those of a smaller label are repeated
    width : pictures a batch, see `balanced_width`
    steps : number of batches
    rng : source of randomness

    Returns
    -------
    steps x width, int64: rows.
    """
    from pytorch_metric_learning.samplers import MPerClassSampler  # takes a second to import

    sampler = MPerClassSampler(labels, per_class, width, length_before_new_iter=steps * width)
    state = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))  # it draws from NumPy's global generator
    try:
        return np.array(list(sampler), np.int64).reshape(steps, width)
    finally:
        np.random.set_state(state)


def balanced_width(labels: np.ndarray, per_class: int, batch_size: int) -> int:
    """Pictures of a balanced batch: `batch_size` rounded down to whole labels, two at least.

    Raises
    ------
    UserError : fewer than two labels
    """
    classes = len(np.unique(labels))
    if classes < 2:
        raise UserError(
            "no balanced batches can be drawn: they need two items (categories) or more;"
            " see `python data.py check`, or set TRIPLET_WEIGHT to 0"
        )
    return per_class * min(max(batch_size // per_class, 2), classes)


@dataclass(eq=False)
class TrainBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch: pictures for cross entropy, then those for the metric loss.

    An epoch passes once over the labelled pictures in random order. Everything random depends on
    seed and epoch alone: an epoch can be resumed at any step, with any number of workers.

    Parameters
    ----------
    pictures : rows 0 to `labelled` have a category for cross entropy; the in-shop ones have items
    labelled : number of pictures for cross entropy
    batch_size : pictures a step for cross entropy
    metric_size : triplets (anchors, positives, negatives) a step for the metric loss, or pictures
        with `per_class`; 0 for none
    inshop_share : share of the triplets drawn from items instead of categories, 0 to 1; balanced
        batches are of items where it is above 0
    per_class : pictures of each label in a balanced batch; 0 for triplets
    seed : of the shuffling, the metric loss's pictures and the transforms
    shard : a batch's size -> the part of it that this process reads, see `Distributed.shard`; where
        a small batch has no picture for it, it reads the first one, which is not counted

    Attributes
    ----------
    metric_pictures : number of pictures at the end of each batch that the metric loss gets
    """

    pictures: InitVar[Pictures]
    labelled: InitVar[int]
    batch_size: int
    metric_size: int
    inshop_share: float
    per_class: int
    seed: int
    shard: Callable[[int], slice] = slice
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)

    def __post_init__(self, pictures: Pictures, labelled: int) -> None:
        self.categories = pictures.categories[:labelled]
        self.item_rows = np.flatnonzero(pictures.items != "")
        self.items = pictures.items[self.item_rows]
        self.metric_pictures = 3 * self.metric_size
        if self.metric_size and self.per_class:
            labels = self.items if self.inshop_share else self.categories
            self.metric_pictures = balanced_width(labels, self.per_class, self.metric_size)

    def enter(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration, and its first step."""
        self.epoch, self.start = epoch, start

    def steps(self) -> int:
        """Steps of a whole epoch; a last picture alone, of which batch norms fail, joins others."""
        whole, rest = divmod(len(self.categories), self.batch_size)
        joins = whole and rest == 1 and not self.metric_pictures
        return whole + (rest > 0 and not joins)

    def size(self, step: int) -> int:
        """Pictures of a step's batch in all processes, including those for the metric loss."""
        is_last = step == self.steps() - 1
        rest = len(self.categories) - step * self.batch_size
        return (rest if is_last else self.batch_size) + self.metric_pictures

    def __len__(self) -> int:
        return self.steps() - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.categories))
        steps = self.steps()
        metric = self._metric_rows(steps, rng)
        width = max(self.batch_size + metric.shape[1], self.size(steps - 1))
        seeds = rng.integers(2**62, size=(steps, width))
        for step in range(self.start, steps):
            end = step * self.batch_size + self.size(step) - self.metric_pictures
            rows = np.concatenate([order[step * self.batch_size : end], metric[step]])
            batch = list(zip(rows.tolist(), seeds[step].tolist(), strict=False))
            yield batch[self.shard(len(batch))] or batch[:1]

    def _metric_rows(self, steps: int, rng: np.random.Generator) -> np.ndarray:
        """steps x `metric_pictures` rows."""
        if not self.metric_size:
            return np.empty((steps, 0), np.int64)
        if self.per_class:
            labels = self.items if self.inshop_share else self.categories
            rows = sample_balanced(labels, self.per_class, self.metric_pictures, steps, rng)
            return self.item_rows[rows] if self.inshop_share else rows
        count = steps * self.metric_size
        of_items = rng.random(count) < self.inshop_share
        triplets = np.empty((count, 3), np.int64)
        if not of_items.all():
            triplets[~of_items] = sample_triplets(self.categories, int((~of_items).sum()), rng)
        if of_items.any():
            rows = sample_triplets(self.items, int(of_items.sum()), rng)
            triplets[of_items] = self.item_rows[rows]
        return triplets.reshape(steps, self.metric_size, 3).swapaxes(1, 2).reshape(steps, -1)

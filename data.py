"""Tables of pictures -> datasets, transforms, batches and loaders.

python data.py check            report on a data set before anything is trained
python data.py import FOLDER    write the annotation files for a folder of one's own photos
python data.py import LIST.csv  the same for a list: path,category,item,color,partition

The folder is one folder per category, or none; one split in train/, validation/ and test/ keeps its
split. With --item-level or --item-pattern it is one of items in several views, too, and
DATASET_BASE/in_shop gets lists to train and to measure items with. With --in-shop it becomes the
items of a data set whose categories come from another folder:

    python data.py import photos --dataset-base data/mine
    python data.py import items --in-shop --item-level --dataset-base data/mine
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from pictures.decode import read_picture
from pictures.folder import picture_file
from pictures.table import Pictures
from utils import UserError, parse_args, run_script

Transform = Callable[[Image.Image], Tensor]
DETAIL = 3  # times the size that pictures are scaled to is what they are decoded at, at least


def train_transform(img_size: int, crop_size: int) -> Transform:
    """Random crop and flip, colours untouched: RGB picture -> crop_size x crop_size x 3, uint8."""
    return transforms.Compose(
        [
            transforms.Resize(img_size),
            transforms.RandomResizedCrop(crop_size, scale=(0.4, 1.0)),
            transforms.RandomHorizontalFlip(),
            _pixels,
        ]
    )


def eval_transform(img_size: int, crop_size: int) -> Transform:
    """Short side to img_size px, then the middle: RGB -> crop_size x crop_size x 3, uint8."""
    return transforms.Compose(
        [transforms.Resize(img_size), transforms.CenterCrop(crop_size), _pixels]
    )


def _pixels(picture: Image.Image) -> Tensor:
    # Bytes, a quarter of what floats are, go from the reading processes to the device.
    return torch.from_numpy(np.array(picture))


class PictureDataset(Dataset[tuple[Tensor, int, int]]):
    """The pictures of a table as tensors, each with its category and its item.

    Parameters
    ----------
    base : DATASET_BASE
    pictures : the table
    transform : RGB picture -> tensor
    crop : cut each picture to its box where it has one
    least : px of the short side below which `transform` would lose detail, see `read_picture`
    """

    def __init__(
        self, base: Path, pictures: Pictures, transform: Transform, crop: bool, least: int = 0
    ) -> None:
        self.base = base
        self.pictures = pictures
        self.transform = transform
        self.crop = crop
        self.least = least
        self.items = numbered(pictures.items)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int, int]:
        """Read one picture: tensor, category, and the item's number, -1 where it is unknown.

        Parameters
        ----------
        key : its row, or its row and the seed of the transform's random choices. With a seed the
            tensor hangs on the key alone, not on the process that reads it or what it read before.

        Raises
        ------
        PictureError : it cannot be read, or is none of the collection: see `picture_file`
        """
        row, seed = key if isinstance(key, tuple) else (key, None)
        x1, y1, x2, y2 = self.pictures.boxes[row].tolist()
        box = (x1, y1, x2, y2) if self.crop and x2 > 0 else None
        picture = read_picture(picture_file(self.base, self.pictures.paths[row]), box, self.least)
        if seed is None:
            tensor = self.transform(picture)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                tensor = self.transform(picture)
        return tensor, int(self.pictures.categories[row]), int(self.items[row])


def numbered(items: np.ndarray) -> np.ndarray:
    """Items by number, from 0 in the order of their names: N str -> N int64, -1 for ""."""
    names, number = np.unique(items, return_inverse=True)
    return number - 1 if len(names) and names[0] == "" else number


def sample_triplets(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw triplets: every picture that has a partner is anchor in turn, in random order.

    The positive is another picture of the anchor's label; the negative's label is drawn evenly
    from the other labels, so that rare ones are seen, then its picture evenly from that label.

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
    place = np.empty_like(by_label)  # of each picture within its label
    place[by_label] = np.arange(len(label)) - np.repeat(starts, sizes)

    rounds = -(-count // len(anchors))
    anchor = np.concatenate([rng.permutation(anchors) for _ in range(rounds)])[:count]
    own = label[anchor]
    step = 1 + rng.integers(sizes[own] - 1)
    positive = by_label[starts[own] + (place[anchor] + step) % sizes[own]]
    other = (own + 1 + rng.integers(len(sizes) - 1, size=count)) % len(sizes)
    negative = by_label[starts[other] + rng.integers(sizes[other])]
    return np.stack([anchor, positive, negative], axis=1)


def sample_balanced(
    labels: np.ndarray, per_class: int, batch_size: int, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw batches of as many pictures of each of their labels, by `MPerClassSampler`.

    Parameters
    ----------
    labels : N, the item or category of each picture
    per_class : pictures M of a label; one with fewer gives some of them again
    batch_size : pictures a batch, rounded down to whole labels, but to two labels at least
    steps : number of batches
    rng : source of randomness

    Returns
    -------
    steps x batch size, int64: rows.

    Raises
    ------
    UserError : fewer than two labels
    """
    from pytorch_metric_learning.samplers import MPerClassSampler  # takes a second to import

    width = balanced_width(labels, per_class, batch_size)
    sampler = MPerClassSampler(labels, per_class, width, length_before_new_iter=steps * width)
    before = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))  # it draws from NumPy's global generator
    try:
        return np.array(list(sampler), np.int64).reshape(steps, width)
    finally:
        np.random.set_state(before)


def balanced_width(labels: np.ndarray, per_class: int, batch_size: int) -> int:
    """Pictures of a balanced batch; see `sample_balanced`."""
    classes = len(np.unique(labels))
    if batch_size and classes < 2:
        raise UserError(
            "no balanced batches can be drawn: they need two items (categories) or more;"
            " see `python data.py check`, or set TRIPLET_WEIGHT to 0"
        )
    return per_class * min(max(batch_size // per_class, 2), classes) if batch_size else 0


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch: pictures for cross entropy, then those for the metric loss.

    An epoch passes once over the labelled pictures in random order. Everything random hangs on
    seed and epoch alone, so an epoch can be entered at any step, by any number of workers.

    Parameters
    ----------
    pictures : rows 0 to `labelled` have a category for cross entropy; the in-shop ones have items
    labelled : number of pictures that cross entropy is trained on
    batch_size : pictures a step for cross entropy
    metric_size : for the metric loss a step: triplets (anchors, positives, negatives), or with
        `per_class` pictures; 0 for none
    inshop_share : share of the triplets drawn from items instead of categories, 0 to 1; balanced
        batches are of items where it is above 0
    per_class : pictures of each label in a balanced batch; 0 for triplets
    seed : of the shuffling, the metric loss's pictures and the transforms

    Attributes
    ----------
    metric_pictures : how many pictures at the end of each batch are the metric loss's
    """

    def __init__(
        self,
        pictures: Pictures,
        labelled: int,
        batch_size: int,
        metric_size: int,
        inshop_share: float,
        per_class: int,
        seed: int,
    ) -> None:
        self.categories = pictures.categories[:labelled]
        self.item_rows = np.flatnonzero(pictures.items != "")
        self.items = pictures.items[self.item_rows]
        self.batch_size = batch_size
        self.metric_size = metric_size
        self.inshop_share = inshop_share
        self.per_class = per_class
        self.seed = seed
        self.epoch = 0
        self.start = 0
        labels = self.items if inshop_share else self.categories
        balanced = balanced_width(labels, per_class, metric_size) if per_class else 0
        self.metric_pictures = balanced if per_class else 3 * metric_size

    def enter(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration passes over, and its first step."""
        self.epoch = epoch
        self.start = start

    def steps(self) -> int:
        """Steps of a whole epoch."""
        return -(-len(self.categories) // self.batch_size)

    def size(self, step: int) -> int:
        """Pictures of a step's batch, those for the metric loss included."""
        rest = len(self.categories) - step * self.batch_size
        return min(self.batch_size, rest) + self.metric_pictures

    def __len__(self) -> int:
        return self.steps() - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.categories))
        steps = self.steps()
        metric = self._metric_rows(steps, rng)
        seeds = rng.integers(2**62, size=(steps, self.batch_size + metric.shape[1]))
        for step in range(self.start, steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            rows = np.concatenate([batch, metric[step]])
            yield list(zip(rows.tolist(), seeds[step].tolist(), strict=False))

    def _metric_rows(self, steps: int, rng: np.random.Generator) -> np.ndarray:
        """steps x M rows for the metric loss."""
        if not self.metric_size:
            return np.empty((steps, 0), np.int64)
        if not self.per_class:
            triplets = self._draw(steps * self.metric_size, rng)
            return triplets.reshape(steps, self.metric_size, 3).swapaxes(1, 2).reshape(steps, -1)
        if self.inshop_share:
            rows = sample_balanced(self.items, self.per_class, self.metric_size, steps, rng)
            return self.item_rows[rows]
        return sample_balanced(self.categories, self.per_class, self.metric_size, steps, rng)

    def _draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """count x 3 rows: triplets of categories and of items, mixed by the share."""
        of_items = rng.random(count) < self.inshop_share
        triplets = np.empty((count, 3), np.int64)
        if not of_items.all():
            wanted = int((~of_items).sum())
            triplets[~of_items] = sample_triplets(self.categories, wanted, rng)
        if of_items.any():
            drawn = sample_triplets(self.items, int(of_items.sum()), rng)
            triplets[of_items] = self.item_rows[drawn]
        return triplets


class ShardedBatches(Sampler[list[tuple[int, int]]]):
    """The part of each batch that one of several processes reads.

    Parameters
    ----------
    batches : the sampler of whole batches
    shard : a batch's size -> positions in it, see `Distributed.shard`; where a small batch has no
        picture for this process, it reads the first one, which is not counted
    """

    def __init__(self, batches: TrainBatches, shard: Callable[[int], slice]) -> None:
        self.batches = batches
        self.shard = shard

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield batch[self.shard(len(batch))] or batch[:1]


def make_loader(
    dataset: Dataset,
    workers: int,
    device: torch.device,
    *,
    batch_size: int = 1,
    batch_sampler: Sampler | None = None,
    persistent: bool = False,
) -> DataLoader:
    """A loader in order, or by the batches of a sampler. It does not touch the global seed.

    Parameters
    ----------
    dataset : of pictures
    workers : processes that read; 0 reads in this one
    device : that batches are copied to; memory is pinned for CUDA only
    batch_size : pictures a batch, without a `batch_sampler`
    batch_sampler : yields the rows of each batch
    persistent : keep the processes from one pass to the next
    """
    return DataLoader(
        dataset,
        batch_size=1 if batch_sampler else batch_size,
        batch_sampler=batch_sampler,
        num_workers=workers,
        # Workers of a fork server, Python's default from 3.14 on, would outlive a kill for ever.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
        persistent_workers=persistent and workers > 0,
        generator=torch.Generator(),
    )


USES = (
    "DATASET_BASE", "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET",
    "INSHOP_DATASET_PERCENT", "VAL_SHARE", "RECIPE", "PER_CLASS", "TRIPLET_WEIGHT", "NUM_WORKERS",
)  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", choices=("check", "import"), help="what to do, see above")
    parser.add_argument("folder", nargs="?", type=Path, help="import: the photos")
    parser.add_argument(
        "--item-level",
        action="store_true",
        help="import: item folders lie in category folders; a picture's colour is its file name up"
        " to the first _",
    )
    parser.add_argument(
        "--item-pattern",
        metavar="REGEX",
        help="import: regular expression searched in each path below FOLDER; its group (?P<item>)"
        " is the item, (?P<color>) and (?P<category>), if there, the colour and the category"
        " (else the top folder)",
    )
    parser.add_argument(
        "--in-shop",
        action="store_true",
        help="import: write DATASET_BASE/in_shop alone, beside a data set with categories; needs"
        " items. With --item-level the category is then the one folder above the item's",
    )
    parser.add_argument(
        "--gallery",
        metavar="REGEX",
        help="import: held-out pictures whose path below FOLDER it is found in are gallery, the"
        " others queries (default: the first picture of each item and colour is gallery)",
    )
    parser.add_argument(
        "--test",
        action="store_true",
        help="import: hold out everything, to measure a model of another data set on it",
    )


def main(argv: Sequence[str] | None = None) -> int:
    # Here, so that scripts that only want the datasets do not load them.
    from pictures.check import check_data_set
    from pictures.import_folder import import_folder

    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    if args.command == "check":
        return check_data_set(
            config.DATASET_BASE,
            config.CATEGORIES,
            config.VAL_SHARE,
            config.CROP_TO_BBOX,
            config.NUM_WORKERS,
            inshop=config.ENABLE_INSHOP_DATASET,
            inshop_share=config.INSHOP_DATASET_PERCENT,
            metric=config.TRIPLET_WEIGHT > 0,
            per_class=config.PER_CLASS,
        )
    if args.folder is None:
        raise UserError("import: name the folder of photos: python data.py import FOLDER")
    import_folder(
        args.folder,
        config.DATASET_BASE,
        config.CATEGORIES,
        config.VAL_SHARE,
        item_level=args.item_level,
        item_pattern=args.item_pattern,
        inshop=args.in_shop,
        gallery=args.gallery,
        test=args.test,
    )
    return 0


if __name__ == "__main__":
    run_script(main)

"""Tables of pictures -> datasets, transforms, batches and loaders.

python data.py check            report on a data set before anything is trained
python data.py import FOLDER    write the annotation files for a folder of one's own photos
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from annotations import Pictures
from config import parse_args
from utils import UserError, read_picture, run_script

# ImageNet's, which torchvision's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]


def train_transform(img_size: int, crop_size: int) -> Transform:
    """Random crop and flip, colours untouched: RGB picture -> 3 x crop_size x crop_size."""
    return transforms.Compose(
        [
            transforms.Resize(img_size),
            transforms.RandomResizedCrop(crop_size, scale=(0.4, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def eval_transform(img_size: int, crop_size: int) -> Transform:
    """Short side to img_size px, then the middle: RGB picture -> 3 x crop_size x crop_size."""
    return transforms.Compose(
        [
            transforms.Resize(img_size),
            transforms.CenterCrop(crop_size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """The pictures of a table as tensors, each with its category.

    Parameters
    ----------
    base : DATASET_BASE
    pictures : the table
    transform : RGB picture -> tensor
    crop : cut each picture to its box where it has one
    """

    def __init__(self, base: Path, pictures: Pictures, transform: Transform, crop: bool) -> None:
        self.base = base
        self.pictures = pictures
        self.transform = transform
        self.crop = crop

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Read one picture.

        Parameters
        ----------
        key : its row, or its row and the seed of the transform's random choices. With a seed the
            tensor hangs on the key alone, not on the process that reads it or what it read before.

        Raises
        ------
        PictureError : it cannot be read
        """
        row, seed = key if isinstance(key, tuple) else (key, None)
        x1, y1, x2, y2 = self.pictures.boxes[row].tolist()
        box = (x1, y1, x2, y2) if self.crop and x2 > 0 else None
        picture = read_picture(self.base / self.pictures.paths[row], box)
        if seed is None:
            tensor = self.transform(picture)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                tensor = self.transform(picture)
        return tensor, int(self.pictures.categories[row])


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


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch: pictures for cross entropy, then anchors, positives, negatives.

    An epoch passes once over the labelled pictures in random order. Everything random hangs on
    seed and epoch alone, so an epoch can be entered at any step, by any number of workers.

    Parameters
    ----------
    pictures : rows 0 to `labelled` have a category for cross entropy; the in-shop ones have items
    labelled : number of pictures that cross entropy is trained on
    batch_size : pictures a step for cross entropy
    triplets : triplets a step; 0 for none
    inshop_share : share of the triplets drawn from items instead of categories, 0 to 1
    seed : of the shuffling, the triplets and the transforms
    """

    def __init__(
        self,
        pictures: Pictures,
        labelled: int,
        batch_size: int,
        triplets: int,
        inshop_share: float,
        seed: int,
    ) -> None:
        self.categories = pictures.categories[:labelled]
        self.item_rows = np.flatnonzero(pictures.items != "")
        self.items = pictures.items[self.item_rows]
        self.batch_size = batch_size
        self.triplets = triplets
        self.inshop_share = inshop_share
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def enter(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration passes over, and its first step."""
        self.epoch = epoch
        self.start = start

    def steps(self) -> int:
        """Steps of a whole epoch."""
        return -(-len(self.categories) // self.batch_size)

    def __len__(self) -> int:
        return self.steps() - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.categories))
        steps, width = self.steps(), self.batch_size + 3 * self.triplets
        seeds = rng.integers(2**62, size=(steps, width))
        triplets = self._draw(steps * self.triplets, rng).reshape(steps, self.triplets, 3)
        for step in range(self.start, steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            rows = np.concatenate([batch, triplets[step].T.ravel()])
            yield list(zip(rows.tolist(), seeds[step].tolist(), strict=False))

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


def make_loader(
    dataset: Dataset,
    workers: int,
    pin: bool,
    *,
    batch_size: int = 1,
    batch_sampler: Sampler | None = None,
) -> DataLoader:
    """A loader in order, or by the batches of a sampler, that leaves the global seed alone."""
    return DataLoader(
        dataset,
        batch_size=1 if batch_sampler else batch_size,
        batch_sampler=batch_sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", choices=("check", "import"), help="what to do, see above")
    parser.add_argument("folder", nargs="?", type=Path, help="import: the folder of photos")
    parser.add_argument(
        "--item-level", action="store_true", help="import: item folders lie in category folders"
    )
    parser.add_argument(
        "--item-pattern",
        metavar="REGEX",
        help="import: regular expression searched in each path below FOLDER; its group (?P<item>)"
        " is the item, (?P<color>) and (?P<category>), if there, the colour and the category",
    )


def main(argv: Sequence[str] | None = None) -> int:
    # Here, so that scripts that only want the datasets do not load them.
    from data_check import check_data_set
    from data_import import import_folder

    config, args = parse_args(argv, __doc__ or "", ("data set", "machine"), _arguments)
    if args.command == "check":
        return check_data_set(
            config.DATASET_BASE,
            config.CATEGORIES,
            config.ENABLE_INSHOP_DATASET,
            config.VAL_SHARE,
            config.CROP_TO_BBOX,
            config.TRIPLET_WEIGHT > 0,
            config.NUM_WORKERS,
        )
    if args.folder is None:
        raise UserError("import: name the folder of photos: python data.py import FOLDER")
    import_folder(
        args.folder,
        config.DATASET_BASE,
        config.CATEGORIES,
        config.VAL_SHARE,
        args.item_level,
        args.item_pattern,
    )
    return 0


if __name__ == "__main__":
    run_script(main)

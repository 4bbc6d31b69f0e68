"""Check a data set, or make one of your own photos.

python data.py check            report on a data set before anything is trained
python data.py import FOLDER    make DATASET_BASE of a folder of photos, which stay where they are
python data.py import LIST.csv  the same of a list beside them: path,category,item,color,partition

FOLDER has one folder per category, or none; a split into train/, validation/ and test/ is kept.
With --item-level or --item-pattern the photos show items in several views, and DATASET_BASE/in_shop
gets lists of these for training and evaluation. With --in-shop they become the items of a data set
whose categories come from another folder:

    python data.py import photos --dataset-base data/mine
    python data.py import items --in-shop --item-level --dataset-base data/mine

An image-text model finds the category of photos without one. Such categories are marked: they are
searched and shown, but not trained on and not evaluated.

    python data.py import photos --categories "dress,shirt,trousers" --backbone open_clip/NAME
"""
# For other scripts: the pictures of a table as datasets and loaders.

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision import transforms

from config import Config
from pictures.decode import PictureError, read_picture, refuse_sheet
from pictures.folder import picture_file
from pictures.table import Pictures, category_key, clean
from utils import UserError, parse_args, progress_bar, run_script

USES = (
    "DATASET_BASE", "CATEGORIES", "ALLOWED_ROOTS", "TRUNCATED", "CROP_TO_BBOX",
    "ENABLE_INSHOP_DATASET", "INSHOP_DATASET_PERCENT", "VAL_SHARE", "RECIPE", "PER_CLASS",
    "TRIPLET_WEIGHT", "NORMALIZE", "INTER_DIM", "NUM_WORKERS", "BACKBONE",
    "PRETRAINED", "TEXT_PROMPT", "DEVICE",
)  # fmt: skip
Transform = Callable[[Image.Image], Tensor]
PADDING = (124, 116, 104)  # the mean of ImageNet: 0 in the network's input
TRANSFORM = 3  # changes with what decoding, `eval_transform` or a colour feature gives
MAX_REPLACED = 100  # unreadable pictures in a row: then it is not the pictures
ZERO_SHOT_BATCH = 32  # pictures
DETAIL = 3  # pictures are decoded at this many times the size that they are scaled to, or more


def train_transform(side: int, interpolation: str = "bilinear", padded: bool = True) -> Transform:
    """Random crop and flip, colours untouched: RGB picture -> side x side x 3, uint8.

    The crop is cut from the whole picture, then scaled: the other way round it would be blurred.
    `interpolation` and `padded` are as for `eval_transform`.
    """
    how = transforms.InterpolationMode(interpolation)
    crop = transforms.RandomResizedCrop(side, scale=(0.4, 1.0), interpolation=how)
    pad = [partial(pad_narrow, side=2 * side)] if padded else []
    return transforms.Compose([*pad, crop, transforms.RandomHorizontalFlip(), _pixels])


def eval_transform(
    img_size: int,
    crop_size: int,
    interpolation: str = "bilinear",
    resize: str = "padded",
    fill: tuple[int, ...] = PADDING,
) -> Transform:
    """Scale, then cut the middle: RGB -> crop_size x crop_size x 3, uint8.

    Parameters
    ----------
    img_size : px of the scaled picture
    crop_size : px of a side of the square
    interpolation : bilinear, bicubic ... of torchvision
    resize : what has img_size px: the short side (shortest), also of a picture made less narrow
        (padded, see `pad_narrow`), both sides (squash), or the long side, the rest filled (longest)
    fill : R, G and B of that rest, from 0 to 255
    """
    how = transforms.InterpolationMode(interpolation)
    steps: list[Any] = [transforms.Resize(img_size, how)]
    if resize == "padded":
        steps.insert(0, partial(pad_narrow, side=img_size))
    elif resize == "squash":
        steps = [transforms.Resize((img_size, img_size), how)]
    elif resize == "longest":
        steps = [partial(_fit, side=img_size, how=how, fill=fill)]
    return transforms.Compose([*steps, transforms.CenterCrop(crop_size), _pixels])


def _fit(
    picture: Image.Image, side: int, how: transforms.InterpolationMode, fill: tuple[int, ...]
) -> Image.Image:
    """Scale the long side to `side` px, and put the picture in the middle of a square."""
    width, height = (round(side * length / max(picture.size)) for length in picture.size)
    square = Image.new("RGB", (side, side), fill)
    scaled = transforms.functional.resize(picture, [height, width], how)
    square.paste(scaled, ((side - width) // 2, (side - height) // 2))
    return square


def pad_narrow(picture: Image.Image, side: int) -> Image.Image:
    """Pad a narrow RGB picture, so that the square in its middle shows more of it.

    At 3:4, as photos are, nothing is added; the narrower, the more. From 1:2 on it becomes a
    square: of a whole outfit, both the top and the shoes are seen. What is padded is also scaled
    down, its short side to `side` px where it is larger.
    """
    short, long = sorted(picture.size)
    wanted = min(long, round(1.5 * long) - short)
    if wanted <= short:
        return picture
    scale = min(1.0, side / wanted)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    padded_short, padded_long = round(scale * wanted), max(width, height)
    upright = picture.width < picture.height
    size = (padded_short, padded_long) if upright else (padded_long, padded_short)
    padded = Image.new("RGB", size, PADDING)
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    padded.paste(scaled, ((size[0] - width) // 2, (size[1] - height) // 2))
    return padded


def _pixels(picture: Image.Image) -> Tensor:
    # uint8, not float32: a quarter of the bytes go from the reading processes to the device.
    return torch.from_numpy(np.array(picture))


@dataclass(eq=False)
class PictureDataset(Dataset[tuple[Tensor, int, int]]):
    """The pictures of a table as tensors, each with its category and its item.

    Parameters
    ----------
    base : DATASET_BASE
    pictures : the table
    transform : RGB picture -> tensor
    crop : cut each picture to its box where it has one
    min_side : px of the short side below which `transform` would lose detail, see `read_picture`
    truncated : read files whose end is missing, see `read_picture`
    replace : instead of a picture that cannot be read, give the next one, and say so
    labelled : the first ones, which replace each other; the others may lack a category

    Attributes
    ----------
    unreadable : with `replace`, 1 for each picture that a process found so, else 0
    """

    base: Path
    pictures: Pictures
    transform: Transform
    crop: bool
    min_side: int = 0
    truncated: bool = False
    replace: bool = False
    labelled: int = 0

    def __post_init__(self) -> None:
        self.items = numbered(self.pictures.items)
        self.unreadable: Any = RawArray("B", len(self)) if self.replace else b""

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, row: int) -> Image.Image:
        """One picture before the transform."""
        path = picture_file(self.base, self.pictures.paths[row])
        x1, y1, x2, y2 = self.pictures.boxes[row].tolist()
        box = (x1, y1, x2, y2) if self.crop and x2 > 0 else None
        picture = read_picture(path, box, self.min_side, str(path), self.truncated)
        refuse_sheet(picture, path)
        return picture

    def readable(self, row: int) -> tuple[int, Image.Image]:
        """A picture and its row: the next one that can be read, and a line about each other."""
        end = self.labelled if row < self.labelled else len(self)  # one with a category gets one
        for other in (number % end for number in range(row, row + MAX_REPLACED)):
            try:
                return other, self.picture(other)
            except PictureError as error:
                if not self.unreadable[other]:
                    print(f"{error}: left out; the next one takes its place", file=sys.stderr)
                self.unreadable[other] = 1
                last = error
        raise last

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int, int]:
        """Read one picture: tensor, category, and the item's number, -1 where it is unknown.

        Parameters
        ----------
        key : its row, or its row and the seed of the transform's random choices. With a seed the
            tensor depends on the key alone, not on the process or on what it has read before.

        Raises
        ------
        PictureError : it cannot be read, or is outside the collection, see `picture_file`; with
            `replace`, `MAX_REPLACED` in a row cannot
        """
        row, seed = key if isinstance(key, tuple) else (key, None)
        row, picture = self.readable(row) if self.replace else (row, self.picture(row))
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            tensor = self.transform(picture)
        return tensor, int(self.pictures.categories[row]), int(self.items[row])


def numbered(items: np.ndarray) -> np.ndarray:
    """Items by number, from 0 in the order of their names: N str -> N int64, -1 for ""."""
    names, number = np.unique(items, return_inverse=True)
    return number - 1 if len(names) and names[0] == "" else number


def count_unreadable(loaders: Iterable[DataLoader]) -> int:
    """How many pictures of some loaders' datasets could not be read so far, see `replace`."""
    datasets = [loader.dataset for loader in loaders]
    sources = [each.dataset if isinstance(each, Subset) else each for each in datasets]
    return sum(sum(each.unreadable) for each in sources if isinstance(each, PictureDataset))


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
        # Workers of a fork server, Python's default from 3.14 on, survive a kill of their parent.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
        persistent_workers=persistent and workers > 0,
        generator=torch.Generator(),
    )


OPTIONS = {
    "--columns NAME=COLUMN,...": "the list's own names of columns: path=id,category=articleType",
    "--item-level": "the folders are CATEGORY/ITEM/; red_1.jpg, red_2.jpg are of the color red,"
    " where other file names show that they begin with colors",
    "--in-shop": "write DATASET_BASE/in_shop alone, beside a data set with categories; needs items."
    " With --item-level the category is then the one folder above the item's",
    "--test": "all pictures are test, to evaluate a model of another data set on them",
    "--item-pattern REGEX": "searched in each path below FOLDER; its group (?P<item>...) is the"
    " item, (?P<color>...) and (?P<category>...), if there, the color and the category (else the"
    " top folder)",
    "--gallery REGEX": "of the items' pictures outside train, those whose path below FOLDER matches"
    " are the gallery, the others queries (default: the first picture of each item and color)",
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", choices=("check", "import"), help="what to do, see above")
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER|LIST.csv", help="import: the photos"
    )
    for option, text in OPTIONS.items():
        name, _, value = option.partition(" ")
        how: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
        parser.add_argument(name, help=f"import: {text}", **how)


def _category_names(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The names of `import --categories A,B` (a number is the setting), and the other arguments."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--categories", nargs="?", default="0", const="")
    text, rest = parser.parse_known_args(argv)
    if "import" not in argv or text.categories.isdecimal():
        return [], argv
    names = {category_key(name): clean(name) for name in text.categories.split(",") if clean(name)}
    if len(names) < 2:
        raise UserError(f"--categories {text.categories!r}: name two or more, as in dress,shirt")
    return list(names.values()), rest


def assign_categories(
    config: Config, names: Sequence[str], files: Sequence[Path]
) -> list[tuple[str, float]]:
    """Find the nearest of some names of categories for each photo, by an image-text model.

    Returns
    -------
    Of each photo a name, "" where it cannot be read, and its probability among the names, 0 to 1.

    Raises
    ------
    UserError : BACKBONE is no image-text model, or cannot be had
    """
    from network.architecture import new_architecture
    from network.device import pick_device
    from network.zero_shot import ZeroShot

    network, device = new_architecture(config, list(names)), pick_device(config.DEVICE)
    nearest = ZeroShot(network, config.PRETRAINED, config.TEXT_PROMPT, names, device)
    transform = eval_transform(**network.transform)
    side, truncated = DETAIL * network.img_size, config.TRUNCATED == "accept"

    def read(file: Path) -> Tensor | None:
        with suppress(PictureError):
            return transform(read_picture(file, None, side, str(file), truncated))
        return None

    found = [("", 0.0)] * len(files)
    bar = progress_bar(len(files), "assigning", "picture")
    with bar, ThreadPoolExecutor(max(1, config.NUM_WORKERS)) as pool:
        for start in range(0, len(files), ZERO_SHOT_BATCH):
            read_all = enumerate(pool.map(read, files[start : start + ZERO_SHOT_BATCH]), start)
            images = {row: image for row, image in read_all if image is not None}
            if images:
                numbers, values = nearest(torch.stack([*images.values()]))
                for row, number, value in zip(
                    images, numbers.tolist(), values.tolist(), strict=True
                ):
                    found[row] = names[number], value
            bar.update(min(ZERO_SHOT_BATCH, len(files) - start))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    # Imported here: the other scripts that import data.py do not need them.
    from pictures.check import check_data_set
    from pictures.folder import allow_roots
    from pictures.import_folder import import_folder

    names, argv = _category_names(argv)
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    if args.command == "check":
        allow_roots(config.DATASET_BASE, config.ALLOWED_ROOTS)
        return check_data_set(
            config.DATASET_BASE,
            config.CATEGORIES,
            config.VAL_SHARE,
            config.CROP_TO_BBOX,
            config.NUM_WORKERS,
            truncated=config.TRUNCATED == "accept",
            inshop=config.ENABLE_INSHOP_DATASET,
            inshop_share=config.inshop_share,
            metric=config.metric_weight > 0,
            per_class=config.PER_CLASS,
        )
    if args.folder is None:
        raise UserError("import: name the folder of photos, or a list: data.py import FOLDER")
    if names and args.in_shop:
        raise UserError("--categories is about photos; with --in-shop the items' are known")
    import_folder(
        args.folder,
        config.DATASET_BASE,
        config.VAL_SHARE,
        columns=args.columns,
        roots=config.ALLOWED_ROOTS,
        item_level=args.item_level,
        item_pattern=args.item_pattern,
        inshop=args.in_shop,
        gallery=args.gallery,
        test=args.test,
        assign=partial(assign_categories, config, names) if names else None,
    )
    return 0


if __name__ == "__main__":
    run_script(main)

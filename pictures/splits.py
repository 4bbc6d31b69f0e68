"""The split of a data set's training part: what is trained on, and what validates.

Validation pictures choose the best epoch and the weights of the signals. Test pictures, queries and
gallery do neither, so figures measured on them are of pictures that nothing was chosen by.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pictures.collection import choose_items, read_labelled, require_photos
from pictures.deepfashion import attribute_list, has_items, read_items
from pictures.table import Pictures, align, choose_validation_by_category, merge
from utils import UserError, command


@dataclass(frozen=True)
class Splits:
    """The split of a data set's training part.

    Attributes
    ----------
    train : the pictures to train on, those with a category for cross entropy first
    labelled : how many these are
    validation : pictures with categories, not trained on
    validation_items : in-shop pictures of whole items, not trained on; empty without in-shop part
    """

    train: Pictures
    labelled: int
    validation: Pictures
    validation_items: Pictures

    @property
    def category_names(self) -> list[str]:
        """Names of the categories that cross entropy learns."""
        last = int(self.train.categories[: self.labelled].max()) + 1
        return self.train.category_names[: max(last, len(self.validation.category_names))]

    def digest(self) -> str:
        """A hash of the pictures of each split and of their labels, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.validation_items):
            names = "\n".join([*part.paths, *part.category_names, *part.items])
            digest.update(names.encode(errors="surrogateescape"))
            digest.update(part.categories.tobytes() + part.boxes.tobytes())
        return digest.hexdigest()[:16]


def read_splits(
    base: Path,
    categories: int,
    inshop: bool,
    val_share: float,
    assigned: bool = False,
    item_categories: bool = True,
) -> Splits:
    """Split the training part of a data set.

    `val_share` of the training items are for validation, with all their pictures, or those of
    consumer-to-shop's val part where it is there. Of the labelled pictures the val part is for
    validation if there is also a test part; else val (if any) is the test part, and `val_share` of
    each category's training pictures are for validation. In-shop queries and gallery are in no
    split, even if the labelled lists have them, nor are pictures whose category is unknown.

    Parameters
    ----------
    base, categories, val_share, assigned : as for `collection.read_labelled`
    inshop : use the in-shop part
    item_categories : the items' categories are for cross entropy, too

    Raises
    ------
    UserError : a split is empty, or a list is missing or malformed
    """
    labelled = read_labelled(base, categories, val_share, assigned)
    require_photos(base)
    unknown = labelled.select(labelled.categories < 0)
    labelled = labelled.select(labelled.categories >= 0)
    inshop_alone = attribute_list(base) is None and has_items(base)
    if not inshop_alone and has_items(base):
        tested = read_items(base).in_partition("query", "gallery")
        labelled = labelled.select(np.flatnonzero(align(labelled.paths, tested.paths) < 0))
    train = labelled.in_partition("train")
    items = read_items(base).in_partition("train", "val") if inshop else train.select(np.arange(0))
    item_chosen = choose_items(items, val_share)

    item_of = align(train.paths, items.paths)
    has_item = item_of >= 0
    chosen = np.zeros(len(train), bool)
    chosen[has_item] = item_chosen[item_of[has_item]]
    if inshop_alone or {"test", "val"} <= set(labelled.partitions.tolist()):
        validation = labelled.in_partition("val")
    else:
        paths = np.array(train.paths)
        chosen |= ~has_item & choose_validation_by_category(train.categories, paths, val_share)
        validation = train.select(chosen)
    train = train.select(~chosen)
    for name, split in (("train", train), ("validation", validation)):
        if not len(split):
            check = command("data.py check", base)
            raise UserError(f"{base}: no picture in its {name} part; see {check}")
    pictures, count = train, len(train)
    if inshop:
        pictures = merge(train, _without_categories(items.select(~item_chosen), unknown.paths))
        pictures = pictures.select(np.argsort(pictures.categories < 0, kind="stable"))
        count = int((pictures.categories >= 0).sum()) if item_categories else count
    return Splits(pictures, count, validation, items.select(item_chosen))


def _without_categories(items: Pictures, paths: Sequence[str]) -> Pictures:
    """The pictures, those of `paths` without the category that their item's folder gives."""
    known = align(items.paths, paths) < 0
    return replace(items, categories=np.where(known, items.categories, -1).astype(np.int16))

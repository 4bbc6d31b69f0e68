"""The split of a data set's training part: what is trained on, and what validates.

Validation pictures choose the best epoch and the weights of the signals. Test pictures, queries and
gallery do neither, so figures measured on them are of pictures that nothing was chosen by.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pictures.annotations import Pictures, align, attribute_list, inshop_list, read_inshop
from pictures.collection import held_out, held_out_of_each, merge, read_labelled
from utils import UserError


@dataclass(frozen=True)
class Splits:
    """The split of a data set's training part.

    Attributes
    ----------
    train : the pictures to train on, those with a category for cross entropy first
    labelled : how many have a category
    validation : pictures with categories, not trained on
    validation_items : in-shop pictures of whole items, not trained on; empty without in-shop part
    """

    train: Pictures
    labelled: int
    validation: Pictures
    validation_items: Pictures

    def digest(self) -> str:
        """A hash of the pictures of each split and of their labels, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.validation_items):
            names = "\n".join([*part.paths, *part.category_names, *part.items])
            digest.update(names.encode(errors="surrogateescape"))
            digest.update(part.categories.tobytes() + part.boxes.tobytes())
        return digest.hexdigest()[:16]


def read_splits(base: Path, categories: int, inshop: bool, val_share: float) -> Splits:
    """Divide the training part of a data set.

    Of the in-shop training items, `val_share` are kept, all their pictures. Of the labelled
    pictures, the val part is kept where there is a test part to measure on; else val (if any) is
    what is measured, and `val_share` of each category's training pictures are kept. In-shop
    queries and gallery are in none of the parts, whatever the labelled lists call them.

    Parameters
    ----------
    base, categories, val_share : as for `collection.read_labelled`
    inshop : use the in-shop part

    Raises
    ------
    UserError : a part is empty, or a list is missing or malformed
    """
    labelled = read_labelled(base, categories, val_share)
    lone_inshop = attribute_list(base) is None and inshop_list(base) is not None
    if not lone_inshop:
        labelled = _without_measured(base, labelled)
    train = labelled.in_partition("train")
    items = read_inshop(base).in_partition("train") if inshop else train.select(np.arange(0))
    keep_items = held_out(items.items, val_share)

    item_of = align(train.paths, items.paths)
    known = item_of >= 0
    keep = np.zeros(len(train), bool)
    keep[known] = keep_items[item_of[known]]
    if lone_inshop or {"test", "val"} <= set(labelled.partitions.tolist()):
        held = labelled.in_partition("val")
    else:
        keep |= ~known & held_out_of_each(train.categories, np.array(train.paths), val_share)
        held = train.select(keep)
    train = train.select(~keep)
    for name, part in (("train", train), ("validation", held)):
        if not len(part):
            raise UserError(f"{base}: no picture in its {name} part; see `python data.py check`")
    pictures = merge(train, items.select(~keep_items)) if inshop else train
    return Splits(pictures, len(train), held, items.select(keep_items))


def _without_measured(base: Path, labelled: Pictures) -> Pictures:
    """The pictures that are neither query nor gallery of the in-shop list, if there is one."""
    if inshop_list(base) is None:
        return labelled
    measured = read_inshop(base).in_partition("query", "gallery")
    return labelled.select(np.flatnonzero(align(labelled.paths, measured.paths) < 0))

"""What is below DATASET_BASE, DeepFashion's lists or a plain folder -> one table of pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pictures.deepfashion import attribute_list, inshop_list, read_attribute, read_inshop
from pictures.folder import read_folder
from pictures.table import Pictures, choose_validation, merge


def read_labelled(base: Path, categories: int, val_share: float) -> Pictures:
    """Read the pictures with categories: attribute lists, else in-shop lists, else a plain folder.

    Where there are in-shop lists alone, the folders are the categories, and `val_share` of the
    items of the train partition become val. As in `merge`, in-shop pictures lose their boxes.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep categories 1 to this number of the attribute lists; folders have no numbers
    val_share : as for `read_folder`

    Raises
    ------
    UserError : there is no picture, or a list is malformed
    """
    if attribute_list(base) is not None:
        return read_attribute(base, categories)
    if inshop_list(base) is None:
        return read_folder(base, val_share)
    inshop = read_inshop(base)
    train = np.flatnonzero(inshop.partitions == "train")
    partitions = inshop.partitions.copy()
    partitions[train[choose_validation(inshop.items[train], val_share)]] = "val"
    return replace(inshop, partitions=partitions, boxes=np.zeros_like(inshop.boxes))


def read_collection(base: Path, categories: int, inshop: bool, val_share: float) -> Pictures:
    """Read all pictures of a data set, each once, of every partition.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep categories 1 to this number of the attribute benchmark
    inshop : add the in-shop part, see `merge`. Without attribute lists it is read in any case
    val_share : as for `read_folder`

    Raises
    ------
    UserError : there is no picture, or a list is malformed
    """
    labelled = read_labelled(base, categories, val_share)
    return merge(labelled, read_inshop(base)) if inshop else labelled

"""Arrays from files that may be damaged, or made to do harm: plain ones, checked, or none."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def map_array(path: Path, form: str, dimensions: int, mode: str = "r") -> np.ndarray:
    """Map a .npy file.

    Parameters
    ----------
    path : the file
    form : what its dtype begins with, as in "<f4" or "<U"
    dimensions : of the array
    mode : r, or c for copy on write

    Raises
    ------
    ValueError : it is missing, damaged, of another form, or holds objects, which only code could
        load; one line
    """
    try:
        if not path.is_file():  # to open a pipe would wait for its writer
            raise ValueError("no such file")
        # Plain arrays: NumPy takes rows of a memmap several times slower.
        array = np.asarray(np.lib.format.open_memmap(path, mode))
    except Exception as error:  # a damaged file leads to many types
        raise ValueError(_reason(error)) from None
    if array.ndim != dimensions or not array.dtype.str.startswith(form):
        raise ValueError(f"holds {array.dtype.str} of {array.ndim} dimensions, not {form} of"
                         f" {dimensions}")  # fmt: skip
    return array


def archive(**arrays: Any) -> bytes:
    """The content of a .npz file, made in memory.

    Where a disk is full, `np.savez` leaves a zip file behind that complains when it is dropped.
    """
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def read_archive(path: Path, forms: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Read some arrays of a .npz file.

    Parameters
    ----------
    path : the file
    forms : of each array, by its name, the kind of its dtype (f, i, b or U) and its dimensions

    Raises
    ------
    ValueError : it is missing or damaged, an array is missing or of another form, or holds objects,
        NaN or infinity; one line
    """
    arrays = {}
    try:
        if not path.is_file():
            raise ValueError("no such file")
        with zipfile.ZipFile(path) as archive:
            for name, form in forms.items():
                member = archive.getinfo(f"{name}.npy")
                if member.compress_type != zipfile.ZIP_STORED:  # a few bytes may become terabytes
                    raise ValueError(f"{name} is compressed")
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                if (array.dtype.kind, array.ndim) != form:
                    raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
                if form[0] == "f" and not np.isfinite(array).all():
                    raise ValueError(f"{name} holds NaN or infinity")
                if form[0] == "U":
                    array.tolist()  # so that numbers that are no character show here
                arrays[name] = array
    except Exception as error:
        raise ValueError(_reason(error)) from None
    return arrays


def all_finite(features: np.ndarray, block: int = 8192) -> bool:
    """Whether a matrix holds neither NaN nor infinity."""
    starts = range(0, len(features), block)
    return all(bool(np.isfinite(features[start : start + block]).all()) for start in starts)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error).strip("\"'")
    return said.partition("\n")[0] or type(error).__name__

"""Arrays from files that may be damaged: checked, and no code from them is run."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def map_array(path: Path, dtype: str, dimensions: int, mode: str = "r") -> np.ndarray:
    """Map a .npy file into memory.

    Parameters
    ----------
    path : the file
    dtype : how the string of its dtype begins, as in "<f4" or "<U"
    dimensions : of the array
    mode : r, or c for copy on write

    Raises
    ------
    ValueError : it is missing or damaged, has another dtype or shape, or holds Python objects; one
        line
    """
    try:
        # As a plain array: NumPy takes rows of a memmap several times slower.
        array = np.asarray(np.lib.format.open_memmap(path, mode))
    except Exception as error:  # a damaged file leads to many types
        raise ValueError(_reason(error)) from None
    if array.ndim != dimensions or not array.dtype.str.startswith(dtype):
        raise ValueError(
            f"holds {array.dtype.str} of {array.ndim} dimensions, not {dtype} of {dimensions}"
        )
    return array


def archive(**arrays: Any) -> bytes:
    """The content of a .npz file.

    In memory: on a full disk, `np.savez` leaves a zip file open that complains when it is closed.
    """
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def read_archive(path: Path, forms: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Read some arrays of a .npz file.

    Parameters
    ----------
    path : the file
    forms : for each array's name the kind of its dtype (f, i, b or U) and its dimensions

    Raises
    ------
    ValueError : it is missing or damaged, an array is missing or has another dtype or shape, or
        holds Python objects, NaN or infinity; one line
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in forms}
    except Exception as error:
        raise ValueError(_reason(error)) from None
    for name, array in arrays.items():
        if (array.dtype.kind, array.ndim) != forms[name]:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return arrays


def _reason(error: Exception) -> str:
    message = getattr(error, "strerror", None) or str(error).strip("\"'")
    return message.partition("\n")[0] or type(error).__name__

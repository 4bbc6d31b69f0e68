"""Arrays from files that may be damaged or malicious: checked, and no code from them is run."""

import io
import zipfile
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
        _require_file(path)
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
        _require_file(path)
        with zipfile.ZipFile(path) as file:
            return {name: _read_member(file, name, *form) for name, form in forms.items()}
    except Exception as error:
        raise ValueError(_reason(error)) from None


def _read_member(file: zipfile.ZipFile, name: str, kind: str, dimensions: int) -> np.ndarray:
    member = file.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:  # a few bytes may become terabytes
        raise ValueError(f"{name} is compressed")
    with file.open(member) as content:
        array = np.lib.format.read_array(content, allow_pickle=False)
    if (array.dtype.kind, array.ndim) != (kind, dimensions):
        raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
    if kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    if kind == "U":
        array.tolist()  # raises where a number is no character
    return array


def all_finite(features: np.ndarray, block: int = 8192) -> bool:
    """Whether a matrix holds neither NaN nor infinity."""
    starts = range(0, len(features), block)
    return all(bool(np.isfinite(features[start : start + block]).all()) for start in starts)


def _require_file(path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError("no such file")


def _reason(error: Exception) -> str:
    message = getattr(error, "strerror", None) or str(error).strip("\"'")
    return message.partition("\n")[0] or type(error).__name__

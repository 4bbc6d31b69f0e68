"""Checkpoint files: read without running code from them, and written whole or not at all."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import UserError, atomic_write, shown


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; equal content makes equal files."""
    # Given a path, torch.save writes its name into the file. Given a file, it does not say that
    # the disk is full.
    written = io.BytesIO()
    torch.save(content, written)
    with atomic_write(path) as part:
        part.write_bytes(written.getvalue())


def _refuse_bomb(path: Path) -> None:
    """Raise a ValueError where an archive says that it holds more bytes than the file has."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError("compressed, as no checkpoint is")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Raises
    ------
    UserError : no such file, or no checkpoint
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        _refuse_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on damaged files
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: no checkpoint that can be read safely: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no checkpoint, but a {type(content).__name__}")
    return content


def checked_state_dict(state: Any, path: Path) -> dict[str, Tensor]:
    """Check the weights that were read from a checkpoint.

    Parameters
    ----------
    state : what the file holds
    path : the file

    Returns
    -------
    The tensors by name, without the prefix of `DataParallel`.

    Raises
    ------
    UserError : it is no state dict
    """
    size = path.stat().st_size
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict")
    for key, value in state.items():
        if not _is_plain(value, size):
            raise UserError(f"{path}: {shown(str(key))} is no plain tensor; no state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _is_plain(value: Any, size: int) -> bool:
    """Whether a value is a dense tensor that fits into a file of `size` bytes."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not (value.is_quantized or value.is_complex())
        and value.nbytes <= size  # strides of 0 make a huge tensor of one value
    )

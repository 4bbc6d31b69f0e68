"""Checkpoint files: read without running code from them, and written whole or not at all."""

import io
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Raises
    ------
    UserError : no such file, or no checkpoint
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on damaged files
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: no checkpoint that can be read safely: {reason}; name one that train.py wrote"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no checkpoint, but a {type(content).__name__}")
    return content


def checked_state_dict(state: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name of the weights that a file holds, without `DataParallel`'s prefix.

    Raises
    ------
    UserError : it is no state dict
    """
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict; name a checkpoint that train.py wrote")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {shown(str(key))} is not a tensor: no state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items()}

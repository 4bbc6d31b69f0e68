"""Checkpoint files: read without running code from them, and written whole or not at all."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import UserError, atomic_write, shown

WRAPPERS = (
    "state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model_state_dict", "model",
)  # fmt: skip
PREFIXES = "_orig_mod.", "module.", "model."


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
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on damaged files
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        if isinstance(error, pickle.UnpicklingError) and "Weights only" in reason:
            reason = "it holds more than tensors and plain values, which could run code"
        raise UserError(
            f"{path}: no checkpoint that can be read safely: {reason}; name one that train.py"
            " wrote, or save the weights alone, as torch.save(model.state_dict(), FILE)"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no checkpoint, but a {type(content).__name__}")
    return content


def weights_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name that a file holds, out of what training programs wrap them in.

    Averaged weights (EMA) come before the others. Prefixes of compiled, parallel and averaged
    models are removed.

    Raises
    ------
    UserError : it holds no state dict
    """
    state = content
    while isinstance(state, dict) and any(isinstance(state.get(name), dict) for name in WRAPPERS):
        state = next(state[name] for name in WRAPPERS if isinstance(state.get(name), dict))
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict; name a checkpoint that train.py wrote")
    weights = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{path}: {shown(str(key))} is not a tensor: no state dict; save the weights alone,"
                " as torch.save(model.state_dict(), FILE)"
            )
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name != "n_averaged":  # the counter of torch's AveragedModel
            weights[name] = value
    return weights

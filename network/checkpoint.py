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
    """Read a checkpoint without running any code from it."""
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


def weights_of(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors by name that a file holds, out of what training programs wrap them in.

    Averaged weights (EMA) come before the others. Prefixes of compiled, parallel and averaged
    models are removed.
    """
    state = content
    while inner := [state[name] for name in WRAPPERS if isinstance(state.get(name), dict)]:
        state = inner[0]
    wrong = next((key for key, value in state.items() if not isinstance(value, Tensor)), None)
    if wrong is not None or not state:
        reason = f"{shown(str(wrong))} is not a tensor" if state else "it is empty"
        raise UserError(
            f"{path}: no state dict, for {reason}; name a checkpoint that train.py wrote, or save"
            " the weights alone, as torch.save(model.state_dict(), FILE)"
        )
    weights = {}
    for key, value in state.items():
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name != "n_averaged":  # the counter of torch's AveragedModel
            weights[name] = value
    return weights

"""Which device the networks run on, and in which arithmetic."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from network.color import MEAN, STD
from utils import UserError


def pick_device(name: str) -> torch.device:
    """The device of a DEVICE setting.

    Raises
    ------
    UserError : this machine has no such device
    """
    if name == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise UserError(f"DEVICE {name}: this machine has {cards} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("DEVICE mps: not on this machine")
    return device


def amp_type(device: torch.device, amp: str) -> torch.dtype | None:
    """The 16-bit type that an AMP setting means on a device; None for plain float32."""
    if amp == "auto":
        if device.type == "cuda":
            amp = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            amp = "bf16" if device.type == "cpu" and cpu_has_bf16() else "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Run the forward pass in the 16-bit type, or as it is where that is None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def network_input(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pictures as the networks take them, where they run, in the layout they run fastest in.

    Parameters
    ----------
    images : B x H x W x 3, uint8

    Returns
    -------
    B x 3 x H x W, float32, normalised, channels_last.
    """
    x = images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return x.sub_(mean).div_(std)

"""Which device the networks run on, and in which arithmetic."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from utils import UserError

M = TypeVar("M", bound=nn.Module)


def pick_device(name: str) -> torch.device:
    """The device of a DEVICE setting; PyTorch is set up for it.

    What is called float32 is computed in float32: by default cuDNN's convolutions round their
    input to TF32, 10 bits. A card with a number becomes the current one, or threads of PyTorch
    (a loader's, that pins memory) would use the first card, too.
    """
    cards, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise UserError(f"DEVICE {name}: this machine has {cards} CUDA devices; use auto or cpu")
    if device.type == "mps" and not mps:
        raise UserError("DEVICE mps: not on this machine; use auto or cpu")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def to_device(module: M, device: torch.device) -> M:
    """Move a module with its constants, in the memory layout that convolutions run fastest in."""
    with explain_out_of_memory():
        return module.to(device).to(memory_format=torch.channels_last)


def copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on a device. The CPU waits for the copy, except on CUDA from pinned memory.

    On MPS PyTorch would copy from memory that may have been used again since.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def amp_type(device: torch.device, amp: str) -> torch.dtype | None:
    """The 16-bit type of an AMP setting on a device; None for float32.

    `auto` takes a type only where the hardware has it: emulated, it is slower than float32.
    """
    if amp != "auto":
        return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return next((kind for kind in (torch.bfloat16, torch.float16) if has_type(device, kind)), None)


def query_type(stored: str, device: torch.device) -> torch.dtype | None:
    """The type in which to compute features for a database made in the type `stored`.

    The same one where the device has it, so that equal pictures get equal features; else float32,
    whose features differ from the stored ones by the rounding of these. `stored` is float32,
    float16 or bfloat16, as all_feat.json names it.
    """
    kind = None if stored == "float32" else getattr(torch, stored)
    return kind if kind and has_type(device, kind) else None


def has_type(device: torch.device, kind: torch.dtype) -> bool:
    """Whether the hardware of a device multiplies matrices of a 16-bit type."""
    if device.type == "cuda":  # bf16 from Ampere on; fp16 on Volta and Turing (V100, T4), too
        return torch.cuda.get_device_capability(device) >= (8 if kind == torch.bfloat16 else 7, 0)
    return device.type == "cpu" and kind == torch.bfloat16 and cpu_has_bf16()


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16; emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Run the forward pass in a 16-bit type, or in float32 where that is None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@contextmanager
def explain_out_of_memory(*settings: str) -> Iterator[None]:
    """Turn an exhausted memory into a `UserError` that names the settings to lower.

    So too a batch of one picture, in which a batch norm has nothing to compare.
    """
    lower = f"set {' or '.join(settings)} lower, or " if settings else ""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:  # cuBLAS and cuDNN have their own
        text = str(error)
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
            message = f"the memory of this machine is too small; {lower}close other programs"
        elif "out of memory" in text or "ALLOC_FAILED" in text:
            message = f"the GPU's memory is too small; {lower}choose another DEVICE"
        elif "more than 1 value per channel" in text:
            message = f"the last batch has one picture, too few for a batch norm; {lower}higher"
        else:
            raise
        raise UserError(message) from None

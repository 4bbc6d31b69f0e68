"""Copies of features in the precision that a device multiplies fastest, with their errors."""

import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from network.device import cpu_has_bf16
from search.quantised import MAX_VALUE
from search.signals import Signal

GROUP = 16  # pictures whose minimum is looked at first
ENCODED = 1 << 13  # rows encoded at once
RESERVED = 4 << 30  # bytes of a GPU for the products of a search
PADDING = 1e30  # squared length of the rows that fill up the last group
TINY = 1e-30  # squares below which processors may flush to 0


@dataclass(frozen=True)
class Copy:
    """The features of one signal in low precision, N rows and at least one of padding.

    Attributes
    ----------
    values : N' x K, bfloat16 or float32; the features and the columns of `search.matrix`'s formula;
        on the device where they fit, else in the machine's memory
    error : N', float32; length of what rounding took from each row; infinite where a row has no
        distance or is too large
    metric : euclidean, or cosine: rows are scaled to length 1 first
    full : N x D, float32; the features themselves on a GPU; None where they do not fit
    """

    values: Tensor
    error: Tensor
    metric: str
    full: Tensor | None = None


def copy_features(features: np.ndarray, metric: str, device: torch.device) -> Copy:
    """Copy a signal's features to a device in the precision that it multiplies fastest.

    Parameters
    ----------
    features : N x D, float32
    metric : one of `METRICS`
    device : CPU or CUDA
    """
    dtype = dtype_of(device)
    count, dim = features.shape
    on_gpu = device.type == "cuda"
    # Tensor cores take rows of a multiple of 16 bytes.
    shape = (-(-(count + 1) // GROUP) * GROUP, -(-(dim + 4) // 8) * 8)
    fits = not on_gpu or shape[0] * shape[1] * dtype.itemsize < free_memory(device)
    at = device if fits else torch.device("cpu")
    values = torch.zeros(shape, dtype=dtype, device=at)
    full = None
    if on_gpu and 4 * features.size < 0.4 * free_memory(device):
        full = torch.empty(features.shape, device=device)
    error = torch.zeros(shape[0], device=device)
    values[count:, dim] = PADDING
    values[:, dim + 2 : dim + 4] = 1
    for start in range(0, count, ENCODED):
        block = slice(start, min(start + ENCODED, count))
        x = torch.tensor(np.asarray(features[block]), device=device)
        if full is not None:
            full[block] = x
        rounded, lost, square = round_rows(x, metric, dtype)
        values[block, :dim] = rounded.to(at)
        values[block, dim : dim + 2] = square.to(at)
        error[block] = lost
    return Copy(values, error, metric, full)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that features may take: what a search itself needs is left."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused - RESERVED


class Copies:
    """The copies of a collection's features, each made once, for engines with any weights."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, Copy] = {}

    def get(self, signal: Signal, device: torch.device) -> Copy:
        """The copy of a signal's features; several threads may call this."""
        with self._lock:
            if signal.name not in self._by_name:
                copied = copy_features(signal.features, signal.metric, device)
                self._by_name[signal.name] = copied
            return self._by_name[signal.name]


def dtype_of(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def round_rows(x: Tensor, metric: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors in low precision, n x D.

    Returns
    -------
    Them; the length that each has lost, float64; and its squared length as the sum of two numbers
    of low precision, n x 2, less what the rounding of products may add to it.
    """
    x = x.double()
    if metric == "cosine":
        x = x / x.norm(dim=1, keepdim=True)
    usable = (x.abs() < MAX_VALUE).all(dim=1)  # false for NaN
    x = torch.where(usable[:, None], x, 0.0)
    rounded = x.to(dtype)
    exact = rounded.double()
    lost = (x - exact).norm(dim=1) * (1 + 1e-6)
    # Float32 sums of D products, of which tensor cores cut off digits, and squares of two parts.
    rounding = (x.shape[1] + 24) * 2.0**-22 + 2.0**-15
    square = exact.square().sum(dim=1) * (1 - rounding) - TINY
    high = square.to(dtype)
    parts = torch.stack([high, (square - high.double()).to(dtype)], dim=1)
    return rounded, torch.where(usable, lost, torch.inf), parts

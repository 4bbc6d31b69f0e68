"""Networks made faster for many batches of one size: compiled, or with their batch norms folded."""

import logging
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.device import autocast

M = TypeVar("M", bound=nn.Module)


class CompiledNet(nn.Module):
    """A network compiled for batches of one size; smaller ones are filled up to it.

    Parameters
    ----------
    net : batch -> tensors with a row for each element; in evaluation mode, on its device
    batch : that size
    """

    def __init__(self, net: nn.Module, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.compiled = torch.compile(net, dynamic=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `net`; at most `batch` rows."""
        missing = self.batch - len(images)
        # A whole batch, too, is copied: one made outside of inference mode would be compiled for.
        full = F.pad(images, (0, 0) * (images.dim() - 1) + (0, missing))
        return [feature[: len(images)] for feature in self.compiled(full)]


def compile_net(net: nn.Module, example: Tensor, dtype: torch.dtype | None) -> CompiledNet:
    """Compile a network for inference.

    It is compiled once if it is then run as here: with the number of threads that PyTorch has now,
    in inference mode and under `autocast` of the same type.

    Parameters
    ----------
    net : in evaluation mode, on its device
    example : a batch of the size that it is compiled for, on the same device
    dtype : 16-bit type that it will run in; None: float32

    Raises
    ------
    Exception : whatever compiler and driver raise where they do not fit together
    """
    from torch._inductor import config

    # It warns of a missing CUDA on every machine that has none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = CompiledNet(net, len(example))
    # Frozen weights let it fold the batch norms and reorder the weights in memory. (As an option
    # of torch.compile this comes too late.)
    with (
        config.patch(freezing=True),
        torch.inference_mode(),
        autocast(example.device, dtype),
    ):
        compiled(example)
    return compiled


def fold_batch_norms(net: M) -> M:
    """Fold the batch norms of a network into its convolutions; unchanged if it can't be traced."""
    try:
        from torch.fx.experimental.optimization import fuse

        return fuse(net).to(memory_format=torch.channels_last)
    except Exception:  # of a forward pass that depends on values; of many types
        return net

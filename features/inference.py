"""The network as its device runs it fastest, for many pictures; a query takes it plain.

On a CPU each core has a batch of its own: no core waits for another, and no feature hangs on how
many cores there are.
"""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.database import unit_rows
from net import FeatureNet, extract_features
from network.device import autocast
from utils import UserError

T, R = TypeVar("T"), TypeVar("R")

CPU_BATCH = 16  # pictures: their conv maps stay in a core's cache
HARMLESS = 1e-3  # cosine distance
WORTH = 3000  # pictures, from which on compiling (10 to 20 s) saves time


class CompiledNet(nn.Module):
    """A network compiled for batches of one size; smaller ones are filled up to it.

    Parameters
    ----------
    net : in evaluation mode, where it is to run
    batch : that size
    """

    def __init__(self, net: nn.Module, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.compiled = torch.compile(net, dynamic=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See `FeatureNet`."""
        full = F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.batch - len(x))) if len(x) < self.batch else x
        features = self.compiled(full.contiguous(memory_format=torch.channels_last))
        return [feature[: len(x)] for feature in features]


def faster(
    net: FeatureNet,
    pictures: int,
    batch: int,
    side: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> nn.Module:
    """A network that gives what another one gives, up to rounding, in less time.

    It is compiled, or its batch norms are folded into its convolutions.

    Parameters
    ----------
    net : in evaluation mode, on `device`; may be changed
    pictures : that it will be given, which decides whether compiling is worth its time
    batch : pictures at once
    side : of the pictures, in px
    device, dtype : see `net.extract_features`
    """
    if pictures >= WORTH and device.type != "mps":
        # It warns of a missing CUDA on every machine that has none.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            from torch._inductor import config

            compiled = CompiledNet(net, batch)
            # Frozen weights let it fold the batch norms and lay the weights out anew. (Given as an
            # option of torch.compile, that comes too late.)
            with config.patch(freezing=True), torch.inference_mode(), autocast(device, dtype):
                compiled(torch.zeros(batch, 3, side, side, device=device))
            return compiled
        except UserError:
            raise
        except Exception as error:  # whatever compiler and driver raise where they do not fit
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            print(f"extraction will be slower, torch.compile fails: {reason}", file=sys.stderr)
    with suppress(Exception):  # of a backbone that cannot be traced
        from torch.fx.experimental.optimization import fuse

        net.net.backbone = fuse(net.net.backbone).to(memory_format=torch.channels_last)
    return net


def keeps_embeddings(
    net: FeatureNet, images: Tensor, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether a network gives the same embeddings in a 16-bit type: to `HARMLESS` in cosine.

    Depthwise convolutions, as in MobileNet, often do not.

    Parameters
    ----------
    net, device, dtype : see `net.extract_features`
    images : a few pictures, B x H x W x 3, uint8
    """
    exact, rounded = (
        unit_rows(extract_features(net, images, device, kind)[0]) for kind in (None, dtype)
    )
    return bool((1 - (exact * rounded).sum(1)).max() <= HARMLESS)


def streams_of(device: torch.device) -> int:
    """Batches that run at once: one on each core of a CPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextmanager
def one_core_each(streams: int) -> Iterator[None]:
    """Let every operation run on one core, where several batches run at once."""
    before = torch.get_num_threads()
    if streams > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(function: Callable[[T], R], items: Iterable[T], streams: int) -> Iterator[R]:
    """Map items in threads, `streams` at once; results in the order of the items."""
    with ThreadPoolExecutor(streams) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * streams:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

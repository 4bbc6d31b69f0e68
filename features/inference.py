"""Many pictures through a network, as fast as its device runs it; a query takes it as it is.

On a CPU each core has a batch of its own: no core waits for another, and no feature depends on the
number of cores. On a GPU the next batches are prepared while one is computed.
"""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net import FeatureNet, Network, extract_features, start_features
from network.device import autocast
from utils import UserError

T = TypeVar("T")

CPU_BATCH = 16  # pictures: their conv maps stay in a core's cache
# From so many pictures on, compiling saves more time than it takes: 10 to 20 s on a CPU, up to a
# minute on a GPU, which needs a tenth of a millisecond for a picture.
MIN_PICTURES_TO_COMPILE = {"cpu": 3_000, "cuda": 100_000}
BATCHES_AHEAD = 2  # on a GPU, beside the one whose features are waited for


def faster(
    net: FeatureNet,
    pictures: int,
    batch: int,
    side: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Network:
    """A network that gives the same features, up to rounding, in less time.

    It is compiled, or its batch norms are folded into its convolutions.

    Parameters
    ----------
    net : in evaluation mode, on `device`; may be changed
    pictures : that will go through it, which decide whether compiling saves time
    batch : pictures at once
    side : of the pictures, in px
    device, dtype : see `net.extract_features`
    """
    if pictures >= MIN_PICTURES_TO_COMPILE.get(device.type, pictures + 1):
        example = torch.zeros(batch, side, side, 3, dtype=torch.uint8, device=device)
        try:
            return _compiled(net, example, dtype)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever compiler and driver raise where they do not fit
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            print(f"extraction will be slower, torch.compile fails: {reason}", file=sys.stderr)
    from torch.fx.experimental.optimization import fuse

    with suppress(Exception):  # of a forward pass that depends on values; of many types
        net.net.backbone = fuse(net.net.backbone).to(memory_format=torch.channels_last)
    return net


def _compiled(net: nn.Module, example: Tensor, dtype: torch.dtype | None) -> Network:
    """Compile a network for batches like `example`; smaller ones are filled up to their size.

    It is compiled once if it is then run as here: with the number of threads that PyTorch has now,
    in inference mode and under `autocast` of the same type.
    """
    from torch._inductor import config

    # It warns of a missing CUDA on every machine that has none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = torch.compile(net, dynamic=False)

    def padded(images: Tensor) -> list[Tensor]:
        # A whole batch, too, is copied: one made outside of inference mode would be compiled for.
        full = F.pad(images, (0, 0) * 3 + (0, len(example) - len(images)))
        return [feature[: len(images)] for feature in compiled(full)]

    # Frozen weights let it fold the batch norms and reorder the weights in memory. (As an option
    # of torch.compile this comes too late.)
    with config.patch(freezing=True), torch.inference_mode(), autocast(example.device, dtype):
        padded(example)
    return padded


@contextmanager
def one_thread() -> Iterator[int]:
    """Run every operation in one thread; yields how many threads there were.

    Several batches then run at once, each on a core of its own. It is one on a GPU, too: the
    loader's thread sets it, and with another number PyTorch would compile the network a second
    time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def features_in_order(
    net: Network,
    batches: Iterable[tuple[Tensor, T]],
    device: torch.device,
    dtype: torch.dtype | None,
    threads: int,
) -> Iterator[tuple[list[np.ndarray], T]]:
    """Features of batches of pictures, in their order; several batches are computed at once.

    Parameters
    ----------
    net : see `net.extract_features`
    batches : pictures, B x H x W x 3, uint8, pinned where they go to a GPU; what comes with them
        is given back
    device, dtype : see `net.extract_features`
    threads : batches at once on a CPU
    """
    # For batches of one size, cuDNN measures its algorithms on the first one.
    measured = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
    with measured, ThreadPoolExecutor(threads) as pool:

        def start(images: Tensor) -> Callable[[], list[np.ndarray]]:
            if device.type == "cpu":
                return pool.submit(extract_features, net, images, device, dtype).result
            return start_features(net, images, device, dtype)

        ahead = 2 * threads if device.type == "cpu" else BATCHES_AHEAD
        waiting: deque[tuple[Callable[[], list[np.ndarray]], T]] = deque()
        for images, companion in batches:
            waiting.append((start(images), companion))
            if len(waiting) > ahead:
                result, companion = waiting.popleft()
                yield result(), companion
        for result, companion in waiting:
            yield result(), companion

"""Batches of pictures through networks, as many at once as the device takes.

On a CPU each core has a batch of its own: no core waits for another, and no feature depends on the
number of cores. On a GPU the next batches are prepared while one is computed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from net import Network, extract_features, start_features

Result = Callable[[], list[np.ndarray]]  # waits for the features of a batch

CPU_BATCH = 16  # pictures: their conv maps stay in a core's cache
BATCHES_AHEAD = 2  # on a GPU, beside the one whose features are waited for


def fold_batch_norms(backbone: nn.Module) -> nn.Module:
    """A backbone, in evaluation mode, whose batch norms are part of its convolutions, if it can."""
    from torch.fx.experimental.optimization import fuse

    with suppress(Exception):  # of a forward pass that depends on values; of many types
        return fuse(backbone)
    return backbone


def features_in_order(
    nets: Sequence[Network],
    batches: Iterable[Sequence[Any]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[tuple[list[np.ndarray], Sequence[Any]]]:
    """Features of batches of pictures, in their order; several batches are computed at once.

    Parameters
    ----------
    nets : see `net.extract_features`
    batches : for each network the pictures, B x H x W x 3, uint8, pinned where they go to a GPU;
        what comes after them is given back
    device, dtype : see `net.extract_features`
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of an operation
    # For batches of one size, cuDNN measures its algorithms on the first one.
    measured = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
    try:
        with measured, ThreadPoolExecutor(threads) as pool:

            def start(net: Network, images: Tensor) -> Result:
                if device.type == "cpu":
                    return pool.submit(extract_features, net, images, device, dtype).result
                return start_features(net, images, device, dtype)

            ahead = 2 * threads if device.type == "cpu" else BATCHES_AHEAD
            waiting: deque[tuple[list[Result], Sequence[Any]]] = deque()
            for images, *rest in batches:
                waiting.append(([start(*pair) for pair in zip(nets, images, strict=True)], rest))
                if len(waiting) > ahead:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
    finally:
        torch.set_num_threads(threads)


def _result(started: list[Result], rest: Sequence[Any]) -> tuple[list[np.ndarray], Sequence[Any]]:
    return [feature for result in started for feature in result()], rest

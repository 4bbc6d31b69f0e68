"""Many pictures through a network, as fast as its device runs it; a query takes it as it is.

On a CPU each core has a batch of its own: no core waits for another, and no feature depends on the
number of cores. On a GPU the next batches are copied there while one is computed.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from features.database import unit_rows
from net import FeatureNet, extract_features, split_columns
from network.compile import compile_net, fold_batch_norms
from network.device import autocast
from utils import UserError

T = TypeVar("T")

CPU_BATCH = 16  # pictures: their conv maps stay in a core's cache
MAX_COSINE_CHANGE = 1e-3  # of an embedding by 16 bits
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
) -> nn.Module:
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
            return compile_net(net, example, dtype)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever compiler and driver raise where they do not fit
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            print(f"extraction will be slower, torch.compile fails: {reason}", file=sys.stderr)
    net.net.backbone = fold_batch_norms(net.net.backbone)
    return net


def keeps_embeddings(
    net: FeatureNet, images: Tensor, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether a network gives the same embeddings in a 16-bit type, up to `MAX_COSINE_CHANGE`.

    With depthwise convolutions, as in MobileNet, it often does not.

    Parameters
    ----------
    net, device, dtype : see `net.extract_features`
    images : a few pictures, B x H x W x 3, uint8
    """
    exact, rounded = (
        unit_rows(extract_features(net, images, device, kind)[0]) for kind in (None, dtype)
    )
    return bool((1 - (exact * rounded).sum(1)).max() <= MAX_COSINE_CHANGE)


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
    net: nn.Module,
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
    if device.type == "cuda":
        yield from in_order(_CudaBatches(net, device, dtype).start, batches, BATCHES_AHEAD)
        return
    with ThreadPoolExecutor(threads) as pool:

        def start(images: Tensor) -> Callable[[], list[np.ndarray]]:
            return pool.submit(extract_features, net, images, device, dtype).result

        yield from in_order(start, batches, 2 * threads)


def in_order(
    start: Callable[[Tensor], Callable[[], list[np.ndarray]]],
    batches: Iterable[tuple[Tensor, T]],
    ahead: int,
) -> Iterator[tuple[list[np.ndarray], T]]:
    """Results of batches in their order.

    Parameters
    ----------
    start : begins with a batch; what it returns waits for the result
    batches : with what comes with them
    ahead : batches that are begun before the result of one is waited for
    """
    waiting: deque[tuple[Callable[[], list[np.ndarray]], T]] = deque()
    for images, companion in batches:
        waiting.append((start(images), companion))
        if len(waiting) > ahead:
            result, companion = waiting.popleft()
            yield result(), companion
    for result, companion in waiting:
        yield result(), companion


class _CudaBatches:
    """Runs batches on a GPU without waiting: copies there and back overlap with computing.

    Parameters
    ----------
    net, device, dtype : see `net.extract_features`
    """

    def __init__(self, net: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        self.net = net
        self.device = device
        self.dtype = dtype
        self.copies = torch.cuda.Stream(device)
        torch.backends.cudnn.benchmark = True  # all batches have one size

    @torch.inference_mode()
    def start(self, images: Tensor) -> Callable[[], list[np.ndarray]]:
        """Begin with a batch; what is returned waits for its features."""
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.copies):
            on_device = images.to(self.device, non_blocking=True)
        computing.wait_stream(self.copies)
        on_device.record_stream(computing)  # its memory is not used again before
        with autocast(self.device, self.dtype):
            features = [feature.float() for feature in self.net(on_device)]
        # To pinned memory, as PyTorch does it: the one way a copy does not wait.
        joined = torch.cat(features, 1).to("cpu", non_blocking=True)
        widths = [feature.shape[1] for feature in features]
        done = torch.cuda.Event()
        done.record(computing)

        def result() -> list[np.ndarray]:
            done.synchronize()
            return split_columns(joined, widths)

        return result

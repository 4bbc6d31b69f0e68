"""Several processes that train or extract together, as `torchrun` starts them.

Each process is a rank. What they do is what one process would do with the same batches: a rank
takes every W-th picture of a batch, and what is computed from a whole batch (losses, the statistics
of batch norms) is computed from all ranks' pictures.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as across
import torch.nn.functional as F
from torch import Tensor, nn

from network.device import pick_device
from utils import UserError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # for the slowest rank; one that has died is noticed at once


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and tells of the run."""
        return self.rank == 0

    def own(self, total: int) -> slice:
        """Its places among `total` things."""
        return slice(self.rank, total, self.count)

    def wait(self) -> None:
        """Wait until all ranks have come to this line."""
        if self.count > 1:
            dist.barrier()

    def told(self, thing: T) -> T:
        """What the first rank has for it, on all ranks."""
        if self.count == 1:
            return thing
        held = [thing]
        dist.broadcast_object_list(held)
        return held[0]

    def joined(self, own: Tensor, total: int) -> Tensor:
        """The rows of all ranks in their order: n x ... of each -> total x ...

        A loss of the result gives this rank's rows the gradient that one process would give them,
        once `DistributedDataParallel` has taken the mean over the ranks.

        Parameters
        ----------
        own : rows `own(total)` of them; more are left out
        total : number of all rows
        """
        if self.count == 1:
            return own
        places = len(range(total)[self.own(total)])
        own = own[:places]
        most = -(-total // self.count)
        mine = F.pad(own.detach(), (0, 0) * (own.dim() - 1) + (0, most - places)).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        rows = torch.stack(parts, 1).flatten(0, 1)[:total]
        if not own.requires_grad:
            return rows
        own.register_hook(lambda gradient: gradient * self.count)
        return rows.index_copy(0, torch.arange(total, device=own.device)[self.own(total)], own)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def together(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the other processes of `torchrun`; alone without it.

    Other ranks than the first print nothing.

    Parameters
    ----------
    device : the setting DEVICE; `auto` and `cuda` give each rank of a machine a card of its own

    Yields
    ------
    This rank, and its device.

    Raises
    ------
    UserError : the device is missing, or the others do not come
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(), pick_device(device)
        return
    chosen = pick_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"the {count} processes do not find each other: {reason}") from None
    rank = Ranks(dist.get_rank(), count)
    try:
        with redirect_stdout(sys.stdout if rank.first else open(os.devnull, "w")):
            yield rank, chosen
    finally:
        dist.destroy_process_group()


def share_of_machine(count: int) -> int:
    """This rank's part of a number of processes that a machine is to have, at least 1."""
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if count else 0


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm over the pictures of all ranks, for a CPU; torch has one for CUDA alone."""

    def forward(self, x: Tensor) -> Tensor:
        """N x C x h x w -> the same."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        sums = torch.stack([wide.sum((0, 2, 3)), (wide**2).sum((0, 2, 3))])
        count = wide.new_tensor([[float(x.numel() // x.shape[1])]])
        total = across.all_reduce(torch.cat([sums, count.expand(1, x.shape[1])]))
        mean = total[0] / total[2]
        variance = total[1] / total[2] - mean**2
        with torch.no_grad():
            count = total[2, 0]
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def with_joined_norms(net: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of a network see the pictures of all ranks."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for name, child in net.named_children():
        if type(child) is nn.BatchNorm2d and child.affine and child.track_running_stats:
            joined = JoinedBatchNorm2d(child.num_features, child.eps, child.momentum)
            joined.load_state_dict(child.state_dict())
            joined.train(child.training)
            for own, new in zip(child.parameters(), joined.parameters(), strict=True):
                new.requires_grad_(own.requires_grad)
            setattr(net, name, joined.to(next(child.parameters()).device))
        else:
            with_joined_norms(child, device)
    return net

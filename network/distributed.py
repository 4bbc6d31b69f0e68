"""Several processes that train or extract together, as `torchrun` starts them.

Together they compute what one process would compute with the same batches: each reads every W-th
picture of a batch, and a loss is that of the whole batch.
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
import torch.nn.functional as F
from torch import Tensor

from network.device import pick_device
from utils import UserError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # for the slowest process; one that died is noticed at once


@dataclass(frozen=True)
class Distributed:
    """The processes of a run, and which of them this one is.

    Every collective method must be called by all processes. Without `torchrun` there is one
    process, and each method returns its argument.

    Attributes
    ----------
    rank : number of this process, from 0
    world_size : number W of processes
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shard(self, total: int) -> slice:
        """The positions among `total` that belong to this process: every W-th, from `rank` on."""
        return slice(self.rank, total, self.world_size)

    def barrier(self) -> None:
        """Wait until all processes have reached this line."""
        if dist.is_initialized():
            dist.barrier()

    def broadcast(self, value: T) -> T:
        """The main process's value, in all processes."""
        if not dist.is_initialized():
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def all_gather(self, rows: Tensor, total: int) -> Tensor:
        """The rows of all processes in their original order: n x ... of each -> total x ...

        `rows` are those of `shard(total)`; further ones are ignored. A loss of the result gives the
        rows of this process the gradient that a single process would give them, once
        `DistributedDataParallel` has averaged over the processes.
        """
        if not dist.is_initialized():
            return rows
        count = len(range(total)[self.shard(total)])
        rows = rows[:count]
        padding = -(-total // self.world_size) - count
        padded = F.pad(rows.detach(), (0, 0) * (rows.dim() - 1) + (0, padding)).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        gathered = torch.stack(parts, 1).flatten(0, 1)[:total]
        if not rows.requires_grad:
            return gathered
        rows.register_hook(lambda gradient: gradient * self.world_size)
        positions = torch.arange(total, device=rows.device)[self.shard(total)]
        return gathered.index_copy(0, positions, rows)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes; `values` is changed."""
        if dist.is_initialized():
            dist.all_reduce(values)
        return values


@contextmanager
def init_distributed(device: str) -> Iterator[tuple[Distributed, torch.device]]:
    """Join the other processes that `torchrun` started; gives the processes, and this one's device.

    Only the main process prints to standard output. With DEVICE `auto` and `cuda` each process of
    a machine has its own card.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device)
    if world_size == 1 and not dist.is_torchelastic_launched():
        yield Distributed(), chosen
        return
    on_cuda = chosen.type == "cuda"
    if on_cuda and chosen.index is None:
        chosen = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
    nccl = on_cuda and dist.is_nccl_available()
    kind, card = ("nccl", chosen) if nccl else ("gloo", None)
    try:
        dist.init_process_group(kind, timeout=TIMEOUT, device_id=card)
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"the {world_size} processes cannot connect: {reason}") from None
    distributed = Distributed(dist.get_rank(), world_size)
    try:
        with redirect_stdout(sys.stdout if distributed.is_main else open(os.devnull, "w")):
            yield distributed, chosen
    finally:
        dist.destroy_process_group()


def per_process(count: int) -> int:
    """The share of this process in a machine's `count` reading processes: at least 1, 0 of 0."""
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if count else 0

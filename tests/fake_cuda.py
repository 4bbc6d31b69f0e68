"""A CUDA device that is not there: shapes, types and devices are right, nothing is computed.

Under `FakeTensorMode` every operation checks that its tensors lie on the same device, as CUDA
does. A constant that was left on the CPU fails here, on a machine without a GPU.

    def test_something(fake_cuda: torch.device) -> None:     # the fixture of tests/conftest.py
        net = build_it().to(fake_cuda)                       # built within the test: all is fake
        assert net(pictures(2).to(fake_cuda)).device == fake_cuda

All tensors have to be made within the test or the block; real ones are refused. What Python reads
of them (`item`, `tolist`, `numpy`, a condition, which elements are not zero) is as if all values
were 1. `backward` gives every parameter that the loss depends on a gradient, without the engine of
PyTorch, which needs a driver.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

aten = torch.ops.aten


class _NoDriver(FakeTensorMode):
    """Fake tensors whose values count as 1 where a shape depends on them."""

    avoid_device_init = True  # although `torch.cuda.is_available` says that there is a driver

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            if func is aten.nonzero.default:
                shape = (args[0].numel(), args[0].dim())
                return torch.empty(shape, dtype=torch.int64, device=args[0].device)
            if func is aten.masked_select.default:
                return torch.broadcast_tensors(*args)[0].flatten()
            if func is aten._unique2.default:
                places = torch.empty_like(args[0], dtype=torch.int64)
                return args[0].flatten(), places, places.flatten()
            if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
                args = (args[0], _without_masks(args[1]), *args[2:])
        return super().dispatch(func, types, args, kwargs)


def _without_masks(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with the places that are not zero instead of masks."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            found += torch.nonzero(index).unbind(1)
        else:
            found.append(index)
    return found


@contextmanager
def fake_cuda_device() -> Iterator[torch.device]:
    """Make all tensors of a block fake, and yield a device that takes itself for `cuda:0`.

    It looks like an H100: bf16 in hardware, 80 GiB.
    """
    memory = 80 << 30
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (9, 0),
        "mem_get_info": lambda device=None: (memory, memory),
        "synchronize": lambda device=None: None,
        **{name: mock.MagicMock() for name in ("Stream", "Event", "stream", "current_stream")},
    }
    tensor = {
        **READERS,
        "pin_memory": lambda tensor, *_: tensor,
        "record_stream": lambda tensor, stream: None,
        "backward": _backward,
    }
    with ExitStack() as stack:
        for name, replacement in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        for name, replacement in tensor.items():
            stack.enter_context(mock.patch.object(Tensor, name, replacement, create=True))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(_NoDriver(allow_non_fake_inputs=False))
        yield torch.device("cuda:0")


def pictures(count: int, side: int = 64) -> Tensor:
    """Pictures as a loader gives them: count x side x side x 3, uint8, on the CPU."""
    return torch.zeros(count, side, side, 3, dtype=torch.uint8)


def _as_numpy(tensor: Tensor, *_: Any, **__: Any) -> np.ndarray:
    if tensor.device.type != "cpu":
        raise TypeError(f"{tensor.device}: copy the tensor to the CPU first")
    return np.ones(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _as_list(tensor: Tensor) -> Any:
    kind = bool if tensor.dtype == torch.bool else float if tensor.is_floating_point() else int
    return np.ones(tuple(tensor.shape), kind).tolist()


READERS: dict[str, Callable[..., Any]] = {
    "item": _as_list,
    "tolist": _as_list,
    "numpy": _as_numpy,
    "__array__": _as_numpy,
    "__bool__": lambda tensor: True,
    "__int__": lambda tensor: 1,
    "__float__": lambda tensor: 1.0,
}


def _backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """Give every leaf of the loss's graph a gradient of its shape on its device."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaf.grad = torch.zeros_like(leaf)
        waiting += [child for child, _ in node.next_functions]


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """As that of `nn.Module`, which cannot exchange fake tensors in place."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            moved = function(parameter.detach())
            module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module

"""Devices and 16-bit types."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from network import device as module
from network.device import (
    amp_type,
    autocast,
    copy_to,
    explain_out_of_memory,
    pick_device,
    query_type,
    to_device,
)
from utils import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_devices_are_found_or_refused() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"cuda:99.*devices"):
        pick_device("cuda:99")
    with pytest.raises(UserError, match="mps"):
        pick_device("mps")


def test_float32_on_cuda_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail without the lines of `pick_device`: PyTorch's default is TF32."""
    backends = SimpleNamespace(
        cudnn=SimpleNamespace(allow_tf32=True),
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)),
        mps=SimpleNamespace(is_available=lambda: False),
    )
    monkeypatch.setattr(torch, "backends", backends)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert not backends.cudnn.allow_tf32
    assert not backends.cuda.matmul.allow_tf32
    assert current == [torch.device("cuda:1")]  # for threads that name no card
    assert pick_device("cuda") == torch.device("cuda")
    assert len(current) == 1


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_only_copies_to_cuda_are_not_waited_for(monkeypatch, kind: str) -> None:
    """PyTorch waits itself where the memory is not pinned, but only on CUDA."""
    calls = []
    monkeypatch.setattr(Tensor, "to", lambda *args, **flags: calls.append((args[1], flags)))
    device = torch.device(kind)
    copy_to(device, torch.ones(2))
    assert calls == [(device, {"non_blocking": kind == "cuda"})]


@pytest.mark.parametrize(
    ("capability", "kind"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16),
     ((7, 0), torch.float16), ((6, 1), None)],
)  # fmt: skip
def test_a_card_gets_a_type_that_its_hardware_has(monkeypatch, capability, kind) -> None:
    """H100, A100, T4, V100, GTX 1080. Seen to fail with `is_bf16_supported()`."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert amp_type(CUDA, "auto") == kind
    assert amp_type(CUDA, "fp16") == torch.float16  # as the setting says


@pytest.mark.parametrize("hardware", [True, False])
def test_a_processor_gets_bf16_only_where_it_multiplies_it(monkeypatch, hardware: bool) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: hardware)
    kind = torch.bfloat16 if hardware else None
    assert amp_type(CPU, "auto") == kind
    wanted = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {amp: amp_type(CPU, amp) for amp in wanted} == wanted
    # A database that was made on a GPU.
    assert query_type("bfloat16", CPU) == kind
    assert query_type("float16", CPU) is None
    assert query_type("float32", CPU) is None


def test_a_query_runs_in_the_type_of_the_database_where_the_card_has_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert query_type("float16", CUDA) == torch.float16
    assert query_type("bfloat16", CUDA) is None
    assert query_type("float32", CUDA) is None


def test_autocast_runs_in_the_type() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with autocast(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with autocast(CPU, None):
        assert layer(x).dtype == torch.float32


def test_modules_move_with_their_constants(fake_cuda: torch.device) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net.register_buffer("constant", torch.zeros(3), persistent=False)
    assert to_device(net, fake_cuda) is net
    tensors = [*net.parameters(), *net.buffers()]
    assert all(tensor.device == fake_cuda for tensor in tensors)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    ],
)
def test_out_of_memory_is_one_line_that_names_the_settings(error: Exception) -> None:
    with pytest.raises(UserError) as caught, explain_out_of_memory("A_BATCH_SIZE", "CROP_SIZE"):
        raise error
    assert "set A_BATCH_SIZE or CROP_SIZE lower" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fail",
    [
        lambda: torch.empty(2**50),
        lambda: np.zeros(2**50),
        lambda: nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)),
    ],
)
def test_what_a_machine_cannot_hold_and_a_norm_cannot_use_names_the_settings(fail) -> None:
    with (
        pytest.raises(UserError, match="set A_BATCH_SIZE lower, or"),
        explain_out_of_memory("A_BATCH_SIZE"),
    ):
        fail()


def test_out_of_memory_where_no_setting_helps() -> None:
    with (
        pytest.raises(UserError, match="too small; choose another DEVICE"),
        explain_out_of_memory(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("A"):
        raise RuntimeError("shape")

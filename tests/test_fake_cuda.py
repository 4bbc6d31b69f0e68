"""The device that is not there refuses what CUDA would refuse."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def test_a_constant_left_on_the_cpu_is_refused(fake_cuda: torch.device) -> None:
    x = torch.zeros(2, 3, device=fake_cuda)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        nn.Linear(3, 4)(x)
    assert (x + torch.ones(3).to(fake_cuda)).device == fake_cuda


def test_a_step_of_training_runs_in_16_bits(fake_cuda: torch.device) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    net.to(fake_cuda, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", torch.float16):
        out = net(torch.zeros(2, 3, 8, 8, device=fake_cuda))
        assert net[0](torch.zeros(2, 3, 8, 8, device=fake_cuda)).dtype == torch.float16
    scaler.scale(out.float().sum()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert all(parameter.grad.device == fake_cuda for parameter in net.parameters())


def test_values_are_read_as_ones(fake_cuda: torch.device) -> None:
    x = torch.zeros(2, 3, device=fake_cuda)
    assert x.sum().item() == 1.0
    assert x[x > 0].shape == (6,)
    assert torch.unique(x).shape == (6,)
    assert x.cpu().numpy().tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(TypeError, match="copy"):
        x.numpy()


def test_real_tensors_are_refused(fake_cuda: torch.device) -> None:
    """Else a constant made at import would pass, and fail on a GPU."""
    mode = torch.utils._python_dispatch._get_current_dispatch_mode()
    assert isinstance(mode, FakeTensorMode)
    with torch.utils._python_dispatch._disable_current_modes():
        real = torch.ones(3)
    with pytest.raises(Exception, match="convert all Tensors"):
        torch.zeros(3) + real

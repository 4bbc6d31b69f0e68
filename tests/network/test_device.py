"""Devices and 16-bit types."""

import pytest
import torch
from torchvision.transforms.functional import normalize, to_tensor

from network.device import amp_type, network_input, pick_device
from utils import UserError


def test_devices_and_their_arithmetic() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"cuda:99.*devices"):
        pick_device("cuda:99")
    with pytest.raises(UserError, match="mps"):
        pick_device("mps")
    cpu = torch.device("cpu")
    wanted = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {amp: amp_type(cpu, amp) for amp in wanted} == wanted
    assert amp_type(cpu, "auto") in {None, torch.bfloat16}


def test_network_input_is_torchvisions_normalisation() -> None:
    pictures = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    found = network_input(pictures, torch.device("cpu"))
    for picture, x in zip(pictures, found, strict=True):
        scaled = to_tensor(picture.numpy())
        assert torch.equal(x, normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert found.is_contiguous(memory_format=torch.channels_last)

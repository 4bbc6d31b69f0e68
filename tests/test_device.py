"""Devices and 16-bit types."""

import pytest
import torch

from device import amp_type, pick_device
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

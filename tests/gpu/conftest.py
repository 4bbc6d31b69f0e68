"""Tests that need a CUDA device; elsewhere each one is skipped."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def cuda() -> torch.device:
    """The first CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    return torch.device("cuda", 0)

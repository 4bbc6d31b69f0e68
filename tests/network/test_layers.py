"""The layers beside the backbone, against torchvision."""

import torch
from torchvision.transforms.functional import normalize, to_tensor

from network.layers import Normalize


def test_normalize_is_that_of_torchvision() -> None:
    pictures = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    module = Normalize()
    found = module(pictures)
    for picture, x in zip(pictures, found, strict=True):
        scaled = to_tensor(picture.numpy())
        assert torch.equal(x, normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not module.state_dict()  # nothing new in checkpoints

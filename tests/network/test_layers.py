"""The layers beside the backbone, against torchvision."""

import torch
from torchvision.transforms.functional import normalize, to_tensor

from network.color import ColorFeature, Palette
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


def test_colours_do_not_depend_on_the_values_that_normalise_the_input() -> None:
    pictures = torch.randint(256, (2, 24, 24, 3), dtype=torch.uint8)
    response = torch.rand(2, 4, 6, 6)
    usual, other = Normalize(), Normalize((0.5, 0.4, 0.3), (0.5, 0.27, 0.26))
    x, same = usual(pictures), other.for_colors(other(pictures))
    assert torch.equal(Palette()(same, response), Palette()(x, response))
    color = ColorFeature(5)
    torch.testing.assert_close(color(same, response), color(x, response), rtol=1e-5, atol=1e-6)

"""The layers of the embedding network beside its backbone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ImageNet's, which torchvision's weights expect of their input.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Pictures as loaders give them -> the network's input, on the device they lie on."""

    mean: Tensor
    std: Tensor
    color_scale: Tensor
    color_shift: Tensor

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        # Not persistent: the keys of a checkpoint stay those of 2018.
        self.register_buffer("mean", channel_values(mean), persistent=False)
        self.register_buffer("std", channel_values(std), persistent=False)
        self.is_imagenet = (mean, std) == (MEAN, STD)
        usual, spread = channel_values(MEAN), channel_values(STD)
        self.register_buffer("color_scale", self.std / spread, persistent=False)
        self.register_buffer("color_shift", (self.mean - usual) / spread, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """N x H x W x 3, uint8 -> N x 3 x H x W, float32, channels_last."""
        x = images.permute(0, 3, 1, 2).float().div_(255)
        return x.sub_(self.mean).div_(self.std)

    def for_colors(self, x: Tensor) -> Tensor:
        """The network's input as colour features take it: by ImageNet's values, whatever its own.

        N x 3 x H x W, float32, also returned.
        """
        if self.is_imagenet:
            return x
        return torch.addcmul(self.color_shift, x.float(), self.color_scale)


def channel_values(values: tuple[float, ...]) -> Tensor:
    """A value for each channel, C x 1 x 1, float32, to compute with N x C x H x W."""
    return torch.tensor(values)[:, None, None]


class GeM(nn.Module):
    """Generalised mean of each channel with a trained power (Radenovic et al., TPAMI 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, conv_map: Tensor) -> Tensor:
        """N x C x h x w -> N x C."""
        return conv_map.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AveragePooling(nn.Module):
    """Mean of each channel, plus its maximum where `with_maximum`."""

    def __init__(self, with_maximum: bool) -> None:
        super().__init__()
        self.with_maximum = with_maximum

    def forward(self, conv_map: Tensor) -> Tensor:
        """N x C x h x w -> N x C."""
        mean = conv_map.mean((2, 3))
        return mean + conv_map.amax((2, 3)) if self.with_maximum else mean


class CosineClassifier(nn.Linear):
    """Logits that depend on directions only: the rows of the weight are normalised.

    With embeddings of length L this is the normalised softmax of temperature 1 / L (Zhai and Wu,
    Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019).
    """

    def __init__(self, dim: int, categories: int) -> None:
        super().__init__(dim, categories, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """N x D -> N x K."""
        return F.linear(embedding, F.normalize(self.weight))

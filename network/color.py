"""The colour features: the strongest cells (of 2018), and the palette."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.layers import MEAN, STD, channel_values
from utils import UserError

PALETTE_BINS = 8  # along each of L, a and b
# Where the bins of L meet, and those of a and of b: narrow at grey, near which most garments lie.
LIGHTNESS_BORDERS = (12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5)
CHROMA_BORDERS = (-33.75, -15.0, -3.75, 0.0, 3.75, 15.0, 33.75)
SHADES = 64  # of 256 along each of R, G and B that the palette tells apart

# sRGB with white point D65, IEC 61966-2-1.
XYZ_OF_RGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
WHITE = (0.95047, 1.0, 1.08883)


class ColorFeature(nn.Module):
    """Colours of the T cells of the picture to which the network responds most."""

    def __init__(self, top_n: int) -> None:
        super().__init__()
        self.top_n = top_n

    def forward(self, x: Tensor, conv_map: Tensor) -> Tensor:
        """Network's input N x 3 x H x W and conv map N x C x h x w -> N x 3T, float32.

        R of the T cells with the strongest mean response, strongest first (of equal ones the first
        in reading order), then G, then B. A `UserError` where the conv map has fewer cells.
        """
        height, width = conv_map.shape[-2:]
        cells = height * width
        if cells < self.top_n:
            raise UserError(
                f"COLOR_TOP_N is {self.top_n}, but the conv map has {cells} cells;"
                " lower it, or raise CROP_SIZE"
            )
        strongest = strongest_cells(conv_map, self.top_n)
        colors = F.adaptive_avg_pool2d(x.float(), (height, width)).flatten(2)
        return colors.gather(2, strongest[:, None].expand(-1, 3, -1)).flatten(1)


def strongest_cells(conv_map: Tensor, count: int) -> Tensor:
    """The cells with the strongest mean response: N x C x h x w -> N x count, int64.

    Strongest first, of equal ones the first in reading order, by which they are numbered.
    """
    response = conv_map.float().mean(1).flatten(1)
    return response.argsort(dim=1, descending=True, stable=True)[:, :count]


def lab_of_rgb(rgb: Tensor) -> Tensor:
    """Convert sRGB to CIELAB: N x 3 x ..., 0 to 1 -> N x 3 x ...

    L in 0 to 100, a and b in about -110 to 110 (CIE 15, white point D65).
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,nj...->ni...", rgb.new_tensor(XYZ_OF_RGB), linear)
    xyz = xyz / rgb.new_tensor(WHITE).view(3, *[1] * (rgb.dim() - 2))
    f = torch.where(xyz > (6 / 29) ** 3, xyz ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def palette_bins() -> Tensor:
    """The palette's bin of each shade: SHADES^3, int64; R varies slowest, B fastest."""
    lightness, *ab = lab_of_rgb(_shades()[None])[0]
    lightness = torch.bucketize(lightness, lightness.new_tensor(LIGHTNESS_BORDERS), right=True)
    a, b = (torch.bucketize(c, c.new_tensor(CHROMA_BORDERS), right=True) for c in ab)
    return (lightness * PALETTE_BINS + a) * PALETTE_BINS + b


def _shades() -> Tensor:
    """The sRGB colour of each shade: 3 x SHADES^3, 0 to 1."""
    step = 256 / SHADES
    middle = (torch.arange(SHADES, dtype=torch.float64) * step + (step - 1) / 2) / 255
    return torch.stack(torch.meshgrid(middle, middle, middle, indexing="ij")).flatten(1)


class Palette(nn.Module):
    """Which colours a picture has, and how much of each, where the network responds.

    A histogram over CIELAB, each pixel weighted by the square of the network's response there, and
    the square root of it: its Euclidean distance is then Hellinger's, which suits histograms
    (Arandjelovic and Zisserman, Three Things Everyone Should Know to Improve Object Retrieval, CVPR
    2012).
    """

    bins: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A table: powers and roots of every pixel would cost half of a ResNet50's time.
        self.register_buffer("bins", palette_bins(), persistent=False)
        # From the network's input to a shade of each channel, in SHADES of 256.
        shift = (channel_values(MEAN) + 0.5 / 255) * SHADES
        self.register_buffer("scale", channel_values(STD) * SHADES, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor, conv_map: Tensor) -> Tensor:
        """Network's input N x 3 x H x W and conv map N x C x h x w -> N x 512, float32, length 1.

        8 bins of L, in each 8 of a, in each 8 of b.
        """
        shade = torch.addcmul(self.shift, x.float(), self.scale)
        shade = shade.mul_(255 / 256).floor_().clamp_(0, SHADES - 1)
        red, green, blue = shade.unbind(1)
        shade = (red * SHADES).add_(green).mul_(SHADES).add_(blue)
        place = self.bins.take(shade.flatten(1).long())
        response = conv_map.float().mean(1, keepdim=True)
        response = F.interpolate(response, x.shape[-2:], mode="bilinear", align_corners=False)
        # Above its lowest value, since not every backbone ends in a ReLU; all equal, all count.
        response = response.flatten(1)
        weight = response.sub_(response.amin(1, keepdim=True)).add_(1e-6).square_()
        histogram = x.new_zeros(len(x), PALETTE_BINS**3, dtype=torch.float32)
        histogram.scatter_add_(1, place, weight)
        return (histogram / histogram.sum(1, keepdim=True)).sqrt()


def color_features(settings: Mapping[str, Any]) -> list[nn.Module]:
    """The colour features that the settings of a feature database name, in its order."""
    features: list[nn.Module] = [ColorFeature(settings["COLOR_TOP_N"])]
    return [*features, Palette()] if settings["PALETTE"] else features

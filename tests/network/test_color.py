"""The colour features against loops over the picture and OpenCV's CIELAB."""

import cv2
import numpy as np
import pytest
import torch

from network.color import ColorFeature, Palette, lab_of_rgb
from network.layers import MEAN, STD
from pictures.decode import read_picture
from tests.conftest import first_picture
from utils import UserError


def colors_by_loops(picture: np.ndarray, conv_map: np.ndarray, top_n: int) -> list[float]:
    """The colour feature of a picture whose sides are multiples of the map's."""
    _, height, width = conv_map.shape
    high, wide = picture.shape[1] // height, picture.shape[2] // width
    cells = [(row, column) for row in range(height) for column in range(width)]
    strength = {cell: sum(channel[cell] for channel in conv_map) for cell in cells}
    strongest = sorted(cells, key=lambda cell: (-strength[cell], cell))[:top_n]
    return [
        float(channel[r * high : (r + 1) * high, c * wide : (c + 1) * wide].mean())
        for channel in picture
        for r, c in strongest
    ]


@pytest.mark.parametrize(
    ("shape", "side", "top_n"), [((7, 7), 14, 10), ((7, 7), 224, 1), ((4, 4), 32, 16)]
)
def test_color_feature_equals_a_loop_over_the_cells(shape, side: int, top_n: int) -> None:
    """Small whole numbers as response: most cells tie, and the first in reading order leads."""
    rng = np.random.default_rng(0)
    picture = rng.random((2, 3, side, side), np.float32)
    conv_map = rng.integers(0, 3, (2, 5, *shape)).astype(np.float32)
    found = ColorFeature(top_n)(torch.from_numpy(picture), torch.from_numpy(conv_map))
    assert found.dtype == torch.float32
    expected = [colors_by_loops(p, m, top_n) for p, m in zip(picture, conv_map, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_color_feature_of_a_picture_worked_out_by_hand() -> None:
    """Strongest is the lower right cell, then, of two equal ones, the upper left: R, then G, B."""
    conv_map = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 9.0]]]])
    red = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    picture = torch.stack([red, red * 10, red * 100])[None].repeat_interleave(2, 2)
    picture = picture.repeat_interleave(2, 3)
    found = ColorFeature(3)(picture, conv_map)
    assert found.tolist() == [[4, 1, 3, 40, 10, 30, 400, 100, 300]]


def test_more_colors_than_cells_are_refused() -> None:
    with pytest.raises(UserError, match=r"COLOR_TOP_N is 5.* 4 cells"):
        ColorFeature(5)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 2, 2))


def test_lab_is_that_of_opencv(shared) -> None:
    """On a real photo, to less than half a just noticeable difference (1)."""
    rgb = np.float32(read_picture(first_picture(shared))) / 255
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    found = lab_of_rgb(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() < 0.5
    # Black, white and the primaries, from the tables of CIE 15.
    known = {(0, 0, 0): (0, 0, 0), (1, 1, 1): (100, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20)}
    colors = torch.tensor(list(known), dtype=torch.float32)
    np.testing.assert_allclose(lab_of_rgb(colors), list(known.values()), atol=0.05)


LIGHTNESS = [12.5 * i for i in range(1, 8)]
CHROMA = [60 * abs(i / 4) * i / 4 for i in range(-3, 4)]  # squares of evenly spaced numbers


def palette_by_loops(rgb: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """512 values of a picture, H x W x 3 bytes, by OpenCV and a loop over its pixels."""
    histogram = np.zeros((8, 8, 8))
    rgb = ((rgb // 4 * 4 + 1.5) / 255).astype(np.float32)  # the middle of its shade
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    for (lightness, a, b), w in zip(lab.reshape(-1, 3), weight.ravel(), strict=True):
        place = [sum(lightness >= border for border in LIGHTNESS)]
        place += [sum(c >= border for border in CHROMA) for c in (a, b)]
        histogram[tuple(place)] += w
    return np.sqrt(histogram / histogram.sum()).ravel()


def test_palette_equals_a_loop_over_the_pixels() -> None:
    """Colours off the bins' borders, where rounding decides; the map as large as the picture."""
    rng = np.random.default_rng(1)
    colors = rng.integers(0, 256, (400, 1, 3))
    shades = ((colors // 4 * 4 + 1.5) / 255).astype(np.float32)
    lab = cv2.cvtColor(shades, cv2.COLOR_RGB2LAB)[:, 0]
    borders = np.array([LIGHTNESS, CHROMA, CHROMA])
    colors = colors[(abs(lab[:, :, None] - borders) > 0.3).all((1, 2)), 0]
    rgb = colors[rng.integers(len(colors), size=(24, 24))]
    response = rng.random((1, 5, 24, 24), np.float32)
    x = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255 - torch.tensor(MEAN)[:, None, None]
    x = x / torch.tensor(STD)[:, None, None]
    found = Palette()(x, torch.from_numpy(response))[0].numpy()
    weight = (response.mean(1)[0] - response.mean(1).min()) ** 2
    np.testing.assert_allclose(found, palette_by_loops(rgb, weight), atol=2e-3)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_palette_sees_what_the_network_responds_to() -> None:
    """Left half red, right half blue: where it responds to the left alone, there is no blue."""
    rgb = torch.zeros(1, 3, 64, 64)
    rgb[:, 0, :, :32] = 0.8
    rgb[:, 2, :, 32:] = 0.8
    x = (rgb - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    left = torch.zeros(1, 7, 8, 8)
    left[..., :4] = 1
    even = Palette()(x, torch.ones(1, 7, 8, 8))[0]
    assert even[even > 0].tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-3)
    seen = Palette()(x, left)[0]
    red, blue = seen[even > 0].max(), seen[even > 0].min()
    assert red > 0.95
    assert blue < 0.3

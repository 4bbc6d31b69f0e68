"""Colour profiles: a picture in any colour space has the pixels that its sRGB original has.

Expected values come from the published matrices and curves, not from a library.
"""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pictures.decode import read_picture
from tests.conftest import ROOT

# XYZ of red, green and blue (columns), adapted to D50, and the exponent of the curve (0: sRGB's).
D50 = np.array((0.9642, 1, 0.8249))
SRGB = np.array(
    ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.7141))
)
SPACES = {
    "p3": (
        ((0.51512, 0.29198, 0.1571), (0.2412, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407)),
        0,
    ),
    "adobe": (
        ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)),
        2.2,
    ),
    "prophoto": (
        ((0.79767, 0.13519, 0.03134), (0.28804, 0.71188, 0.00009), (0, 0, 0.82491)),
        1.8,
    ),
}
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def profile(space: bytes, kind: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 4, of tags with their content."""
    name = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", 4, 28) + b"\0T\0T"
    tags = {b"desc": name, b"cprt": name, b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4xI4s4s4s3H6x4s28x", start + len(body), 0x04300000, kind, space, pcs,
                       2026, 1, 1, b"acsp")  # fmt: skip
    return (head + fixed(*D50)).ljust(128, b"\0") + table + body


def curve(gamma: float) -> bytes:
    values = (gamma,) if gamma else CURVE
    return b"para\0\0\0\0" + struct.pack(">H2x", 0 if gamma else 3) + fixed(*values)


def rgb_profile(matrix: object, gamma: float) -> bytes:
    columns = np.array(matrix).T
    tags = {
        b"%cXYZ" % letter: b"XYZ \0\0\0\0" + fixed(*columns[i]) for i, letter in enumerate(b"rgb")
    }
    tags |= {b"%cTRC" % letter: curve(gamma) for letter in b"rgb"}
    return profile(b"RGB ", b"mntr", tags)


def linear(values: np.ndarray) -> np.ndarray:
    values = values / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values: np.ndarray, gamma: float) -> np.ndarray:
    values = values.clip(0, 1)
    if gamma:
        return 255 * values ** (1 / gamma)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


# Lighter than 60, since the steps of 8 bits in the wider spaces are larger in the dark.
PIXELS = np.random.default_rng(0).integers(60, 250, (40, 50, 3), dtype=np.uint8)


def in_space(name: str, pixels: np.ndarray = PIXELS) -> np.ndarray:
    """sRGB pixels in another space."""
    matrix, gamma = SPACES[name]
    other = linear(pixels) @ SRGB.T @ np.linalg.inv(np.array(matrix)).T
    return np.rint(encoded(other, gamma)).astype(np.uint8)


def error(path: Path, expected: np.ndarray = PIXELS, **how: int) -> float:
    read = np.asarray(read_picture(path, **how))
    assert read.shape == expected.shape
    return np.abs(read.astype(float) - expected).max()


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("form", ["png", "tif", "webp", "avif"])
def test_colours_become_srgb(tmp_path: Path, name: str, form: str) -> None:
    icc, path = rgb_profile(*SPACES[name]), tmp_path / f"picture.{form}"
    flat = np.repeat(np.repeat(PIXELS[:4, :4], 16, 0), 16, 1)
    how = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    Image.fromarray(in_space(name, flat)).save(path, icc_profile=icc, **how.get(form, {}))
    assert error(path, flat) <= (8 if form == "avif" else 3)
    read_picture(path).save(tmp_path / "saved.png")
    assert "icc_profile" not in Image.open(tmp_path / "saved.png").info


def test_transparency_palette_and_turn(tmp_path: Path) -> None:
    icc, path = rgb_profile(*SPACES["p3"]), tmp_path / "picture.png"
    alpha = np.full((40, 50, 1), 255, np.uint8)
    alpha[:, 25:] = 0
    expected = np.where(alpha, PIXELS, 255)
    Image.fromarray(np.concatenate([in_space("p3"), alpha], 2)).save(path, icc_profile=icc)
    assert error(path, expected) <= 3

    few = PIXELS[:1, :16].repeat(10, 0)
    palette = Image.new("P", (16, 10))
    palette.putpalette(in_space("p3", few)[0].tobytes())
    palette.putdata(list(range(16)) * 10)
    palette.save(path, icc_profile=icc, transparency=3)
    few[:, 3] = 255
    assert error(path, few) <= 3

    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(in_space("p3")[::-1, ::-1]).save(path, icc_profile=icc, exif=exif)
    assert error(path) <= 3


def test_a_jpeg_decoded_at_part_of_its_size(tmp_path: Path) -> None:
    flat = np.full((800, 800, 3), (200, 120, 80), np.uint8)
    icc, path = rgb_profile(*SPACES["prophoto"]), tmp_path / "large.jpg"
    Image.fromarray(in_space("prophoto", flat)).save(path, icc_profile=icc, quality=98)
    assert error(path, flat[:100, :100], min_side=90) <= 4


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_a_grey_and_with_an_rgb_profile(tmp_path: Path, bits: int) -> None:
    ramp = np.arange(40, 256, dtype=float)[None].repeat(3, 0)
    expected = np.rint(encoded((ramp / 255) ** 1.8, 0))[:, :, None].repeat(3, 2)
    stored = ramp.astype(np.uint8) if bits == 8 else (ramp * 257).astype(np.uint16)
    grey = profile(b"GRAY", b"mntr", {b"kTRC": curve(1.8)})
    for icc in (grey, rgb_profile(*SPACES["prophoto"])):
        Image.fromarray(stored).save(tmp_path / "grey.png", icc_profile=icc)
        assert error(tmp_path / "grey.png", expected) <= 1


def press_profile(cyan: tuple[float, float, float]) -> bytes:
    """CMYK -> Lab by a table of the 16 corners: cyan alone is `cyan`, other ink is black."""
    identity = bytes(range(256))
    corners = b""
    for inks in range(16):  # the first ink, cyan, varies slowest
        lightness, a, b = {0: (100, 0, 0), 8: cyan}.get(inks, (0, 0, 0))
        corners += bytes((round(lightness * 2.55), round(a) + 128, round(b) + 128))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += identity * 4 + corners + identity * 3
    return profile(b"CMYK", b"prtr", {b"A2B0": table, b"A2B1": table}, pcs=b"Lab ")


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_cmyk_of_a_press(tmp_path: Path, form: str) -> None:
    cyan = (60, -20, -30)
    y = (cyan[0] + 16) / 116
    xyz = D50 * np.array((y + cyan[1] / 500, y, y - cyan[2] / 200)) ** 3
    blue = np.rint(encoded(xyz @ np.linalg.inv(SRGB).T, 0))
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255
    how = {"quality": 100} if form == "jpg" else {}
    icc, path = press_profile(cyan), tmp_path / f"press.{form}"
    Image.fromarray(inks, "CMYK").save(path, icc_profile=icc, **how)
    read = np.asarray(read_picture(path)).astype(float)
    assert np.abs(read[:, :16] - 255).max() <= 2
    assert np.abs(read[:, 16:] - blue).max() <= 3


def test_srgb_pictures_stay_bit_for_bit(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (own, rgb_profile(SRGB, 0), profile(b"GRAY", b"mntr", {b"kTRC": curve(0)})):
        pixels = PIXELS[:, :, 0] if b"GRAY" in icc else PIXELS
        for form in ("plain.png", "plain.jpg"):
            Image.fromarray(pixels).save(tmp_path / form)
            Image.fromarray(pixels).save(tmp_path / f"with_{form}", icc_profile=icc)
            assert read_picture(tmp_path / form) == read_picture(tmp_path / f"with_{form}")


def test_profiles_that_cannot_be_used_are_ignored_with_one_warning(tmp_path: Path) -> None:
    whole = rgb_profile(*SPACES["p3"])
    profiles = {"1": b"no profile", "2": whole[:300], "3": whole[:200] + bytes(400)}
    for name, icc in profiles.items():
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.png", icc_profile=icc)
    grey = profile(b"GRAY", b"mntr", {b"kTRC": curve(1.8)})
    for name in "45":
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.png", icc_profile=grey)
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pictures.decode import read_picture\n"
        "for path in sorted(pathlib.Path().glob('*.png')): read_picture(path).save(path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    broken, other = done.stderr.splitlines()
    assert broken.startswith("1.png: its colour profile is ignored: it is broken")
    assert other.startswith("4.png: its colour profile is ignored: it is for GRAY")
    for path in tmp_path.glob("*.png"):
        assert np.array_equal(np.asarray(Image.open(path)), PIXELS)

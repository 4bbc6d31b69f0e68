"""decode.py: every kind of picture file as upright RGB, cut to its box, or an error of one line."""

import os
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures.decode import PictureError, read_picture

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def pixels(path: Path) -> list[list[tuple[int, ...]]]:
    picture = read_picture(path)
    assert picture.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(picture).tolist()]


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    rgba = np.array([[(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert pixels(tmp_path / "rgba.png") == [[RED, WHITE, (204, 204, 204)]]

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    palette.save(tmp_path / "clear.gif", transparency=1)
    assert pixels(tmp_path / "opaque.png") == [[RED, BLUE]]
    assert pixels(tmp_path / "clear.png") == [[RED, WHITE]]
    assert pixels(tmp_path / "clear.gif") == [[RED, WHITE]]

    grey = np.array([[(100, 255), (100, 0)]], np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png") == [[(100, 100, 100), WHITE]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_brightness(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    read = np.asarray(read_picture(tmp_path / f"ramp.{suffix}")).astype(float)
    assert np.abs(read - ramp[:, :, None] / 257).max() <= 1
    assert np.ptp(read, axis=2).max() == 0


def test_cmyk_bilevel_and_plain_grey(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(np.array(pixels(tmp_path / "cmyk.jpg")) - RED).max() <= 3
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bilevel.png")
    assert pixels(tmp_path / "bilevel.png") == [[WHITE, (0, 0, 0)]]
    Image.fromarray(np.array([[7, 200]], np.uint8)).save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png") == [[(7, 7, 7), (200, 200, 200)]]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[RED, BLUE]]),
        (2, [[BLUE, RED]]),
        (3, [[BLUE, RED]]),
        (6, [[RED], [BLUE]]),
        (8, [[BLUE], [RED]]),
    ],
)
def test_picture_is_turned_as_its_exif_data_say(
    tmp_path: Path, orientation: int, upright: list[list[tuple[int, ...]]]
) -> None:
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.array([[RED, BLUE]], np.uint8)).save(path, exif=exif)
    assert pixels(path) == upright
    x, y = len(upright[0]) - 1, len(upright) - 1  # boxes count in the upright picture
    assert read_picture(path, (x, y, x + 1, y + 1)).getpixel((0, 0)) == upright[y][x]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((2, 1, 5, 7), (2, 1, 5, 7)),
        ((-3, 2, 6, 99), (0, 2, 6, 8)),
        ((0, 0, 10, 8), (0, 0, 10, 8)),
        ((9, 7, 500, 500), (9, 7, 10, 8)),
    ],
)
def test_box_is_cut_out_and_clipped(
    tmp_path: Path, box: tuple[int, int, int, int], kept: tuple[int, int, int, int]
) -> None:
    grid = np.array([[(x, y, 0) for x in range(10)] for y in range(8)], np.uint8)
    Image.fromarray(grid).save(tmp_path / "grid.png")
    x1, y1, x2, y2 = kept
    expected = [[(x, y, 0) for x in range(x1, x2)] for y in range(y1, y2)]
    assert np.asarray(read_picture(tmp_path / "grid.png", box)).tolist() == [
        [list(pixel) for pixel in row] for row in expected
    ]


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 7), (6, 2, 3, 5), (10, 0, 20, 5), (0, 8, 4, 12), (-9, 0, 0, 5)]
)
def test_box_that_leaves_nothing_is_an_error(tmp_path: Path, box: tuple[int, ...]) -> None:
    Image.new("RGB", (10, 8)).save(tmp_path / "small.png")
    with pytest.raises(PictureError) as error:
        read_picture(tmp_path / "small.png", box)
    assert " ".join(map(str, box)) in str(error.value)
    assert "10 x 8" in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.6])
def test_truncated_picture_is_an_error_that_names_it(
    tmp_path: Path, suffix: str, keep: float
) -> None:
    path = tmp_path / f"torn.{suffix}"
    Image.fromarray(NOISE).save(path)
    assert read_picture(path).size == (80, 60)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(PictureError, match=f"torn.{suffix}: cannot be read"):
        read_picture(path)


@pytest.mark.parametrize(("suffix", "keep"), [("jpg", 0.6), ("png", 0.6), ("tif", 0.9)])
def test_a_truncated_picture_is_read_as_far_as_it_goes(
    tmp_path: Path, suffix: str, keep: float
) -> None:
    """Its begin is that of the whole one; afterwards, files without an end are refused again."""
    path = tmp_path / f"torn.{suffix}"
    Image.fromarray(NOISE).save(path)
    whole = np.asarray(read_picture(path))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    torn = np.asarray(read_picture(path, truncated=True))
    assert torn.shape == whole.shape
    assert np.array_equal(torn[:16], whole[:16])
    with pytest.raises(PictureError, match="TRUNCATED=accept" if suffix != "tif" else "torn"):
        read_picture(path)


def test_missing_file_folder_and_text_are_errors(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    for name, said in {"none.jpg": "no such file", "text.jpg": "cannot be read", "": ""}.items():
        with pytest.raises(PictureError, match=f"{name}: .*{said}"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    # No pixel data follow the header: whoever decodes finds a truncated picture instead.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(PictureError, match=r"bomb\.png: more than \d+ million pixels"):
        read_picture(path)


@pytest.mark.parametrize(
    "how", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}]
)
@pytest.mark.parametrize("min_side", [0, 20])
def test_a_jpeg_without_its_end_is_read_if_it_lacks_no_pixel(how: dict, min_side: int) -> None:
    file = BytesIO()
    grey = np.full((20, 80, 3), 128, np.uint8)  # what decoders put where data are missing
    Image.fromarray(np.concatenate([NOISE, grey])).save(file, "JPEG", **how)
    whole = read_picture(file, None, min_side)
    data = file.getvalue()
    for missing in (1, 2):
        assert read_picture(BytesIO(data[:-missing]), None, min_side) == whole
    # At the end of a scan and at a restart marker, too, where no data are torn.
    for length in range(len(data) // 3, len(data) - 4, 5 if how else 97):
        with suppress(PictureError):
            assert read_picture(BytesIO(data[:length]), None, 0) == read_picture(file)


def test_the_limit_of_pixels_is_that_of_what_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, exif = tmp_path / "large.jpg", Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (400, 320), "white")
    picture.paste("red", (200, 0, 400, 160))
    picture.save(path, exif=exif)
    picture.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 320 // 3)
    assert read_picture(path).size == (160, 200)  # a half, the largest below the limit
    assert read_picture(path, min_side=40).size == (40, 50)
    cut = read_picture(path, (160, 200, 320, 400))  # px of the upright picture at its full size
    assert cut.size == (80, 100)
    assert np.abs(np.asarray(cut, int) - RED).mean() < 5
    for name, limit in (("large.png", 3), ("large.jpg", 4.1)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 320 // limit)
        with pytest.raises(PictureError, match="million pixels"):
            read_picture(tmp_path / name, min_side=40)


def test_an_open_file_is_read_from_its_beginning_and_a_pipe_too(tmp_path: Path) -> None:
    file = BytesIO()
    Image.fromarray(NOISE).save(file, "PNG")  # it is at its end now
    reading, writing = os.pipe()
    os.write(writing, file.getvalue())
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert np.array_equal(np.asarray(read_picture(pipe)), NOISE)
    assert np.array_equal(np.asarray(read_picture(file)), NOISE)

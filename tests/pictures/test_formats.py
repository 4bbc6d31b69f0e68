"""Which files are pictures, and what is said of those that are not."""

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures.decode import PictureError, read_picture
from pictures.folder import find_pictures
from tests.conftest import ROOT

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
BY_CONTENT = {  # names that no list of suffixes has -> the format
    "no_suffix": "JPEG", "x.jpg?w=800": "PNG", "photo.jpg.1": "WEBP", "photo.jpeg_large": "JPEG",
    "b.psd.bak": "TIFF", "IMG.JPEG2000": "JPEG2000", "download": "AVIF", "a.image": "GIF",
    "really_jpeg.heic": "JPEG",
}  # fmt: skip
BY_SUFFIX = ("a.jpe", "b.JPE", "c.dib", "d.pgm", "e.pbm", "f.tga", "g.jfif", "h.JPG")
OTHERS = {
    "notes.txt": b"no picture", "README": b"no picture", "clip.mp4": b"\0\0\0\x18ftypmp42mp42",
    "x.svg": b"<svg/>", "features.h5": b"\x89HDF\r\n\x1a\n" + bytes(99), "raw.NEF": b"II*\0\x08",
    "page.ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "empty": b"", "torn.bin": b"RIFF\0\0\0\0WEBPVP8 ",
}  # fmt: skip


def test_content_decides_where_the_suffix_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, form in BY_CONTENT.items():
        Image.fromarray(PIXELS).save(tmp_path / name, format=form)
    for name in BY_SUFFIX:
        (tmp_path / name).touch()
    (tmp_path / "all_feat.json").write_text("{}")
    assert find_pictures(tmp_path) == sorted([*BY_CONTENT, *BY_SUFFIX])
    assert capfd.readouterr().err == ""  # all are pictures, or this project's own
    assert all(read_picture(tmp_path / name).size == (80, 60) for name in BY_CONTENT)

    for name, content in OTHERS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden").touch()
    assert find_pictures(tmp_path) == sorted([*BY_CONTENT, *BY_SUFFIX])
    find_pictures(tmp_path)
    (line,) = capfd.readouterr().err.splitlines()  # once
    assert line.startswith(f"{tmp_path}: left out, no picture: 2 without a suffix, ")
    assert {"1 .txt", "1 .mp4", "1 .svg", "1 .h5", "1 .nef", "1 .ps", "1 .bin"} <= set(
        line.partition("picture: ")[2].split(", ")
    )


def without_extras(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run some Python in which the packages of requirements-formats.txt are not installed."""
    begin = (
        f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "sys.modules['pillow_heif'] = sys.modules['pillow_jxl'] = None\n"
    )
    command = [sys.executable, "-c", begin + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def test_formats_of_the_extra_are_named_where_it_is_missing(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".ljust(999, b"\0")
    files = {"a.heic": heic, "b": heic, "c.HIF": b"", "d.jxl": b"\xff\x0a", "e.jpg?": b"\xff\x0a",
             "called.jpg": heic.replace(b"ftypheic", b"ftypmif1")}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    done = without_extras(
        "from pictures.folder import find_pictures\nfrom pictures.decode import read_picture\n"
        "print(find_pictures(pathlib.Path()))\n"
        "for name in ('a.heic', 'called.jpg', 'd.jxl'):\n"
        "    try: read_picture(name)\n"
        "    except Exception as error: print(error)",
        tmp_path,
    )
    install = "run: pip install -r requirements-formats.txt"
    assert done.stdout.splitlines() == [
        "['called.jpg']",
        f"a.heic: it is HEIC, which needs pillow_heif; {install}",
        f"called.jpg: it is HEIC, which needs pillow_heif; {install}",
        f"d.jxl: it is JPEG XL, which needs pillow_jxl; {install}",
    ]
    assert done.stderr == (
        ".: left out, no picture: 3 HEIC, 2 JPEG XL; for HEIC and JPEG XL:"
        " pip install -r requirements-formats.txt\n"
    )


@pytest.fixture
def save_heic() -> Callable[[Path], None]:
    heif = pytest.importorskip("pillow_heif")

    def save(path: Path) -> None:
        picture, exif = Image.fromarray(PIXELS[::-1, ::-1]), Image.Exif()
        exif[0x0112] = 3
        heif.register_heif_opener()
        picture.save(path, "HEIF", quality=95, chroma=444, exif=exif.tobytes())

    return save


def test_heic_is_read_upright(tmp_path: Path, save_heic: Callable[[Path], None]) -> None:
    for name in ("a.heic", "b.HEIF", "c", "called.jpg"):
        save_heic(tmp_path / name)
    assert len(find_pictures(tmp_path)) == 4
    for path in tmp_path.iterdir():
        assert np.abs(np.asarray(read_picture(path), int) - PIXELS).mean() < 3


@pytest.fixture
def jxl() -> Callable[..., bytes]:
    pytest.importorskip("pillow_jxl")

    def save(pixels: np.ndarray, **options: object) -> bytes:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JXL", lossless=True, **options)
        return file.getvalue()

    return save


def test_jpeg_xl_is_read(tmp_path: Path, jxl: Callable[..., bytes]) -> None:
    for name, options in {"a.jxl": {}, "b": {"use_container": True}}.items():
        (tmp_path / name).write_bytes(jxl(PIXELS, **options))
    assert find_pictures(tmp_path) == ["a.jxl", "b"]
    for name in ("a.jxl", "b"):
        assert np.array_equal(np.asarray(read_picture(tmp_path / name)), PIXELS)


@pytest.mark.parametrize(
    "size", [(64, 64), (60, 50), (64, 48), (96, 64), (160, 90), (80, 64), (40, 20), (8, 8),
             (13, 700), (700, 13), (300, 4), (57, 31)],
)  # fmt: skip
def test_jpeg_xl_of_too_many_pixels_is_not_decoded(
    size: tuple[int, int], jxl: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({}, {"use_container": True}):
        file = jxl(np.resize(PIXELS, (size[1], size[0], 3)), **options)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1])
        assert read_picture(BytesIO(file)).size == size
        torn = file[:-9]  # decoding it would be another error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1] // 2 - 1)
        with pytest.raises(PictureError, match="million pixels"):
            read_picture(BytesIO(torn))

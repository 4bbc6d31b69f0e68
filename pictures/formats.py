"""Which files are pictures: by their usual suffixes, else by what they begin with."""

import os
import stat
from contextlib import suppress
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from utils import needs_package

USUAL_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
))  # fmt: skip
# Raw files of cameras are TIFF files, which Pillow opens; what it finds is a tiny preview.
RAW_SUFFIXES = frozenset((".dng", ".nef", ".cr2", ".arw", ".orf", ".rw2", ".pef", ".srw"))
# Pillow opens them, but PostScript is a program, and the pixels of the others it cannot decode.
NO_PICTURES = frozenset(("EPS", "WMF", "EMF", "MPEG", "HDF5", "GRIB", "BUFR"))
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")  # no other file begins so
HEIC, HEIC_SUFFIXES = "HEIC", (".heic", ".heif", ".hif")
HEIC_BRANDS = (
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
)  # fmt: skip
INSTALL = "pip install -r requirements-formats.txt"
BEGIN = 64  # bytes that tell the formats


def kind_of(path: str) -> str:
    """What a file is for a report of those left out: its suffix or format; "" for a picture.

    Files with a usual suffix are not opened.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in USUAL_SUFFIXES or (suffix in HEIC_SUFFIXES and find_spec("pillow_heif")):
        return ""
    with suppress(Exception):  # Pillow's plugins raise many types
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                begin = file.read(BEGIN)
                if begin.startswith(SIGNATURES):
                    return ""
                if _is_heic(begin):
                    return "" if find_spec("pillow_heif") else HEIC
                known = suffix not in RAW_SUFFIXES and _is_known(begin)
                if known and open_picture(file).format not in NO_PICTURES:
                    return ""
    return HEIC if suffix in HEIC_SUFFIXES else suffix or "without a suffix"


def _is_known(begin: bytes) -> bool:
    """Whether one of Pillow's formats begins so; much faster than to try them all."""
    Image.init()
    begin = begin[:16].ljust(16, b"\0")
    return any(accept and accept(begin) for _, accept in Image.OPEN.values())


def _is_heic(begin: bytes) -> bool:
    brands = [begin[i : i + 4] for i in range(8, len(begin), 4)]
    return begin[4:8] == b"ftyp" and begin[8:12] in HEIC_BRANDS and b"avif" not in brands


def open_picture(file: BinaryIO) -> Image.Image:
    """Open a picture by its content, without decoding it.

    A JPEG of any size is opened, since it can be decoded at part of it.

    Raises
    ------
    UserError : the format's package is missing
    DecompressionBombError : more than twice Pillow's limit of pixels
    Exception : of many types, by Pillow: no picture, damaged
    """
    file.seek(0)
    begin = file.read(BEGIN)
    file.seek(0)
    if _is_heic(begin):
        try:
            import pillow_heif
        except ImportError as error:
            raise needs_package(error, "it is HEIC, which", INSTALL) from None
        pillow_heif.register_heif_opener()
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        if not begin.startswith(b"\xff\xd8"):
            raise
        file.seek(0)
        return JpegImageFile(file)

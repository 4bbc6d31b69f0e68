"""Which files are pictures: by their usual suffixes, else by what they begin with."""

import math
import os
import stat
import struct
from importlib.util import find_spec
from io import BytesIO
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
EXTRAS = {"HEIC": "pillow_heif", "JPEG XL": "pillow_jxl"}  # and the module that decodes it
EXTRA_SUFFIXES = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL"}
INSTALL = "pip install -r requirements-formats.txt"
HEIC_BRANDS = (
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
)  # fmt: skip
JXL, JXL_BOXES = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"  # a bare codestream, one in boxes
RATIOS = (0, 1, 1.2, 4 / 3, 1.5, 16 / 9, 1.25, 2)  # of width to height, as JPEG XL numbers them
NO_SUFFIX = "without a suffix"
BEGIN = 64  # bytes that tell the formats


def kind_of(path: str) -> str:
    """What a file is for a report of those left out: its suffix or format; "" for a picture.

    Files with a usual suffix are not opened.
    """
    suffix = os.path.splitext(path)[1].lower()
    extra = EXTRA_SUFFIXES.get(suffix, "")
    if suffix in USUAL_SUFFIXES or (extra and find_spec(EXTRAS[extra])):
        return ""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as file:
                begin = file.read(BEGIN)
                if begin.startswith(SIGNATURES):
                    return ""
                extra = _extra_format(begin) or extra
                known = bool(find_spec(EXTRAS[extra])) if extra else _is_known(begin)
                if known and suffix not in RAW_SUFFIXES:
                    return suffix or NO_SUFFIX if open_picture(file).format in NO_PICTURES else ""
    except Exception:  # Pillow's plugins raise many types
        extra = ""
    return extra or suffix or NO_SUFFIX


def _is_known(begin: bytes) -> bool:
    """Whether one of Pillow's formats begins so; much faster than to try them all."""
    Image.init()
    begin = begin[:16].ljust(16, b"\0")
    return any(accept and accept(begin) for _, accept in Image.OPEN.values())


def _extra_format(begin: bytes) -> str:
    """The format of `EXTRAS` that a file begins like, or ""."""
    if begin.startswith((JXL, JXL_BOXES)):
        return "JPEG XL"
    brands = [begin[i : i + 4] for i in range(8, len(begin), 4)]
    if begin[4:8] == b"ftyp" and begin[8:12] in HEIC_BRANDS and b"avif" not in brands:
        return "HEIC"
    return ""


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
    if extra := _extra_format(begin):
        _register(extra)
        if extra == "JPEG XL":  # its plugin decodes all of it at once, whatever its size
            content = file.read()
            width, height = _jxl_size(content)
            if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError
            file = BytesIO(content)
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        if not begin.startswith(b"\xff\xd8"):
            raise
        file.seek(0)
        return JpegImageFile(file)


def _register(extra: str) -> None:
    """Let Pillow open a format of `EXTRAS`."""
    try:
        if extra == "HEIC":
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            import pillow_jxl  # noqa: F401  it registers itself
    except ImportError as error:
        raise needs_package(error, f"it is {extra}, which", INSTALL) from None


def _jxl_size(content: bytes) -> tuple[int, int]:
    """Width and height of a JPEG XL file, from its SizeHeader (ISO/IEC 18181-1, annex D)."""
    begin = _jxl_codestream(content)[2:16]
    bits, at = int.from_bytes(begin, "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return (bits >> (at - count)) & ((1 << count) - 1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side()
    ratio = take(3)
    return (int(height * RATIOS[ratio]) if ratio else side()), height


def _jxl_codestream(content: bytes) -> bytes:
    """The codestream's begin, which may be spread over boxes."""
    stream, at = b"", 0
    if content.startswith(JXL):
        return content
    while len(stream) < BEGIN and at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", content, at + 8), 16
        end = at + size if size else len(content)
        if kind in (b"jxlc", b"jxlp"):
            stream += content[at + head + 4 * (kind == b"jxlp") : end][:BEGIN]
        if end <= at:
            break
        at = end
    if not stream.startswith(JXL):
        raise ValueError("no JPEG XL codestream")
    return stream

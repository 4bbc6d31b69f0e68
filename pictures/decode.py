"""The one place where picture files are decoded: a file -> sRGB, upright."""

import math
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from pictures.formats import NO_PICTURES, open_picture
from utils import UserError, shown

MAX_RATIO = 100  # of the sides; scaled to the network's input, more would fill the memory
MAX_STORED = 4  # times Pillow's limit of pixels that a JPEG decoded at part of its size may have
JPEG, JPEG_END = ("JPEG", "MPO"), b"\xff\xd9"
# Where a JPEG lacks more than its end, it is decoded otherwise with this than with the end alone.
JPEG_MORE = b"\x55" * 64 + b"".join(b"\xff%c" % n + b"\x55" * 16 for n in range(0xD0, 0xD8)) * 2
JPEG_MORE += JPEG_END
JPEG_SEGMENT, JPEG_SCAN = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]"), b"\xff\xda"
TRUNCATED = threading.Lock()  # of Pillow's only switch for truncated files, a global
REPORTED = mmap(-1, 256)  # flags of faults of colour profiles; processes forked later share them
# In the EXIF data of pictures that this project draws.
SHEET_MARK = "deep-fashion-retrieval, answers"
SAME_COLORS = 2  # of 255; profiles called sRGB differ by 1, no other one by less than 9
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the colours of a profile


class PictureError(UserError):
    """A picture file that cannot be read."""


def read_picture(
    path: Path | str | BinaryIO | Image.Image,
    box: tuple[int, int, int, int] | None = None,
    min_side: int = 0,
    name: str = "",
    truncated: bool = False,
) -> Image.Image:
    """Read a picture of any format Pillow knows but PostScript, as sRGB.

    Turned upright as its EXIF data says; converted from the colours of its profile; transparent
    parts become white, as in a shop's pictures; 16-bit grey is scaled to 8 bits; of an animation,
    the first frame. A JPEG that lacks its end but no pixel is read.

    Parameters
    ----------
    path : the file, one that is open, or a picture that Pillow has opened
    box : x1, y1, x2, y2 in px of the upright picture, clipped to it; None: all of it
    min_side : where there is no box, a large JPEG is decoded at a half, a quarter or an eighth of
        its size, as long as both sides keep this many px: several times faster; 0: at full size,
        or at the largest one within Pillow's limit of pixels
    name : what messages call it; else its path
    truncated : read a file whose end is missing as far as it goes, as Pillow does

    Raises
    ------
    PictureError : no such file, no regular file, no picture, damaged, of a format that needs
        another package, more pixels to decode than Pillow's limit against decompression bombs, a
        box that leaves nothing of it, or one side over 100 times the other; one line
    """
    name = shown(name or (path if isinstance(path, str | Path) else "the picture"))
    decode = partial(_decode, box=box, min_side=min_side, name=name)
    try:
        with warnings.catch_warnings():
            # Odd EXIF data, where the pixels are sound; many pixels, which `_decode` counts.
            warnings.simplefilter("ignore")
            if isinstance(path, Image.Image):
                picture = decode(path)
            elif not isinstance(path, str | Path):
                source = path if path.seekable() else BytesIO(path.read())
                picture = _read(source, decode, truncated)
            elif stat.S_ISREG(os.stat(path).st_mode):
                with open(path, "rb") as file:
                    picture = _read(file, decode, truncated)
            else:  # to open a pipe would wait for its writer
                raise UserError("cannot be read as a picture: no regular file")
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file") from None
    except UserError as error:
        raise PictureError(f"{name}: {error}") from None
    except Image.DecompressionBombError:
        limit = int(_max_pixels() / 1e6)
        largest = f"{limit} million pixels ({MAX_STORED * limit} of a JPEG)"
        raise PictureError(f"{name}: more than {largest}; scale it down first") from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise PictureError(f"{name}: cannot be read as a picture: {_reason(error)}") from None
    if max(picture.size) > MAX_RATIO * min(picture.size):
        size = f"{picture.width} x {picture.height} px"
        raise PictureError(f"{name}: {size} is too narrow; cut off what is no garment")
    return picture


def sheet_mark() -> Image.Exif:
    """EXIF data to save a sheet of answers with, so that it is not taken for a photo."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SHEET_MARK
    return exif


def refuse_sheet(picture: Image.Image, path: Path) -> None:
    """Raise a `PictureError` where a picture is a sheet of answers, see `sheet_mark`."""
    if SHEET_MARK.encode() in picture.info.get("exif", b""):
        raise PictureError(
            f"{shown(path)}: answers that retrieval.py drew; move it out of the data set"
        )


def _reason(error: Exception) -> str:
    """Why a file cannot be read, and what to do where that helps."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that Pillow knows; save it as JPEG or PNG"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    reason = shown(" ".join(str(error).split()))  # it may quote the file
    reason = f"{reason or type(error).__name__}; copy it or save it again"
    return reason + ", or set TRUNCATED=accept" * ("truncated" in reason.lower())


def _max_pixels() -> float:
    return Image.MAX_IMAGE_PIXELS or math.inf


def _read(
    file: BinaryIO, decode: Callable[[Image.Image], Image.Image], truncated: bool
) -> Image.Image:
    """`_decode` an open file; also a JPEG whose end is missing, but no pixel."""
    try:
        with open_picture(file) as picture:
            try:
                return decode(picture)
            except OSError:
                file.seek(0)
                content = file.read().removesuffix(b"\xff")  # of the end, half
                if picture.format not in JPEG or not _has_all_scans(content, picture):
                    raise
                ends = (JPEG_END, JPEG_MORE)
                zeros, others = (decode(open_picture(BytesIO(content + end))) for end in ends)
                if zeros.tobytes() != others.tobytes():
                    raise
                return zeros
    except Exception:
        if not truncated:
            raise
    with TRUNCATED:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            with open_picture(file) as picture:
                return decode(picture)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


def _has_all_scans(content: bytes, picture: Image.Image) -> bool:
    """Whether the scans that a JPEG begins have all bits of all coefficients (ISO/IEC 10918-1)."""
    found, at = set(), 2
    while segment := JPEG_SEGMENT.search(content, at):
        at = segment.start()
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if segment[0] == JPEG_SCAN and end <= len(content):
            *components, first, last, bits = content[at + 5 : end]
            if not bits & 15:
                found |= {(c, k) for c in components[::2] for k in range(first, last + 1)}
        at = end
    return len(found) == 64 * len(picture.getbands())


def _decode(
    picture: Image.Image, box: tuple[int, int, int, int] | None, min_side: int, name: str
) -> Image.Image:
    """The pixels of a picture that is open: sRGB, upright, cut to the box."""
    if picture.format in NO_PICTURES:  # PostScript: a program, which Ghostscript would run
        raise UserError(f"{picture.format} files are not read; save it as JPEG or PNG")
    full_width = picture.width
    _draft(picture, 0 if box else min_side)
    if picture.width * picture.height > _max_pixels():
        raise Image.DecompressionBombError
    part = picture.width / full_width
    picture = _rgb(_upright(picture), name)
    return _cut(picture, box, part) if box else picture


def _draft(picture: Image.Image, min_side: int) -> None:
    """Let a large JPEG be decoded at part of its size, see `read_picture`."""
    width, height = picture.size
    if picture.format not in JPEG or width * height > MAX_STORED * _max_pixels():
        return
    side, part = min_side or max(width, height), 1
    while part < 8 and width * height > part**2 * _max_pixels():
        part *= 2
    picture.draft(None, (min(side, width // part), min(side, height // part)))


def _cut(picture: Image.Image, box: tuple[int, int, int, int], part: float) -> Image.Image:
    """Cut a picture that was decoded at `part` of its size to a box of its full size."""
    x1, y1, x2, y2 = (round(part * value) for value in box)
    x1, y1, x2, y2 = max(0, x1), max(0, y1), min(picture.width, x2), min(picture.height, y2)
    if x1 >= x2 or y1 >= y2:
        size = f"{round(picture.width / part)} x {round(picture.height / part)} px"
        raise UserError(f"the box {' '.join(map(str, box))} leaves nothing of {size}; correct it")
    return picture.crop((x1, y1, x2, y2))


def _upright(picture: Image.Image) -> Image.Image:
    # Not by ImageOps.exif_transpose: it rewrites the EXIF data, and fails where they are odd.
    picture.load()
    if not getattr(picture, "jpeg", True):  # JPEG XL, which its decoder has turned
        return picture
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # odd EXIF data; the pixels are sound
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    """A decoded picture as sRGB, 8 bits."""
    info = picture.info
    if picture.mode[0] in "IF":
        picture = _from_wide_grey(picture)
    to_srgb = _to_srgb(picture.mode, info["icc_profile"], name) if "icc_profile" in info else None
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        if to_srgb:
            rgb = _apply(to_srgb, rgba)
            rgb.putalpha(rgba.getchannel("A"))
            rgba = rgb
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    picture = _apply(to_srgb, picture) if to_srgb else picture.convert("RGB")
    picture.info.pop("icc_profile", None)  # it would be saved with a picture made of this one
    return picture


def _apply(transform: ImageCms.ImageCmsTransform, picture: Image.Image) -> Image.Image:
    return transform.apply(picture.convert(transform.input_mode))


def _to_srgb(mode: str, profile: bytes | None, name: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of a profile to sRGB; None where they are the same, or it is broken."""
    if mode == "LAB":  # whose colours are absolute
        return None
    mode = {"1": "L", "LA": "L", "La": "L", "L": "L", "CMYK": "CMYK"}.get(mode, "RGB")
    found = _transform_of(profile or b"", mode)
    if not isinstance(found, str):
        return found
    flag = hash(found) % len(REPORTED)
    if not REPORTED[flag]:
        REPORTED[flag] = True
        print(
            f"{name}: its colour profile is ignored: {found}; save the picture as sRGB if its"
            " colours are wrong. Others like it are not named",
            file=sys.stderr,
        )
    return None


@lru_cache(maxsize=16)
def _transform_of(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | str | None:
    """As `_to_srgb`, of a picture of mode L, RGB or CMYK; a text: why the profile is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        wanted = PROFILE_MODES.get(space, "")
        if wanted != mode and (mode, wanted) != ("L", "RGB"):
            return f"it is for {space}, the pixels are {mode}"
        mode = wanted
        # As Photoshop: exact colours within sRGB, black stays black.
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "it is broken"
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(16, -1, 3)
    colors = Image.fromarray(grid if mode == "RGB" else levels[None])
    before, after = (np.asarray(p, int) for p in (colors.convert("RGB"), _apply(transform, colors)))
    same = np.abs(after - before).max() <= SAME_COLORS
    return None if same else transform


def _from_wide_grey(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, integers or floats, as 8 bits."""
    # Pillow's own conversion cuts off at 255: nearly everything of 16 bits would be white.
    values = np.array(picture, np.float32)
    clear = values == picture.info.get("transparency", np.nan)
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    highest = values.max()
    factor = 255 if highest <= 1 else 1 if highest <= 255 else 1 / 257
    grey = np.rint(values * factor).clip(0, 255).astype(np.uint8)
    grey[clear] = 255
    return Image.fromarray(grey)

"""The one place where picture files are decoded: a file -> RGB, upright."""

import math
import os
import stat
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from utils import UserError, shown

MAX_RATIO = 100  # of the sides; scaled to the network's input, more would fill the memory
PICTURE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jfif", ".jp2",
    ".ppm",
))  # fmt: skip
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(UserError):
    """A picture file that cannot be read."""


def read_picture(
    path: Path | str | BinaryIO | Image.Image,
    box: tuple[int, int, int, int] | None = None,
    min_side: int = 0,
    name: str = "",
) -> Image.Image:
    """Read a picture of any format Pillow knows but PostScript, as RGB.

    Turned upright as its EXIF data says; transparent parts become white, as in a shop's pictures;
    16-bit grey is scaled to 8 bits; of an animation, the first frame.

    Parameters
    ----------
    path : the file, one that is open, or a picture that Pillow has opened
    box : x1, y1, x2, y2 in px of the upright picture, clipped to it; None keeps all of it
    min_side : where there is no box, a large JPEG is decoded at a half, a quarter or an eighth of
        its size, as long as both sides keep this many px: several times faster; 0: at full size
    name : what messages call it; else its path

    Raises
    ------
    PictureError : no such file, no regular file, no picture, damaged, more pixels than Pillow's
        limit against decompression bombs, a box that leaves nothing of it, or one side over 100
        times the other; one line
    """
    name = shown(name or (path if isinstance(path, str | Path) else "the picture"))
    try:
        if isinstance(path, str | Path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("no regular file")  # to open a pipe would wait for its writer
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF data; the pixels are sound
            opened = nullcontext(path) if isinstance(path, Image.Image) else Image.open(path)
            with opened as file:
                if file.format == "EPS":  # a program, which Pillow would let Ghostscript run
                    raise ValueError("PostScript")
                # Warnings are the whole process's: another thread may have its own filters on.
                if file.width * file.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise Image.DecompressionBombError
                if min_side and box is None:
                    file.draft(None, (min_side, min_side))
                picture = _rgb(_upright(file))
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise PictureError(
            f"{name}: more than {limit} million pixels; scale the picture down first"
        ) from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.replace(repr(str(path)), "").replace(repr(path), "")
        reason = shown(" ".join(reason.split())) or type(error).__name__  # it may quote the file
        raise PictureError(f"{name}: cannot be read as a picture: {reason}") from None
    if box is not None:
        picture = _cut(picture, name, box)
    if max(picture.size) > MAX_RATIO * min(picture.size):
        raise PictureError(f"{name}: {picture.width} x {picture.height} px is too narrow")
    return picture


def _cut(picture: Image.Image, name: str, box: tuple[int, int, int, int]) -> Image.Image:
    x1, y1 = max(0, box[0]), max(0, box[1])
    x2, y2 = min(picture.width, box[2]), min(picture.height, box[3])
    if x1 >= x2 or y1 >= y2:
        raise PictureError(
            f"{name}: the box {' '.join(map(str, box))} leaves nothing of"
            f" {picture.width} x {picture.height} px"
        )
    return picture.crop((x1, y1, x2, y2))


def _upright(picture: Image.Image) -> Image.Image:
    # Not by ImageOps.exif_transpose: it rewrites the EXIF data, and fails where they are odd.
    picture.load()
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # odd EXIF data; the pixels are sound
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":
        return _from_wide_grey(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _from_wide_grey(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, integers or floats, as RGB."""
    # Pillow's own conversion cuts off at 255: nearly everything of 16 bits would be white.
    values = np.array(picture, np.float32)
    clear = values == picture.info.get("transparency", np.nan)
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    highest = values.max()
    factor = 255 if highest <= 1 else 1 if highest <= 255 else 1 / 257
    grey = np.rint(values * factor).clip(0, 255).astype(np.uint8)
    grey[clear] = 255
    return Image.fromarray(grey).convert("RGB")

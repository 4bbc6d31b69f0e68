"""Text in a picture, each line in a font of the system that has its letters."""

import unicodedata
from functools import cache
from itertools import chain
from pathlib import Path
from typing import cast

from PIL import ImageDraw, ImageFont

from utils import print_once

FOLDERS = (  # of Linux, macOS and Windows
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
ODD = ("bold", "italic", "oblique", "serif", "mono", "light", "thin", "black", "math")
NO_LETTER = "\U0010ffff"  # what a font draws for it, a box or nothing, stands for missing letters
MISSING = (
    "the picture shows \\u... for letters of a line for which this system has no font; install one,"
    " for example: apt-get install fonts-noto-cjk"
)
OWN = ""  # instead of a file, the font that Pillow brings


def write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, ink: str, size: int, width: int
) -> None:
    """Write a line of text, cut to a width.

    Where no font of the system has all of its letters, those that are not ASCII are escaped, with
    a message on standard error, once.

    Parameters
    ----------
    draw : of the picture
    corner : of the line, left and top, in px
    ink : colour
    size, width : of the letters and of the longest line, in px
    """
    text = unicodedata.normalize("NFC", text)
    file = _file_of(text)
    if file is None:
        print_once(MISSING)
        file, text = OWN, text.encode("ascii", "backslashreplace").decode()
    font = _font(file, size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text += "..."
    top = corner[1] + _font(OWN, size).getmetrics()[0]
    draw.text((corner[0], top), text, ink, font, anchor="ls")


@cache
def _file_of(text: str) -> str | None:
    """The first font that has all letters of a text."""
    return next((file for file in [OWN, *_files()] if _has(file, text)), None)


@cache
def _files() -> list[str]:
    """The fonts of this system; regular ones without serifs first."""
    places = [Path(folder).expanduser().rglob("*.[ot]t[fc]") for folder in FOLDERS]
    files = map(str, chain.from_iterable(places))
    return sorted(files, key=lambda file: (sum(word in file.lower() for word in ODD), file))


def _has(file: str, text: str) -> bool:
    try:
        # One letter after the other: the other engine draws lone accents on a circle.
        font = _font(file, 16).font_variant(layout_engine=ImageFont.Layout.BASIC)
        missing = font.getmask(NO_LETTER)
        drawn = (font.getmask(letter) for letter in set(text) if not letter.isspace())
        return all((d.size, bytes(d)) != (missing.size, bytes(missing)) for d in drawn)
    except (OSError, ValueError):  # a font of another kind, or damaged
        return False


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if file == OWN else ImageFont.truetype(file, size)
    return cast(ImageFont.FreeTypeFont, font)

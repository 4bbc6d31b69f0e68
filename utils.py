"""Helpers that several scripts share: errors, atomic files, reading one picture, timing."""

import errno
import hashlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from PIL import Image, ImageOps
from tqdm import tqdm

MOST_NARROW = 100  # sides' ratio; scaled to the network's input, more would fill the memory
PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".jfif",
        ".jp2",
        ".ppm",
    }
)


class UserError(Exception):
    """Something a user can mend; the message says what is wrong, where, and what to do."""

    def __str__(self) -> str:
        # A DataLoader's worker process packs the whole traceback into the message.
        message = super().__str__()
        if "\nOriginal Traceback" in message:
            message = message.rstrip().rpartition("\n")[2].partition("Error: ")[2]
        return message


class PictureError(UserError):
    """A picture file that cannot be read."""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave with its exit status.

    A `UserError` becomes one line on standard error and status 2, Ctrl-C status 130.
    """
    name = Path(sys.argv[0]).name
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:  # of the disk or of a name, not of the program
        if isinstance(error, FileNotFoundError) or not (
            error.filename or error.errno == errno.ENOSPC
        ):
            raise
        print(f"{name}: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        status = 2
    sys.exit(status)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; rename it over `path` when the block ends well, else remove it.

    A reader sees the old file or the whole new one, never a part, whatever kills the writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_picture(
    path: Path | str, box: tuple[int, int, int, int] | None = None, least: int = 0
) -> Image.Image:
    """Read a picture of any format Pillow knows, as RGB.

    Turned upright as its EXIF data says; transparent parts become white, as in a shop's pictures;
    16-bit grey is scaled to 8 bits.

    Parameters
    ----------
    path : the file
    box : x1, y1, x2, y2 in px of the upright picture, clipped to it; None keeps all of it
    least : where there is no box, a large JPEG may be decoded at a half, a quarter or an eighth of
        its size, down to this many px of both sides: several times faster; 0 for its full size

    Raises
    ------
    PictureError : no such file, no picture, damaged, more pixels than Pillow's limit against
        decompression bombs, a box that leaves nothing of it, or one side over 100 times the other
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF data; the pixels are sound
            with Image.open(path) as file:
                if least and box is None:
                    file.draft(None, (least, least))
                ImageOps.exif_transpose(file, in_place=True)
                picture = _rgb(file)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise PictureError(
            f"{path}: more than {limit} million pixels; scale the picture down first"
        ) from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        reason = str(error).replace(str(path), "").replace("''", "").strip() or type(error).__name__
        raise PictureError(f"{path}: cannot be read as a picture: {reason}") from None
    if box is not None:
        picture = _cut(picture, path, box)
    if max(picture.size) > MOST_NARROW * min(picture.size):
        raise PictureError(f"{path}: {picture.width} x {picture.height} px is too narrow")
    return picture


def _cut(picture: Image.Image, path: Path | str, box: tuple[int, int, int, int]) -> Image.Image:
    x1, y1 = max(0, box[0]), max(0, box[1])
    x2, y2 = min(picture.width, box[2]), min(picture.height, box[3])
    if x1 >= x2 or y1 >= y2:
        raise PictureError(
            f"{path}: the box {' '.join(map(str, box))} leaves nothing of"
            f" {picture.width} x {picture.height} px"
        )
    return picture.crop((x1, y1, x2, y2))


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":
        # Pillow's own conversion cuts off at 255: nearly everything of 16 bits would be white.
        highest = picture.getextrema()[1]
        factor = 255 if highest <= 1 else 1 if highest <= 255 else 1 / 256
        return picture.point(lambda value: value * factor).convert("L").convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


class Stopwatch:
    """Wall-clock seconds of named steps, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block; the same name again adds to it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def progress_bar(total: int, title: str, unit: str, done: int = 0, shown: bool = True) -> tqdm:
    """A progress bar with speed and time left; in a log file, a line now and then."""
    pause = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}s",
        initial=done,
        mininterval=pause,
        maxinterval=2 * pause,
        dynamic_ncols=True,
        disable=not shown,
    )

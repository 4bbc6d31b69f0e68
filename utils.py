"""Helpers that several scripts share: errors, atomic files, reading one picture, timing."""

import errno
import glob
import hashlib
import io
import json
import math
import multiprocessing
import os
import platform
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAY = 24 * 60 * 60  # s
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
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UserError(Exception):
    """Something a user can mend; the message says what is wrong, where, and what to do."""

    status = 2  # that a script leaves with

    def __str__(self) -> str:
        # A DataLoader's worker process packs the whole traceback into the message.
        message = super().__str__()
        if "\nOriginal Traceback" in message:
            message = message.rstrip().rpartition("\n")[2].partition("Error: ")[2]
        return message


class AwayError(UserError):
    """A server that does not answer, or not yet: the same may work later."""

    status = 3


class PictureError(UserError):
    """A picture file that cannot be read."""


class MissingPictureError(PictureError):
    """A picture file that is not there."""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave with its exit status.

    A `UserError` becomes one line on standard error and its status: 2, or 3 where a server is away.
    Ctrl-C ends the process as a kill does, which every file survives; a SIGINT that the caller
    ignores, as `nohup` and a job in the background may, stays ignored.
    """
    _end_by_ctrl_c()
    name = Path(sys.argv[0]).name
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no UTF-8 is to be shown, too
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        status = error.status
    except BrokenPipeError:  # the reader of our output, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:  # of the disk or of a name, not of the program
        if isinstance(error, FileNotFoundError) or not (error.filename or error.errno in NO_SPACE):
            raise
        where = one_line(str(error.filename or "output"))
        print(f"{name}: {where}: {error.strerror}", file=sys.stderr)
        status = 2
    except RuntimeError as error:  # torch has no type of its own for it
        while True:  # it raises for each worker, and others may just have ended, too
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                break
            except RuntimeError:
                pass
        reason = _of_workers(str(error))
        if not reason:
            raise
        print(f"{name}: {reason}. Run it again: it goes on where it was", file=sys.stderr)
        status = 2
    sys.exit(status)


def _end_by_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@cache
def end_with_parent() -> None:
    """Let a process of a pool end by Ctrl-C, and soon after the process that began it.

    By itself it would wait for more work, for minutes or for ever. Elsewhere nothing is done.
    """
    parent = multiprocessing.parent_process()
    if not parent:
        return

    def watch() -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(parent.pid or 0, 0)
                time.sleep(0.5)
        os._exit(1)

    _end_by_ctrl_c()
    threading.Thread(target=watch, daemon=True).start()


def _of_workers(error: str) -> str:
    """What befell the processes that read pictures; "" where an error is the program's own."""
    last = error.rstrip().rpartition("\n")[2]
    if "DataLoader worker (pid" in error:
        return f"{last.split('. ')[0].rstrip('. ')}; if memory is short, set NUM_WORKERS lower"
    if "torch_" in last and "resize file" in last:
        return "no shared memory is left (/dev/shm); make it larger, or set NUM_WORKERS to 0"
    return ""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; rename it over `path` when the block ends well, else remove it.

    A reader sees the old file or the whole new one, never a part, whatever kills the writer or the
    machine. What a killed one left behind, the next writer of such a file removes.

    Raises
    ------
    UserError : it cannot be written: no space is left, say
    """
    part = path.with_name(f".{path.name}.{_where()}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".{glob.escape(path.name.split('.')[0])}.*.part"):
            if _is_abandoned(other):
                other.unlink(missing_ok=True)
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make what was renamed and removed in a folder survive a power cut."""
    with suppress(OSError):  # of a file system that cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@cache
def _where() -> str:
    """Eight digits for this machine or container: process numbers mean nothing in another one."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # macOS
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _is_abandoned(part: Path) -> bool:
    """Whether nobody writes to a part any more; elsewhere, whether nobody has done so for a day."""
    where, pid = part.name.split(".")[-3:-1]
    try:
        if where != _where():
            return time.time() - part.stat().st_mtime > DAY
        os.kill(int(pid), 0)
    except (ProcessLookupError, FileNotFoundError):
        return True
    except (ValueError, OverflowError, PermissionError):
        pass  # no number of ours, or somebody else's process
    return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parsed_json(content: str | bytes) -> Any:
    """What JSON text says.

    Raises
    ------
    ValueError : it is no JSON, or nested too deeply
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def can_be_listed(path: str) -> bool:
    """Whether a path can stand in a list: one line of UTF-8, without NUL."""
    return not any(character in "\n\r\0" or "\ud800" <= character <= "\udfff" for character in path)


def one_line(text: str) -> str:
    """A text without what would break the line or the terminal: it may quote anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(path: Path | str) -> str:
    """A path for a message: as it is, or by `ascii` where it would break the line or the terminal.

    Newlines, control characters and lone surrogates (a name that is no UTF-8) are such.
    """
    text = str(path)
    return text if text.isprintable() else ascii(text)


def read_picture(
    path: Path | str | BinaryIO,
    box: tuple[int, int, int, int] | None = None,
    least: int = 0,
    name: str = "",
) -> Image.Image:
    """Read a picture of any format Pillow knows but PostScript, as RGB.

    Turned upright as its EXIF data says; transparent parts become white, as in a shop's pictures;
    16-bit grey is scaled to 8 bits; of an animation, the first frame.

    Parameters
    ----------
    path : the file, or one that is open
    box : x1, y1, x2, y2 in px of the upright picture, clipped to it; None keeps all of it
    least : where there is no box, a large JPEG may be decoded at a half, a quarter or an eighth of
        its size, down to this many px of both sides: several times faster; 0 for its full size
    name : what messages call it; else its path

    Raises
    ------
    PictureError : no such file, no regular file, no picture, damaged, more pixels than Pillow's
        limit against decompression bombs, a box that leaves nothing of it, or one side over 100
        times the other; one line
    """
    named = isinstance(path, str | Path)
    name = shown(name or (path if named else "the picture"))
    try:
        if named and not stat.S_ISREG(
            os.stat(path).st_mode
        ):  # to open a pipe would wait for its writer
            raise ValueError("no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd EXIF data; the pixels are sound
            with Image.open(path) as file:
                if file.format == "EPS":  # a program, which Pillow would let Ghostscript run
                    raise ValueError("PostScript")
                # Warnings are the whole process's: another thread may have its own filters on.
                if file.width * file.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                    raise Image.DecompressionBombError
                if least and box is None:
                    file.draft(None, (least, least))
                picture = _rgb(_upright(file))
    except FileNotFoundError:
        raise MissingPictureError(f"{name}: no such file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise PictureError(
            f"{name}: more than {limit} million pixels; scale the picture down first"
        ) from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        said = getattr(error, "strerror", None) or str(error)
        said = said.replace(repr(str(path)), "").replace(repr(path), "")
        # What it says may quote the file.
        reason = shown(" ".join(said.split())) or type(error).__name__
        raise PictureError(f"{name}: cannot be read as a picture: {reason}") from None
    if box is not None:
        picture = _cut(picture, name, box)
    if max(picture.size) > MOST_NARROW * min(picture.size):
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
    # Not by ImageOps.exif_transpose: it writes the EXIF data anew, and fails where they are odd.
    picture.load()
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
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

"""The helpers that several modules share: command line, errors, atomic files, progress."""

import argparse
import errno
import glob
import hashlib
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import numpy as np
from dotenv import dotenv_values
from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from tqdm import tqdm

from config import (
    ENV_CODING,
    ENV_FILE,
    ENV_OF_TESTS,
    ENV_PREFIX,
    GROUPS,
    Config,
    default_text,
    flag_of,
)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCK = ".lock"


class UserError(Exception):
    """An error that the user can correct; the message says what is wrong, where, and what to do."""

    status = 2  # exit status of the script

    def __str__(self) -> str:
        message = super().__str__()
        if "\nOriginal Traceback" in message:  # a DataLoader's worker puts all of it in the message
            message = message.rstrip().rpartition("\n")[2].partition("Error: ")[2]
        return message


class AwayError(UserError):
    """A server does not answer; the same command may work later."""

    status = 3


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line instead of the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {shown(message)} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def parse_args(
    argv: Sequence[str] | None,
    description: str,
    uses: Sequence[str],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[Config, argparse.Namespace]:
    """Read a script's command line, the environment and .env.

    Parameters
    ----------
    argv : the arguments, without the program; None takes `sys.argv[1:]`
    description : what the script does, for `--help`
    uses : names of the settings that the script uses; the flags of all others are refused
    add_arguments : called with the parser to add the script's own arguments

    Returns
    -------
    The settings, and the script's own arguments.

    Raises
    ------
    SystemExit : status 2 after one line on standard error that names the setting, the value and
        what is allowed; status 0 after `--help`
    """
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if add_arguments:
        add_arguments(parser)
    parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " [--SETTING VALUE ...]"
    _add_settings(parser, uses)
    arguments = parser.parse_args(argv)
    given = {name: vars(arguments).pop(name) for name in uses if name in arguments}
    try:
        known = {ENV_PREFIX + name for name in Config.model_fields} | {ENV_OF_TESTS}
        for name, value in {**dotenv_values(ENV_FILE, encoding=ENV_CODING), **os.environ}.items():
            is_ours = name.upper().startswith(ENV_PREFIX)
            if is_ours and (name.upper() not in known or value is None):
                parser.error(f"{name}: no such setting, or no value (environment or {ENV_FILE})")
        return Config(**given), arguments
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{ENV_FILE}: cannot be read as UTF-8 text: {error}")
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if first["type"] == "string_pattern_mismatch":
            reason = f"it is {Config.model_fields[name].description}"
        parser.error(f"{name} ({flag_of(name)}): {first['input']!r} is not allowed: {reason}")


def _add_settings(parser: argparse.ArgumentParser, uses: Sequence[str]) -> None:
    """A flag for each setting that is used, by groups."""
    for group in GROUPS:
        section = parser.add_argument_group(f"settings: {group}")
        for name in uses:
            field = Config.model_fields[name]
            if field.title != group:
                continue
            switch: dict[str, Any] = {"nargs": "?", "const": "true"}
            section.add_argument(
                flag_of(name),
                dest=name,
                default=argparse.SUPPRESS,
                metavar=_metavar(field),
                help=f"{field.description} (default: {default_text(name)})".replace("%", "%%"),
                **(switch if field.annotation is bool else {}),
            )


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    names: dict[Any, str] = {bool: "true|false", int: "N", float: "X", str: "NAME", Path: "FOLDER"}
    return names.get(field.annotation, "A,B")


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and exit with its status.

    A `UserError` becomes one line on standard error and status 2, or 3 where a server is away.
    Ctrl-C ends the process without a traceback; files stay whole, see `atomic_write`.
    """
    end_by_ctrl_c()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    status, message = 2, ""
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        status, message = error.status, str(error)
    except BrokenPipeError:  # `head`, for example, reads no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:  # of the disk or a file name, not a bug
        if isinstance(error, FileNotFoundError) or not (error.filename or error.errno in NO_SPACE):
            raise
        message = f"{error.filename or 'output'}: {error.strerror}"
    except (RuntimeError, MemoryError) as error:  # torch has no type of its own for a lost worker
        _stop_watching_workers()
        message = _reason_of_lost_worker(error)
        if not message:
            raise
    if message:
        print(f"{Path(sys.argv[0]).name}: {shown(message)}", file=sys.stderr)
    sys.exit(status)


def end_by_ctrl_c() -> None:
    """Let Ctrl-C end this process without a traceback, unless the caller ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop_watching_workers() -> None:
    """Remove torch's signal handler, which raises an error for each worker that ends."""
    while hasattr(signal, "SIGCHLD"):
        with suppress(RuntimeError):  # another worker may end at this moment
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return


def _reason_of_lost_worker(error: Exception) -> str:
    """Why the memory or a process that reads pictures is lost; "" where it is another error."""
    text, reason = str(error), ""
    last = text.rstrip().rpartition("\n")[2]
    # Torch has many wordings: unable to allocate, open, resize, mmap or write to /torch_PID_N.
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        reason = "the memory of this machine is too small; close other programs"
    elif re.search("shared memory|</torch_|Bus error", last):
        reason = "no shared memory is left (/dev/shm); make it larger, or set NUM_WORKERS to 0"
    elif "DataLoader worker (pid" in text:
        reason = f"{last.split('. ')[0].rstrip('. ')}; if memory is short, set NUM_WORKERS lower"
    return reason and f"{reason}. Run it again to continue (train.py: with --resume)"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` if the block succeeds, else remove it.

    Readers see the old file or the whole new one, even if the process is killed or the power fails.
    The next writer of the file removes what a killed one left.

    Raises
    ------
    UserError : the file cannot be written, for example because no space is left
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".{glob.escape(path.name.split('.')[0])}.*.part"):
            try:
                os.kill(int(other.name.split(".")[-2]), 0)
            except ProcessLookupError:  # its writer has ended
                other.unlink(missing_ok=True)
            except (ValueError, OverflowError, PermissionError):
                pass  # not a name of ours, or another user's process
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renamed and removed files of a folder survive a power cut."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made, while the block runs; it ends with the process.

    Raises
    ------
    UserError : another process holds the lock; or the folder cannot be written to
    """
    lock = FileLock(folder / LOCK)
    with writing(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = "another process writes there; wait for it to end, or stop it"
            raise UserError(f"{folder}: {message}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's error for a file that cannot be written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def needs_package(error: ImportError, what: str, install: str) -> UserError:
    """The error of what needs a package that is missing, or is there but cannot be imported.

    `install` is the command that mends the first; it would not mend the second.
    """
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{what} needs {error.name}; run: {install}")
    return UserError(f"{what} needs {error.name}, which cannot be imported: {shown(error)}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_stamp(file: Path | str) -> tuple[int, int, int]:
    """Size in bytes, inode, and time of the last change in ns, which no program can set back."""
    status = os.stat(file)
    return status.st_size, status.st_ino, status.st_ctime_ns


def evenly_spaced(count: int, max_count: int) -> np.ndarray:
    """Rows spread evenly over 0 to count - 1: up to `max_count`, int64, ascending."""
    return np.unique(np.linspace(0, count - 1, min(max_count, count)).astype(np.int64))


def shown(text: object) -> str:
    """A path or another text for a message: line breaks and control characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


@cache
def print_once(line: str) -> None:
    """Print a warning to standard error, once in a process: a script may read a folder twice."""
    print(line, file=sys.stderr)


def command(script: str, base: Path, *options: str) -> str:
    """A command to copy into a shell: `script` (with its own arguments) for a data set."""
    return shlex.join(["python", *script.split(), "--dataset-base", str(base), *options])


class _Log(io.TextIOBase):
    """What tqdm writes, as lines, and of those that it updates one for each tenth of the work."""

    tenth: object = None

    def write(self, text: str) -> int:
        found = re.search(r" (\d+)/(\d+) \[", text)
        tenth = 10 * int(found[1]) // int(found[2]) if found else text.strip()
        if tenth != self.tenth and text.strip():
            self.tenth = tenth
            print(text.strip(), file=sys.stderr, flush=True)
        return len(text)


def progress_bar(total: int, title: str, unit: str, done: int = 0, shown: bool = True) -> tqdm:
    """A progress bar with speed and time left; without a terminal, a line for each 10%."""
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}s",
        initial=done,
        mininterval=0.2,
        maxinterval=0.4,
        dynamic_ncols=True,
        disable=not shown,
        file=None if sys.stderr.isatty() else _Log(),
    )

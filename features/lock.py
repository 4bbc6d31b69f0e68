"""One writer of a folder at a time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils import UserError, writing

LOCK, HOLDER = ".lock", ".lock.holder"


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder while the block runs; it ends with the process.

    Parameters
    ----------
    folder : made where it is missing
    what : what the holder does, for the message to others, as in "a training run"

    Raises
    ------
    UserError : another process holds the lock; or the folder cannot be written to
    """
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    with writing(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            name = holder.read_text("utf-8") if holder.exists() else "another process"
            raise UserError(
                f"{folder}: {name} writes there; wait for it to end, or stop it"
            ) from None
    try:
        with suppress(OSError):  # the disk is full: then the message to others has no name
            holder.write_text(f"{what} (process {os.getpid()} on {platform.node()})", "utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()

"""One writer of a folder at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils import UserError, writing

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the block runs; it ends with the process.

    Parameters
    ----------
    folder : made where it is missing

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
            raise UserError(
                f"{folder}: another process writes there; wait for it to end, or stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()

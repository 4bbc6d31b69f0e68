"""One writer at a time: a lock that names its holder and ends with it, however that ends."""

import errno
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils import UserError, writing

LOCK = ".lock"


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder while the block runs.

    On a file system without locks a word on standard error takes its place.

    Parameters
    ----------
    folder : made where it is missing
    what : what the holder does, for the message to others, as in "a training run"

    Raises
    ------
    UserError : another process holds the lock, which it names; or the folder cannot be written to
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115, closed below
    with file:
        try:
            # Not flock, which forked workers would share and hold on to after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read() or "another process"
                raise UserError(
                    f"{folder}: {holder} writes there; wait for it to end, or stop it"
                ) from None
            print(
                f"{path}: cannot be locked ({error.strerror}): see to it that nothing else writes"
                " there",
                file=sys.stderr,
            )
        with suppress(OSError):  # of a full disk: then the lock does without a name
            file.truncate(0)
            file.write(f"{what} (process {os.getpid()} on {platform.node()})")
            file.flush()
        yield

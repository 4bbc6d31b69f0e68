"""Whether files still have their SHA-256, without reading them each time.

What was read once is remembered with its stamp, which every later change of the file changes. That
is also when the content of a file is checked.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from utils import UserError, atomic_write, parsed_json, sha256_of

CHECKED = ".all_feat.stamps"

FileStamp = tuple[int, int, int]


def file_stamp(path: Path) -> FileStamp:
    """Size in bytes, inode, and time of the last change in ns, which no program can set back."""
    status = path.stat()
    return status.st_size, status.st_ino, status.st_ctime_ns


def first_wrong(
    base: Path, checksums: Mapping[str, str], check: Callable[[str], str]
) -> tuple[str, str] | None:
    """The first of some files that has another SHA-256, or a wrong content.

    Only files that have changed since the last call are read: under 1 s for 1 GB.

    Parameters
    ----------
    base : their folder, where the stamps are saved too if it can be written to
    checksums : the SHA-256 of each file by its name, 64 hexadecimal digits
    check : name of a file -> what is wrong with its content, "" for nothing

    Returns
    -------
    Its name and what is wrong with it; None: all are right.
    """
    try:
        now = {name: [*file_stamp(base / name), sha256] for name, sha256 in checksums.items()}
    except OSError as error:  # another process may just be replacing it
        return Path(error.filename).name, str(error.strerror)
    try:
        before = parsed_json((base / CHECKED).read_bytes())
        changed = [name for name in checksums if before.get(name) != now[name]]
    except (OSError, ValueError, AttributeError):
        changed = list(checksums)
    for name in changed:
        try:
            same = sha256_of(base / name) == checksums[name]
        except OSError as error:
            return name, str(error.strerror)
        fault = check(name) if same else "not the file that all_feat.json describes"
        if fault:
            return name, fault
    if changed:
        with suppress(UserError), atomic_write(base / CHECKED) as part:
            part.write_text(json.dumps(now), "utf-8")
    return None

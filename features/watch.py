"""Waits for pictures that come, change or go."""

from collections.abc import Iterator
from pathlib import Path

from pictures.decode import PICTURE_SUFFIXES
from pictures.folder import MADE_FOLDERS
from utils import UserError

QUIET, LONGEST = 2.0, 60.0  # s without a change after which a copy is over; the most it may take


def below(base: Path) -> Iterator[None]:
    """Once now, then again whenever something has changed in the pictures or lists of a data set.

    Parameters
    ----------
    base : DATASET_BASE

    Raises
    ------
    UserError : the package watchfiles is missing
    """
    try:
        from watchfiles import watch
    except ImportError:
        raise UserError(
            "--watch wants the package watchfiles: pip install -r requirements-watch.txt"
        ) from None
    top = base.resolve()

    def counts(_: object, path: str) -> bool:
        parts = Path(path).relative_to(top).parts if Path(path).is_relative_to(top) else (path,)
        hidden = any(part.startswith(".") for part in parts)
        ours = hidden or parts[0] in MADE_FOLDERS
        return not ours and Path(path).suffix.lower() in {*PICTURE_SUFFIXES, ".txt", ""}

    first, wait = True, {"step": int(1000 * QUIET), "debounce": int(1000 * LONGEST)}
    for changes in watch(top, watch_filter=counts, yield_on_timeout=True, rust_timeout=500, **wait):
        if first or changes:  # the first time it is just listening: nothing is missed from now on
            first = False
            yield

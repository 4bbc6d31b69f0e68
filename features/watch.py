"""Waits for changes of the pictures of a data set."""

from collections.abc import Iterator
from pathlib import Path

from pictures.folder import is_left_out, is_made
from utils import needs_package

QUIET, MAX_WAIT = 2.0, 60.0  # s without a change that end a burst of changes; a burst's maximum


def changes_below(base: Path) -> Iterator[None]:
    """Yield once now, then after every burst of changes of the pictures or lists of a data set.

    Parameters
    ----------
    base : DATASET_BASE

    Raises
    ------
    UserError : the package watchfiles is missing
    """
    try:
        from watchfiles import watch
    except ImportError as error:
        install = "pip install -r requirements-watch.txt"
        raise needs_package(error, "--watch", install) from None
    top = base.resolve()

    def concerns_pictures(_: object, path: str) -> bool:
        parts = Path(path).relative_to(top).parts if Path(path).is_relative_to(top) else (path,)
        return not (any(map(is_left_out, parts)) or is_made(path))

    # It yields an empty set as soon as it listens: nothing is missed from then on.
    started = False
    for changes in watch(
        top,
        watch_filter=concerns_pictures,
        yield_on_timeout=True,
        step=int(1000 * QUIET),
        debounce=int(1000 * MAX_WAIT),
        rust_timeout=500,
    ):
        if changes or not started:
            started = True
            yield

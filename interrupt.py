"""Ctrl-C ends a script at once: one line, status 130, no traceback, no process left behind.

There is nothing to tidy up, since every file survives a kill. So the process ends where it stands:
no import, no library that computes for seconds or catches exceptions, and no pool of threads that
waits for its work can hold it up.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

FLUSH_SECONDS = 0.2  # at most, for what was printed; a full pipe may never take it


def catch() -> None:
    """From here on, Ctrl-C (SIGINT) ends this process and all below it with status 130.

    For a script to call before its slow imports. A signal that the caller ignores, as a shell does
    for a job in the background, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    # Python's own handler waits for the main thread, which may be inside a library. Blocked, the
    # signal comes to the thread that waits for it; threads and processes begun from here on, to
    # which a terminal sends it too, inherit that.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_end_on_signal, daemon=True).start()


def _end_on_signal() -> None:
    signal.sigwait({signal.SIGINT})
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(FLUSH_SECONDS)
    with suppress(OSError):
        os.write(2, f"\n{Path(sys.argv[0]).name}: stopped\n".encode())
    for pid in processes_below(os.getpid()):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(128 + signal.SIGINT)


def processes_below(pid: int) -> list[int]:
    """The processes below a process; none on a system without /proc."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended by itself
            children += map(int, file.read_text().split())
    return children + [other for child in children for other in processes_below(child)]

"""Ctrl-C ends a script at once: one line, status 130, no traceback, no process left behind.

There is nothing to tidy up, since every file survives a kill. So the process ends where it stands:
no import, no library that computes for seconds or catches exceptions, and no pool of threads that
waits for its work can hold it up.
"""

# A few milliseconds of imports: until `catch` is called, Ctrl-C gives a traceback.
import os
import signal
import sys
import threading
from contextlib import suppress

SAY_SECONDS = 0.2  # at most, for what was printed; a full pipe may never take it


def catch() -> None:
    """From here on, Ctrl-C (SIGINT) ends this process and all below it with status 130.

    For a script to call before its slow imports. A signal that the caller ignores, as a shell does
    for a job in the background, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    # A handler in Python waits for the main thread, which may be inside a library. The byte that
    # comes before it does not.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _left_to_the_thread)
    threading.Thread(target=_end_on_signal, args=(read,), daemon=True).start()
    shield()


def shield() -> None:
    """Keep Ctrl-C, which a terminal sends to all, from processes begun from here on.

    The process that has called `catch` ends them. Where none has, nothing is done.
    """
    if signal.getsignal(signal.SIGINT) == _left_to_the_thread:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _left_to_the_thread(*_: object) -> None:
    pass


def _end_on_signal(read: int) -> None:
    # The caller may have held it back from this process, as `shield` does.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    while signal.SIGINT not in os.read(read, 64):  # torch listens to the end of its workers
        pass
    try:
        say = threading.Thread(target=_say, daemon=True)
        say.start()
        say.join(SAY_SECONDS)
        for pid in processes_below(os.getpid()):
            with suppress(OSError):  # it has ended by itself
                os.kill(pid, signal.SIGKILL)
    finally:
        os._exit(128 + signal.SIGINT)


def _say() -> None:
    with suppress(OSError, ValueError):  # nobody listens
        if sys.stdout:
            sys.stdout.flush()
        os.write(2, f"\n{os.path.basename(sys.argv[0])}: stopped\n".encode())


def processes_below(pid: int) -> list[int]:
    """The processes that a process has begun, and those that they have."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:  # grows
        found += children.get(each, [])
    return found[1:]


def _parents() -> list[tuple[int, int]]:
    """Every process with its parent."""
    if not os.path.exists("/proc/self/stat"):  # macOS
        import subprocess

        told = subprocess.check_output(["/bin/ps", "-A", "-o", "pid=,ppid="])
        pids = list(map(int, told.split()))
        return list(zip(pids[::2], pids[1::2], strict=True))
    pairs = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # else it has ended
            # A name in brackets comes before, which may hold anything.
            pairs.append((int(name), int(file.read().rpartition(b")")[2].split()[1])))
    return pairs

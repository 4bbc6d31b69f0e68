"""Ctrl-C ends a script at once: one line, status 130, no traceback, no process left behind.

There is nothing to tidy up, since every file survives a kill. So the process ends where it stands:
no import, no library that computes for seconds or catches exceptions, and no pool of threads that
waits for its work can hold it up. It becomes this file, run as a program, which ends what is below:
no thread of the script can begin another process meanwhile, or complain of those that end.
"""

# A few milliseconds of imports: until `catch` is called, Ctrl-C gives a traceback.
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

STATUS = 128 + signal.SIGINT
SAY_SECONDS = 0.2  # at most, for what was printed; a full pipe may never take it
END_SECONDS = 1.0  # at most, for what is below; a process that waits for the disk takes its time


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
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # who is in a hurry presses twice
        _in_time(sys.stdout.flush if sys.stdout else int)
        for pid in processes_below(os.getpid()):  # that they do not complain of our end
            _send(pid, signal.SIGSTOP)
        command = [sys.executable, "-I", "-S", __file__, sys.argv[0]]
        os.execv(sys.executable, command)  # noqa: S606, this file
    finally:  # Python's program is no longer there
        _end(sys.argv[0])


def _end(name: str) -> None:
    """End all processes below this one, then itself."""
    try:
        end = time.monotonic() + END_SECONDS
        while (below := processes_below(os.getpid())) and time.monotonic() < end:
            for pid in below:
                _send(pid, signal.SIGKILL)
            time.sleep(0.001)
        _in_time(lambda: os.write(2, f"\n{os.path.basename(name)}: stopped\n".encode()))
    finally:
        os._exit(STATUS)


def _in_time(say: Callable[[], object]) -> None:
    """Print something, where somebody listens."""

    def try_to() -> None:
        with suppress(OSError, ValueError):
            say()

    thread = threading.Thread(target=try_to, daemon=True)
    thread.start()
    thread.join(SAY_SECONDS)


def _send(pid: int, number: int) -> None:
    with suppress(OSError):  # it has ended by itself
        os.kill(pid, number)


def processes_below(pid: int) -> list[int]:
    """The processes that a process has begun, and those that they have, as far as they run."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:  # grows
        found += children.get(each, [])
    return found[1:]


def _parents() -> list[tuple[int, int]]:
    """Every process that runs, with its parent."""
    pairs = []
    if not os.path.exists("/proc/self/stat"):  # macOS
        import subprocess

        command = ["/bin/ps", "-A", "-o", "pid=,ppid=,state="]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:  # noqa: S603
            for row in listing.communicate()[0].splitlines():
                pid, parent, state = row.split()
                if int(pid) != listing.pid and state[0] != "Z":
                    pairs.append((int(pid), int(parent)))
        return pairs
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # else it has ended
            # A name in brackets comes before, which may hold anything.
            state, parent, *_ = file.read().rpartition(b")")[2].split()
            if state != b"Z":
                pairs.append((int(name), int(parent)))
    return pairs


if __name__ == "__main__":
    _end(sys.argv[1])

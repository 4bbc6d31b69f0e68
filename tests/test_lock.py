"""`locked`: one writer at a time, gone with its process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pictures.test_odd_pictures import LESS_THAN_ROOT
from utils import LOCK, UserError, locked

HOLDER = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from utils import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(99)
"""


@contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process that holds the lock, and a worker that it has forked since."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        try:
            yield process, worker
        finally:
            process.kill()
            os.kill(worker, signal.SIGKILL)


def test_the_lock_ends_with_its_holder_whatever_workers_it_leaves(
    tmp_path: Path,
) -> None:
    """A forked worker shares a lock by `flock` unless filelock closes it in the worker."""
    folder = tmp_path / "new"
    with holder(folder) as (process, worker):
        for _ in range(2):  # a refusal changes nothing
            with pytest.raises(UserError) as refused, locked(folder):
                pass
            message = str(refused.value)
            assert (
                message == f"{folder}: another process writes there; wait for it to end, or stop it"
            )
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        with locked(folder):
            pass


def test_it_is_free_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with holder(tmp_path):  # of another process
        pass


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    """Guards `writing` around the lock's file."""
    tmp_path.chmod(0o555)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom utils import locked\n"
        "from pathlib import Path\nfrom utils import run_script\n"
        f"def main():\n    with locked(Path({str(tmp_path)!r})): pass\nrun_script(main)"
    )
    command = [*LESS_THAN_ROOT, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    if (tmp_path / LOCK).exists():
        pytest.skip("this process may write everywhere, whatever the permissions")
    said = f"-c: {tmp_path / LOCK}: cannot be written: Permission denied\n"
    assert (done.returncode, done.stderr) == (2, said)

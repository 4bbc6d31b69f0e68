"""lock.py: one writer at a time, named, and gone with its process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from features.lock import LOCK, locked
from tests.conftest import ROOT
from tests.pictures.test_decode import LESS_THAN_ROOT
from utils import UserError

HOLDER = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from features.lock import locked
with locked(Path(sys.argv[1]), "an extraction"):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
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


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    """Guards `lockf` and what is written into the file."""
    folder = tmp_path / "new"
    with holder(folder) as (process, _):
        for _ in range(2):  # to be refused changes nothing
            with pytest.raises(UserError) as refused, locked(folder, "another"):
                pass
            said = str(refused.value)
            assert said.startswith(f"{folder}: an extraction (process {process.pid} on ")
            assert said.endswith(") writes there; wait for it to end, or stop it")


def test_the_lock_ends_with_its_holder_whatever_workers_it_leaves(tmp_path: Path) -> None:
    """Guards that it is `lockf`: `flock` would be the worker's, too, after the kill."""
    with holder(tmp_path) as (process, worker):
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        with locked(tmp_path, "a training run"):
            pass


def test_it_is_free_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    """Guards that nothing holds on to the file after the block."""
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "a"):
        raise ZeroDivisionError
    other = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
    other += f"from features.lock import locked\nwith locked(Path({str(tmp_path)!r}), 'b'): pass"
    subprocess.run([sys.executable, "-c", other], check=True)


def test_a_shorter_name_replaces_a_longer_one(tmp_path: Path) -> None:
    """Guards `truncate`."""
    for what in ("a run with a long name", "a run"):
        with locked(tmp_path, what):
            said = (tmp_path / LOCK).read_text()
            assert said.startswith(f"{what} (process {os.getpid()} on ")
            assert said.count(")") == 1


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    """Guards `writing` around the opening of the file."""
    tmp_path.chmod(0o555)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom features.lock import locked\n"
        "from pathlib import Path\nfrom utils import run_script\n"
        f"def main():\n    with locked(Path({str(tmp_path)!r}), 'a'): pass\nrun_script(main)"
    )
    command = [*LESS_THAN_ROOT, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    if (tmp_path / LOCK).exists():
        pytest.skip("this process may write everywhere, and cannot be kept from it")
    said = f"-c: {tmp_path / LOCK}: cannot be written: Permission denied\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Guards the branch for other errors of `lockf`. Such a file system cannot be had here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path, "a training run"):
        said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / LOCK}: cannot be locked (No locks available): ")
    assert said.count("\n") == 1

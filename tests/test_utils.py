"""utils.py: files that are whole or not there, exit statuses, times."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from search.query import Stopwatch
from tests.conftest import ROOT
from utils import (
    AwayError,
    UserError,
    atomic_write,
    needs_package,
    progress_bar,
    run_script,
    sha256_of,
)


def test_atomic_write_shows_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with atomic_write(path) as part:
        part.write_text("old")
        assert not path.exists()

    def fail_halfway() -> None:
        with atomic_write(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("file", "old")]
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("file", "new")]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/true"]) as ended:
        pass
    dead, alive = ended.pid, os.getppid()
    others = {f".a.npy.{alive}.part", f".b.npy.{dead}.part", ".a.npy.x.part", "a.npy.part"}
    for name in [*others, f".a.npy.{dead}.part", f".a.codes.npy.{dead}.part"]:
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.npy") as part:
        part.touch()
    assert {path.name for path in tmp_path.iterdir()} == {*others, "a.npy"}


def test_the_rename_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards `sync_folder`, after the rename: a power cut would take back what only looks done."""
    synced, sync = [], os.fsync

    def noted(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_write(tmp_path / "file") as part:
        part.touch()
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (3 << 20) + 5])
def test_sha256_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_stopwatch_keeps_order_and_adds_up() -> None:
    watch = Stopwatch()
    for name in ("read", "rank", "read"):
        before = watch.seconds.get(name, 0.0)
        with watch.step(name):
            sum(range(1000))
        assert watch.seconds[name] > before
    assert list(watch.seconds) == ["read", "rank"]


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable:
    """Runs a `main` as script.py does -> its exit status and standard error."""

    def run(main: Callable[[], int | None]) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["/somewhere/script.py"])
        with pytest.raises(SystemExit) as leaving:
            run_script(main)
        return leaving.value.code, capfd.readouterr().err

    return run


def raises(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raises(UserError("x.txt:3: wrong")), 2, "script.py: x.txt:3: wrong\n"),
        (raises(UserError("a\n\x1b[31m\udcff: b")), 2, "script.py: a\\n\\x1b[31m\\udcff: b\n"),
        (raises(AwayError("no answer")), 3, "script.py: no answer\n"),
        (raises(OSError(28, "No space", "a.npy")), 2, "script.py: a.npy: No space\n"),
        (raises(OSError(27, "File too large")), 2, "script.py: output: File too large\n"),
    ],
)
def test_exit_status_of_a_script(
    run_main: Callable, main: Callable, status: int, said: str
) -> None:
    assert run_main(main) == (status, said)


DEAD = "DataLoader worker (pid 7) is killed by signal: Killed"
FULL = "unable to resize file </torch_1> to the right size: No space left on device (28)"
SHARED = "no shared memory is left (/dev/shm); make it"
TRACEBACK = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "none"),
        ZeroDivisionError(),
        RuntimeError(f"{TRACEBACK}\nRuntimeError: of the program"),
    ],
)
def test_a_fault_of_the_program_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_script(raises(error))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (f"{DEAD}. ", f"{DEAD}; if memory is short, set NUM_WORKERS lower"),
        (f"{TRACEBACK}\nRuntimeError: {FULL}\n", SHARED),
        ("unable to allocate shared memory(shm) for file </torch_9_1>: Success (0)", SHARED),
        ("unable to mmap 96 bytes from file </torch_9_1>: Cannot allocate memory (12)", SHARED),
        ("unable to write to file </torch_9_1>: No space left on device (28)", SHARED),
        (f"{DEAD[:-6]}Bus error. It is possible that workers are out of shared memory.", SHARED),
    ],
)
def test_a_lost_worker_is_one_line(run_main: Callable, error: str, said: str) -> None:
    """Guards `_reason_of_lost_worker`."""
    status, err = run_main(raises(RuntimeError(error)))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"script.py: {said}")
    assert err.endswith(". Run it again to continue (train.py: with --resume)\n")


def test_workers_that_are_lost_one_after_the_other_are_one_line(run_main: Callable) -> None:
    """torch's handler of SIGCHLD raises for each: here for the second one during the first's."""

    def ended(*_: object) -> None:
        raise RuntimeError(DEAD)

    class FirstError(RuntimeError):
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGCHLD)
            return super().__str__()

    def main() -> None:
        signal.signal(signal.SIGCHLD, ended)
        raise FirstError(DEAD)

    status, err = run_main(main)
    assert (status, err.count("\n")) == (2, 1)
    assert DEAD in err


HEAD = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils import run_script\n"


def test_reader_that_stops_early_is_no_error_and_a_full_disk_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}def main():\n    print('line\\n' * 100_000)\nrun_script(main)\n")
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, script], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in result.stderr


def test_without_a_terminal_progress_is_a_line_for_each_tenth(capsys) -> None:
    with progress_bar(1285, "reading", "picture") as bar:
        for start in range(0, 1285, 64):
            bar.update(min(64, 1285 - start))
            bar.set_postfix({"loss": start})
    err = capsys.readouterr().err
    assert "\r" not in err
    assert 8 <= err.count("\n") <= 12
    assert "1285/1285" in err.splitlines()[-1]


def test_a_package_that_cannot_be_imported_is_not_to_be_installed_again() -> None:
    missing = ModuleNotFoundError("No module named 'cv2'", name="cv2")
    broken = ImportError("libGL.so.1: cannot open shared object file", name="cv2")
    command = "pip install x"
    assert str(needs_package(missing, "A", command)) == f"A needs cv2; run: {command}"
    said = str(needs_package(broken, "A", command))
    assert "libGL.so.1" in said
    assert command not in said

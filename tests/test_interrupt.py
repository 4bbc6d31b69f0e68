"""Ctrl-C, to a script alone or to all in a terminal, ends it and its workers silently."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import BY_CTRL_C, ROOT, command_of, first, run
from tools.soak import NETWORK, processes_below

if not Path("/proc/self/stat").exists():
    pytest.skip("how far a process is, is read from /proc", allow_module_level=True)

SOON = 10.0  # s; workers of torch look for their parent every 5 s
TRAIN = ("train.py", *NETWORK, "--num-workers=2", "--resume")
DRAW = ("tools.synthetic", "--items=400", "--inshop-items=0", "--processes=2")


@pytest.mark.parametrize(("command", "group"), [(TRAIN, False), (TRAIN, True), (DRAW, False)])
def test_it_ends_all_and_the_next_run_goes_on(
    command: tuple, group: bool, measured: Path, tmp_path: Path
) -> None:
    """Guards SIG_DFL in `run_script`, and `_end_with_parent`."""
    base = tmp_path / "new" if command is DRAW else measured
    script, *flags = *command, "--dataset-base", str(base)
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(
            [*BY_CTRL_C, *command_of(script), *flags],
            stdout=err, stderr=err, start_new_session=True,
        )  # fmt: skip
    while not re.search(r" [1-9]\d*/\d+ ", (tmp_path / "err").read_text()):
        assert process.poll() is None, (tmp_path / "err").read_text()
        time.sleep(0.01)
    workers = processes_below(process.pid)
    assert workers
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    end = time.monotonic() + SOON
    assert process.wait(timeout=SOON) == -signal.SIGINT
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)
    # A worker that hands a picture to one that has just ended may give a traceback of its own.
    assert ("Traceback" if group else "KeyboardInterrupt") not in (tmp_path / "err").read_text()
    run(script, *flags)


def test_what_the_caller_ignores_stays_ignored() -> None:
    code = "import os, signal, utils; utils.run_script(lambda: os.kill(os.getpid(), signal.SIGINT))"
    ignoring = first("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert subprocess.run([*ignoring, sys.executable, "-c", code], cwd=ROOT).returncode == 0

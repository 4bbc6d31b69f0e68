"""interrupt.py: Ctrl-C on every script, while it starts and while it works."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, first
from PIL import Image

from interrupt import processes_below
from soak import holds_ctrl_c_back

if not Path("/proc/self/status").exists():
    pytest.skip("how far a process is, is read from /proc", allow_module_level=True)

SOON = 2.0  # s
NETWORK = ("--backbone", "mobilenet_v3_small", "--pretrained", "none", "--img-size", "48",
           "--crop-size", "40", "--epoch", "1")  # fmt: skip
SCRIPTS = sorted(
    path.name for path in ROOT.glob("*.py") if "    interrupt.catch()" in path.read_text("utf-8")
)


class Running(subprocess.Popen[str]):
    """A script that runs, its name, and the file with its errors."""

    script: str
    errors: Path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Begins a script in a session of its own, its output in a file each; none of it is left."""
    begun: list[Running] = []

    def begin(
        script: Path | str, *arguments: object, before: Sequence[str] = (), **options: object
    ) -> Running:
        command = [*before, sys.executable, str(ROOT / script), *map(str, arguments)]
        with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
            options = {"stdout": out, "stderr": err, **options}
            begun.append(Running(command, start_new_session=True, text=True, **options))
        begun[-1].script, begun[-1].errors = Path(script).name, tmp_path / "err"
        return begun[-1]

    yield begin
    for process in begun:
        for pid in [process.pid, *session(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def session(leader: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own, *_ = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(own) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(process: Running, there: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert process.poll() is None, f"ended too soon: {process.errors.read_text()}"
        assert time.monotonic() < end
        time.sleep(0.005)


def press(process: Running, folder: Path, group: bool) -> None:
    """Press Ctrl-C: all must be over soon, with one line and status 130."""
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    start = time.monotonic()
    assert process.wait(timeout=60) == 130, (folder / "err").read_text()
    while session(process.pid) and time.monotonic() - start < 60:
        time.sleep(0.005)
    assert time.monotonic() - start < SOON
    said = (folder / "err").read_text()
    assert "Traceback" not in said + (folder / "out").read_text()
    assert "KeyboardInterrupt" not in said
    assert said.endswith(f"\n{process.script}: stopped\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_while_it_starts(script: str, start: Callable, tmp_path: Path) -> None:
    """Guards that each script calls `catch` before its imports, which take seconds.

    Whatever its arguments are: they are not read yet.
    """
    process = start(script, "--help")
    wait_for(process, lambda: holds_ctrl_c_back(process.pid))
    press(process, tmp_path, group=False)
    assert not (tmp_path / "out").read_text()


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """What ablation.py wants: photos by category, and items by group."""
    photos, items = tmp_path / "photos", tmp_path / "items"
    names = [photos / part / c for part in ("train", "validation") for c in ("dress", "hat")]
    names += [items / g / str(i) for g in ("Pants", "Shorts", "Tees") for i in range(4)]
    for number, folder in enumerate(names):
        folder.mkdir(parents=True)
        for view in ("main", "back", "side"):
            picture = Image.new("RGB", (60, 60), (20 * number % 256, len(view) * 20, 0))
            picture.save(folder / f"red_{view}.jpg")
    return photos, items


def has_workers(process: Running, _: Path) -> bool:
    """Whether it has children that last; torch asks the system something by one that does not."""
    before = set(processes_below(process.pid))
    time.sleep(0.05)
    return bool(before & set(processes_below(process.pid)))


def has_mapped(process: Running, _: Path) -> bool:
    return "all_feat.npy" in Path(f"/proc/{process.pid}/maps").read_text()


def has_printed(_: Running, folder: Path) -> bool:
    return bool((folder / "out").read_text())


@pytest.mark.parametrize(
    ("script", "flags", "sign"),
    [
        ("train.py", (*NETWORK, "--num-workers", 2), has_workers),
        ("feature_extractor.py", ("--num-workers", 2), has_workers),
        ("ablation.py", ("--photos", "{photos}", "--items", "{items}", *NETWORK), has_workers),
        ("synthetic.py", ("--items", 400, "--processes", 2), has_workers),
        ("soak.py", (), has_workers),
        ("data.py", ("check",), has_printed),
        ("kmeans.py", (), has_mapped),
        ("evaluate.py", (), has_mapped),
        ("retrieval.py", ("{picture}",), has_mapped),
        ("benchmark.py", ("--only", "inshop"), has_printed),
    ],
)
@pytest.mark.parametrize("group", [False, True])
def test_while_it_works(
    script: str, flags: tuple, sign: Callable, group: bool, start: Callable, measured: Path,
    pictures: tuple[Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    """Guards the byte that wakes `_end_on_signal`, the kill of all below, and `shield`.

    To the process alone as by `kill`, and to the group as by a terminal: without `shield` the
    processes that draw answer with a traceback each; without the kill, those that read stay.
    """
    if group and sign is not has_workers:
        pytest.skip("it has no group")
    if script == "feature_extractor.py":
        large = (*NETWORK[:4], "--epoch", 0)  # so that it takes a while
        prepared = start("train.py", "--dataset-base", measured, *large)
        assert prepared.wait(timeout=300) == 0
    picture = next((measured / "img").rglob("*.jpg"))
    words = {"photos": pictures[0], "items": pictures[1], "picture": picture}
    flags = [str(flag).format(**words) for flag in flags]
    if script != "benchmark.py":
        flags += ["--dataset-base", tmp_path / "new" if script == "synthetic.py" else measured]
    process = start(script, *flags, cwd=tmp_path)
    wait_for(process, lambda: sign(process, tmp_path))
    press(process, tmp_path, group)


def test_the_second_run_goes_on(start: Callable, tmp_path: Path) -> None:
    """Guards that nothing but the run itself ends: what was drawn twice is whole."""
    base = tmp_path / "new"
    flags = ("--dataset-base", base, "--items", 30, "--inshop-items", 0, "--processes", 2)
    process = start("synthetic.py", *flags)
    wait_for(process, lambda: any(base.rglob("*.jpg")))
    press(process, tmp_path, group=True)
    assert start("synthetic.py", *flags).wait(timeout=300) == 0
    assert len(list(base.rglob("*.jpg"))) == 120


LOOP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import interrupt
interrupt.catch()
while True:
    {{}}
"""


@pytest.mark.parametrize(
    "body",
    [
        "print('x' * 9999)",
        "import torch; x = torch.ones(3000, 3000, dtype=float); x @ x",
        "try: import time; time.sleep(99)\n    except: pass",
    ],
)
def test_nothing_holds_it_up(body: str, start: Callable, tmp_path: Path) -> None:
    """Guards `SAY_SECONDS`, for a pipe that nobody reads, and `os._exit` in a thread of its own.

    A library that computes, or catches every exception, keeps Python's own handler waiting.
    """
    script = tmp_path / "script.py"
    script.write_text(LOOP.format(body))
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if "print" in body else {}
    process = start(script, **pipe)
    wait_for(process, lambda: holds_ctrl_c_back(process.pid))
    time.sleep(3 if "torch" in body else 0.5)
    os.kill(process.pid, signal.SIGINT)
    begun = time.monotonic()
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - begun < SOON
    if pipe:
        process.stdout.close()


def test_who_begins_processes_all_the_while_leaves_none(start: Callable, tmp_path: Path) -> None:
    """Guards `execv`: until then the script could begin one more after all below were listed."""
    script = tmp_path / "script.py"
    script.write_text(LOOP.format("import subprocess; subprocess.Popen(['/bin/sleep', '99'])"))
    process = start(script)
    wait_for(process, lambda: len(processes_below(process.pid)) > 20)
    press(process, tmp_path, group=False)


def test_without_pythons_program_it_ends_too(start: Callable, tmp_path: Path) -> None:
    """Guards the `finally` of `_end_on_signal`, after which nothing stopped may be left."""
    script = tmp_path / "script.py"
    body = "sys.executable = '/none'; import subprocess, time"
    body += "; subprocess.Popen(['/bin/sleep', '99']); time.sleep(99)"
    script.write_text(LOOP.format(body))
    process = start(script)
    wait_for(process, lambda: processes_below(process.pid))
    press(process, tmp_path, group=False)


def test_pressed_twice_is_pressed_once(start: Callable, tmp_path: Path) -> None:
    """Guards `SIG_BLOCK` in `_end_on_signal`: the second one finds Python beginning anew."""
    script = tmp_path / "script.py"
    script.write_text(LOOP.format("import time; time.sleep(99)"))
    process = start(script)
    wait_for(process, lambda: holds_ctrl_c_back(process.pid))
    for _ in range(20):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.002)
    press(process, tmp_path, group=False)


def test_what_the_caller_ignores_stays_ignored(start: Callable, tmp_path: Path) -> None:
    """Guards the first lines of `catch`: a shell lets no Ctrl-C stop a job in the background."""
    process = start(
        "synthetic.py", "--dataset-base", tmp_path / "new", "--items", 3, "--inshop-items", 0,
        before=first("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"),
    )  # fmt: skip
    command = Path(f"/proc/{process.pid}/cmdline")
    script = str(ROOT / "synthetic.py").encode()
    wait_for(process, lambda: command.read_bytes().split(b"\0")[1:2] == [script])
    while process.poll() is None:
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert process.returncode == 0, (tmp_path / "err").read_text()


def test_it_comes_through_though_the_caller_holds_it_back(start: Callable, tmp_path: Path) -> None:
    """Guards `SIG_UNBLOCK` in the thread: processes of a shielded one may be scripts themselves."""
    script = tmp_path / "script.py"
    script.write_text(LOOP.format("import time; print('x', flush=True); time.sleep(99)"))
    held = first("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})")
    process = start(script, before=held)
    wait_for(process, lambda: (tmp_path / "out").read_text())
    press(process, tmp_path, group=False)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_kill_leaves_no_worker_for_long(
    method: str, start: Callable, measured: Path, tmp_path: Path
) -> None:
    """Guards `multiprocessing_context` in `make_loader`, whatever Python's default is.

    No handler runs on SIGKILL: workers see that their parent is gone, but the parent of a fork
    server's is the server, which waits for them.
    """
    script = tmp_path / "script.py"
    script.write_text(
        f"import multiprocessing, runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"if __name__ == '__main__':\n    multiprocessing.set_start_method({method!r})\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    network = *NETWORK, "--epoch", 99
    process = start(script, "--dataset-base", measured, *network, "--num-workers", 2)
    # A worker that is only just beginning has not yet looked who its parent is.
    wait_for(process, lambda: re.search(r" [1-9]\d*/\d+ ", (tmp_path / "err").read_text()))
    assert len(processes_below(process.pid)) > 1
    process.kill()
    end = time.monotonic() + 30
    while session(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_processes_below_are_all_of_them(start: Callable, tmp_path: Path) -> None:
    """Guards `processes_below`: children of children, too."""
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "if len(sys.argv) < 4:\n"
        "    subprocess.Popen([sys.executable, *sys.argv, 'x'])\n"
        "time.sleep(99)\n"
    )
    process = start(script)
    wait_for(process, lambda: len(processes_below(process.pid)) == 3)
    assert sorted([process.pid, *processes_below(process.pid)]) == sorted(session(process.pid))

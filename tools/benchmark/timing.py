"""Medians of interleaved runs, and runs in processes of their own."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from config import ENV_PREFIX
from utils import UserError

ROOT = Path(__file__).parent.parent.parent
# Seconds between two runs: threads of the first one stop spinning. After a longer pause the
# processor's cores would sleep.
PAUSE = 0.003
MAX_LINES = 40  # of the output of a process that failed

Run = Callable[[int], Any]


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each function; they run in turn, so that all meet the same machine.

    Parameters
    ----------
    runs : functions by name; each is given the number of the round
    rounds : timed runs of each, after one that warms up
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name, run in runs.items():
            time.sleep(PAUSE)
            synchronize()
            start = time.perf_counter()
            run(number % rounds)
            synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def run_project(name: str, base: Path, *arguments: str) -> tuple[float, str]:
    """Run a script of the project; its seconds and its standard output."""
    return run_python(base, str(ROOT / name), f"--dataset-base={base}", *arguments)


def run_child(base: Path, function: str, *arguments: Any) -> tuple[float, Any]:
    """Run a function of `children.py` in a process of its own.

    Returns
    -------
    The seconds of the whole process, and what the function returned.
    """
    code = (
        "import json; from tools.benchmark import children;"
        f" print(json.dumps(children.{function}(*{(str(base), *arguments)!r})))"
    )
    seconds, output = run_python(base, "-c", code)
    return seconds, json.loads(output.splitlines()[-1])


def run_python(base: Path, *arguments: str) -> tuple[float, str]:
    """Run Python in the folder `base`, with as many threads as this process has.

    Raises
    ------
    UserError : its exit status is not 0
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    environment["CI"] = "1"  # keeps OpenVINO's converter from reporting its use to its vendor
    command, start = [sys.executable, *arguments], time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=base)  # noqa: S603
    seconds = time.perf_counter() - start
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
        print(*lines[-MAX_LINES:], sep="\n", file=sys.stderr)
        name = Path(arguments[0]).name if arguments[0] != "-c" else arguments[1].split(";")[-1]
        raise UserError(f"{name.strip()}: exit status {done.returncode}: {lines[-1].strip()}")
    return seconds, done.stdout

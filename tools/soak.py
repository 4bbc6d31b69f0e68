"""Inject random faults while a collection is trained, extracted, clustered and updated.

    python -m tools.soak --dataset-base data/demo --minutes 10
    python -m tools.soak --dataset-base data/demo --faults 50 --kinds kill

At random moments a process is killed, stopped by Ctrl-C, has a full disk, loses a worker, or is
started twice. After each fault every file must be complete. After the next run that finishes, all
files must have the bytes of an undisturbed run. During an update the feature database is read all
the time: it must be the old one or the new one. Exit status 1: a difference was found.
"""

import argparse
import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from features import extraction
from features.database import DEEP, LIST, open_database
from net import read_checkpoint
from search.clusters import CLUSTERS, open_clusters
from utils import UserError, locked, parse_args, run_script, sha256_of

# Small, so that there is time for many runs; many steps, so that there are many resume points.
NETWORK = (
    "--backbone=mobilenet_v3_small", "--pretrained=none", "--img-size=48", "--crop-size=40",
    "--epoch=1", "--triplet-batch-size=8", "--dump-interval=2",
)  # fmt: skip
# Imported once, by the server that forks the processes.
PRELOADED = ["training.loop", "features.extraction", "search.clustering"]
PRELOADED += ["search.milvus"]
PRELOADED += ["torch.utils.tensorboard", "pytorch_metric_learning.samplers"]
PRELOADED += ["torch.fx.experimental.optimization"]
KINDS = ("kill", "ctrl-c", "full disk", "worker killed", "two at once")
FAULTS = 5  # of each stage, before it is run to its end
SAVE_SECONDS = 0.05  # between saves of an extraction, so that a short one is resumed, too
MAX_BYTES = (30_000, 100_000, 300_000, 3_000_000)  # of a file, until the disk is full
STOP_SECONDS = 8.0  # for a process and its workers, which look for their parent every 5 s
MAX_SLOWDOWN = 20  # times as long as undisturbed, a run may take
MAX_LOG = 2000  # characters shown of a log
BEFORE = {"update": "extract", "grow": "update"}  # the stage whose database these replace
NOT_COPIED = shutil.ignore_patterns("models", "all_*", ".*")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Stage:
    """One step from photos to a feature database that can be searched.

    Attributes
    ----------
    name : for messages
    script : file name of the script
    flags : its flags, without DATASET_BASE
    results : patterns of the files that it writes
    """

    name: str
    script: str
    flags: tuple[str, ...]
    results: tuple[str, ...]


@dataclass
class Tally:
    """Counts of `faults` by stage and kind, of `runs` to the end and of `reads` during updates.

    Each difference that was found is a line of `differences`.
    """

    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: int = 0
    reads: int = 0
    differences: list[str] = field(default_factory=list)


def stages(batch: int) -> list[Stage]:
    """Train, extract, cluster, and two updates: to fewer pictures, and by --update to all of them.

    Fewer are those without the in-shop part.
    """
    database = ("all_*",)
    inshop = "--enable-inshop-dataset"
    train = (*NETWORK, f"--train-batch-size={batch}", inshop, "--resume")
    extract = ("--num-workers=1", "--amp=off", "--color-top-n=4")
    return [
        Stage("train", "train.py", (*train, "--num-workers=1"), ("models/model_*",)),
        Stage("extract", "feature_extractor.py", (*extract, inshop), database),
        Stage("cluster", "kmeans.py", ("--n-clusters=8",), (CLUSTERS,)),
        Stage("update", "feature_extractor.py", extract, database),
        Stage("grow", "feature_extractor.py", (*extract, inshop, "--update"), database),
    ]


def run_stage(script: str, argv: Sequence[str], log: Path, max_bytes: int) -> None:
    """Run a script in this process as a shell would, with its output in a file.

    Parameters
    ----------
    script : its file name
    argv : its arguments
    log : the file
    max_bytes : size that a file may grow to; 0: no limit
    """
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # before the log is there: `interrupt` waits for it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [script, *argv]
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    extraction.SAVE_SECONDS = SAVE_SECONDS
    if script == "train.py":  # beside other work, threads of small batches wait for one another
        torch.set_num_threads(1)
    runpy.run_path(str(ROOT / script), run_name="__main__")


class Soak:
    """A copy of a collection, the results of undisturbed runs, and faults.

    Parameters
    ----------
    collection : DeepFashion's lists and pictures, with an in-shop part; it is only read
    work : an empty folder beside it, on the same disk
    batch : pictures a training step
    seed : of the random numbers
    """

    def __init__(self, collection: Path, work: Path, batch: int, seed: int) -> None:
        self.collection = collection
        self.base = work / "data"
        self.undisturbed = work / "undisturbed"  # a folder for each stage
        self.log = work / "log"
        self.random = random.Random(seed)
        self.stages = stages(batch)
        self.tally = Tally()
        self.seconds: dict[str, float] = {}  # of each stage, undisturbed
        # A run that is forked from a process with everything imported starts at once.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        # Up to Python 3.13 the server does not find the project from another working folder.
        os.environ["PYTHONPATH"] = str(ROOT.resolve())

    def prepare(self) -> None:
        """Run every stage undisturbed and copy its results."""
        resource_tracker.ensure_running()
        first = self.context.Process(target=int)  # starts the server, which imports
        first.start()
        first.join()
        shutil.copytree(self.collection, self.base, copy_function=_link, ignore=NOT_COPIED)
        for stage in self.stages:
            start = time.perf_counter()
            process = self.start(stage)
            process.join()
            if process.exitcode:
                raise UserError(f"{stage.name}: {self.log.read_text()[-MAX_LOG:]}")
            self.seconds[stage.name] = time.perf_counter() - start
            for file in self.files(stage):
                place = self.undisturbed / stage.name / file.relative_to(self.base)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)

    def restore(self, stage: Stage) -> None:
        """Restore the files as they are before a stage, undisturbed."""
        for old in [*self.base.glob("all_*"), *self.base.glob(".extract_*"), self.base / "models"]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for earlier in self.stages[: self.stages.index(stage)]:
            shutil.copytree(self.undisturbed / earlier.name, self.base, dirs_exist_ok=True)

    def files(self, stage: Stage) -> list[Path]:
        """The files that a stage has written."""
        return sorted(file for pattern in stage.results for file in self.base.glob(pattern))

    def start(self, stage: Stage, max_bytes: int = 0, log: str = "") -> BaseProcess:
        """Start a stage."""
        argv = ["--dataset-base", str(self.base), *stage.flags]
        if max_bytes:  # for the system, shared memory is a file, too
            argv.append("--num-workers=0")
        arguments = (stage.script, argv, Path(f"{self.log}{log}"), max_bytes)
        arguments[2].unlink(missing_ok=True)
        process = self.context.Process(target=run_stage, args=arguments)
        process.start()
        return process

    def inject(self, stage: Stage, kind: str) -> bool:
        """Run a stage with a fault at a random moment; returns whether it ran to its end."""
        process = self.start(stage, self.random.choice(MAX_BYTES) if kind == "full disk" else 0)
        self.wait(stage, process, self.random.uniform(0, 1.1 * self.seconds[stage.name]))
        hit, allowed = process.exitcode is None or kind == "full disk", {0}
        if kind == "full disk":
            allowed = {0, 2}
        elif hit and kind == "kill":
            process.kill()
            allowed = {0, -signal.SIGKILL}
        elif hit and kind == "ctrl-c":
            self.interrupt(stage, process)
            allowed = {0, -signal.SIGINT}
        elif hit and kind == "worker killed":
            workers = processes_below(process.pid or 0)
            for worker in workers:
                _send(worker, signal.SIGKILL)
            hit, allowed = bool(workers), {0, 2}
        elif hit and kind == "two at once":
            other = self.start(stage, log="2")
            self.wait(stage, other)
            self.expect(stage, kind, other, {0, 2}, "2")
        self.wait(stage, process)
        self.expect(stage, kind, process, allowed)
        self.check(stage, kind)
        self.tally.faults[stage.name, kind] += hit
        return process.exitcode == 0

    def interrupt(self, stage: Stage, process: BaseProcess) -> None:
        """Press Ctrl-C; the process and its workers must end soon."""
        while process.is_alive() and not self.log.exists():
            time.sleep(0.001)  # the script has not begun
        workers = processes_below(process.pid or 0)
        _send(process.pid or 0, signal.SIGINT)
        end = time.monotonic() + STOP_SECONDS
        while process.is_alive() or any(_state(worker) not in "Z" for worker in workers):
            if time.monotonic() > end and _state(process.pid or 0) != "D":
                self.tally.differences.append(f"{stage.name}: runs {STOP_SECONDS} s after Ctrl-C")
                break
            time.sleep(0.01)

    def wait(self, stage: Stage, process: BaseProcess, seconds: float | None = None) -> None:
        """Wait for the end of a run; during an update, read the database until then."""
        limit = time.monotonic() + MAX_SLOWDOWN * max(self.seconds[stage.name], 3.0)
        until = limit if seconds is None else time.monotonic() + seconds
        while process.exitcode is None and time.monotonic() < until:
            if stage.name in BEFORE:
                self.read_database(stage)
            process.join(0.01)
        if seconds is None and process.exitcode is None:
            self.tally.differences.append(f"{stage.name}: does not end")
            process.kill()
            process.join()

    def read_database(self, stage: Stage) -> None:
        """Open the database as a query does: it must be the old or the new one, or refused."""
        with suppress(UserError):
            database = open_database(self.base)
            found = "".join(path + "\n" for path in database.paths), database.deep[0].tobytes()
            self.tally.reads += 1
            folders = [self.undisturbed / name for name in (BEFORE[stage.name], stage.name)]
            if found not in [
                ((folder / LIST).read_text(), np.load(folder / DEEP).tobytes())
                for folder in folders
            ]:
                self.tally.differences.append(f"{stage.name}: neither the old nor the new database")

    def expect(
        self, stage: Stage, kind: str, process: BaseProcess, allowed: set[int], log: str = ""
    ) -> None:
        """Check the exit status of a run, and that it printed no traceback.

        A run that a signal ended may have one: of a worker that was handing over a picture.
        """
        output = Path(f"{self.log}{log}").read_text(errors="replace")
        ended = process.exitcode in (-signal.SIGKILL, -signal.SIGINT)
        if process.exitcode not in allowed or ("Traceback" in output and not ended):
            self.tally.differences.append(
                f"{stage.name}, {kind}: exit status {process.exitcode}: {output[-MAX_LOG:]}"
            )

    def check(self, stage: Stage, kind: str) -> None:
        """Check that every model, database and clustering can be opened."""
        try:
            for model in (self.base / "models").glob("*.pth.tar"):
                read_checkpoint(model)
            if (self.base / "all_feat.json").exists():
                database = open_database(self.base)
                if stage.name == "cluster" and (self.base / CLUSTERS).exists():
                    open_clusters(database)
        except UserError as error:
            self.tally.differences.append(f"{stage.name}, {kind}: {error}")

    def finish(self, stage: Stage) -> None:
        """Run a stage to its end."""
        process = self.start(stage)
        self.wait(stage, process)
        self.expect(stage, "to its end", process, {0})
        self.compare(stage)

    def compare(self, stage: Stage) -> None:
        """Check that a stage wrote the bytes of an undisturbed run, and nothing else."""
        self.tally.runs += 1
        folder = self.undisturbed / stage.name
        wanted = {f.relative_to(folder): sha256_of(f) for f in folder.rglob("*") if f.is_file()}
        found = {f.relative_to(self.base): sha256_of(f) for f in self.files(stage)}
        for file in sorted(wanted.keys() | found.keys()):
            if wanted.get(file) != found.get(file):
                self.tally.differences.append(f"{stage.name}: {file} differs")
        for file in [*self.base.rglob("*.part"), *self.base.glob(".extract_*")]:
            self.tally.differences.append(f"{stage.name}: {file.name} is left over")

    def one_round(self, kinds: Sequence[str], faults: int) -> Iterator[None]:
        """Run each stage with some faults, then to its end; yields after each run."""
        for stage in self.stages:
            self.restore(stage)
            before = self.tally.faults.total()
            while self.tally.faults.total() < before + faults:
                if self.inject(stage, self.random.choice(kinds)):
                    self.compare(stage)
                    self.restore(stage)
                yield
            self.finish(stage)
            yield


def _link(source: str, target: str) -> None:
    """Make a hard link, or a copy: pictures and lists are only read."""
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _state(pid: int) -> str:
    """State of a process: R running, D waiting for the disk, Z ended ...; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


def processes_below(pid: int) -> list[int]:
    """The running processes that a process started, and those that these started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # else it has ended
            state, above, *_ = stat.read_text(errors="replace").rpartition(") ")[2].split()
            if state != "Z":
                children.setdefault(int(above), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:  # the list grows
        found += children.get(parent, [])
    return found[1:]


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--faults", type=int, help="instead, so many of each stage, then stop")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="default: all")


def main(argv: Sequence[str] | None = None) -> int:
    config, args = parse_args(argv, __doc__ or "", ("DATASET_BASE", "SEED"), _arguments)
    work = config.DATASET_BASE.resolve().with_name(".soak")
    with locked(work):
        for old in (work / "data", work / "undisturbed"):
            shutil.rmtree(old, ignore_errors=True)  # of a soak that was stopped
        soak = Soak(config.DATASET_BASE, work, 32, config.SEED)
        soak.prepare()
        end = time.monotonic() + 60 * args.minutes
        if args.faults:
            for _ in soak.one_round(args.kinds, args.faults):
                pass
        while not args.faults and time.monotonic() < end:
            for _ in soak.one_round(args.kinds, FAULTS):
                if time.monotonic() > end:
                    break
        shutil.rmtree(work)
    tally = soak.tally
    for (stage, kind), count in sorted((+tally.faults).items()):
        print(f"{count:6,} x {stage}, {kind}")
    print(
        f"{sum(tally.faults.values()):,} faults injected, {tally.runs:,} runs to the end,"
        f" {tally.reads:,} reads during updates; differences found: {len(tally.differences)}"
    )
    for difference in tally.differences:
        print(difference, file=sys.stderr)
    return 1 if tally.differences else 0


if __name__ == "__main__":
    run_script(main)

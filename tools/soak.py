"""Random faults on a real collection, for minutes: nothing may be lost, mixed or half read.

    python -m tools.soak --dataset-base data/demo --minutes 10
    python -m tools.soak --dataset-base data/demo --kills 50

Trains, extracts, clusters and updates the feature database, again and again, in processes that are
killed, stopped by Ctrl-C, have the disk full, lose a worker, or are run twice at once, at random
moments. After each fault every file must be whole; after the next run that gets through, all must
have the bytes of an undisturbed run. During an update the database is read without a break: it must
be the old one or the new one. Exit status 1 says that something was not so.
"""

import argparse
import importlib
import multiprocessing
import os
import random
import resource
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

from features import extraction, inference
from features.database import LIST, open_database
from features.lock import locked
from net import read_checkpoint
from search.clusters import CLUSTERS, open_clusters
from utils import UserError, parse_args, run_script, sha256_of

# Small, so that there is time for many runs; many steps, so that there are many resume points.
NETWORK = ("--backbone=mobilenet_v3_small", "--pretrained=none", "--img-size=48", "--crop-size=40")
NETWORK += ("--epoch=1", "--triplet-batch-size=8", "--dump-interval=2")
PRELOADED = ["train", "feature_extractor", "kmeans", "torch.utils.tensorboard"]
PRELOADED += ["pytorch_metric_learning.samplers", "torch.fx.experimental.optimization"]
KINDS = ("kill", "ctrl-c", "full disk", "worker killed", "two at once")
SAVED = 0.05  # s between saves of an extraction, so that a short one is resumed, too
ROOM = (30_000, 100_000, 300_000, 3_000_000)  # bytes of a file, until the disk is full
SOON = 8.0  # s, in which Ctrl-C ends a run; its workers look for their parent every 5 s
MOST = 20  # times as long as undisturbed, a run may take
REPLACED = {"update": "extract", "grow": "update"}  # whose database these stages replace
LEFT_OUT = shutil.ignore_patterns("models", "all_*", ".*")


@dataclass(frozen=True)
class Stage:
    """One step of the way from photos to a database that is asked.

    Attributes
    ----------
    name : for people
    script : to run, without .py
    flags : of it, beside DATASET_BASE
    results : patterns of the files that it makes
    """

    name: str
    script: str
    flags: tuple[str, ...]
    results: tuple[str, ...]


@dataclass
class Tally:
    """What happened: `faults` by stage and kind, `runs` to the end, and each difference found."""

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
        Stage("train", "train", (*train, "--num-workers=1"), ("models/model_*",)),
        Stage("extract", "feature_extractor", (*extract, inshop), database),
        Stage("cluster", "kmeans", ("--n-clusters=8",), (CLUSTERS,)),
        Stage("update", "feature_extractor", extract, database),
        Stage("grow", "feature_extractor", (*extract, inshop, "--update"), database),
    ]


def run_stage(script: str, argv: Sequence[str], log: Path, most_bytes: int) -> None:
    """Run a script in this process as a shell would, its output in a file.

    Parameters
    ----------
    script : its name, without .py
    argv : its arguments
    log : the file
    most_bytes : that a file may grow to; 0: no limit
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the log: `interrupt` waits for it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [f"{script}.py", *argv]
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    module = importlib.import_module(script)
    if script == "feature_extractor":
        extraction.SAVE_SECONDS = SAVED
        inference.WORTH = sys.maxsize  # compiling would take most of the time
    if script == "train":  # beside other work, threads of small batches wait for each other
        module.torch.set_num_threads(1)
    run_script(module.main)


class Soak:
    """A copy of a collection, what undisturbed runs make of it, and faults.

    Parameters
    ----------
    collection : DeepFashion's lists and pictures, with an in-shop part; it is only read
    work : an empty folder beside it, on the same disk
    batch : pictures a step of the training
    seed : of what is random
    """

    def __init__(self, collection: Path, work: Path, batch: int, seed: int) -> None:
        self.collection = collection
        self.base = work / "data"
        self.kept = work / "undisturbed"  # a folder for each stage
        self.log = work / "log"
        self.random = random.Random(seed)
        self.stages = stages(batch)
        self.tally = Tally()
        self.seconds: dict[str, float] = {}  # that each stage takes
        # Forked from a process that has imported everything, a run begins at once.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        # Up to Python 3.13 its server finds nothing of the project elsewhere, and says nothing.
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)

    def prepare(self) -> None:
        """Run every stage undisturbed and keep what it makes."""
        resource_tracker.ensure_running()
        first = self.context.Process(target=int)  # the others need not wait for the imports
        first.start()
        first.join()
        shutil.copytree(self.collection, self.base, copy_function=_link, ignore=LEFT_OUT)
        for stage in self.stages:
            start = time.perf_counter()
            process = self.start(stage)
            process.join()
            if process.exitcode:
                raise UserError(f"{stage.name}: {self.log.read_text()[-2000:]}")
            self.seconds[stage.name] = time.perf_counter() - start
            for file in self.files(stage):
                place = self.kept / stage.name / file.relative_to(self.base)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)

    def set_back(self, stage: Stage) -> None:
        """Make everything as it is before a stage, undisturbed."""
        for old in [*self.base.glob("all_*"), *self.base.glob(".extract_*"), self.base / "models"]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for earlier in self.stages[: self.stages.index(stage)]:
            shutil.copytree(self.kept / earlier.name, self.base, dirs_exist_ok=True)

    def files(self, stage: Stage) -> list[Path]:
        """What a stage has made."""
        return sorted(file for pattern in stage.results for file in self.base.glob(pattern))

    def start(self, stage: Stage, most_bytes: int = 0, log: str = "") -> BaseProcess:
        """Begin to run a stage."""
        argv = ["--dataset-base", str(self.base), *stage.flags]
        if most_bytes:  # memory that processes share is a file to the system, too
            argv.append("--num-workers=0")
        arguments = (stage.script, argv, Path(f"{self.log}{log}"), most_bytes)
        arguments[2].unlink(missing_ok=True)
        process = self.context.Process(target=run_stage, args=arguments)
        process.start()
        return process

    def inject(self, stage: Stage, kind: str) -> bool:
        """Run a stage and let something happen at a random moment; whether it got to its end."""
        limit = self.random.choice(ROOM) if kind == "full disk" else 0
        process = self.start(stage, limit)
        self.wait(stage, process, self.random.uniform(0, 1.1 * self.seconds[stage.name]))
        hit, allowed = process.exitcode is None, {0}
        if hit and kind == "kill":
            process.kill()
            allowed |= {-signal.SIGKILL}
        elif hit and kind == "ctrl-c":
            self.interrupt(stage, process)
            allowed |= {-signal.SIGINT}
        elif hit and kind == "worker killed":
            workers = processes_below(process.pid or 0)
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            hit, allowed = bool(workers), {0, 2}
        elif hit and kind == "two at once":
            other = self.start(stage, log="2")
            self.wait(stage, other)
            self.expect(stage, kind, other, {0, 2}, "2")
        elif kind == "full disk":
            hit, allowed = True, {0, 2}
        self.wait(stage, process)
        self.expect(stage, kind, process, allowed)
        self.check(stage, kind)
        self.tally.faults[stage.name, kind] += hit
        return process.exitcode == 0

    def interrupt(self, stage: Stage, process: BaseProcess) -> None:
        """Press Ctrl-C; the process and its workers must end soon."""
        while process.is_alive() and not self.log.exists():
            time.sleep(0.001)  # no script has begun yet
        workers = processes_below(process.pid or 0)
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(process.pid or 0, signal.SIGINT)
        end = time.monotonic() + SOON
        while process.is_alive() or any(_state(worker) not in "Z" for worker in workers):
            if time.monotonic() > end and _state(process.pid or 0) != "D":
                self.tally.differences.append(f"{stage.name}: runs {SOON} s after Ctrl-C")
                break
            time.sleep(0.01)

    def wait(self, stage: Stage, process: BaseProcess, seconds: float | None = None) -> None:
        """Wait for the end of a run; during an update, read the database all the while."""
        most = time.monotonic() + MOST * max(self.seconds[stage.name], 3.0)
        until = most if seconds is None else time.monotonic() + seconds
        while process.exitcode is None and time.monotonic() < until:
            if stage.name in REPLACED:
                self.read_database(stage)
            process.join(0.01)
        if seconds is None and process.exitcode is None:
            self.tally.differences.append(f"{stage.name}: hangs")
            process.kill()
            process.join()

    def read_database(self, stage: Stage) -> None:
        """Read the database as a query does: it must be the old or the new one, or refused."""
        with suppress(UserError):
            database = open_database(self.base)
            found = "".join(path + "\n" for path in database.paths), database.deep[0].tobytes()
            self.tally.reads += 1
            wanted = [self.kept / name for name in (REPLACED[stage.name], stage.name)]
            if found not in [
                ((folder / LIST).read_text(), _rows(folder / "all_feat.npy")) for folder in wanted
            ]:
                self.tally.differences.append(f"{stage.name}: neither the old nor the new database")

    def expect(
        self, stage: Stage, kind: str, process: BaseProcess, allowed: set[int], log: str = ""
    ) -> None:
        """A run must end with one of some statuses, and without a traceback.

        Of one that was ended a worker may give one, which hands it a picture just then.
        """
        said = Path(f"{self.log}{log}").read_text(errors="replace")
        ended = process.exitcode in (-signal.SIGKILL, -signal.SIGINT)
        traceback = "Traceback" in said and not ended
        if process.exitcode not in allowed or traceback:
            self.tally.differences.append(
                f"{stage.name}, {kind}: exit status {process.exitcode}: {said[-2000:]}"
            )

    def check(self, stage: Stage, kind: str) -> None:
        """Every file that has its name must be whole."""
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
        """A stage that got to its end must have left the bytes of an undisturbed run."""
        self.tally.runs += 1
        kept = self.kept / stage.name
        wanted = {f.relative_to(kept): sha256_of(f) for f in kept.rglob("*") if f.is_file()}
        found = {f.relative_to(self.base): sha256_of(f) for f in self.files(stage)}
        for file in sorted(wanted.keys() | found.keys()):
            if wanted.get(file) != found.get(file):
                self.tally.differences.append(f"{stage.name}: {file} differs")
        for file in [*self.base.rglob("*.part"), *self.base.glob(".extract_*")]:
            self.tally.differences.append(f"{stage.name}: {file.name} is left over")

    def one_round(self, kinds: Sequence[str], faults: int) -> Iterator[None]:
        """Go through the stages, each with some faults and then to its end."""
        for stage in self.stages:
            self.set_back(stage)
            before = self.tally.faults.total()
            while self.tally.faults.total() < before + faults:
                if self.inject(stage, self.random.choice(kinds)):
                    self.compare(stage)
                    self.set_back(stage)
                yield
            self.finish(stage)
            yield


def _link(source: str, target: str) -> None:
    """A hard link: pictures and lists are not written to."""
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _state(pid: int) -> str:
    """Of a process: R for running, D for waiting for the disk, Z for ended ...; "" for gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


def processes_below(pid: int) -> list[int]:
    """The processes that a process has begun, and those that they have, as far as they run."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # else it has ended
            state, parent, *_ = stat.read_text(errors="replace").rpartition(") ")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:  # grows
        found += children.get(each, [])
    return found[1:]


def _rows(path: Path) -> bytes:
    import numpy as np

    return np.load(path).tobytes()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument(
        "--kills", type=int, default=0, help="instead, so many kills of each stage and nothing else"
    )


def main(argv: Sequence[str] | None = None) -> int:
    config, args = parse_args(argv, __doc__ or "", ("DATASET_BASE", "SEED"), _arguments)
    work = config.DATASET_BASE.resolve().with_name(".soak")
    with locked(work, "a soak"):
        for old in (work / "data", work / "undisturbed"):
            shutil.rmtree(old, ignore_errors=True)  # one that was stopped has left them
        soak = Soak(config.DATASET_BASE, work, 32, config.SEED)
        soak.prepare()
        end = time.monotonic() + 60 * args.minutes
        if args.kills:
            for _ in soak.one_round(("kill",), args.kills):
                pass
        while not args.kills and time.monotonic() < end:
            for _ in soak.one_round(KINDS, faults=5):
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

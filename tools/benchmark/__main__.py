"""Measure the speed of every part beside its peers; the figures of the README.

python -m tools.benchmark                        all but growth, about 25 minutes on 2 cores
python -m tools.benchmark --only exact kmeans    some parts
python -m tools.benchmark --growth 139709 1400000 10000000

Features are made up, 139,709 of them, as many as the upper-body pictures of DeepFashion. Prints a
table and writes benchmark.json; the peers come from requirements-benchmark.txt. Times are medians
of interleaved runs with as many threads for all.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tools.benchmark.data import make_database
from tools.benchmark.table import COLUMNS, Row, as_markdown, in_units
from utils import UserError, atomic_write, run_script

PEERS = ("torch", "numpy", "scipy", "faiss-cpu", "openvino")


def _search(name: str) -> Callable[[argparse.Namespace], Iterable[Row]]:
    def measure(args: argparse.Namespace) -> Iterable[Row]:
        from tools.benchmark import search as benchmark_search

        base = args.folder / str(args.rows)
        make_database(base, args.rows)
        return getattr(benchmark_search, name)(base, args.rounds)

    return measure


def _network(name: str) -> Callable[[argparse.Namespace], Iterable[Row]]:
    def measure(args: argparse.Namespace) -> Iterable[Row]:
        from tools.benchmark import network as benchmark_network

        return getattr(benchmark_network, name)(args.folder)

    return measure


PARTS = {
    "loading": _search("loading"),
    "exact": _search("exact_queries"),
    "kmeans": _search("kmeans_queries"),
    "inshop": _search("inshop_evaluation"),
    "start": _network("cold_start"),
    "extraction": _network("extraction"),
    "training": _network("training"),
    "gpu": _network("gpu"),
}


def machine() -> str:
    """Processor, threads, date, and the versions of what is compared."""
    names = {}
    for name in PEERS:
        try:
            names[name] = version(name)
        except PackageNotFoundError:
            names[name] = "not installed"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = ", ".join(f"{name} {number}" for name, number in names.items())
    return f"{cpu}{gpu}, {threads}, {datetime.date.today()}\n{versions}"


def _growth(args: argparse.Namespace) -> None:
    """Measure each engine at each size, and draw it."""
    from tools.benchmark.search import growth

    path = args.output.with_name("benchmark_growth.json")
    rows: list[Row] = json.loads(path.read_text("utf-8")) if path.is_file() else []
    rows = [row for row in rows if row["rows"] not in args.growth]
    print("| rows | engine | one query | recall@10 | reads | made in | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for count in args.growth:
        for row in growth(args.folder / str(count), count, args.rounds):
            rows.append(row)
            cells = (
                f"{count:,}", row["engine"], in_units(row["seconds"]), f"{row['recall']:.3f}",
                f"{row['bytes'] / 1e6:,.0f} MB", in_units(row["making"]),
                f"{row['peak'] / 1e9:.1f} GB",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
            with atomic_write(path) as part:
                part.write_text(json.dumps(rows, indent=1), "utf-8")
    _draw(rows, args.output.with_name("benchmark_growth.png"))


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Seconds of one query over the number of pictures, a line an engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    kinds = dict.fromkeys(row["engine"].split(",")[0] for row in rows)
    for kind in kinds:
        own = sorted((r["rows"], 1e3 * r["seconds"]) for r in rows if r["engine"].startswith(kind))
        axes.loglog(*zip(*own, strict=True), marker="o", label=kind)
    axes.set(xlabel="pictures", ylabel="one query, ms")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), metavar="PART",
        help=f"of {', '.join(PARTS)}")  # fmt: skip
    add("--rows", type=_positive, default=139_709, help="pictures (default: 139709)")
    add("--rounds", type=_positive, default=7, help="interleaved runs (default: 7)")
    add("--growth", type=_positive, nargs="+", metavar="ROWS", help="measure these sizes instead")
    add("--folder", type=Path, default=Path("data/benchmark"), help="what is made is kept here")
    add("--output", type=Path, default=Path("benchmark.json"), help="default: benchmark.json")
    args = parser.parse_args(argv)
    print(f"{machine()}\n", flush=True)
    try:
        if args.growth:
            _growth(args)
            return
        rows: list[Row] = []
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for name in args.only:
            for row in PARTS[name](args):
                rows.append(row)
                print(as_markdown(row), flush=True)
                with atomic_write(args.output) as part:
                    part.write_text(json.dumps(rows, indent=1), "utf-8")
    except ModuleNotFoundError as error:
        raise UserError(f"{error}; run: pip install -r requirements-benchmark.txt") from None
    print(f"\n{args.output}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)

"""What both commands of the benchmark share: their flags, the machine, and the loop over parts."""

import argparse
import datetime
import gc
import os
import platform
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tools.benchmark.rows import Row, as_markdown, head, write_rows
from tools.benchmark.sizes import TINY, Sizes
from utils import shown

LIBRARIES = ("torch", "numpy", "scipy", "faiss-cpu", "openvino")
EXTRA = "run: pip install -r requirements-benchmark.txt"


def make_parser(description: str, parts: Iterable[str], output: str) -> argparse.ArgumentParser:
    """A parser with the flags of both commands."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, add = tuple(parts), parser.add_argument
    add("--only", nargs="+", choices=names, default=names, metavar="PART",
        help=f"some of {', '.join(names)}")  # fmt: skip
    add("--rounds", type=positive, metavar="N", help="interleaved runs (default: 7)")
    add("--tiny", action="store_true", help="tiny sizes, to see that every part runs")
    add("--folder", type=Path, default=Path("data/benchmark"), help="for the data made for it")
    add("--output", type=Path, default=Path(output), help=f"default: {output}")
    return parser


def positive(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def sizes_of(args: argparse.Namespace, full: Sizes) -> Sizes:
    """The sizes that the flags ask for."""
    sizes = TINY if args.tiny else full
    return replace(sizes, rounds=args.rounds or sizes.rounds)


def measure(
    parts: Mapping[str, Callable[[], Iterator[Row]]], facts: dict[str, str], output: Path
) -> int:
    """Run the parts, print their rows as one table, and write them as JSON.

    A part that fails is a row with the reason; the others go on.

    Parameters
    ----------
    parts : functions that yield rows, by name
    facts : about the machine
    output : the JSON file, written after each row

    Returns
    -------
    Exit status: 1 where a part failed.
    """
    rows: list[Row] = []
    print(*facts.values(), "", sep="\n", flush=True)
    failed = False
    for name, part in parts.items():
        try:
            for row in part():
                _add(rows, row, facts, output)
        except Exception as error:  # whatever it is, the other parts are measured
            reason = shown(str(error).strip().split("\n")[0])
            extra = f"; {EXTRA}" if isinstance(error, ModuleNotFoundError) else ""
            text = f"failed: {type(error).__name__}: {reason}{extra}"
            _add(rows, Row(name, text, met=False), facts, output)
            traceback.print_exc()
            failed = True
        gc.collect()
        torch.cuda.empty_cache()
    print(f"\n{output}")
    return int(failed)


def _add(rows: list[Row], row: Row, facts: dict[str, str], output: Path) -> None:
    if not rows:
        print(head())
    rows.append(row)
    print(as_markdown(row), flush=True)
    write_rows(output, facts, rows)


def cpu_facts() -> dict[str, str]:
    """Processor, threads, date, and the versions of the libraries."""
    return {
        "processor": _processor(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "date": str(datetime.date.today()),
        "versions": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
    }


def gpu_facts(device: torch.device) -> dict[str, str]:
    """Card, driver, processor, versions and date."""
    card, driver = f"no GPU: {device}", "no driver"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        driver = f"driver {_driver()}, CUDA {torch.version.cuda}"
    return {
        "card": card,
        "driver": driver,
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "date": str(datetime.date.today()),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver() -> str:
    """Version of NVIDIA's driver."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "unknown"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    return (done.stdout.split() or ["unknown"])[0]

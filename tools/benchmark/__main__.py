"""Measure the speed of every part beside other libraries, on a CPU.

python -m tools.benchmark                        about 25 minutes on 2 cores
python -m tools.benchmark --only exact kmeans    some parts
python -m tools.benchmark --growth 139709 1400000 10000000

Prints a table and writes benchmark.json. The other libraries come from
requirements-benchmark.txt. Times are medians of interleaved runs, with as many threads for all.
The features are random, as many as the upper-body pictures of DeepFashion. A part that fails is
reported as a row; the others go on, and the exit status is 1.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tools.benchmark.command import cpu_facts, make_parser, measure, positive, sizes_of
from tools.benchmark.growth import measure_growth
from tools.benchmark.network import cold_start, extraction, training
from tools.benchmark.rows import Row
from tools.benchmark.search import exact_queries, inshop_evaluation, kmeans_queries, loading
from tools.benchmark.sizes import CPU, Sizes
from utils import run_script

PARTS: dict[str, Callable[[Path, Sizes], Iterator[Row]]] = {
    "loading": loading,
    "exact": exact_queries,
    "kmeans": kmeans_queries,
    "inshop": inshop_evaluation,
    "extraction": extraction,
    "start": cold_start,
    "training": training,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__ or "", PARTS, "benchmark.json")
    parser.add_argument(
        "--growth", type=positive, nargs="+", metavar="ROWS", help="measure these sizes instead"
    )
    args = parser.parse_args(argv)
    sizes, facts = sizes_of(args, CPU), cpu_facts()
    if args.growth:
        output = args.output.with_name(f"{args.output.stem}_growth.json")
        measure_growth(args.folder, args.growth, sizes.rounds, output)
        return 0
    parts = {name: partial(PARTS[name], args.folder, sizes) for name in args.only}
    return measure(parts, facts, args.output)


if __name__ == "__main__":
    run_script(main)

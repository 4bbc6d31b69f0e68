"""Time, memory and recall of the engines as a collection grows."""

import json
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from search.clusters import nprobe_of, open_clusters
from search.engine import Engine, ExactEngine
from search.engines import open_engine
from search.recall import recall_of
from tools.benchmark.rows import in_units
from tools.benchmark.search import (
    RECALL,
    K,
    open_random,
    queries_of,
    rows_of,
    search_one,
    signals_with,
)
from tools.benchmark.timing import interleaved, run_project
from utils import atomic_write

Measurement = dict[str, Any]
MAX_CDIST = 8 << 30  # bytes of features that `cdist` is timed on
COLUMNS = ("rows", "engine", "one query", f"recall@{K}", "reads", "made in", "peak memory")


def measure_growth(folder: Path, counts: Sequence[int], rounds: int, output: Path) -> None:
    """Measure each engine at each size; print a table, write JSON and a plot.

    Parameters
    ----------
    folder : of the random feature databases
    counts : sizes, in pictures
    rounds : timed queries, in tens
    output : the JSON file; rows of other sizes stay in it. The plot has its name with .png
    """
    rows = json.loads(output.read_text("utf-8")) if output.is_file() else []
    rows = [row for row in rows if row["rows"] not in counts]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for count in counts:
        for row in _growth(folder, count, rounds):
            rows.append(row)
            cells = (
                f"{count:,}", row["engine"], in_units(row["seconds"]), f"{row['recall']:.3f}",
                f"{row['bytes'] / 1e6:,.0f} MB", in_units(row["making"]),
                f"{row['peak'] / 1e9:.1f} GB",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
            with atomic_write(output) as part:
                part.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    _draw(rows, output.with_suffix(".png"))


def _growth(folder: Path, count: int, rounds: int) -> Iterator[Measurement]:
    """Time, memory and recall of each engine on a collection of `count` pictures.

    Yields
    ------
    "engine", "rows", "seconds" of one query, "recall" (recall@10), "bytes" that a query reads,
    "making" (seconds to make what the engine needs), "peak" (bytes of memory).
    """
    database, queries = open_random(folder, count), queries_of(20)
    signals = signals_with(database, "euclidean", 0.1)
    start = time.perf_counter()
    exact = open_engine(database, signals, "exact", 0, RECALL).engine
    making = time.perf_counter() - start
    truth = rows_of(exact.search(queries, K))
    features = sum(signal.features.nbytes for signal in signals)
    quantised = features // 4

    def measure(engine: Engine, name: str, size: int, making: float, times: int) -> Measurement:
        run = {name: lambda i: search_one(engine, queries, i, K)}
        return {
            "engine": name, "rows": count, "seconds": interleaved(run, times)[name],
            "recall": recall_of(rows_of(engine.search(queries, K)), truth), "bytes": size,
            "making": making,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }  # fmt: skip

    yield measure(exact, "exact", quantised, making, min(10 * rounds, 20))
    clusters = min(max(50, round(count**0.5 / 8)), count // 4)
    start = time.perf_counter()
    run_project("kmeans.py", database.base, f"--n-clusters={clusters}")
    opened = open_engine(database, signals, "kmeans", 0, RECALL)
    making = time.perf_counter() - start
    nprobe = nprobe_of(open_clusters(database), 0, RECALL)
    size = round(quantised * nprobe / clusters)
    yield measure(opened.engine, f"k-means, {opened.searched}", size, making, 20)
    if features < MAX_CDIST:
        yield measure(ExactEngine(signals), "cdist", features, 0.0, 3)


def _draw(rows: Sequence[Measurement], path: Path) -> None:
    """Plot the seconds of one query over the number of pictures, one line for each engine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind in dict.fromkeys(row["engine"].split(",")[0] for row in rows):
        points = [(r["rows"], 1e3 * r["seconds"]) for r in rows if r["engine"].startswith(kind)]
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=kind)
    axes.set(xlabel="pictures", ylabel="one query, ms")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    print(f"\n{path}")

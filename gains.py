"""What makes answers better at the price of time, and what each signal adds: measured."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from index import Engine, ExactEngine, Signal
from measures import summarise
from protocols import Outcome, Task, of_gallery, query_features, run_task
from report import Table
from rerank import CollapsedEngine, improved, join_queries

NEIGHBOURS = 5  # of query expansion


def gains_table(
    plain: Outcome, engine: Engine, signals: Sequence[Signal], unflipped: Sequence[np.ndarray]
) -> Table:
    """Measure every query-time gain on a task.

    Parameters
    ----------
    plain : the task's outcome without any
    engine : over the task's gallery
    signals : of the whole feature database
    unflipped : its deep features without mirror images, where they hold them; else empty

    Returns
    -------
    For each gain the main measures, the difference of the first one to plain answers with its
    paired 95% interval, and the time of a query.
    """
    task = plain.task
    main, other = _main_measures(task)
    features = query_features(task, signals)
    narrowed = of_gallery(signals, task.gallery)
    trials = [
        ("plain", engine),
        (f"expansion with {NEIGHBOURS} answers", improved(engine, narrowed, NEIGHBOURS, False)),
        ("k-reciprocal re-ranking", improved(engine, narrowed, 0, True)),
        ("expansion, then re-ranking", improved(engine, narrowed, NEIGHBOURS, True)),
    ]
    by_item = task.name == "item"
    if by_item:
        items = task.labels[task.gallery]
        trials.append(("best view of each item", CollapsedEngine(engine, items)))
    rows = []
    for name, trial in trials:
        start = time.perf_counter()
        outcome = run_task(task, trial, features)
        cost = (time.perf_counter() - start) / len(task.queries)
        gain = outcome.values[main] - plain.values[main]
        rows.append(_row(name, outcome, main, other, gain, task.groups, cost))
    if by_item:
        rows.append(_together(plain, engine, features, main, other))
    if unflipped:
        rows.append(_unflipped(plain, signals, unflipped))
    note = (
        f"Difference of {main} to plain answers, paired 95% interval; time of one query, ranking."
    )
    return Table(
        f"Query-time gains, right {task.name}",
        note,
        ("", main, other, "difference", "95% interval", "ms a query"),
        rows,
    )


def _main_measures(task: Task) -> tuple[str, str]:
    return ("p@1", "map") if task.name == "category" else ("recall@1", "mrr")


def _row(
    name: str,
    outcome: Outcome,
    main: str,
    other: str,
    gain: np.ndarray,
    groups: np.ndarray,
    cost: float,
) -> tuple[str, ...]:
    figure = summarise(gain, groups)
    low, high = figure.ci95
    return (
        name,
        f"{outcome.values[main].mean():.2%}",
        f"{outcome.values[other].mean():.2%}",
        f"{figure.value:+.2%}",
        f"{low:+.2%} to {high:+.2%}",
        f"{1000 * cost:.2f}",
    )


def _together(
    plain: Outcome, engine: Engine, features: Sequence[np.ndarray], main: str, other: str
) -> tuple[str, ...]:
    """All pictures of an item as one query, against the mean of their single answers."""
    task = plain.task
    items, first, group = np.unique(
        task.labels[task.queries], return_index=True, return_inverse=True
    )
    joined = join_queries([f[np.argsort(group, kind="stable")] for f in features], np.sort(group))
    joint = replace(task, queries=task.queries[first], groups=items)
    start = time.perf_counter()
    outcome = run_task(joint, engine, joined)
    cost = (time.perf_counter() - start) / len(items)
    single = np.bincount(group, plain.values[main]) / np.bincount(group)
    gain = outcome.values[main] - single
    title = f"all views of an item as one query ({len(items):,})"
    return _row(title, outcome, main, other, gain, items, cost)


def _unflipped(
    plain: Outcome, signals: Sequence[Signal], unflipped: Sequence[np.ndarray]
) -> tuple[str, ...]:
    """The features without mirror images, ranked exactly: what FLIP gives is what is lost here."""
    task = plain.task
    deep = [replace(s, features=f) for s, f in zip(signals, unflipped, strict=False)]
    single = [*deep, *signals[len(deep) :]]
    start = time.perf_counter()
    engine = ExactEngine(of_gallery(single, task.gallery))
    outcome = run_task(task, engine, query_features(task, single))
    cost = (time.perf_counter() - start) / len(task.queries)
    main, other = _main_measures(task)
    gain = outcome.values[main] - plain.values[main]
    return _row("without mirror images", outcome, main, other, gain, task.groups, cost)


def signals_table(task: Task, signals: Sequence[Signal]) -> Table:
    """Measure a task with each signal alone, and with all but it.

    Parameters
    ----------
    task : what to ask
    signals : of the whole feature database, with the weights that rank
    """
    main, other = _main_measures(task)
    features = query_features(task, signals)

    def measure(weights: Sequence[float]) -> Outcome:
        weighted = [replace(s, weight=w) for s, w in zip(signals, weights, strict=True)]
        return run_task(task, ExactEngine(of_gallery(weighted, task.gallery)), features)

    every = [signal.weight for signal in signals]
    whole = measure(every)
    rows = [
        ("all", f"{whole.values[main].mean():.2%}", f"{whole.values[other].mean():.2%}", "", "")
    ]
    for i, signal in enumerate(signals):
        alone = measure([float(i == j) for j in range(len(signals))])
        shown = [f"{alone.values[name].mean():.2%}" for name in (main, other)]
        adds = ("", "")
        if signal.weight and np.count_nonzero(every) > 1:
            without = measure([0.0 if i == j else weight for j, weight in enumerate(every)])
            figure = summarise(whole.values[main] - without.values[main], task.groups)
            adds = (f"{figure.value:+.2%}", "{:+.2%} to {:+.2%}".format(*figure.ci95))
        rows.append((f"{signal.name} alone (weight {signal.weight:g})", *shown, *adds))
    return Table(
        f"Signals, right {task.name}",
        f"Adds: {main} of all signals less that of all but this one, paired interval.",
        ("", main, other, "adds", "95% interval"),
        rows,
    )

"""What makes answers better at the price of time, and what each signal adds: measured."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evaluation.metrics import summarise
from evaluation.protocols import (
    Outcome,
    Task,
    blocks_of,
    compare,
    of_gallery,
    query_features,
    run_task,
)
from evaluation.report import Table
from search.engine import Engine, ExactEngine
from search.rerank import CollapsedEngine, improved, join_queries
from search.signals import Signal, weighted_sum
from utils import progress_bar

NEIGHBOURS = 5  # of query expansion
MOST_QUERIES = 1000
PERCENT, CHANGE, INTERVAL = "{:.2%}", "{:+.2%}", "{:+.2%} to {:+.2%}"


def thinned(task: Task, most: int) -> Task:
    """The task with about `most` of its queries, evenly spread; groups stay whole."""
    _, first, group = np.unique(task.groups, return_index=True, return_inverse=True)
    wanted = max(1, len(first) * most // len(task.queries))
    if wanted >= len(first):
        return task
    spread = np.linspace(0, len(first) - 1, wanted).round().astype(int)
    kept = np.isin(group, np.argsort(first)[spread])
    return replace(task, queries=task.queries[kept], groups=task.groups[kept])


def _asked(sample: Task, task: Task) -> str:
    """How many queries a table is of."""
    if len(sample.queries) == len(task.queries):
        return f"All {len(task.queries):,} queries."
    return f"{len(sample.queries):,} of the {len(task.queries):,} queries, evenly spread."


def _shown_measures(task: Task) -> tuple[str, str, str]:
    """The one that gains are counted in, and two beside it."""
    return ("p@1", "p@10", "map") if task.name == "category" else ("recall@1", "recall@10", "mrr")


def _means(outcome: Outcome) -> list[float]:
    return [float(outcome.values[name].mean()) for name in _shown_measures(outcome.task)]


def gains_table(task: Task, engine: Engine, signals: Sequence[Signal]) -> Table:
    """Measure every query-time gain on a task.

    Parameters
    ----------
    task : what to ask; see `thinned`
    engine : over the task's gallery
    signals : of the whole feature database

    Returns
    -------
    For each gain the main measures, the difference of the first one to plain answers with its
    paired 95% interval, and the time of a query.
    """
    sample = thinned(task, MOST_QUERIES)
    features = query_features(sample, signals)
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
    main, *others = _shown_measures(task)
    outcomes, rows = [], []
    for name, trial in trials:
        outcome, cost = _timed(sample, trial, features)
        outcomes.append(outcome)
        gain = outcome.values[main] - outcomes[0].values[main]
        rows.append((name, *_means(outcome), *_difference(gain, sample.groups), cost))
    if by_item:
        rows.append(_together(outcomes[0], engine, features))
    note = (
        f"Difference of {main} to plain answers, paired 95% interval; time of one query, ranking."
        f" {_asked(sample, task)}"
    )
    return Table(
        f"Query-time gains, right {task.name}",
        note,
        ("", main, *others, "difference", "95% interval", "ms a query"),
        rows,
        ("{}", PERCENT, PERCENT, PERCENT, CHANGE, INTERVAL, "{:.2f}"),
    )


def _timed(task: Task, engine: Engine, features: Sequence[np.ndarray]) -> tuple[Outcome, float]:
    """The outcome, and what a query took, in ms."""
    start = time.perf_counter()
    outcome = run_task(task, engine, features)
    return outcome, 1000 * (time.perf_counter() - start) / len(task.queries)


def _difference(gain: np.ndarray, groups: np.ndarray) -> tuple[float, tuple[float, float]]:
    figure = summarise(gain, groups)
    return figure.value, figure.ci95


def _together(plain: Outcome, engine: Engine, features: Sequence[np.ndarray]) -> tuple[object, ...]:
    """All pictures of an item as one query, against the mean of their single answers."""
    task, main = plain.task, _shown_measures(plain.task)[0]
    items, first, group = np.unique(
        task.labels[task.queries], return_index=True, return_inverse=True
    )
    joined = join_queries([f[np.argsort(group, kind="stable")] for f in features], np.sort(group))
    joint = replace(task, queries=task.queries[first], groups=items)
    outcome, cost = _timed(joint, engine, joined)
    single = np.bincount(group, plain.values[main]) / np.bincount(group)
    title = f"all views of an item as one query ({len(items):,})"
    return (title, *_means(outcome), *_difference(outcome.values[main] - single, items), cost)


def signals_table(task: Task, signals: Sequence[Signal], unflipped: Sequence[np.ndarray]) -> Table:
    """Measure a task with each signal alone, and with all but it; ranked exactly.

    Parameters
    ----------
    task : what to ask; see `thinned`
    signals : of the whole feature database, with the weights that rank
    unflipped : its deep features without mirror images, where they hold them; else empty
    """
    sample = thinned(task, MOST_QUERIES)
    plain = [replace(s, features=f) for s, f in zip(signals, unflipped, strict=False)]
    weights, none = [signal.weight for signal in signals], [0.0] * len(plain)
    every = (*weights, *none)
    # Of each row the weights it shows, and those that tell what is added, if any.
    trials: list[tuple[str, tuple[float, ...], tuple[float, ...] | None]] = [("all", every, None)]
    for i, signal in enumerate(signals):
        alone = tuple(float(i == j) for j in range(len(every)))
        without = tuple(0.0 if i == j else weight for j, weight in enumerate(every))
        told = signal.weight and any(without)
        name = f"{signal.name} alone (weight {signal.weight:g})"
        trials.append((name, alone, without if told else None))
    if plain:
        without = (*none, *weights[len(plain) :], *weights[: len(plain)])
        trials.append(("without mirror images", without, without))
    weightings = list(dict.fromkeys(w for trial in trials for w in trial[1:] if w))
    values = dict(zip(weightings, _values_by(sample, [*signals, *plain], weightings), strict=True))
    main, *others = _shown_measures(task)
    rows = []
    for name, shown, left in trials:
        means = [float(values[shown][measure].mean()) for measure in (main, *others)]
        gain = values[every][main] - values[left][main] if left else None
        adds = (None, None) if gain is None else _difference(gain, sample.groups)
        rows.append((name, *means, *adds))
    return Table(
        f"Signals, right {task.name}, ranked exactly",
        f"Adds: {main} of all signals less that of all but this one, paired interval."
        f" {_asked(sample, task)}",
        ("", main, *others, "adds", "95% interval"),
        rows,
        ("{}", PERCENT, PERCENT, PERCENT, CHANGE, INTERVAL),
    )


def _values_by(
    task: Task, signals: Sequence[Signal], weightings: Sequence[tuple[float, ...]]
) -> list[dict[str, np.ndarray]]:
    """The values of each measure, ranked exactly with each of some weightings of the signals.

    Parameters
    ----------
    task : what to ask
    signals : S, of the whole feature database
    weightings : S weights each
    """
    engine = ExactEngine(of_gallery(signals, task.gallery))
    features = query_features(task, signals)
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in weightings]
    with progress_bar(len(task.queries), f"weighting, {task.name}", "query picture") as bar:
        for block in blocks_of(task):
            # The metrics take most of the time, so each is asked once.
            parts = engine.parts([feature[block] for feature in features])
            for weights, values in zip(weightings, found, strict=True):
                order = np.argsort(weighted_sum(parts, weights), axis=1, kind="stable")
                values.append(compare(task, block, order)[2])
            bar.update(parts.shape[1])
    return [{n: np.concatenate([v[n] for v in values]) for n in values[0]} for values in found]

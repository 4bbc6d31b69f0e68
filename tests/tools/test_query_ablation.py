"""The tables of query-time methods and signals, compared with plain runs of each weighting."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import category_metrics, item_metrics, summarise
from evaluation.protocols import Task, of_gallery, query_features, run_task
from search.engine import ExactEngine
from search.signals import Signal
from tools import query_ablation
from tools.query_ablation import sample_queries, signals_table


def task_of(views: list[int], name: str = "item") -> Task:
    """Items with `views` queries each, in mixed order, and one picture each in the gallery."""
    items = np.random.default_rng(3).permutation(np.repeat(np.arange(len(views)), views))
    labels = np.concatenate([items, np.arange(len(views))]).astype(str)
    rows = np.arange(len(labels))
    queries, gallery = rows[: len(items)], rows[len(items) :]
    metrics = item_metrics if name == "item" else category_metrics
    return Task(name, queries, gallery, labels, labels[queries], metrics)


def signals_for(task: Task, rng: np.random.Generator, weights: list[float]) -> list[Signal]:
    _, number = np.unique(task.labels, return_inverse=True)
    return [
        Signal(name, (number[:, None] + noise).astype(np.float32), "euclidean", weight)
        for name, noise, weight in zip(
            ("deep", "color", "palette"), rng.normal(size=(3, len(number), 2)), weights, strict=True
        )
    ]


def test_a_sample_has_whole_items_from_the_whole_collection() -> None:
    task = task_of([1, 2, 3] * 100)
    sample = sample_queries(task, 60)
    assert 40 <= len(sample.queries) <= 80
    assert (sample.gallery == task.gallery).all()
    assert (np.diff(sample.queries) > 0).all()
    assert (task.labels[sample.queries] == sample.groups).all()
    for item in np.unique(sample.groups):
        assert (sample.groups == item).sum() == (task.groups == item).sum()
    # Evenly spaced: each fifth of the items, in the order of their first queries, gives a fifth.
    first = {item: i for i, item in reversed(list(enumerate(task.groups)))}
    place = {item: i for i, item in enumerate(sorted(first, key=first.get))}
    taken = np.histogram([place[item] for item in set(sample.groups)], 5, (0, 300))[0]
    assert taken.tolist() == [6] * 5
    assert sample_queries(task, len(task.queries)) is task
    assert len(sample_queries(task_of([5, 5]), 2).queries) == 5


@pytest.mark.parametrize("weights", [[1.0, 0.5, 4.0], [1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
def test_signals_are_measured_as_separate_runs_would(rng, weights: list[float]) -> None:
    task = task_of([3] * 50)
    signals = signals_for(task, rng, weights)

    def alone(chosen: list[Signal]) -> dict[str, np.ndarray]:
        engine = ExactEngine(of_gallery(chosen, task.gallery))
        return run_task(task, engine, query_features(task, chosen)).values

    names = ("recall@1", "recall@10", "mrr")
    whole = alone(signals)
    expected = [("all", whole, None)]
    for i, signal in enumerate(signals):
        left = alone([*signals[:i], replace(signal, weight=0), *signals[i + 1 :]])
        compared = weights[i] and np.count_nonzero(weights) > 1
        row = (f"{signal.name} alone (weight {weights[i]:g})", alone([replace(signal, weight=1)]))
        expected.append((*row, left if compared else None))
    table = signals_table(task, signals)
    assert len(table.rows) == len(expected)
    for row, (name, values, left) in zip(table.rows, expected, strict=True):
        assert row[0] == name
        assert row[1:4] == pytest.approx(tuple(values[measure].mean() for measure in names))
        if left is None:
            assert row[4:] == (None, None)
        else:
            figure = summarise(whole["recall@1"] - left["recall@1"], task.groups)
            assert row[4:] == (pytest.approx(figure.value), pytest.approx(figure.ci95))
    assert len({row[1] for row in table.rows}) > 1  # else the comparison would show nothing


def test_the_command_measures_each_method(measured: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(query_ablation, "MAX_QUERIES", 20)
    query_ablation.main(["--dataset-base", str(measured)])
    out = capsys.readouterr().out
    rows = {line.strip().split("  ")[0] for line in out.splitlines()}
    assert {"plain", "best picture of each item"} <= rows
    assert {"deep alone (weight 1)", "palette alone (weight 5)"} <= rows
    assert "all pictures of an item as one query" in out
    plain = next(line for line in out.splitlines() if line.strip().startswith("plain"))
    assert "+0.00%" in plain
    assert "queries, evenly spaced" in out

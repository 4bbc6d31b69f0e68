"""Features that are hard to rank, and a check of an engine against `cdist` over everything."""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from search.engine import Engine
from search.quantised import MAX_VALUE
from search.signals import Signal

Features = list[np.ndarray]
Make = Callable[[np.random.Generator, int, int], np.ndarray]  # of N rows of D values each
CASES: dict[str, Make] = {
    "offset": lambda rng, n, dim: 1000 + rng.normal(size=(n, dim)) * 1e-3,
    "lengths": lambda rng, n, dim: (
        rng.normal(size=(n, dim)) * 10.0 ** rng.uniform(-6, 6, size=(n, 1))
    ),
    "columns": lambda rng, n, dim: (
        rng.normal(size=(n, dim)) * 10.0 ** rng.uniform(-4, 4, size=(1, dim))
    ),
    "outlier": lambda rng, n, dim: (
        rng.normal(size=(n, dim)) * np.where(rng.random((n, 1)) < 1e-3, 1e9, 1)
    ),
    "tiny": lambda rng, n, dim: rng.normal(size=(n, dim)) * 1e-18,
    "subnormal": lambda rng, n, dim: rng.normal(size=(n, dim)) * 1e-42,
    "far": lambda rng, n, dim: rng.normal(size=(n, dim)) * MAX_VALUE,
    "copies": lambda rng, n, dim: rng.normal(size=(30, dim))[rng.integers(0, 30, n)],
    "the same": lambda rng, n, dim: np.repeat(rng.normal(size=(1, dim)), n, axis=0),
    "whole": lambda rng, n, dim: rng.integers(-3, 4, (n, dim)),
    "halves": lambda rng, n, dim: rng.integers(-127, 127, (n, dim)) + 0.5,
    "zeros": lambda rng, n, dim: np.where(rng.random((n, dim)) < 0.7, -0.0, rng.normal(size=dim)),
    "gaps": lambda rng, n, dim: (
        rng.normal(size=(n, dim)) + np.where(rng.random((n, 1)) < 0.01, np.nan, 0)
    ),
    "hardly any": lambda rng, n, dim: (
        rng.normal(size=(n, dim)) + np.where(np.arange(n)[:, None] % 1000, np.inf, 0)
    ),
}


def signals(features: Features, metric: str, weights: tuple[float, ...]) -> list[Signal]:
    """Up to three signals."""
    names = ("deep", "color", "palette")
    return [Signal(*row) for row in zip(names, features, [metric] * 3, weights, strict=False)]


def random_features(rng: np.random.Generator, count: int) -> Features:
    """Of three signals, n x 40, n x 9 and n x 17."""
    return [rng.normal(size=(count, dim)).astype(np.float32) for dim in (40, 9, 17)]


def check(
    engine: Engine,
    terms: list[Signal],
    queries: Features,
    k: int,
    rows: np.ndarray | None = None,
    rtol: float = 0.0,
) -> None:
    """Answers are those of `cdist` and a stable `argsort` over everything, bit for bit.

    A GPU may differ by `rtol` in the distances, never in the order.
    """
    with np.errstate(invalid="ignore"):
        parts = [cdist(q, t.features, t.metric) for q, t in zip(queries, terms, strict=True)]
    total = sum(t.weight * part for t, part in zip(terms, parts, strict=True) if t.weight)
    among = np.arange(total.shape[1]) if rows is None else rows
    found = engine.search(queries, k, rows)
    assert len(found) == len(queries[0])
    for i, answer in enumerate(found):
        expected = among[np.argsort(total[i, among], kind="stable")][:k]
        np.testing.assert_array_equal(answer.rows, expected)
        np.testing.assert_allclose(answer.distances, total[i, expected], rtol, rtol)
        for j, part in enumerate(parts):
            np.testing.assert_allclose(answer.parts[:, j], part[i, expected], rtol, rtol)

"""Whole galleries in order: the same order as `cdist` and a stable `argsort`."""

import numpy as np
import pytest

from search.engine import ExactEngine
from search.matrix import MatrixEngine
from search.signals import Signal

COUNT, QUERIES = 300, 12


def signals_and_queries(
    rng: np.random.Generator, metric: str, offset: float = 0.0
) -> tuple[list[Signal], list[np.ndarray]]:
    """Three signals, one without weight; copies among the gallery, and of it among the queries."""
    terms = [("deep", 40, 1.0), ("color", 6, 0.1), ("palette", 20, 0.0)]
    signals, queries = [], []
    for name, dim, weight in terms:
        features = (offset + rng.normal(size=(COUNT, dim))).astype(np.float32)
        other = (offset + rng.normal(size=(QUERIES, dim))).astype(np.float32)
        features[100:120] = features[7]
        features[250] = features[249] * np.float32(1 + 1e-7)
        other[:3] = features[[7, 249, 30]]
        signals.append(Signal(name, features, metric, weight))
        queries.append(other)
    return signals, queries


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_order_is_that_of_cdist(rng: np.random.Generator, metric: str, offset: float) -> None:
    """Far from the origin most digits cancel out."""
    signals, queries = signals_and_queries(rng, metric, offset)
    found = MatrixEngine(signals).search(queries, COUNT)
    for one, exact in zip(found, ExactEngine(signals).search(queries, COUNT), strict=True):
        assert one.rows.tolist() == exact.rows.tolist()
        np.testing.assert_allclose(one.distances, exact.distances, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.parts, exact.parts, rtol=1e-9, atol=1e-9)
    assert (found[0].rows[:21] == [7, *range(100, 120)]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
@pytest.mark.parametrize("place", ["gallery", "query"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_odd_values(rng: np.random.Generator, metric: str, place: str, value: float) -> None:
    signals, queries = signals_and_queries(rng, metric)
    (signals[0].features if place == "gallery" else queries[0])[5] = value
    found = MatrixEngine(signals).search(queries, COUNT)
    for one, exact in zip(found, ExactEngine(signals).search(queries, COUNT), strict=True):
        assert one.rows.tolist() == exact.rows.tolist()
        np.testing.assert_allclose(one.distances, exact.distances, rtol=1e-9, atol=1e-9)


def test_parts_of_a_gallery(rng: np.random.Generator) -> None:
    """Fewer answers, or some rows only."""
    signals, queries = signals_and_queries(rng, "euclidean")
    engine, exact = MatrixEngine(signals), ExactEngine(signals)
    rows = np.arange(0, COUNT, 3)
    for k, some in ((7, None), (COUNT, rows), (3, rows)):
        pairs = zip(engine.search(queries, k, some), exact.search(queries, k, some), strict=True)
        assert all(a.rows.tolist() == b.rows.tolist() for a, b in pairs)

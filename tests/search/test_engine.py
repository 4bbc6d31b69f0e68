"""The exact engine against scipy's distances and numpy's stable argsort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from search import engine
from search.engine import Answer, ExactEngine, smallest
from search.signals import Signal, weighted_sum

N, D, T = 2 * engine.BLOCK + 300, 6, 9  # three blocks, the last one short
METRICS = ("euclidean", "cosine", "cityblock", "chebyshev")


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Deep and colour features; the rows around each block's border are one and the same."""
    rng = np.random.default_rng(0)
    deep, color = rng.random((N, D), np.float32), rng.random((N, T), np.float32)
    for border in (0, engine.BLOCK, 2 * engine.BLOCK):
        twins = slice(max(border - 4, 0), border + 4)
        deep[twins], color[twins] = deep[7], color[7]
    return deep, color


def by_scipy(features, queries, metrics, weight: float) -> np.ndarray:
    deep, color = (cdist(q, f, m) for q, f, m in zip(queries, features, metrics, strict=True))
    return deep + weight * color


def assert_is(answer: Answer, rows: np.ndarray, distances: np.ndarray) -> None:
    np.testing.assert_array_equal(answer.rows, rows)
    np.testing.assert_array_equal(answer.distances, distances)


@pytest.mark.parametrize("weight", [0, 0.7])
@pytest.mark.parametrize("color_metric", METRICS)
@pytest.mark.parametrize("deep_metric", METRICS)
def test_exact_order_is_that_of_cdist_and_a_stable_argsort(
    features, deep_metric: str, color_metric: str, weight: float
) -> None:
    """Also of the twins at the block borders, and with an answer that ends among them."""
    metrics = (deep_metric, color_metric)
    queries = [f[[7, 500]] + np.float32([[0], [0.01]]) for f in features]
    expected = by_scipy(features, queries, metrics, weight)
    engine = ExactEngine([Signal("deep", features[0], deep_metric, 1.0),
                          Signal("color", features[1], color_metric, weight)])  # fmt: skip
    np.testing.assert_array_equal(engine.distances(queries), expected)
    for k in (5, 40, N + 10):
        for answer, row in zip(engine.search(queries, k), expected, strict=True):
            order = np.argsort(row, kind="stable")[:k]
            assert_is(answer, order, row[order])
    for signal in range(2):
        np.testing.assert_array_equal(
            answer.parts[:, signal],
            cdist(queries[signal][1:], features[signal], metrics[signal])[0, answer.rows],
        )
    np.testing.assert_allclose(answer.distances, answer.parts @ [1, weight])


@pytest.mark.parametrize("rows", [None, np.arange(1, 400, 3)])
@pytest.mark.parametrize(
    "metric", ["euclidean", "cosine", "cityblock", "seuclidean", "mahalanobis"]
)
def test_a_block_of_queries_gets_the_answers_of_each_alone(
    monkeypatch, rng: np.random.Generator, metric: str, rows
) -> None:
    """To the last bit, as cdist gives them for one query, and with no more memory than allowed."""
    deep, color = rng.random((400, 33), np.float32), rng.random((400, 5), np.float32)
    deep[50:90], color[50:90] = deep[20], color[20]
    signals = [Signal("deep", deep, metric, 1.0), Signal("color", color, "cityblock", 0.3)]
    queries = [np.concatenate([f[:15], f[:4] + np.float32(0.1)]) for f in (deep, color)]
    searched = np.arange(400) if rows is None else rows
    sizes = []
    parts_of = ExactEngine.parts

    def watched(self, *arguments):
        parts = parts_of(self, *arguments)
        sizes.append(parts.nbytes + 2 * parts[0].nbytes)
        return parts

    monkeypatch.setattr(ExactEngine, "parts", watched)
    monkeypatch.setattr(engine, "MEMORY", 8 * len(searched) * 4 * 7 + 99)  # seven queries
    answers = ExactEngine(signals).search(queries, 60, rows)
    assert sizes == [8 * len(searched) * 4 * count for count in (7, 7, 5)]
    for q, answer in enumerate(answers):
        given = signals[0].parameters
        apart = [
            cdist(queries[0][q : q + 1], deep[searched], metric, **given)[0],
            cdist(queries[1][q : q + 1], color[searched], "cityblock")[0],
        ]
        distances = apart[0] + 0.3 * apart[1]
        order = np.argsort(distances, kind="stable")[:60]
        assert_is(answer, searched[order], distances[order])
        np.testing.assert_array_equal(answer.parts, np.transpose(apart)[order])


def test_a_search_in_some_rows_keeps_their_order_and_numbers(features) -> None:
    signals = [Signal("deep", features[0], "cityblock", 1.0)]
    rows = np.flatnonzero(np.random.default_rng(1).random(N) < 0.9)
    distances = cdist(features[0][:1], features[0][rows], "cityblock")[0]
    order = np.argsort(distances, kind="stable")[:50]
    answer = ExactEngine(signals).search([features[0][:1]], 50, rows)[0]
    assert_is(answer, rows[order], distances[order])
    assert len(ExactEngine(signals).search([features[0][:1]], 5, rows[:3])[0].rows) == 3


@pytest.mark.parametrize("k", [2, 6, 8, 20])
def test_rows_that_are_not_numbers_come_last(k: int) -> None:
    deep = np.arange(8, dtype=np.float32)[:, None].repeat(2, 1)
    deep[[0, 5]] = np.nan
    answer = ExactEngine([Signal("deep", deep, "euclidean", 1.0)]).search([deep[7:]], k)[0]
    assert answer.rows.tolist() == [7, 6, 4, 3, 2, 1, 0, 5][:k]


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, np.inf, -np.inf, np.nan]) | st.floats()),
    st.integers(1, 40),
)
def test_nearest_are_the_first_of_a_stable_argsort(values: list[float], k: int) -> None:
    distances = np.array(values, np.float64)
    expected = np.argsort(distances, kind="stable")[:k]
    np.testing.assert_array_equal(smallest(distances, k), expected)


def test_metrics_with_parameters_take_them_from_the_whole_collection() -> None:
    """Worked out by their definitions; a search in some rows must not change a distance."""
    rng = np.random.default_rng(0)
    deep = (rng.random((60, 4)) * [1, 10, 100, 1000]).astype(np.float32)
    color = (rng.random((60, 3)) @ rng.random((3, 3))).astype(np.float32)
    signals = [Signal("deep", deep, "seuclidean", 1.0), Signal("color", color, "mahalanobis", 1.0)]
    for rows in (None, np.arange(10, 30)):
        answer = ExactEngine(signals).search([deep[:1], color[:1]], 60, rows)[0]
        off = (deep[answer.rows] - deep[0]).astype(np.float64)
        expected = np.sqrt((off**2 / deep.astype(np.float64).var(axis=0, ddof=1)).sum(1))
        np.testing.assert_allclose(answer.parts[:, 0], expected, rtol=1e-6)
        off = (color[answer.rows] - color[0]).astype(np.float64)
        inverse = np.linalg.inv(np.cov(color.T))
        expected = np.sqrt(np.einsum("ni,ij,nj->n", off, inverse, off))
        np.testing.assert_allclose(answer.parts[:, 1], expected, rtol=1e-6, atol=1e-6)


def test_four_signals_rank_as_the_sum_of_four_cdists(rng: np.random.Generator) -> None:
    metrics = ("cosine", "cosine", "cityblock", "cityblock")
    weights = (2, 0.5, 0.25, 3)
    signals = [
        Signal(f"signal {width}", rng.random((12, width), np.float32), metric, weight)
        for width, metric, weight in zip((D, 2, T, 8), metrics, weights, strict=True)
    ]
    total = sum(
        weight * cdist(signal.features, signal.features, metric)
        for signal, metric, weight in zip(signals, metrics, weights, strict=True)
    )
    answers = ExactEngine(signals).search([signal.features for signal in signals], 12)
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(answer.distances, np.sort(total[row]))
        parts = [
            cdist(s.features[[row]], s.features[answer.rows], m)[0]
            for s, m in zip(signals, metrics, strict=True)
        ]
        np.testing.assert_allclose(answer.parts, np.transpose(parts))


def test_a_signal_without_weight_takes_no_part_in_the_sum() -> None:
    parts = np.array([[[1.0, 2.0]], [[np.nan, np.inf]], [[10.0, 20.0]]])
    assert weighted_sum(parts, [1, 0, 0.5]).tolist() == [[6, 12]]

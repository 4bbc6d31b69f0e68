"""Re-ranking against the paper's equations in plain loops and sets, the others by hand."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from search.engine import Answer, ExactEngine
from search.rerank import CollapsedEngine, RerankedEngine, join_queries, k_reciprocal_distances
from search.signals import Signal

METRICS = ("euclidean", "cosine", "cityblock", "seuclidean", "mahalanobis")


def by_the_paper(distances, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """Zhong et al. (2017), equations 2 to 12, word for word."""
    everyone = range(len(distances))

    @cache
    def near(p: int, k: int) -> list[int]:  # N(p, k), and p
        others = sorted((distances[p][g], g) for g in everyone if g != p)
        return [p] + [g for _, g in others[:k]]

    @cache
    def reciprocal(p: int, k: int) -> set[int]:  # R(p, k)
        return {g for g in near(p, k) if p in near(g, k)}

    def robust(p: int) -> set[int]:  # R*(p, k1)
        found = reciprocal(p, k1)
        for q in reciprocal(p, k1):
            half = reciprocal(q, k1 // 2)
            if len(reciprocal(p, k1) & half) >= Fraction(2, 3) * len(half):
                found = found | half
        return found

    def scaled(p: int, g: int) -> float:
        return distances[p][g] / (max(distances[p]) or 1)

    sets = [robust(p) for p in everyone]
    plain = [[np.exp(-scaled(p, g)) if g in sets[p] else 0 for g in everyone] for p in everyone]
    encoded = []
    for p in everyone:
        members = near(p, k2 - 1)
        encoded.append([sum(plain[m][g] for m in members) / len(members) for g in everyone])
    result = []
    for g in everyone[1:]:
        least = sum(min(encoded[0][j], encoded[g][j]) for j in everyone)
        most = sum(max(encoded[0][j], encoded[g][j]) for j in everyone)
        result.append((1 - weight) * (1 - least / most) + weight * scaled(0, g))
    return np.array(result)


@st.composite
def symmetric(draw) -> np.ndarray:
    """Distances of a few values, so that most are tied and some pictures are the same."""
    count = draw(st.integers(1, 12))
    half = draw(arrays(np.int64, (count, count), elements=st.integers(0, draw(st.integers(1, 9)))))
    upper = np.triu(half, 1)
    return (upper + upper.T) * draw(st.sampled_from([0.25, 1.0, 40.0]))


@given(symmetric(), st.integers(1, 14), st.integers(1, 14), st.floats(0, 1))
def test_distances_by_shared_neighbours_are_those_of_the_paper(
    distances, k1: int, k2: int, weight: float
) -> None:
    before = distances.copy()
    found = k_reciprocal_distances(distances, k1, k2, weight)
    expected = by_the_paper(distances.tolist(), k1, k2, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 3), (6, 1), (80, 90)])
def test_distances_of_grouped_points_are_those_of_the_paper(rng, k1: int, k2: int) -> None:
    """Groups as in retrieval, where sets are extended by the rule of two thirds."""
    centres = rng.normal(size=(6, 8)) * 2
    points = np.repeat(centres, 10, axis=0) + rng.normal(size=(60, 8))
    distances = cdist(points, points)
    found = k_reciprocal_distances(distances, k1, k2)
    expected = by_the_paper(distances.tolist(), k1, k2)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ((found >= 0) & (found <= 1)).all()
    # Another unit is the same distance.
    np.testing.assert_allclose(k_reciprocal_distances(distances * 7, k1, k2), found)


def exact(*features, metrics=("euclidean", "euclidean"), weights=(1.0, 0.3)) -> ExactEngine:
    """An engine over a deep signal and perhaps a colour one."""
    terms = zip(("deep", "color"), features, metrics, weights, strict=False)
    return ExactEngine([Signal(name, f, metric, weight) for name, f, metric, weight in terms])


GARMENT = np.float32([[-0.8, 0], [-0.8, 0.1], [-0.8, -0.1], [-0.9, 0.05], [-0.9, -0.05]])
OTHERS = np.float32([[0.75, 0], [0.9, 0.1], [0.9, -0.1], [1, 0.1], [1, -0.1], [1.1, 0]])


def test_a_neighbour_that_has_nearer_ones_of_its_own_falls_back() -> None:
    """0.75 from another garment and 0.8 from its own, which has the query among its nearest 5."""
    deep = np.concatenate([[[0, 0]], GARMENT, OTHERS])
    distances = cdist(deep, deep)
    assert distances[0, 1:].argmin() == len(GARMENT)
    order = k_reciprocal_distances(distances, k1=5, k2=4).argsort()
    assert set(order[:5]) == set(range(5))


@pytest.mark.parametrize("metrics", [("euclidean", "seuclidean"), ("mahalanobis", "cosine")])
def test_the_shortlist_is_in_the_order_of_the_paper(rng, metrics) -> None:
    """With the weighted sum of all signals between query and answers, and between answers."""
    features = [(rng.random((140, d)) * range(1, d + 1)).astype(np.float32) for d in (5, 4)]
    queries = [f[:2] + np.float32(0.03) for f in features]
    engine = exact(*features, metrics=metrics, weights=(1.0, 0.4))
    answers = RerankedEngine(engine, engine.signals).search(queries, 140)
    for q, (plain, answer) in enumerate(zip(engine.search(queries, 140), answers, strict=True)):
        total = 0
        for signal, query, weight in zip(engine.signals, queries, (1.0, 0.4), strict=True):
            some = np.vstack([query[q], signal.features[plain.rows[:100]]])
            total = total + weight * cdist(some, some, signal.metric, **signal.parameters)
        order = np.argsort(by_the_paper(total.tolist()), kind="stable")
        np.testing.assert_array_equal(answer.rows[:100], plain.rows[:100][order])
        np.testing.assert_array_equal(answer.rows[100:], plain.rows[100:])
        assert not np.array_equal(answer.rows, plain.rows)
        assert_same_pictures(answer, plain)


def assert_same_pictures(answer: Answer, plain: Answer) -> None:
    """The same answers in any order, each with its own distance and parts."""
    order, expected = np.argsort(answer.rows), np.argsort(plain.rows)
    for name in ("rows", "distances", "parts"):
        found = getattr(answer, name)[order]
        np.testing.assert_array_equal(found, getattr(plain, name)[expected])


def test_fewer_answers_than_the_shortlist_are_its_first(rng) -> None:
    deep = rng.normal(size=(130, 4)).astype(np.float32)
    engine = exact(deep, weights=(1.0,))
    reranked = RerankedEngine(engine, engine.signals)
    whole = reranked.search([deep[:3]], 130)
    for k in (1, 8, 100, 101, 500):
        for answer, expected in zip(reranked.search([deep[:3]], k), whole, strict=True):
            np.testing.assert_array_equal(answer.rows, expected.rows[:k])
            np.testing.assert_array_equal(answer.parts, expected.parts[:k])


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "braycurtis"])
def test_pictures_without_a_distance_stay_last(rng, metric: str) -> None:
    """And change nothing; in braycurtis also two answers of zeros have none to each other."""
    deep = rng.random((60, 4)).astype(np.float32)
    deep[[3, 17]] = np.nan
    if metric == "braycurtis":
        deep[[5, 9]] = 0
    engine = exact(deep, metrics=(metric,), weights=(1.0,))
    plain = engine.search([deep[:1]], 60)[0]
    reranked = RerankedEngine(engine, engine.signals)
    with np.errstate(all="raise"):
        answer = reranked.search([deep[:1]], 60)[0]
    assert_same_pictures(answer, plain)
    some = np.vstack([deep[:1], deep[plain.rows[:58]]])
    pairs = cdist(some, some, metric)
    pairs[np.isnan(pairs)] = 1.0  # what two of zeros are to all others
    np.fill_diagonal(pairs, 0)
    order = np.argsort(by_the_paper(pairs.tolist()), kind="stable")
    np.testing.assert_array_equal(answer.rows, [*plain.rows[order], 3, 17])
    nothing = reranked.search([deep[3:4]], 5)[0]
    assert nothing.rows.tolist() == [0, 1, 2, 3, 4]


def test_a_signal_without_weight_takes_no_part(rng) -> None:
    deep, color = rng.random((30, 4), np.float32), np.full((30, 1), np.nan, np.float32)
    alone, both = exact(deep), exact(deep, color, weights=(1.0, 0.0))
    answers = [
        RerankedEngine(engine, engine.signals).search([f[:2] for f in features], 30)
        for engine, features in ((alone, [deep]), (both, [deep, color]))
    ]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_a_small_gallery_is_answered_whole(rng, size: int) -> None:
    features = [rng.random((size + 2, d), np.float32) for d in (4, 3)]
    engine = exact(*features)
    rows = np.arange(1, size + 1)
    items = np.array([str(row) for row in range(size + 2)])
    reranked = RerankedEngine(engine, engine.signals)
    for trial in (reranked, CollapsedEngine(reranked, items)):
        for answer in trial.search([f[:2] for f in features], 50, rows):
            assert sorted(answer.rows) == rows.tolist()
            assert answer.parts.shape == (size, 2)
            np.testing.assert_allclose(answer.distances, answer.parts @ [1, 0.3])


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1), st.integers(1, 5))
def test_items_are_the_first_of_all_pictures_collapsed(names: list[str], k: int) -> None:
    """However many pictures the nearest item has, and if there are fewer items than k."""
    items = np.array(names)
    engine = exact(np.arange(len(items), dtype=np.float32)[:, None], weights=(1.0,))
    queries = [np.float32([[-1], [99]])]
    answers = CollapsedEngine(engine, items).search(queries, k)
    for answer, plain in zip(answers, engine.search(queries, len(items)), strict=True):
        expected, seen = [], {""}
        for row in plain.rows:
            if items[row] not in seen or not items[row]:
                expected.append(row)
                seen.add(items[row])
        assert answer.rows.tolist() == expected[:k]
        assert len(answer.distances) == len(answer.parts) == len(answer.rows)


@pytest.mark.parametrize("rows", [[0, 2], [1], [3, 3]])
def test_joined_queries_by_hand(rows: list[int]) -> None:
    """Lengths of 1 are kept, other lengths are not made 1."""
    deep = np.float32([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]])
    color = np.float32([[2], [5], [4], [1]])
    joined = join_queries([deep[rows], color[rows]])
    total = deep[rows].sum(0)
    np.testing.assert_allclose(joined[0], [total / np.linalg.norm(total)], rtol=1e-6)
    np.testing.assert_array_equal(joined[1], [color[rows].mean(0)])
    assert [features.dtype for features in joined] == [np.float32] * 2

"""Re-ranking against the paper's equations in plain loops and sets, the others by hand."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from search.clusters import Clusters, KMeansEngine
from search.engine import Answer, ExactEngine
from search.rerank import (
    CollapsedEngine,
    ExpandedEngine,
    RerankedEngine,
    improved,
    join_queries,
    k_reciprocal_distances,
)
from search.signals import Signal

METRICS = ("euclidean", "cosine", "cityblock", "seuclidean", "mahalanobis")


def by_the_paper(distances, queries: int, k1: int, k2: int, weight: float) -> np.ndarray:
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
    result = np.empty((queries, len(distances) - queries))
    for p in range(queries):
        for g in range(queries, len(distances)):
            least = sum(min(encoded[p][j], encoded[g][j]) for j in everyone)
            most = sum(max(encoded[p][j], encoded[g][j]) for j in everyone)
            result[p, g - queries] = (1 - weight) * (1 - least / most) + weight * scaled(p, g)
    return result


@st.composite
def symmetric(draw) -> np.ndarray:
    """Distances of a few values, so that most are tied and some pictures are the same."""
    count = draw(st.integers(1, 12))
    half = draw(arrays(np.int64, (count, count), elements=st.integers(0, draw(st.integers(1, 9)))))
    upper = np.triu(half, 1)
    return (upper + upper.T) * draw(st.sampled_from([0.25, 1.0, 40.0]))


@given(symmetric(), st.data(), st.integers(1, 14), st.integers(1, 14), st.floats(0, 1))
def test_distances_by_shared_neighbours_are_those_of_the_paper(
    distances, data, k1: int, k2: int, weight: float
) -> None:
    queries = data.draw(st.integers(1, len(distances)))
    before = distances.copy()
    found = k_reciprocal_distances(distances, queries, k1, k2, weight)
    expected = by_the_paper(distances.tolist(), queries, k1, k2, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 3), (6, 1), (80, 90)])
def test_distances_of_grouped_points_are_those_of_the_paper(rng, k1: int, k2: int) -> None:
    """Groups as in retrieval, where sets are extended by the rule of two thirds."""
    centres = rng.normal(size=(6, 8)) * 2
    points = np.repeat(centres, 10, axis=0) + rng.normal(size=(60, 8))
    distances = cdist(points, points)
    found = k_reciprocal_distances(distances, 3, k1, k2, 0.3)
    expected = by_the_paper(distances.tolist(), 3, k1, k2, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ((found >= 0) & (found <= 1)).all()
    # Another unit is the same distance.
    np.testing.assert_allclose(k_reciprocal_distances(distances * 7, 3, k1, k2, 0.3), found)


def test_defaults_are_those_of_the_paper(rng) -> None:
    points = rng.normal(size=(50, 4))
    distances = cdist(points, points)
    np.testing.assert_allclose(
        k_reciprocal_distances(distances, 1), by_the_paper(distances.tolist(), 1, 20, 6, 0.3)
    )


def exact(*features, metrics=("euclidean", "euclidean"), weights=(1.0, 0.3)) -> ExactEngine:
    """An engine over a deep signal and perhaps a colour one."""
    terms = zip(("deep", "color"), features, metrics, weights, strict=False)
    return ExactEngine([Signal(name, f, metric, weight) for name, f, metric, weight in terms])


def unit(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Recorder:
    """An engine that records its queries."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.calls: list[tuple] = []

    def search(self, queries, k, rows=None) -> list[Answer]:
        self.calls.append((queries, k, rows))
        return self.inner.search(queries, k, rows)


def test_expansion_by_hand() -> None:
    """Cosines 1 / sqrt(2), 0 and -1 of which only the first has a weight: 1 / 2 at alpha 2."""
    deep = np.float32([[2, 2], [0, 2], [-1, 0], [99, -99]])
    color = np.float32([[3], [50], [50], [50]])
    engine = exact(deep, color, weights=(1.0, 0.0))
    recorder = Recorder(engine)
    query = [np.float32([[3, 0]]), np.float32([[9]])]
    rows = np.arange(4)
    found = ExpandedEngine(recorder, engine.signals, n=3, alpha=2).search(query, 4, rows)
    (first, n, in_rows), (expanded, k, again_in_rows) = recorder.calls
    assert first is query
    assert (n, k) == (3, 4)
    assert in_rows is rows
    assert again_in_rows is rows
    np.testing.assert_allclose(expanded[0], [[(3 + 0.5 * 2) / 1.5, 0.5 * 2 / 1.5]], rtol=1e-6)
    np.testing.assert_allclose(expanded[1], [[(9 + 0.5 * 3) / 1.5]], rtol=1e-6)
    assert [features.dtype for features in expanded] == [np.float32] * 2
    np.testing.assert_allclose(
        found[0].distances[0], np.hypot(8 / 3 - 2, 2 / 3 - 2), rtol=1e-6
    )  # to the expanded query


def test_expansion_takes_the_similarity_of_the_first_signal_and_its_defaults() -> None:
    """The first 5, at alpha 3; the sixth, as similar as the fifth, takes no part."""
    deep = 2 * unit(*range(0, 60, 10))
    color = np.float32([[0, 9], [1, 8], [2, 7], [3, 6], [4, 5], [500, 4]])
    recorder = Recorder(engine := exact(deep, color, weights=(1.0, 0.0)))
    ExpandedEngine(recorder, engine.signals).search([deep[:1], color[:1]], 1)
    weights = np.cos(np.deg2rad([0, 0, 10, 20, 30, 40])) ** 3
    for features, found in zip((deep, color), recorder.calls[1][0], strict=True):
        expected = np.average(features[[0, 0, 1, 2, 3, 4]], axis=0, weights=weights)
        if features is deep:  # all of length 2, so the mean is, too
            expected *= 2 / np.linalg.norm(expected)
        np.testing.assert_allclose(found, expected[None], rtol=1e-5)


@pytest.mark.parametrize(("longest", "normalised"), [(1, True), (1.003, True), (1.2, False)])
def test_an_expanded_query_is_normalised_where_its_features_are(longest, normalised) -> None:
    """(1, 0) and 0.6 times (0.6, 0.8), at alpha 1; colours are of any length and stay so."""
    deep, color = np.float32([[0.6, 0.8]]) * np.float32(longest), np.float32([[2, 6]])
    recorder = Recorder(engine := exact(deep, color))
    query = [np.float32([[1, 0]]), np.float32([[10, 6]])]
    ExpandedEngine(recorder, engine.signals, 1, alpha=1).search(query, 1)
    found, colors = recorder.calls[1][0]
    mean = (np.array([1, 0]) + 0.6 * longest * np.array([0.6, 0.8])) / 1.6
    expected = mean / np.linalg.norm(mean) if normalised else mean
    np.testing.assert_allclose(found, expected[None], rtol=1e-6)
    np.testing.assert_allclose(colors, [[(10 + 0.6 * 2) / 1.6, 6]], rtol=1e-6)


def test_expansion_finds_a_third_view_by_way_of_the_second() -> None:
    """A garment at 0, 30 and 65 degrees, another one at -45: from 12 degrees 65 is nearer."""
    engine = exact(unit(30, -45, 65, 180), metrics=("cosine",), weights=(1.0,))
    query = [unit(0, 0)]
    for answer in engine.search(query, 3):
        assert answer.rows.tolist() == [0, 1, 2]
    for answer in ExpandedEngine(engine, engine.signals, n=1).search(query, 3):
        assert answer.rows.tolist() == [0, 2, 1]


def test_expansion_of_each_query_is_its_own(rng) -> None:
    features = [rng.normal(size=(50, d)).astype(np.float32) for d in (6, 3)]
    engine = exact(*features)
    expanded = ExpandedEngine(engine, engine.signals)
    queries = [f[:7] + np.float32(0.1) for f in features]
    together = expanded.search(queries, 10)
    assert len(together) == 7
    for i, answer in enumerate(together):
        alone = expanded.search([q[i : i + 1] for q in queries], 10)[0]
        np.testing.assert_array_equal(answer.rows, alone.rows)
    assert expanded.search([q[:0] for q in queries], 10) == []


@pytest.mark.parametrize("signal", [0, 1])
def test_answers_without_a_distance_do_not_expand(signal: int) -> None:
    features = [unit(0, 20, 40), np.float32([[1], [2], [3]])]
    features[signal][1] = np.nan
    engine = exact(*features)
    query = [unit(5), np.float32([[1]])]
    answer = ExpandedEngine(engine, engine.signals).search(query, 3)[0]
    assert answer.rows.tolist() == [0, 2, 1]
    assert np.isfinite(answer.distances).tolist() == [True, True, False]


GARMENT = np.float32([[-0.8, 0], [-0.8, 0.1], [-0.8, -0.1], [-0.9, 0.05], [-0.9, -0.05]])
OTHERS = np.float32([[0.75, 0], [0.9, 0.1], [0.9, -0.1], [1, 0.1], [1, -0.1], [1.1, 0]])


def test_a_neighbour_that_has_nearer_ones_of_its_own_falls_back() -> None:
    """0.75 from another garment and 0.8 from its own, which has the query among its nearest 5."""
    deep = np.concatenate([GARMENT, OTHERS])
    engine = exact(deep, weights=(1.0,))
    query = [np.zeros((1, 2), np.float32)]
    assert engine.search(query, 1)[0].rows[0] == len(GARMENT)
    mended = RerankedEngine(engine, engine.signals, k1=5, k2=4).search(query, 11)[0]
    assert set(mended.rows[:5]) == set(range(5))
    # Their distances are still the true ones, and so descend somewhere.
    np.testing.assert_allclose(mended.distances, np.linalg.norm(deep[mended.rows], axis=1))
    assert (np.diff(mended.distances) < 0).any()


@pytest.mark.parametrize("color_metric", METRICS)
@pytest.mark.parametrize("deep_metric", METRICS)
def test_the_shortlist_is_in_the_order_of_the_paper(rng, deep_metric, color_metric) -> None:
    """With the weighted sum of all signals between query and answers, and between answers."""
    metrics, size = (deep_metric, color_metric), 25
    features = [(rng.random((90, d)) * range(1, d + 1)).astype(np.float32) for d in (5, 4)]
    queries = [f[:3] + np.float32(0.03) for f in features]
    engine = exact(*features, metrics=metrics, weights=(1.0, 0.4))
    reranked = RerankedEngine(engine, engine.signals, size, 8, 3, 0.2)
    answers = reranked.search(queries, 90)
    for q, (plain, answer) in enumerate(zip(engine.search(queries, 90), answers, strict=True)):
        total = 0
        for signal, query, weight in zip(engine.signals, queries, (1.0, 0.4), strict=True):
            some = np.vstack([query[q], signal.features[plain.rows[:size]]])
            total = total + weight * cdist(some, some, signal.metric, **signal.parameters)
        order = np.argsort(by_the_paper(total, 1, 8, 3, 0.2)[0], kind="stable")
        np.testing.assert_array_equal(answer.rows[:size], plain.rows[:size][order])
        np.testing.assert_array_equal(answer.rows[size:], plain.rows[size:])
        assert not np.array_equal(answer.rows, plain.rows)
        assert_same_pictures(answer, plain)


def assert_same_pictures(answer: Answer, plain: Answer) -> None:
    """The same answers in any order, each with its own distance and parts."""
    order, expected = np.argsort(answer.rows), np.argsort(plain.rows)
    for name in ("rows", "distances", "parts"):
        found = getattr(answer, name)[order]
        np.testing.assert_array_equal(found, getattr(plain, name)[expected])


def test_fewer_answers_than_the_shortlist_are_its_first(rng) -> None:
    deep = rng.normal(size=(80, 4)).astype(np.float32)
    engine = exact(deep, weights=(1.0,))
    reranked = RerankedEngine(engine, engine.signals, 40)
    whole = reranked.search([deep[:20]], 80)
    for k in (1, 3, 8, 40, 41, 500):
        for answer, expected in zip(reranked.search([deep[:20]], k), whole, strict=True):
            np.testing.assert_array_equal(answer.rows, expected.rows[:k])
            np.testing.assert_array_equal(answer.parts, expected.parts[:k])


def test_the_weight_of_the_original_alone_gives_its_order(rng) -> None:
    deep = rng.normal(size=(60, 3)).astype(np.float32)
    deep[20:] = np.round(deep[20:])  # ties
    distances = cdist(deep, deep)
    found = k_reciprocal_distances(distances, 4, weight_of_original=1)
    np.testing.assert_array_equal(
        np.argsort(found, axis=1, kind="stable"), np.argsort(distances[:4, 4:], 1, kind="stable")
    )
    engine = exact(deep, weights=(1.0,))
    reranked = RerankedEngine(engine, engine.signals, weight_of_original=1)
    for answer, plain in zip(
        reranked.search([deep[:9]], 60), engine.search([deep[:9]], 60), strict=True
    ):
        np.testing.assert_array_equal(answer.rows, plain.rows)


def test_an_expanded_query_stays_expanded_when_it_is_re_ranked(rng) -> None:
    deep = rng.normal(size=(60, 3)).astype(np.float32)
    engine = exact(deep, weights=(1.0,))
    expanded = ExpandedEngine(engine, engine.signals, 3)
    both = improved(engine, engine.signals, 3, True).search([deep[:4]], 60)
    for answer, plain in zip(both, expanded.search([deep[:4]], 60), strict=True):
        assert_same_pictures(answer, plain)
        some = deep[plain.rows]
        pairs = np.zeros((61, 61))
        pairs[1:, 1:] = cdist(some, some)
        pairs[0, 1:] = pairs[1:, 0] = plain.distances
        order = np.argsort(k_reciprocal_distances(pairs, 1)[0], kind="stable")
        np.testing.assert_array_equal(answer.rows, plain.rows[order])


@pytest.mark.parametrize(
    ("expand", "rerank", "names"),
    [
        (0, False, []),
        (4, False, [ExpandedEngine]),
        (0, True, [RerankedEngine]),
        (4, True, [RerankedEngine, ExpandedEngine]),
    ],
)
def test_improved_wraps_an_engine(expand, rerank, names) -> None:
    engine = exact(unit(0, 10))
    found, kinds = improved(engine, engine.signals, expand, rerank), []
    while found is not engine:
        kinds.append(type(found))
        assert getattr(found, "n", expand) == expand
        found = found.inner
    assert kinds == names


@pytest.mark.parametrize("k1", [4, 40])
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "braycurtis"])
def test_pictures_without_a_distance_stay_last(rng, metric: str, k1: int) -> None:
    """And change nothing; in braycurtis also two answers of zeros have none to each other."""
    deep = rng.random((30, 4)).astype(np.float32)
    deep[[3, 17]] = np.nan
    if metric == "braycurtis":
        deep[[5, 9]] = 0
    engine = exact(deep, metrics=(metric,), weights=(1.0,))
    plain = engine.search([deep[:1]], 30)[0]
    with np.errstate(all="raise"):
        reranked = RerankedEngine(engine, engine.signals, k1=k1, k2=2)
        answer = reranked.search([deep[:1]], 30)[0]
    assert_same_pictures(answer, plain)
    some = np.vstack([deep[:1], deep[plain.rows[:28]]])
    pairs = cdist(some, some, metric)
    pairs[np.isnan(pairs)] = 1.0  # what two of zeros are to all others
    np.fill_diagonal(pairs, 0)
    order = np.argsort(by_the_paper(pairs.tolist(), 1, k1, 2, 0.3)[0], kind="stable")
    np.testing.assert_array_equal(answer.rows, [*plain.rows[order], 3, 17])
    nothing = reranked.search([deep[3:4]], 5)[0]
    assert nothing.rows.tolist() == [0, 1, 2, 3, 4]


def test_answers_that_share_no_neighbour_with_the_query_keep_their_order(rng) -> None:
    """All at a Jaccard distance of 1, behind the few that do share one."""
    deep = rng.normal(size=(99, 2)).astype(np.float32)
    engine = exact(deep, weights=(1.0,))
    reranked = RerankedEngine(engine, engine.signals, 99, k1=6, k2=3, weight_of_original=0)
    for q, plain in enumerate(engine.search([deep[:9]], 99)):
        some = np.vstack([deep[q], deep[plain.rows]])
        unlike = by_the_paper(cdist(some, some).tolist(), 1, 6, 3, 0)[0] == 1
        assert 50 < unlike.sum() < 95
        answer = reranked.search([deep[q : q + 1]], 99)[0]
        np.testing.assert_array_equal(answer.rows[-unlike.sum() :], plain.rows[unlike])


def test_a_signal_without_weight_takes_no_part(rng) -> None:
    deep, color = rng.random((30, 4), np.float32), np.full((30, 1), np.nan, np.float32)
    alone, both = exact(deep), exact(deep, color, weights=(1.0, 0.0))
    for expand in (0, 4):
        answers = [
            improved(engine, engine.signals, expand, True).search([f[:2] for f in features], 30)
            for engine, features in ((alone, [deep]), (both, [deep, color]))
        ]
        for one, other in zip(*answers, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)


@pytest.mark.parametrize("kind", ["exact", "kmeans"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_gallery_smaller_than_every_setting_is_answered_whole(rng, size, kind) -> None:
    features = [rng.random((size + 2, d), np.float32) for d in (4, 3)]
    engine = exact(*features)
    signals = engine.signals
    if kind == "kmeans":
        labels = np.int32([0] * size + [1] * 2)
        centroids = np.stack([features[0][labels == c].mean(0) for c in range(2)])
        engine = KMeansEngine(signals, Clusters(centroids, labels, "", False, "", np.ones(2)), 2)
    rows = np.arange(1, size + 1)
    queries = [f[:2] for f in features]
    plain = engine.search(queries, 50, rows)
    assert [len(answer.rows) for answer in plain] == [size, size]
    items = np.array([str(row) for row in range(size + 2)])
    for trial in (
        ExpandedEngine(engine, signals),
        RerankedEngine(engine, signals),
        RerankedEngine(engine, signals, shortlist=2),
        improved(engine, signals, 5, True),
        CollapsedEngine(RerankedEngine(engine, signals), items),
    ):
        for answer in trial.search(queries, 50, rows):
            assert sorted(answer.rows) == rows.tolist()
            assert answer.distances.shape == (size,)
            assert answer.parts.shape == (size, 2)
            np.testing.assert_allclose(answer.distances, answer.parts @ [1, 0.3])
        none = trial.search(queries, 50, rows[:0]) if kind == "exact" else []
        assert all(len(answer.rows) == 0 and answer.parts.shape == (0, 2) for answer in none)


ITEMS = np.array(["coat", "", "tee", "coat", "", "tee", "hat"])


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


def test_items_search_again_only_where_there_is_more_to_find() -> None:
    engine = exact(np.arange(40, dtype=np.float32)[:, None], weights=(1.0,))
    query = [np.float32([[0]])]
    for items, k, sizes in (
        (np.array(["a"] * 9 + ["b"] * 31), 2, [2, 8, 32]),
        (np.array([str(i) for i in range(40)]), 5, [5]),
        (np.array(["a"] * 40), 40, [40]),
    ):
        recorder = Recorder(engine)
        CollapsedEngine(recorder, items).search(query, k)
        assert [k for _, k, _ in recorder.calls] == sizes
    recorder = Recorder(engine)
    CollapsedEngine(recorder, np.array(["a"] * 40)).search(query, 2, np.arange(5))
    assert [k for _, k, _ in recorder.calls] == [2, 8]


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

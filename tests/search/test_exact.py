"""The scan answers as cdist and a stable argsort do, whatever the features are."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from search import exact as scan
from search.engine import ExactEngine
from search.exact import ScanEngine
from search.matrix import MIN_SHARE
from search.quantised import Quantised, quantise
from search.signals import Signal
from tests.search.cases import CASES, Features, check, random_features, signals

N = 5000


METRICS = ("euclidean", "cosine")


def scanned(terms: list[Signal], order: np.ndarray | None = None) -> ScanEngine:
    codes = [quantise(term.features, term.metric) for term in terms if term.weight]
    return ScanEngine(terms, codes if order is None else [c.ordered(order) for c in codes], order)


def check_scan(terms, queries: Features, k: int, rows: np.ndarray | None = None) -> None:
    """The queries one by one; the quantised features in order of their rows, and in another."""
    check(scanned(terms), terms, queries, k, rows)
    if rows is None:
        order = np.random.default_rng(1).permutation(len(terms[0].features))
        check(scanned(terms, order), terms, queries, k)


@pytest.mark.parametrize(("metric", "k"), list(product(METRICS, (1, 5, 70))))
def test_random_features_of_three_signals(rng: np.random.Generator, metric: str, k: int) -> None:
    terms = signals(random_features(rng, N), metric, (1.0, 0.1, 4.0))
    queries = random_features(rng, 3)
    check_scan(terms, queries, k)
    check_scan(terms, queries, k, np.sort(rng.choice(N, MIN_SHARE * k + 100, replace=False)))
    check_scan(terms, queries, k, np.arange(3))  # fewer than k


def test_the_scan_leaves_little_to_rank(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked = []
    search = ExactEngine.search

    def spy(self: ExactEngine, queries: Features, k: int, rows: np.ndarray) -> list:
        ranked.append(len(rows))
        return search(self, queries, k, rows)

    terms = signals(random_features(rng, N), "euclidean", (1.0, 0.1))
    monkeypatch.setattr(ExactEngine, "search", spy)
    scanned(terms).search(random_features(rng, 20)[:2], 5)
    assert len(ranked) == 20
    assert max(ranked) < N // 20


def test_many_queries_are_answered_by_matrix_products(rng, monkeypatch) -> None:
    terms = signals(random_features(rng, N), "euclidean", (1.0, 0.1))
    monkeypatch.setattr(ScanEngine, "search_places", None)
    check(scanned(terms), terms, random_features(rng, scan.MIN_QUERIES)[:2], 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-6, 1e-4])
def test_near_ties_that_eight_bits_cannot_tell_apart(
    rng: np.random.Generator, metric: str, gap: float
) -> None:
    """All pictures lie on a sphere around the query, nearer by `gap` from one to the next."""
    queries = random_features(rng, 2)[:2]
    features = []
    for q in queries:
        way = rng.normal(size=(N, q.shape[1]))
        radius = 1 + gap * rng.permutation(N)[:, None]
        sphere = q[0] + radius * way / np.linalg.norm(way, axis=1, keepdims=True)
        features.append(sphere.astype(np.float32))
        features[-1][N // 2 :: 7] = features[-1][N // 2]  # and a seventh of a half are equal
    check_scan(signals(features, metric, (1.0, 0.1)), queries, 10)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e14, 1e17])
@pytest.mark.parametrize("metric", METRICS)
def test_features_of_any_size(rng: np.random.Generator, metric: str, scale: float) -> None:
    features = random_features(rng, N)
    wide = 10.0 ** rng.uniform(-4, 4, size=(N, 1))
    terms = signals([(scale * wide * f).astype(np.float32) for f in features], metric, (1.0, 0.1))
    check_scan(terms, [(scale * q).astype(np.float32) for q in random_features(rng, 2)[:2]], 5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_picture_that_lies_in_the_collection_and_its_copies(
    rng: np.random.Generator, metric: str
) -> None:
    features = random_features(rng, N)
    for feature in features:
        feature[[7, 4000, 4999]] = feature[100]
    check_scan(signals(features, metric, (1.0, 0.1, 4.0)), [f[[100, 8]] for f in features], 5)


@pytest.mark.parametrize("metric", METRICS)
def test_what_has_no_distance_comes_last(rng: np.random.Generator, metric: str) -> None:
    """Zeros (under cosine), NaN and infinity, in the collection and in the query."""
    features = random_features(rng, N)
    features[0][5] = 0
    features[1][6, 3] = np.nan
    features[2][7, 0] = np.inf
    queries = random_features(rng, 4)
    queries[0][1] = 0
    queries[1][2] = np.nan
    queries[2][3, 1] = np.inf
    check_scan(signals(features, metric, (1.0, 0.1, 4.0)), queries, 5)
    check_scan(signals(features, metric, (1.0, 0.1, 0.0)), queries, 5)  # NaN without a weight


@pytest.mark.parametrize("metric", METRICS)
def test_a_quantised_distance_is_off_by_no_more_than_its_bound(rng, metric: str) -> None:
    """Of 40 values each, of lengths spread wide: also where the query is far longer."""
    features = (rng.normal(size=(300, 40)) * 10.0 ** rng.uniform(-3, 3, (300, 1))).astype("f4")
    queries = (rng.normal(size=(30, 40)) * 10.0 ** rng.uniform(-3, 3, (30, 1))).astype("f4")
    codes = quantise(features, metric)
    for i in range(30):
        query = quantise(queries[i : i + 1], metric)
        found = scan._distances(query, codes, [slice(0, 300)]).numpy().astype(np.float64)
        off = np.abs(found - cdist(queries[i : i + 1], features, metric)[0])
        assert (off <= codes.error.numpy() + scan._slack(query, codes)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_the_first_signal_alone_excludes_most(rng, monkeypatch, metric: str) -> None:
    """Also where a picture has no distance: its features, all zero, are near to many queries."""
    features = random_features(rng, N)
    features[0][0] = 0 if metric == "cosine" else np.nan
    queries = [f[50:53] + np.float32(0.05) for f in features]
    engine = scanned(signals(features, metric, (1.0, 0.01, 0.01)))
    scan_one, scanned_signals = scan._distances, []

    def spy(query: Quantised, *rest: object) -> torch.Tensor:
        scanned_signals.append(query)
        return scan_one(query, *rest)

    monkeypatch.setattr(scan, "_distances", spy)
    assert [answer.rows[0] for answer in engine.search(queries, 5)] == [50, 51, 52]
    assert len(scanned_signals) == 3  # of each query the first one


@pytest.mark.parametrize(("metric", "case"), list(product(METRICS, CASES)))
def test_unlikely_features(rng: np.random.Generator, metric: str, case: str) -> None:
    """As the first signal and as the second; the queries: other ones, and from the collection."""
    count, other = 64 * 5 + 3000, 10
    unlikely, usual = CASES[case](rng, count + other, 12), rng.normal(size=(count + other, 3))
    both = [unlikely.astype(np.float32), usual.astype(np.float32)]
    features, queries = [f[:count] for f in both], [f[count:] for f in both]
    for q, f in zip(queries, features, strict=True):
        q[:2], q[-3:] = f[[7, 3000]], f[1000:1003]
    check_scan(signals(features, metric, (1.0, 0.1)), queries, 5)
    check_scan(signals(features[::-1], metric, (1.0, 0.1)), queries[::-1], 5)


@pytest.mark.parametrize(("metric", "dim"), list(product(METRICS, (1, 2, 3, 300))))
def test_few_values_and_many(rng: np.random.Generator, metric: str, dim: int) -> None:
    features, queries = (rng.normal(size=(n, dim)).astype(np.float32) for n in (MIN_SHARE * 20, 8))
    for k in (1, 3, 20):
        check_scan(signals([features], metric, (1.0,)), [queries], k)
        check_scan(signals([features], metric, (1.0,)), [features[:8]], k)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "weights", [(1e-6, 1.0, 1.0), (1e6, 1.0, 0.0), (0.0, 1e-6, 1e6), (1e-9, 1e9, 1e-9)]
)
def test_any_weights(rng: np.random.Generator, metric: str, weights: tuple[float, ...]) -> None:
    features, queries = random_features(rng, N), random_features(rng, 6)
    check_scan(signals(features, metric, weights), queries, 5)
    features[1:] = [np.repeat(f[:1], N, axis=0) for f in features[1:]]  # only the first one differs
    check_scan(signals(features, metric, weights), queries, N // MIN_SHARE)


def test_a_cosine_of_great_weight_that_is_nothing_but_rounding(rng: np.random.Generator) -> None:
    """The other signal outweighs the first one, though its vectors are parallel."""
    angle = rng.uniform(-np.pi, np.pi, N)
    features = [
        np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32),
        (rng.integers(-50, 50, 64) * rng.integers(1, 1000, (N, 1))).astype(np.float32),
    ]
    terms = signals(features, "cosine", (1e-6, 1e9))
    engine, exact = scanned(terms), ExactEngine(terms)
    queries = [features[0][:20], features[1][60:80]]
    for i, expected in enumerate(exact.search(queries, 1)):
        (found,) = engine.search([q[i : i + 1] for q in queries], 1)
        np.testing.assert_array_equal(found.rows, expected.rows)
    check_scan(terms, queries, 1)


def test_codes_longer_than_the_unit_vectors_they_are_of() -> None:
    """The query points the other way, and all errors add up."""
    features = np.full((500, 512), 126.51, np.float32)
    features[:, 0] = 127
    check_scan(signals([features], "cosine", (1.0,)), [-features[:5]], 3)


def test_first_distances_beyond_what_16_bits_hold(rng: np.random.Generator) -> None:
    """The second signal is far and weighs a million times as much."""
    features = [
        (4e14 * rng.uniform(0.9, 1, (N, 8)) * rng.choice([-1, 1], (N, 8))).astype(np.float32),
        (1e14 * rng.normal(size=(N, 4))).astype(np.float32),
    ]
    check_scan(
        signals(features, "euclidean", (1e-6, 1.0)), [features[0][:10], features[1][40:50]], 1
    )


@pytest.mark.parametrize("metric", METRICS)
def test_one_query_of_some_stretches_in_order(rng: np.random.Generator, metric: str) -> None:
    """As clusters are searched, with an empty one and pictures that have no distance."""
    features = random_features(rng, N)
    features[0][::11] = np.nan
    features[1][5::50] = 0
    terms = signals(features, metric, (1.0, 0.1, 4.0))
    order = rng.permutation(N)
    engine, exact = scanned(terms, order), ExactEngine(terms)
    for places in ([(10, 900)], [(4000, 4999), (7, 7), (30, 31), (1000, 3000)]):
        rows = np.sort(np.concatenate([order[slice(*place)] for place in places]))
        for i in range(3):
            query = [f[i : i + 1] for f in random_features(rng, 3)]
            found = engine.search_places(query, 5, [slice(*place) for place in places])
            (expected,) = exact.search(query, 5, rows)
            np.testing.assert_array_equal(found.rows, expected.rows)
            np.testing.assert_array_equal(found.distances, expected.distances)

"""The scan answers as cdist and a stable argsort do, whatever the features are."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import scan
from codes import encode
from index import ExactEngine, Signal
from scan import LEAST, ScanEngine

N = 5000
Features = list[np.ndarray]


def signals(features: Features, metric: str, weights: tuple[float, ...]) -> list[Signal]:
    names = ("deep", "color", "palette")
    return [Signal(*row) for row in zip(names, features, [metric] * 3, weights, strict=False)]


def scanned(terms: list[Signal], order: np.ndarray | None = None) -> ScanEngine:
    codes = [encode(term.features, term.metric) for term in terms if term.weight]
    return ScanEngine(terms, codes if order is None else [c.ordered(order) for c in codes], order)


def check(terms: list[Signal], queries: Features, k: int, rows: np.ndarray | None = None) -> None:
    """Answers are those of cdist over everything, bit for bit; so are they with any order."""
    with np.errstate(invalid="ignore"):
        parts = [cdist(q, t.features, t.metric) for q, t in zip(queries, terms, strict=True)]
    total = sum(t.weight * part for t, part in zip(terms, parts, strict=True) if t.weight)
    order = np.random.default_rng(1).permutation(len(terms[0].features))
    for engine in (scanned(terms), scanned(terms, order) if rows is None else scanned(terms)):
        for i, answer in enumerate(engine.search(queries, k, rows)):
            among = np.arange(total.shape[1]) if rows is None else rows
            expected = among[np.argsort(total[i, among], kind="stable")][:k]
            np.testing.assert_array_equal(answer.rows, expected)
            np.testing.assert_array_equal(answer.distances, total[i, expected])
            for j, part in enumerate(parts):
                np.testing.assert_array_equal(answer.parts[:, j], part[i, expected])


def random_features(rng: np.random.Generator, count: int) -> Features:
    return [rng.normal(size=(count, dim)).astype(np.float32) for dim in (40, 9, 17)]


@pytest.mark.parametrize(("metric", "k"), list(product(("euclidean", "cosine"), (1, 5, 70))))
def test_random_features_of_three_signals(rng: np.random.Generator, metric: str, k: int) -> None:
    terms = signals(random_features(rng, N), metric, (1.0, 0.1, 4.0))
    queries = random_features(rng, 3)
    check(terms, queries, k)
    check(terms, queries, k, np.sort(rng.choice(N, LEAST * k + 100, replace=False)))
    check(terms, queries, k, np.arange(3))  # fewer than are asked for


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


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_many_queries_in_chunks(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setattr(scan, "SCANNED", 1000)
    monkeypatch.setattr(scan, "ENCODED", 700)
    monkeypatch.setattr(scan, "AT_ONCE", 8)
    terms = signals(random_features(rng, 3000), metric, (1.0, 0.5, 2.0))
    check(terms, random_features(rng, 20), 3)
    check(terms, random_features(rng, 20), 3, np.arange(0, 3000, 2))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
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
    check(signals(features, metric, (1.0, 0.1)), queries, 10)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e14, 1e17])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_features_of_any_size(rng: np.random.Generator, metric: str, scale: float) -> None:
    features = random_features(rng, N)
    wide = 10.0 ** rng.uniform(-4, 4, size=(N, 1))
    terms = signals([(scale * wide * f).astype(np.float32) for f in features], metric, (1.0, 0.1))
    check(terms, [(scale * q).astype(np.float32) for q in random_features(rng, 2)[:2]], 5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_picture_that_lies_in_the_collection_and_its_copies(
    rng: np.random.Generator, metric: str
) -> None:
    features = random_features(rng, N)
    for feature in features:
        feature[[7, 4000, 4999]] = feature[100]
    check(signals(features, metric, (1.0, 0.1, 4.0)), [f[[100, 8]] for f in features], 5)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
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
    check(signals(features, metric, (1.0, 0.1, 4.0)), queries, 5)
    check(signals(features, metric, (1.0, 0.1, 0.0)), queries, 5)  # without weight: not asked


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_coded_distance_is_off_by_no_more_than_is_said(
    rng: np.random.Generator, metric: str
) -> None:
    """Of 40 values each, wide spread: also where the query is far longer than the pictures."""
    features = (rng.normal(size=(300, 40)) * 10.0 ** rng.uniform(-3, 3, (300, 1))).astype("f4")
    queries = (rng.normal(size=(30, 40)) * 10.0 ** rng.uniform(-3, 3, (30, 1))).astype("f4")
    codes = encode(features, metric)
    asked = scan._ask(queries, codes)
    found = scan._distances(codes, asked, [slice(0, 300)]).numpy().T.astype(np.float64)
    off = np.abs(found - cdist(queries, features, metric))
    assert (off <= codes.error.numpy() + asked.slack[:, None]).all()
    assert codes.values.dtype == torch.int8

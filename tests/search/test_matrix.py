"""Many queries at once are answered as `cdist` and a stable `argsort` do, whatever the features."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from search import low_precision, matrix
from search.low_precision import Copies
from search.matrix import MatrixEngine
from tests.search.cases import CASES, Features, check, random_features, signals

N = 5000
TYPES = [torch.bfloat16, torch.float32]
METRICS = ("euclidean", "cosine")


@pytest.fixture(params=TYPES, ids=["bfloat16", "float32"], autouse=True)
def precision(request, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Both precisions, whichever the processor would use."""
    monkeypatch.setattr(low_precision, "dtype_of", lambda device: request.param)
    return request.param


def check_both(terms, queries: Features, k: int, rows: np.ndarray | None = None) -> MatrixEngine:
    """All queries at once, and the first one alone."""
    engine = MatrixEngine(terms)
    check(engine, terms, queries, k, rows)
    check(engine, terms, [q[:1] for q in queries], k, rows)
    return engine


@pytest.mark.parametrize(("metric", "k"), list(product(METRICS, (1, 5, 70))))
def test_random_features_of_three_signals(rng: np.random.Generator, metric: str, k: int) -> None:
    terms = signals(random_features(rng, N), metric, (1.0, 0.1, 4.0))
    queries = random_features(rng, 20)
    check_both(terms, queries, k)
    check_both(terms, queries, k, np.sort(rng.choice(N, 64 * k + 105, replace=False)[: N - 9]))
    check_both(terms, queries, k, np.arange(3))  # fewer than k


@pytest.mark.parametrize("metric", METRICS)
def test_collections_and_queries_in_blocks(rng, monkeypatch: pytest.MonkeyPatch, metric) -> None:
    """Of 16 and of 48 rows, with a rest; a pool may be larger than a block."""
    terms = signals(random_features(rng, 1001), metric, (1.0, 0.5, 2.0))
    queries = random_features(rng, 20)
    monkeypatch.setattr(matrix, "MAX_QUERIES", {"cpu": 7})
    for products in (16, 7 * 3 * 300):
        monkeypatch.setattr(matrix, "MAX_PRODUCTS", {"cpu": products})
        monkeypatch.setattr(low_precision, "ENCODED", products)
        check_both(terms, queries if products > 16 else [q[:2] for q in queries], 3)
        check_both(terms, [q[:2] for q in queries], 3, np.arange(0, 1000, 2))


def test_few_pictures_are_ranked(rng: np.random.Generator, monkeypatch) -> None:
    """Nothing falls back to ranking the whole collection."""
    engine = MatrixEngine(signals(random_features(rng, N), "euclidean", (1.0, 0.1)))
    ranked = []
    search = engine.exact.search
    monkeypatch.setattr(
        engine.exact, "search", lambda q, k, rows: ranked.append(len(rows)) or search(q, k, rows)
    )
    assert len(engine.search(random_features(rng, 40)[:2], 5)) == 40
    assert max(ranked, default=0) < N // 20


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-6, 1e-4])
def test_near_ties_that_low_precision_cannot_tell_apart(rng, metric: str, gap: float) -> None:
    """All pictures lie on a sphere around the query, nearer by `gap` from one to the next."""
    queries = random_features(rng, 2)[:2]
    features = []
    for q in queries:
        way = rng.normal(size=(N, q.shape[1]))
        radius = 1 + gap * rng.permutation(N)[:, None]
        sphere = q[0] + radius * way / np.linalg.norm(way, axis=1, keepdims=True)
        features.append(sphere.astype(np.float32))
        features[-1][N // 2 :: 7] = features[-1][N // 2]  # and a seventh of a half are equal
    check_both(signals(features, metric, (1.0, 0.1)), queries, 10)


@pytest.mark.parametrize("copies", [4, 60, 700, 3000])
@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_a_picture_stand_in_order_of_their_rows(rng, metric: str, copies: int) -> None:
    """Fewer than a pool holds, and more."""
    features = random_features(rng, N)
    rows = rng.choice(N, copies, replace=False)
    for feature in features:
        feature[rows] = feature[rows[0]]
    check_both(signals(features, metric, (1.0, 0.1, 4.0)), [f[[rows[1], 8]] for f in features], 5)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e14, 1e17])
@pytest.mark.parametrize("metric", METRICS)
def test_features_of_any_size(rng: np.random.Generator, metric: str, scale: float) -> None:
    features = random_features(rng, N)
    wide = 10.0 ** rng.uniform(-4, 4, size=(N, 1))
    terms = signals([(scale * wide * f).astype(np.float32) for f in features], metric, (1.0, 0.1))
    check_both(terms, [(scale * q).astype(np.float32) for q in random_features(rng, 9)[:2]], 5)


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
    check_both(signals(features, metric, (1.0, 0.1, 4.0)), queries, 5)
    check_both(signals(features, metric, (1.0, 0.1, 0.0)), queries, 5)  # NaN without a weight


@pytest.mark.parametrize(("metric", "case"), list(product(METRICS, CASES)))
def test_unlikely_features(rng: np.random.Generator, metric: str, case: str) -> None:
    """As the first signal and as the second; the queries: other ones, and from the collection."""
    count, other = 64 * 5 + 3000, 20
    unlikely, usual = CASES[case](rng, count + other, 12), rng.normal(size=(count + other, 3))
    both = [unlikely.astype(np.float32), usual.astype(np.float32)]
    features, queries = [f[:count] for f in both], [f[count:] for f in both]
    for q, f in zip(queries, features, strict=True):
        q[:2], q[-5:] = f[[7, 3000]], f[1000:1005]
    check_both(signals(features, metric, (1.0, 0.1)), queries, 5)
    check_both(signals(features[::-1], metric, (1.0, 0.1)), queries[::-1], 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "weights",
    [(1e-6, 1.0, 1.0), (1e6, 1.0, 0.0), (0.0, 1e-6, 1e6), (1e-9, 1e9, 1e-9), (1.0, -1.0, 0.5)],
)
def test_any_weights(rng: np.random.Generator, metric: str, weights) -> None:
    features, queries = random_features(rng, N), random_features(rng, 12)
    check_both(signals(features, metric, weights), queries, 5)


def test_metrics_that_are_no_products(rng: np.random.Generator) -> None:
    terms = signals(random_features(rng, N), "cityblock", (1.0, 0.5, 2.0))
    check_both(terms, random_features(rng, 3), 5)


@pytest.mark.parametrize("metric", METRICS)
def test_bounds_are_below_the_true_distance(rng, metric: str, precision) -> None:
    """Of 40 values each, of lengths spread wide: also where the query is far longer."""
    features = (rng.normal(size=(304, 40)) * 10.0 ** rng.uniform(-3, 3, (304, 1))).astype("f4")
    queries = (rng.normal(size=(30, 40)) * 10.0 ** rng.uniform(-3, 3, (30, 1))).astype("f4")
    engine = MatrixEngine(signals([features], metric, (1.0,)))
    rows, lower, rest = engine._candidates([queries], 304, None)
    true = engine.exact.distances([queries])
    for i in range(30):
        own = rows[i] < 304
        assert (lower[i][own] <= true[i, rows[i][own]]).all()
        relative = np.abs(lower[i][own] - true[i, rows[i][own]]) / true[i, rows[i][own]]
        if metric == "euclidean":
            assert np.median(relative) < 0.02
        assert (np.diff(lower[i]) >= 0).all()
    # Every picture is in the pool, or has at least the bound of the others.
    for i in range(30):
        others = np.setdiff1d(np.arange(304), rows[i])
        assert (true[i, others] >= rest[i]).all()


@pytest.mark.parametrize(("metric", "case"), list(product(METRICS, CASES)))
def test_float64_where_the_features_are(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, metric: str, case: str
) -> None:
    """What a GPU does with many queries, on the CPU: the order, ties included, is `cdist`'s."""
    copy_features = low_precision.copy_features

    def with_features(features: np.ndarray, *rest: object) -> low_precision.Copy:
        return replace(copy_features(features, *rest), full=torch.tensor(features))

    monkeypatch.setattr(low_precision, "copy_features", with_features)
    both = [CASES[case](rng, N + 20, 12), rng.normal(size=(N + 20, 3))]
    features = [x[:N].astype(np.float32) for x in both]
    queries = [x[N:].astype(np.float32) for x in both]
    for query, feature in zip(queries, features, strict=True):
        feature[[7, 300]] = feature[100]
        query[:2] = feature[[100, 8]]
    terms = signals(features, metric, (1.0, 0.1))
    engine = MatrixEngine(terms)
    check(engine, terms, queries, 5, rtol=1e-11)
    check(engine, terms, queries, 5, np.arange(0, N, 3), rtol=1e-11)
    assert engine.full


def test_engines_with_other_weights_share_the_copies(rng: np.random.Generator) -> None:
    """Also where threads want them at the same time, as those of a server do."""
    features, queries, copies = random_features(rng, N), random_features(rng, 5), Copies()
    weights = [(1.0, 0.1, 4.0), (0.0, 2.0, 1.0), (1.0, 1.0, 0.0)]
    terms = [signals(features, "cosine", own) for own in weights]
    engines = [MatrixEngine(own, copies=copies) for own in terms]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda engine: engine.search(queries, 5), engines))
    for own, engine in zip(terms, engines, strict=True):
        check(engine, own, queries, 5)
    made = {id(copy) for engine in engines for copy in engine.copies}
    assert len(made) == 3


def test_all_tensors_lie_on_the_device(rng: np.random.Generator, fake_cuda: torch.device) -> None:
    """Nearest pictures, some rows, and whole galleries; seen to fail with `first` on the CPU."""
    for metric in METRICS:
        terms = signals(random_features(rng, N), metric, (1.0, 0.1, 4.0))
        engine = MatrixEngine(terms, fake_cuda)
        queries = random_features(rng, 3)
        for k, rows in ((5, None), (5, np.arange(0, N, 2)), (N, None)):
            assert len(engine.search(queries, k, rows)) == 3
        assert {x.device for copy in engine.copies for x in (copy.values, copy.error)} == {
            fake_cuda
        }

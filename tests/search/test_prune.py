"""What is pruned is farther than the bound, also where every error is at its worst."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from search import prune
from search.prune import Pruner, bounded, farthest
from search.quantised import FAR, encode

N = 5000
METRICS = ("euclidean", "cosine")
ULPS = (-np.inf, 0.0, np.inf)  # towards which the bound moves by one, if at all


def candidates(
    features: np.ndarray, queries: np.ndarray, most: np.ndarray, metric: str = "euclidean"
) -> list[np.ndarray] | None:
    """Of each query the rows that are left; they ascend, so that none is there twice."""
    pruner = Pruner(encode(features, metric))
    found = pruner.candidates(*bounded(queries, metric), torch.from_numpy(most))
    if found is None:
        return None
    assert len(found) == len(queries)
    assert all((np.diff(rows.numpy()) > 0).all() for rows in found)
    return [rows.numpy() for rows in found]


def check(
    features: np.ndarray, queries: np.ndarray, most: np.ndarray, metric: str = "euclidean"
) -> int:
    """Nothing within the bound is lost; how many candidates there are."""
    found = candidates(features, queries, most, metric)
    assert found is not None
    distances = cdist(queries, features, metric)
    for rows, row, limit in zip(found, distances, most, strict=True):
        assert set(np.flatnonzero(row <= limit)) <= set(rows.tolist())
    return sum(map(len, found))


def moved(values: np.ndarray, towards: float) -> np.ndarray:
    """Values, or the next float64 in a direction."""
    return np.nextafter(values, towards) if towards else values


def whole(rng: np.random.Generator, count: int, dim: int, low: int, high: int) -> np.ndarray:
    """Features that 8 bits hold exactly: whole numbers, the first of each row 127."""
    features = rng.integers(low, high + 1, (count, dim)).astype(np.float32)
    features[:, 0] = 127
    assert not encode(features, "euclidean").error.any()
    return features


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 2, 3, 40, 513])
@pytest.mark.parametrize("count", [15, 4095, 4097, 6001])
def test_nothing_within_the_bound_is_lost(
    rng: np.random.Generator, metric: str, dim: int, count: int
) -> None:
    features = rng.normal(size=(count, dim)).astype(np.float32)
    queries = rng.normal(size=(7, dim)).astype(np.float32)
    distances = np.sort(cdist(queries, features, metric), axis=1)
    for place in (0, 5):
        most = distances[:, place].copy()
        if dim == 1 and metric == "cosine" and count > 1000:  # all of one sign are equally near
            assert candidates(features, queries, most, metric) is None
        else:
            check(features, queries, most, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_little_is_left(rng: np.random.Generator, metric: str) -> None:
    features, queries = (rng.normal(size=(n, 64)).astype(np.float32) for n in (N, 40))
    most = np.partition(cdist(queries, features, metric), 4, axis=1)[:, 4]
    left = check(features, queries, most, metric)
    assert left < 40 * N // 50


@pytest.mark.parametrize("towards", ULPS)
@pytest.mark.parametrize("dim", [2, 64, 300])
def test_ties_at_the_bound_where_only_the_product_rounds(
    rng: np.random.Generator, dim: int, towards: float
) -> None:
    """Neither features nor queries are off: all that is there to spare is what rounding may take.

    The bound is each of many distances, and one unit in the last place less or more.
    """
    features, queries = whole(rng, N, dim, -127, 127), whole(rng, 40, dim, -127, 127)
    assert not bounded(queries, "euclidean")[1].any()
    distances = cdist(queries, features)
    for place in range(0, 200, 20):
        near = np.argsort(distances, axis=1, kind="stable")[:, place]
        check(features, queries, moved(distances[np.arange(40), near], towards))


@pytest.mark.parametrize("towards", ULPS)
def test_a_picture_that_its_codes_push_away_from_the_query(
    rng: np.random.Generator, towards: float
) -> None:
    """Query, picture and its codes lie on one line: the error is as bad as it can be."""
    codes = whole(rng, 300, 64, -3, 3)
    away = np.ones(64, np.float32)
    away[0] = 0
    features = codes + np.float32(0.49) * away
    np.testing.assert_array_equal(encode(features, "euclidean").values.numpy(), codes)
    queries = features[:40] + away  # their own rounding to 16 bits is small
    own = np.linalg.norm(queries.astype(np.float64) - features[:40], axis=1)
    found = candidates(features, queries, moved(own, towards))
    assert found is not None
    assert all(i in rows for i, rows in enumerate(found))


@pytest.mark.parametrize("towards", ULPS)
def test_a_query_whose_rounding_takes_it_away_from_the_picture(
    rng: np.random.Generator, towards: float
) -> None:
    """Rounded query, query and picture lie on one line."""
    rounded = whole(rng, 300, 64, 65, 126)
    away = np.ones(64, np.float32)
    away[0] = 0
    features = rounded - 50 * away
    queries = (rounded - np.float32(0.24) * away)[:40]
    np.testing.assert_array_equal(bounded(queries, "euclidean")[0].double(), rounded[:40])
    own = np.linalg.norm(queries.astype(np.float64) - features[:40], axis=1)
    found = candidates(features, queries, moved(own, towards))
    assert found is not None
    assert all(i in rows for i, rows in enumerate(found))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
def test_near_ties_far_from_zero(rng: np.random.Generator, metric: str, offset: float) -> None:
    """Where features are all but equal, most of their length cancels out."""
    features, queries = (
        (offset + rng.normal(size=(n, 17)) * 10.0 ** rng.uniform(-3, 0, (n, 1))).astype("f4")
        for n in (900, 40)
    )
    distances = np.sort(cdist(queries, features, metric), axis=1)
    for place in (0, 3, 90):
        check(features, queries, distances[:, place].copy(), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_lengths_of_any_size(rng: np.random.Generator, metric: str) -> None:
    features, queries = (
        (rng.normal(size=(n, 17)) * 10.0 ** rng.uniform(-6, 6, (n, 1))).astype("f4")
        for n in (900, 40)
    )
    features[1] = 1e-40
    features[2] = -0.0
    with np.errstate(invalid="ignore"):
        distances = np.sort(cdist(queries, features, metric), axis=1)
    for place in (0, 3, 90):
        check(features, queries, distances[:, place].copy(), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("most", [0.01, 0.4, 1.0, 1.5])
def test_what_has_no_known_distance_is_always_left_once(
    rng: np.random.Generator, metric: str, most: float
) -> None:
    """Whether or not its codes, all zero, lie within the bound of queries of length 1."""
    features = rng.normal(size=(N, 40)).astype(np.float32)
    features[5, 3] = np.nan
    features[4095, 0] = np.inf
    features[4999] = 2 * FAR if metric == "euclidean" else 0
    queries = rng.normal(size=(20, 40))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    if metric == "cosine":
        most = min(most, 0.6)  # half of the square of a Euclidean distance above 1
    found = candidates(features, queries, np.full(20, most), metric)
    assert found is not None
    assert all({5, 4095, 4999} <= set(rows.tolist()) for rows in found)


def test_a_distant_picture_within_the_bound_is_left_once() -> None:
    """Of a known distance, though 8 bits cannot tell: on the other side of the query."""
    features = np.zeros((N, 2), np.float32)
    features[:, 0] = -1e14 * np.linspace(1, 2, N)
    features[:4, 0] = 1.0001e15
    found = candidates(features, np.float32([[0.49995e15, 0]]), np.array([0.50016e15]))
    assert found is not None
    np.testing.assert_array_equal(found[0], np.arange(4))


def test_nothing_is_left_where_nothing_is_near(rng: np.random.Generator) -> None:
    features = rng.normal(size=(N, 40)).astype(np.float32)
    queries = np.stack([features[7], -features[7] - 5])
    found = candidates(features, queries, np.zeros(2))
    assert found is not None
    assert [rows.tolist() for rows in found] == [[7], []]


def test_too_many_are_too_much(rng: np.random.Generator) -> None:
    features = rng.normal(size=(N, 8)).astype(np.float32)
    queries = features[:3] + 1
    assert candidates(features, queries, np.full(3, 100.0)) is None
    assert candidates(np.repeat(features[:1], N, axis=0), queries[:1], np.full(1, 3.0)) is None


@pytest.mark.parametrize("most", [np.nan, np.inf, 1e40])
def test_bounds_that_16_bits_cannot_hold(rng: np.random.Generator, most: float) -> None:
    features = rng.normal(size=(N, 8)).astype(np.float32)
    assert candidates(features, features[:3], np.array([0.1, most, 0.1])) is None


@pytest.mark.parametrize("size", [1e3, 4e14])
def test_bounds_far_beyond_the_features(rng: np.random.Generator, size: float) -> None:
    """As a first signal of little weight brings them about: everything is left, or None."""
    features = (size * rng.uniform(0.9, 1, (500, 8))).astype(np.float32)
    for most in 10.0 ** np.arange(0, 40, 2):
        found = candidates(features, features[:3], size * np.full(3, most))
        assert found is None or [len(rows) for rows in found] == [500] * 3


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 5, 70])
def test_the_sample_is_of_different_rows_near_the_query(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, metric: str, k: int
) -> None:
    features, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (N, 9))
    distances = cdist(queries, features, metric)
    pruner = Pruner(encode(features, metric))
    for sampled, share in ((1 << 14, 1), (2048, 2), (64, prune.SHARE)):
        monkeypatch.setattr(prune, "SAMPLED", sampled)
        rows = pruner.sample(bounded(queries, metric)[0], k).numpy()
        assert rows.shape == (k, 9)
        assert all(len(set(column)) == k for column in rows.T)
        assert not (rows % share).any()
        among = distances[:, ::share]
        found = np.take_along_axis(distances, rows.T, axis=1).max(axis=1)
        assert (found <= np.partition(among, 3 * k, axis=1)[:, 3 * k]).all()


def test_a_sample_of_more_than_a_block_holds(rng: np.random.Generator) -> None:
    features = rng.normal(size=(N, 2)).astype(np.float32)
    rows = Pruner(encode(features, "euclidean")).sample(bounded(features[:2], "euclidean")[0], 4500)
    assert all(len(set(column)) == 4500 for column in rows.T.tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_the_sample_is_of_rows_that_have_a_distance(rng: np.random.Generator, metric: str) -> None:
    """Others bound nothing, though their codes lie nearer to the query than most rows do."""
    features, queries = (rng.normal(size=(n, 40)).astype(np.float32) for n in (N, 9))
    features[::7] = np.nan
    for k in (1, 70):
        rows = Pruner(encode(features, metric)).sample(bounded(-queries, metric)[0], k)
        assert (rows % 7).all()
    features[3:] = np.nan  # fewer than are asked for
    rows = Pruner(encode(features, metric)).sample(bounded(queries, metric)[0], 5)
    assert all(len(set(column)) == 5 for column in rows.T.tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_how_far_16_bits_are_off(rng: np.random.Generator, metric: str) -> None:
    queries = (rng.normal(size=(30, 40)) * 10.0 ** rng.uniform(-9, 9, (30, 1))).astype(np.float32)
    rounded, missed = bounded(queries, metric)
    exact = queries.astype(np.float64)
    if metric == "cosine":
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    off = np.linalg.norm(exact - rounded.double().numpy(), axis=1)
    assert (off <= missed.numpy()).all()
    assert (missed.numpy() <= 2.0**-8 * np.linalg.norm(exact, axis=1)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_the_farthest_of_some_pictures(rng: np.random.Generator, metric: str) -> None:
    weights = (0.5, 3.0)
    features = [rng.normal(size=(200, dim)).astype(np.float32) for dim in (40, 3)]
    queries = [rng.normal(size=(6, dim)).astype(np.float32) for dim in (40, 3)]
    rows = rng.integers(0, 200, (7, 6))
    total = sum(w * cdist(q, f, metric) for w, q, f in zip(weights, queries, features, strict=True))
    expected = np.take_along_axis(total, rows.T, axis=1).max(axis=1)
    terms = [(q, f, metric, w) for w, q, f in zip(weights, queries, features, strict=True)]
    found = farthest(terms, rows)
    assert (expected <= found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    features[1][rows[2, 3]] = np.nan  # of unknown distance: as far as can be
    reached = (rows == rows[2, 3]).any(axis=0)
    np.testing.assert_array_equal(np.isposinf(farthest(terms, rows)), reached)


def test_the_rounding_of_a_cosine_of_great_weight(rng: np.random.Generator) -> None:
    """All vectors point one way: what is left of their distances is rounding, times the weight."""
    features = rng.integers(-50, 50, 64) * rng.integers(1, 1000, (N, 1)).astype(np.float32)
    queries = features[:30]
    rows = rng.integers(0, N, (1, 30))
    exact = 1e9 * cdist(queries, features, "cosine")[np.arange(30), rows[0]]
    assert (exact <= farthest([(queries, features, "cosine", 1e9)], rows)).all()

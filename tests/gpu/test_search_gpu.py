"""Exact search on a GPU gives the order of `cdist` and a stable `argsort`, ties included."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from search import matrix
from search.engine import ExactEngine
from search.matrix import MatrixEngine
from tests.search import cases
from tests.search.cases import CASES, random_features, signals

N = 20_000
METRICS = ("euclidean", "cosine")
check = partial(cases.check, rtol=1e-11)


@pytest.mark.parametrize(("metric", "k"), list(product(METRICS, (1, 5, 70))))
def test_order_is_that_of_cdist(rng: np.random.Generator, cuda, metric: str, k: int) -> None:
    """One query and many; all rows and some; with copies."""
    features, queries = random_features(rng, N), random_features(rng, 50)
    for feature, query in zip(features, queries, strict=True):
        feature[[7, 4000, 19_000]] = feature[100]
        query[3] = feature[100]
    terms = signals(features, metric, (1.0, 0.1, 4.0))
    engine = MatrixEngine(terms, cuda)
    check(engine, terms, queries, k)
    check(engine, terms, queries, k, np.arange(0, N, 3))
    check(engine, terms, [q[:1] for q in queries], k)


@pytest.mark.parametrize(("metric", "case"), list(product(METRICS, CASES)))
def test_unlikely_features(rng: np.random.Generator, cuda, metric: str, case: str) -> None:
    both = [CASES[case](rng, N + 20, 12), rng.normal(size=(N + 20, 3))]
    features = [x[:N].astype(np.float32) for x in both]
    queries = [x[N:].astype(np.float32) for x in both]
    for q, f in zip(queries, features, strict=True):
        q[:2] = f[[7, 3000]]
    for way in (1, -1):
        terms = signals(features[::way], metric, (1.0, 0.1))
        check(MatrixEngine(terms, cuda), terms, queries[::way], 5)


@pytest.mark.parametrize("metric", METRICS)
def test_few_pictures_are_ranked(rng, cuda, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    """512 values each: nothing falls back to ranking the whole collection."""
    terms = signals([rng.normal(size=(N, 512)).astype(np.float32)], metric, (1.0,))
    engine = MatrixEngine(terms, cuda)
    ranked = []
    search = engine.exact.search
    monkeypatch.setattr(
        engine.exact, "search", lambda q, k, rows: ranked.append(len(rows)) or search(q, k, rows)
    )
    engine.search([rng.normal(size=(100, 512)).astype(np.float32)], 5)
    assert max(ranked, default=0) < N // 20


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_do_not_fit_go_through_in_blocks(rng, cuda, monkeypatch, metric: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    monkeypatch.setattr(matrix, "MAX_PRODUCTS", {"cuda": 100_000})
    terms = signals(random_features(rng, N), metric, (1.0, 0.1))
    engine = MatrixEngine(terms, cuda)
    check(engine, terms, random_features(rng, 5)[:2], 5)
    check(engine, terms, random_features(rng, 5)[:2], 5, np.arange(0, N, 3))
    assert engine.copies[0].values.device.type == "cpu"


@pytest.mark.parametrize("metric", METRICS)
def test_whole_galleries_in_order(rng: np.random.Generator, cuda, metric: str) -> None:
    terms = signals([x[:3000] for x in random_features(rng, N)], metric, (1.0, 0.1, 0.0))
    for term in terms:
        term.features[100:120] = term.features[7]
    queries = [term.features[5:25] for term in terms]
    found = MatrixEngine(terms, cuda).search(queries, 3000)
    expected = ExactEngine(terms).search(queries, 3000)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_allclose(one.distances, other.distances, rtol=1e-9, atol=1e-9)

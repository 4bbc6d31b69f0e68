"""Ranking against scipy and numpy's stable argsort, and what is refused as a database."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from features.database import FeatureDatabase, open_database
from search import engine
from search.engine import Answer, ExactEngine, smallest
from search.signals import Signal, describe_distance, signals_of, weighted_sum
from tests.conftest import describe
from utils import UserError

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


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A database of 12 pictures, written as the design says."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "all_feat.npy", rng.random((12, D), np.float32))
    np.save(tmp_path / "all_color_feat.npy", rng.random((12, T), np.float32))
    np.save(tmp_path / "all_category.npy", np.int16([0, 1, -1] * 4))
    np.save(tmp_path / "all_item.npy", np.array(["a", "", "b"] * 4))
    np.save(tmp_path / "all_feat_2.npy", rng.random((12, 2), np.float32))
    np.save(tmp_path / "all_palette_feat.npy", rng.random((12, 8), np.float32))
    np.savez(tmp_path / "all_classifier.npz", weight=rng.random((3, D)), bias=rng.random(3))
    (tmp_path / "all_feat.list").write_text("".join(f"img/é {i}.jpg\n" for i in range(12)), "utf-8")
    describe(tmp_path, 12, ["Tee", "Blouse", "Tank"], models=("a", "b"), PALETTE=True)
    return tmp_path


def test_an_opened_database_holds_what_the_files_hold(base: Path) -> None:
    database = open_database(base)
    assert isinstance(database, FeatureDatabase)
    first, second = database.deep
    np.testing.assert_array_equal(first, np.load(base / "all_feat.npy"))
    np.testing.assert_array_equal(second, np.load(base / "all_feat_2.npy"))
    np.testing.assert_array_equal(database.color, np.load(base / "all_color_feat.npy"))
    np.testing.assert_array_equal(database.palette, np.load(base / "all_palette_feat.npy"))
    assert database.items[:4].tolist() == ["a", "", "b", "a"]
    paths = [f"img/é {i}.jpg" for i in range(12)]
    assert list(database.paths) == database.paths[:] == paths
    assert [database.paths[i] for i in range(-12, 12)] == paths + paths
    with pytest.raises(IndexError):
        database.paths[12]
    assert [database.category(row) for row in range(3)] == ["Tee", "Blouse", ""]
    assert database.rows_of("bLOUSE").tolist() == [1, 4, 7, 10]
    for unknown in ("Tank", "Tea"):  # one that no picture has, and one that there is not
        with pytest.raises(UserError, match=f"{unknown}.*there are Blouse, Tee"):
            database.rows_of(unknown)
    signals = signals_of(database, ("cosine", "euclidean"), (1, 0.5), 0.25, 3)
    assert describe_distance(signals) == (
        "deep cosine + 0.5 deep_2 cosine + 0.25 color euclidean + 3 palette euclidean"
    )
    assert [s.weight for s in signals_of(database, ("cosine",) * 2, (), 0, 0)] == [1, 1, 0, 0]
    with pytest.raises(UserError, match="MODEL_WEIGHTS has 3 weights, the feature database 2"):
        signals_of(database, ("cosine", "cosine"), (1, 1, 1), 0, 0)


def test_a_database_without_palette_has_two_signals_a_model(base: Path) -> None:
    info = json.loads((base / "all_feat.json").read_text())
    info["settings"]["PALETTE"] = False
    (base / "all_feat.json").write_text(json.dumps(info))
    database = open_database(base)
    assert database.palette is None
    names = [signal.name for signal in signals_of(database, ("cosine", "cosine"), (), 1, 1)]
    assert names == ["deep", "deep_2", "color"]


def test_four_signals_rank_as_the_sum_of_four_cdists(base: Path) -> None:
    database = open_database(base)
    signals = signals_of(database, ("cosine", "cityblock"), (2, 0.5), 0.25, 3)
    metrics = ("cosine", "cosine", "cityblock", "cityblock")
    total = sum(
        weight * cdist(signal.features, signal.features, metric)
        for signal, metric, weight in zip(signals, metrics, (2, 0.5, 0.25, 3), strict=True)
    )
    answers = ExactEngine(signals).search([signal.features for signal in signals], 12)
    for row, answer in enumerate(answers):
        np.testing.assert_allclose(answer.distances, np.sort(total[row]))
        parts = [
            cdist(s.features[[row]], s.features[answer.rows], m)[0]
            for s, m in zip(signals, metrics, strict=True)
        ]
        np.testing.assert_allclose(answer.parts, np.transpose(parts))


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("marker",)


def _saved(name: str, value):
    return lambda base: np.save(base / name, value, allow_pickle=True)


def _text(name: str, text: str):
    return lambda base: (base / name).write_text(text)


def _cut(name: str, size: int):
    return lambda base: os.truncate(base / name, size)


def _without(setting: str):
    def damage(base: Path) -> None:
        info = json.loads((base / "all_feat.json").read_text())
        del info["settings"][setting]
        (base / "all_feat.json").write_text(json.dumps(info))

    return damage


DAMAGE = {
    "no json": lambda base: (base / "all_feat.json").unlink(),
    "no colours": lambda base: (base / "all_color_feat.npy").unlink(),
    "no second model": lambda base: (base / "all_feat_2.npy").unlink(),
    "no palettes": lambda base: (base / "all_palette_feat.npy").unlink(),
    "no items": lambda base: (base / "all_item.npy").unlink(),
    "items as a pickle": _saved("all_item.npy", np.array(["a"] * 12, object)),
    "palettes of more pictures": _saved("all_palette_feat.npy", np.zeros((13, 8), np.float32)),
    "no classifier": lambda base: (base / "all_classifier.npz").unlink(),
    "cut classifier": _cut("all_classifier.npz", 300),
    "empty classifier": _cut("all_classifier.npz", 0),
    "a classifier without bias": lambda base: np.savez(base / "all_classifier.npz", weight=[[1]]),
    "no list": lambda base: (base / "all_feat.list").unlink(),
    "half a json": _text("all_feat.json", '{"pictures": 12'),
    "json is a list": _text("all_feat.json", "[]"),
    "json without counts": _text("all_feat.json", "{}"),
    "settings without palette": _without("PALETTE"),
    "settings without flip": _without("FLIP"),
    "cut features": _cut("all_feat.npy", 200),
    "empty features": _cut("all_feat.npy", 0),
    "cut list": _cut("all_feat.list", 70),
    "longer list": _text("all_feat.list", "a\n" * 13),
    "fewer categories": _saved("all_category.npy", np.int16([0] * 11)),
    "more colours": _saved("all_color_feat.npy", np.zeros((13, T), np.float32)),
    "float64": _saved("all_feat.npy", np.zeros((12, D))),
    "a vector": _saved("all_feat.npy", np.zeros(12, np.float32)),
    "a scalar": _saved("all_feat.npy", np.float32(1)),
    "a pickle": _saved("all_feat.npy", np.array([Malicious()] * 12)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_database_that_is_not_whole_is_refused(base: Path, damage) -> None:
    damage(base)
    with pytest.raises(UserError, match=r"run: python feature_extractor.py") as caught:
        list(open_database(base).paths)
    assert str(base) in str(caught.value)
    assert not Path("marker").exists()


def test_a_signal_without_weight_takes_no_part_in_the_sum() -> None:
    parts = np.array([[[1.0, 2.0]], [[np.nan, np.inf]], [[10.0, 20.0]]])
    assert weighted_sum(parts, [1, 0, 0.5]).tolist() == [[6, 12]]

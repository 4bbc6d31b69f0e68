"""The graph engine against cdist over everything, and what is refused as a graph."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import describe
from scipy.spatial.distance import cdist

import graph
import hnsw
from graph import build_graph, fit_space
from hnsw import Graph, GraphEngine, open_graph, save_graph
from index import Answer, ExactEngine, FeatureDatabase, Signal, open_database
from utils import UserError, run_script

N, ASKED, K = 4000, 200, 10
DIMS = (24, 6, 16)
SHA256 = {"all_feat.npy": "ab" * 32}
Features = list[np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Graphs are the same each time with one thread only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clustered(seed: int, count: int, noise: float = 0.5) -> Features:
    """Points around the same 40 centres, whatever the seed is."""
    centres = [np.random.default_rng(9).normal(size=(40, dim)) for dim in DIMS]
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 40, count)
    points = (c[group] + noise * rng.normal(size=(count, c.shape[1])) for c in centres)
    return [part.astype(np.float32) for part in points]


def signals_of(features: Features, metrics=("euclidean",) * 3, weights=(1.0, 0.1, 2.0)):
    rows = zip(("deep", "color", "palette"), features, metrics, weights, strict=False)
    return [Signal(*row) for row in rows]


def built(signals: list[Signal], target: float = 0.99) -> Graph:
    return build_graph(signals, SHA256, ExactEngine(signals), target)[0]


class NoEngine:
    """Stands where the graph is to answer all by itself."""

    def search(self, queries, k, rows=None) -> list[Answer]:
        raise AssertionError("the graph did not answer")


def brute_force(signals: list[Signal], queries: Features) -> tuple[np.ndarray, np.ndarray]:
    """Distances Q x N, and their parts Q x N x S."""
    with np.errstate(invalid="ignore"):
        pairs = zip(signals, queries, strict=True)
        parts = [cdist(query, signal.features, signal.metric) for signal, query in pairs]
    total = sum(s.weight * part for s, part in zip(signals, parts, strict=True) if s.weight)
    return total, np.stack(parts, axis=2)


def check(answers: list[Answer], signals, queries, k: int, rows=None) -> float:
    """Answers are in order, as many as there must be, with cdist's values; returns their recall."""
    total, parts = brute_force(signals, queries)
    among = np.arange(total.shape[1]) if rows is None else rows
    found = []
    for i, answer in enumerate(answers):
        expected = among[np.argsort(total[i, among], kind="stable")][:k]
        assert len(answer.rows) == len(expected)
        assert np.isin(answer.rows, among).all()
        np.testing.assert_array_equal(answer.rows[np.lexsort((answer.rows, answer.distances))],
                                      answer.rows)  # fmt: skip
        np.testing.assert_array_equal(answer.distances, total[i, answer.rows])
        np.testing.assert_array_equal(answer.parts, parts[i, answer.rows])
        found.append(np.isin(expected, answer.rows).mean())
    assert len(answers) == len(total)
    return float(np.mean(found))


@pytest.mark.parametrize(
    "metrics",
    [("euclidean",) * 3, ("cosine",) * 3, ("cosine", "euclidean", "cosine"), ("euclidean",)],
)
def test_what_the_graph_finds_is_ranked_as_cdist_does(metrics) -> None:
    signals = signals_of(clustered(0, N)[: len(metrics)], metrics)
    queries = clustered(1, ASKED)[: len(metrics)]
    made = built(signals)
    engine = GraphEngine(signals, made, NoEngine())
    answers = engine.search(queries, K)
    assert check(answers, signals, queries, K) >= 0.98
    assert 0.99 <= made.recall <= 1
    assert made.candidates <= made.expansion < N / 20
    assert made.space.dtype == "int8"
    one = engine.search([part[7:8] for part in queries], K)[0]
    np.testing.assert_array_equal(one.rows, answers[7].rows)
    assert check(engine.search(queries, 3), signals, queries, 3) >= 0.98
    assert check(engine.search(queries, 37), signals, queries, 37) >= 0.98


def test_neighbours_too_near_for_integers_are_halves() -> None:
    signals = signals_of(clustered(0, N, 0.005))
    queries = clustered(1, ASKED, 0.005)
    made = built(signals)
    assert made.space.dtype == "float16"
    assert (
        check(GraphEngine(signals, made, NoEngine()).search(queries, K), signals, queries, K) > 0.98
    )


@pytest.fixture(scope="module")
def terms() -> list[Signal]:
    return signals_of(clustered(0, N))


@pytest.fixture(scope="module")
def made(terms: list[Signal]) -> Graph:
    return built(terms)


@pytest.mark.parametrize("walked", [1 << 20, 500])
def test_rows_outside_the_filter_do_not_count(
    terms, made, monkeypatch: pytest.MonkeyPatch, walked: int
) -> None:
    monkeypatch.setattr(hnsw, "WALKED", walked)
    queries = clustered(1, ASKED)
    rows = np.arange(1, N, 2)
    engine = GraphEngine(terms, made, NoEngine())
    assert check(engine.search(queries, K, rows), terms, queries, K, rows) >= 0.98


@pytest.mark.parametrize("kind", ["far", "few", "one", "none"])
def test_few_rows_are_searched_exactly(terms, made, kind: str) -> None:
    """Also where many rows are left, but far from the query, so that the walk meets none."""
    queries = clustered(1, 5)
    total, _ = brute_force(terms, queries)
    rows = {
        "far": np.sort(np.argsort(total[0])[N // 2 :]),
        "few": np.arange(3, N, 40),
        "one": np.array([77]),
        "none": np.zeros(0, np.int64),
    }[kind]
    answers = GraphEngine(terms, made).search(queries, K, rows)
    if kind == "none":
        assert [len(answer.rows) for answer in answers] == [0] * 5
    elif kind == "far":
        check(answers, terms, queries, K, rows)
        assert check(answers[:1], terms, [part[:1] for part in queries], K, rows) == 1
    else:
        assert check(answers, terms, queries, K, rows) == 1


@pytest.mark.parametrize("k", [N // 2, N, N + 5])
def test_many_answers_are_exact(terms, made, k: int) -> None:
    queries = clustered(1, 2)
    assert check(GraphEngine(terms, made).search(queries, k), terms, queries, k) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 99, 130])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_small_collections(count: int, metric: str) -> None:
    signals = signals_of(clustered(0, count), (metric,) * 3)
    queries = clustered(1, 20)
    answers = GraphEngine(signals, built(signals)).search(queries, K)
    assert check(answers, signals, queries, K) >= (1 if count < 96 else 0.95)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_pictures_stand_in_order_of_their_rows(metric: str) -> None:
    """40 copies of each picture: which ten of them a walk meets first says nothing."""
    features = [np.tile(part, (40, 1)) for part in clustered(0, 50)]
    signals = signals_of(features, (metric,) * 3)
    queries = clustered(1, 20)
    assert check(GraphEngine(signals, built(signals)).search(queries, K), signals, queries, K) == 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_odd_queries_are_answered_as_by_the_exact_engine(metric: str) -> None:
    signals = signals_of(clustered(0, N), (metric,) * 3)
    queries = clustered(1, 6)
    queries[0][0] = 0
    queries[1][1, 3] = np.nan
    queries[2][2, 0] = np.inf
    queries[0][3] = 1e30
    queries[0][4] *= 50
    expected = ExactEngine(signals).search(queries, K)
    answers = GraphEngine(signals, built(signals)).search(queries, K)
    for i in {"euclidean": (1, 2, 3, 4), "cosine": (0, 1, 2)}[metric]:
        np.testing.assert_array_equal(answers[i].rows, expected[i].rows)
        np.testing.assert_array_equal(answers[i].distances, expected[i].distances)


def test_pictures_without_a_distance_come_last() -> None:
    """Zeros under cosine, more of them than there are candidates."""
    features = clustered(0, N)
    features[0][: N // 2] = 0
    signals = signals_of(features, ("cosine",) * 3)
    made = built(signals)
    assert len(made.index) == N // 2
    queries = clustered(1, 50)
    assert check(GraphEngine(signals, made).search(queries, K), signals, queries, K) >= 0.98


def test_a_signal_without_weight_takes_no_part() -> None:
    features = clustered(0, N)
    features[1][5] = np.nan
    signals = signals_of(features, ("euclidean", "cityblock", "euclidean"), (1.0, 0.0, 2.0))
    queries = clustered(1, 50)
    made = built(signals)
    assert made.space.names == ["deep", "palette"]
    engine = GraphEngine(signals, made, NoEngine())
    assert check(engine.search(queries, K), signals, queries, K) >= 0.98


@pytest.mark.parametrize("sample", [16384, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(
    monkeypatch: pytest.MonkeyPatch, value: float, sample: int
) -> None:
    monkeypatch.setattr(graph, "SAMPLE", sample)
    features = clustered(0, 200)
    features[1][151, 2] = value
    with pytest.raises(UserError, match="color: holds NaN"):
        built(signals_of(features))


@pytest.mark.parametrize("weights", [(1.0, 0.1, 2.0), (0.0, 0.0, 0.0)])
def test_other_metrics_and_no_metric_are_refused(tmp_path: Path, weights) -> None:
    signals = signals_of(clustered(0, 200), ("euclidean", "cityblock", "cosine"), weights)
    said = "color cityblock" if weights[1] else "none"
    with pytest.raises(UserError, match=f"euclidean and cosine distances only, not for {said}"):
        fit_space(signals)
    with pytest.raises(UserError, match=f"not for {said}"):
        open_graph(database_at(tmp_path), signals)


def test_a_target_beyond_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "EXPANSIONS", [12, 14])
    rng = np.random.default_rng(0)
    signals = signals_of([rng.normal(size=(N, 64)).astype(np.float32)])  # no clusters at all
    made, steps = build_graph(signals, SHA256, ExactEngine(signals), 1.0)
    assert [step.reached for step in steps] == [False, False]
    assert (made.expansion, made.candidates) == (14, 14)
    queries = [rng.normal(size=(ASKED, 64)).astype(np.float32)]
    found = check(GraphEngine(signals, made).search(queries, K), signals, queries, K)
    assert found == pytest.approx(made.recall, abs=0.05)
    assert found < 0.9


def database_at(base: Path) -> FeatureDatabase:
    """A database without pictures, as far as a graph asks for it."""
    none = np.zeros((0, 1), np.float32)
    info = {"sha256": SHA256}
    return FeatureDatabase(base, (none,), none, None, (), [], none[:, 0], [], none[:, 0], info)


def test_a_graph_comes_back_as_it_was_saved(tmp_path: Path, terms, made) -> None:
    assert save_graph(tmp_path, made) == tmp_path / "models" / "graph.hnsw"
    found = open_graph(database_at(tmp_path), terms)
    for name in ("expansion", "candidates", "recall", "distance", "features"):
        assert getattr(found, name) == getattr(made, name)
    assert made.distance == "deep euclidean + 0.1 color euclidean + 2 palette euclidean"
    queries = clustered(1, ASKED)
    engine = GraphEngine(terms, found)
    expected = GraphEngine(terms, made).search(queries, K)
    with ThreadPoolExecutor(4) as pool:  # as a server asks it
        several = list(pool.map(lambda _: engine.search(queries, K), range(4)))
    for answers in several:
        for answer, other in zip(answers, expected, strict=True):
            np.testing.assert_array_equal(answer.rows, other.rows)
            np.testing.assert_array_equal(answer.distances, other.distances)
    before = (tmp_path / hnsw.GRAPH).read_bytes()
    save_graph(tmp_path, built(terms))
    assert (tmp_path / hnsw.GRAPH).read_bytes() == before
    assert engine.search(queries, 1)  # its file is no longer there


def _changed(place: float):
    def write(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (Path.unlink, "no graph"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"garbage" * 99), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "cannot be read"),
        *((_changed(place), "cannot be read") for place in (0, 0.3, 0.6, 0.9, 0.999, 1)),
    ],
)
def test_a_damaged_graph_is_refused(tmp_path: Path, terms, made, write, said: str) -> None:
    write(save_graph(tmp_path, made))
    with pytest.raises(UserError, match=rf"graph\.hnsw: .*{said}.*run: python graph\.py"):
        open_graph(database_at(tmp_path), terms)


def test_a_graph_of_other_features_is_refused(
    tmp_path: Path, terms, made, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_graph(tmp_path, made)
    monkeypatch.setitem(SHA256, "all_feat.npy", "cd" * 32)
    with pytest.raises(UserError, match=r"other features.*run: python graph\.py"):
        open_graph(database_at(tmp_path), terms)


def test_without_the_library_the_file_that_installs_it_is_named(
    tmp_path: Path, terms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    for ask in (lambda: open_graph(database_at(tmp_path), terms), lambda: built(terms)):
        with pytest.raises(UserError, match=r"pip install -r requirements-graph\.txt"):
            ask()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "data"
    base.mkdir()
    deep, color, _ = clustered(0, 2000)
    np.save(base / "all_feat.npy", deep)
    np.save(base / "all_color_feat.npy", color)
    np.save(base / "all_category.npy", np.zeros(2000, np.int16))
    np.save(base / "all_item.npy", np.full(2000, ""))
    np.savez(base / "all_classifier.npz", weight=np.zeros((1, 3)), bias=np.zeros(1))
    (base / "all_feat.list").write_text("".join(f"{row}.jpg\n" for row in range(2000)))
    describe(base, 2000, ["all"])
    return base


def run(base: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as left:
        run_script(lambda: graph.main(["--dataset-base", str(base), *flags]))
    return left.value.code


def test_the_script_writes_the_graph_and_prints_its_recall(base: Path, capsys) -> None:
    assert run(base, "--distance-metric", "cosine,euclidean", "--target-recall", "0.9") == 0
    out = capsys.readouterr().out
    assert "2,000 pictures, 30 x int8" in out
    assert "distance: deep cosine + 0.1 color euclidean" in out
    database = open_database(base)
    signals = [Signal("deep", database.deep[0], "cosine", 1.0),
               Signal("color", database.color, "euclidean", 0.1)]  # fmt: skip
    found = open_graph(database, signals)
    line = next(line for line in out.splitlines() if "<- of a query" in line)
    assert line.split()[:3] == [str(found.expansion), str(found.candidates), f"{found.recall:.3f}"]
    queries = clustered(1, 50)[:2]
    assert check(GraphEngine(signals, found).search(queries, K), signals, queries, K) >= 0.85


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--distance-metric", "euclidean,cityblock"), "not for color cityblock"),
        (("--dataset-base", "nowhere"), "feature_extractor.py"),
        ((), "all_color_feat.npy: not the file that"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(base: Path, capsys, flags, said: str) -> None:
    if not flags:
        np.save(base / "all_color_feat.npy", np.zeros((2000, 6), np.float32))
    assert run(base, *flags) == 2
    written = capsys.readouterr()
    assert said in written.err
    assert written.err.count("\n") == 1
    assert not (base / "models").exists()

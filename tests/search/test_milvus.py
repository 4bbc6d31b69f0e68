"""The Milvus engine and `python milvus_push.py`, with Milvus Lite: in a file and over its port."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data
import feature_extractor
import milvus_push as push_script
import retrieval
import train
from config import Config
from features.database import FeatureDatabase, open_database
from search.engine import Answer, ExactEngine
from search.engines import open_engine
from search.milvus import MilvusEngine, open_milvus
from search.milvus_client import Client, Place
from search.signals import Signal, signals_of
from tests.conftest import ROOT, free_port, replace_features, run, serving, stored_features
from tools.benchmark.data import make_database
from utils import AwayError, UserError, run_script

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

K = 10
WAITS = ("--milvus-timeout", "60")  # a machine that runs other tests, too, is no server away


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature database of the men's in-shop photos, with a network that others trained."""
    base = tmp_path_factory.mktemp("milvus") / "men"
    there = ["--dataset-base", str(base)]
    machine = [*there, "--enable-inshop-dataset", "--device", "cpu", "--num-workers", "0"]
    data.main(["import", str(shared / "inshop-men" / "img" / "MEN"), "--item-level", *there])
    weights = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    network = ["--backbone", "mobilenet_v2", "--pretrained", str(weights)]
    train.main([*machine, *network, "--img-size", "128", "--crop-size", "112", "--epoch", "0"])
    feature_extractor.main(machine)
    return base


@pytest.fixture
def drawn_base(drawn: Path, tmp_path: Path, rng: np.random.Generator) -> Path:
    """The drawn collection with random features, to be changed."""
    base = tmp_path / "drawn"
    shutil.copytree(drawn, base, copy_function=os.link)
    stored_features(base, rng)
    return base


def push(base: Path, *flags: str, status: int = 0) -> None:
    """`python milvus_push.py`, in this process."""
    with pytest.raises(SystemExit) as left:
        run_script(lambda: push_script.main(["--dataset-base", str(base), *WAITS, *flags]))
    assert left.value.code == status


def settings(base: Path, uri: str, **others: object) -> Config:
    return Config(**{"DATASET_BASE": base, "MILVUS_URI": uri, "MILVUS_TIMEOUT": 60, **others})


def opened(config: Config) -> tuple[FeatureDatabase, list[Signal], MilvusEngine]:
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    place = Place(**config.milvus)
    return database, signals, open_milvus(database, signals, place, NoEngine())[0]


class NoEngine:
    """Stands where Milvus is to answer."""

    def search(self, queries, k, rows=None) -> list[Answer]:
        raise AssertionError("Milvus did not answer")


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own.rows, other.rows)
        np.testing.assert_array_equal(own.distances, other.distances)
        np.testing.assert_array_equal(own.parts, other.parts)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_answers_are_those_of_the_exact_engine(
    photos: Path, uri: str, metric: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every photo as a query: rows, distances and parts. The second metric only re-indexes."""
    metrics = f"{metric},{metric}"
    push(photos, "--milvus-uri", uri, "--distance-metric", metrics, "--target-recall", "1",
         "--milvus-index", "FLAT")  # fmt: skip
    out = capsys.readouterr().out
    config = settings(photos, uri, DISTANCE_METRIC=metrics)
    database, signals, engine = opened(config)
    count = len(database.categories)
    assert f"{count:,} pictures, {count if metric == 'euclidean' else 0:,} of them sent" in out
    assert "recall@10 1.000" in out
    assert 2 * engine.candidates < count
    queries = [signal.features[:] for signal in signals]
    expected = ExactEngine(signals).search(queries, K)
    assert_same(engine.search(queries, K), expected)

    named = open_engine(database, signals, "milvus", 0, 0.99, config.milvus)
    assert named.recall == 1.0
    assert named.searched == f"{engine.candidates} candidates of each signal"

    # Within a category; other rows are searched exactly, which NoEngine refuses.
    engine.candidates = 24
    category = max(set(database.category_names), key=lambda name: rows_of(database, name).size)
    rows = rows_of(database, category)
    few = [features[:40] for features in queries]
    found, truth = engine.search(few, 5, rows), ExactEngine(signals).search(few, 5, rows)
    assert all(np.isin(answer.rows, rows).all() for answer in found)
    shares = [np.isin(t.rows, f.rows).mean() for t, f in zip(truth, found, strict=True)]
    assert np.mean(shares) > 0.95
    with pytest.raises(AssertionError, match="did not answer"):
        engine.search(few, 5, np.arange(0, count, 3))


def rows_of(database: FeatureDatabase, name: str) -> np.ndarray:
    return np.flatnonzero(database.categories == database.category_names.index(name))


def test_from_a_file_retrieval_answers_alike(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default, a file below models/: by category, by item, and what tells of the recall."""
    base = tmp_path / "men"
    shutil.copytree(photos, base, copy_function=os.link)
    query = "img/Tees/ms01/black_main.jpg"
    ask = [query, "--dataset-base", str(base), *WAITS, "--device", "cpu", "--top-n", "7"]
    ask.append("--with-own")

    def answers(engine: str, *flags: str) -> list[dict[str, object]]:
        capsys.readouterr()
        retrieval.main([*ask, *flags, "--json", "--engine", engine])
        return json.loads(capsys.readouterr().out)[0]["results"]

    with pytest.raises(UserError, match=r"milvus\.db: no such file; run: python milvus_push\.py"):
        retrieval.main([*ask, "--engine", "milvus"])
    push(base, "--target-recall", "1")
    for flags in ([], ["--category", "Tees"], ["--per-item"], ["--category", "Tees", "--per-item"]):
        found = answers("milvus", *flags)
        assert found == answers("exact", *flags)
        assert found[0]["path"] == query
    retrieval.main([*ask, "--engine", "milvus"])
    out = capsys.readouterr().out
    assert "Milvus: " in out
    assert "recall@10 1.000, see milvus_push.py" in out


@pytest.mark.parametrize("where", ["file", "server"])
def test_a_push_that_is_killed_goes_on(
    tmp_path: Path, uri: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 midway: half of it is refused, the next push sends the rest, none twice."""
    count = 8_000
    base = tmp_path / f"half_{where}"
    make_database(base, count)
    file = base / "models" / "milvus.db"
    there = [] if where == "file" else ["--milvus-uri", uri]
    config = settings(base, uri if there else str(file))
    flags = [*there, "--milvus-index", "FLAT"]
    command = [sys.executable, str(ROOT / "milvus_push.py"), "--dataset-base", str(base)]
    process = subprocess.Popen([*command, *WAITS, *flags], stderr=subprocess.DEVNULL)
    name = f"{Place(**config.milvus).family(base)}_v1"
    server = Client(Place(**config.milvus)) if there else None

    def begun() -> bool:
        if not server:
            sizes = [path.stat().st_size for path in file.rglob("*") if path.is_file()]
            return sum(sizes) > 6 << 20
        return bool(_count(server, name))

    end = time.monotonic() + 120
    while not begun():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    if server:
        held = _count(server, name)
        assert 0 < held < count
        with pytest.raises(UserError, match=r"not all of these; run: python milvus_push\.py"):
            opened(config)
    push(base, *flags)
    out = capsys.readouterr().out
    sent = int(out.split(" of them sent")[0].split()[-1].replace(",", ""))
    assert 0 < sent < count
    assert f"8,000 pictures, {sent:,} of them sent" in out
    if server:
        assert _count(server, name) == count
        rows = server.call("query", name, filter='path != ""', output_fields=["path"])
        assert sorted(row["path"] for row in rows) == sorted(open_database(base).paths)
    push(base, *flags)
    assert "8,000 pictures, 0 of them sent" in capsys.readouterr().out


def _count(server: Client, name: str) -> int:
    """Pictures of a collection; 0 where it is not there, or not loaded."""
    try:
        return server.count(name)
    except UserError:
        return 0


def test_other_features_are_refused_until_they_are_pushed(
    drawn_base: Path, uri: str, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that mends it is named; the older collection is dropped after it, not before."""
    config = settings(drawn_base, uri)
    push(drawn_base, "--milvus-uri", uri)
    database, _, engine = opened(config)
    older = engine.name
    collection = engine.client.call("describe_alias", older)["collection_name"]
    shape = database.deep[0].shape
    replace_features(drawn_base, "all_feat.npy", rng.normal(size=shape).astype(np.float32))
    with pytest.raises(UserError, match=r"other features .*run: python milvus_push\.py") as found:
        opened(config)
    assert found.value.status == 2
    assert engine.client.call("has_collection", older)
    push(drawn_base, "--milvus-uri", uri)
    assert f"dropped {collection}, of older features" in capsys.readouterr().out
    assert not engine.client.call("has_collection", older)
    database, signals, engine = opened(config)
    engine.candidates = len(shape) * K * 3
    queries = [signal.features[:9] for signal in signals]
    assert all(0 in answer.distances.round(3) for answer in engine.search(queries, 3))


@pytest.mark.parametrize("kind", ["IVF_FLAT", "HNSW"])
def test_an_index_is_a_setting(
    drawn_base: Path, uri: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one takes the place of the first without a picture being sent again."""
    there = ("--milvus-uri", uri, "--milvus-collection", f"of_{kind}")
    push(drawn_base, *there, "--milvus-index", "FLAT")
    capsys.readouterr()
    push(drawn_base, *there, "--milvus-index", kind, "--distance-metric", "cosine,cosine")
    assert " 0 of them sent" in capsys.readouterr().out
    config = settings(
        drawn_base, uri, MILVUS_COLLECTION=f"of_{kind}", DISTANCE_METRIC="cosine,cosine"
    )
    _, _, engine = opened(config)
    assert set(engine.indexes.values()) == {kind}
    assert engine.name.startswith(f"of_{kind}_")
    other = settings(drawn_base, uri, MILVUS_COLLECTION=f"of_{kind}")
    with pytest.raises(UserError, match=r"indexed by COSINE, not by L2.*milvus_push\.py"):
        opened(other)


def test_what_milvus_cannot_do_the_exact_engine_does(drawn_base: Path, uri: str) -> None:
    """More answers than candidates pay for, and a query that is no number."""
    push(drawn_base, "--milvus-uri", uri)
    config = settings(drawn_base, uri)
    database = open_database(drawn_base)
    signals = signals_of(database, **config.distance)
    exact = ExactEngine(signals)
    engine, _ = open_milvus(database, signals, Place(**config.milvus), exact)
    engine.candidates = 16
    queries = [signal.features[:3].copy() for signal in signals]
    assert_same(engine.search(queries, 500), exact.search(queries, 500))
    queries[1][1] = np.nan
    found, expected = engine.search(queries, 3), exact.search(queries, 3)
    assert_same(found[1:2], expected[1:2])
    assert len(found) == 3


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(16)
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("away", ["nobody", "mute"])
def test_a_server_that_is_away_is_one_line_and_status_3(
    drawn_base: Path, mute: str, away: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within the time that MILVUS_TIMEOUT gives; of pushing and of searching, without passwords."""
    uri = mute if away == "mute" else f"http://me:secret@127.0.0.1:{free_port()}"
    start = time.monotonic()
    push(drawn_base, "--milvus-uri", uri, "--milvus-timeout", "2", status=3)
    assert time.monotonic() - start < 20
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "127.0.0.1" in said
    assert "nothing is lost" in said
    assert "secret" not in said
    with pytest.raises(AwayError):
        opened(settings(drawn_base, uri, MILVUS_TIMEOUT=2))


def test_a_server_that_goes_away_between_searches(drawn_base: Path, tmp_path: Path) -> None:
    """An engine that is open, as web.py's, says so in bounded time, and answers again later."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with serving(tmp_path, port):
        push(drawn_base, "--milvus-uri", uri)
        _, signals, engine = opened(settings(drawn_base, uri))
        engine.candidates = 30
        queries = [signal.features[:2] for signal in signals]
        before = engine.search(queries, 3)
    patient = engine.client.place
    engine.client.place = replace(patient, timeout=2.0)
    start = time.monotonic()
    with pytest.raises(AwayError, match="no answer to 'search' in time"):
        engine.search(queries, 3)
    assert time.monotonic() - start < 20
    with serving(tmp_path, port):
        engine.client.place = patient
        assert_same(engine.search(queries, 3), before)


def test_a_file_that_another_process_has_open(
    drawn_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Milvus Lite's file belongs to one process: the other one ends with status 3 and says why."""
    push(drawn_base)
    capsys.readouterr()
    said = run("milvus_push.py", "--dataset-base", drawn_base, check=3).stderr
    assert said.count("\n") == 1
    assert "milvus.db: another process has it open" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--distance-metric", "euclidean,cityblock"), "not color cityblock"),
        (("--milvus-uri", "nowhere"), "MILVUS_URI nowhere: neither a URL nor a file NAME.db"),
        (("--milvus-uri", "foo://x"), "MILVUS_URI foo://x: cannot be opened"),
        (("--milvus-index", "DISKANN"), "MILVUS_INDEX DISKANN: "),
        (("--dataset-base", "nothing"), "feature_extractor.py"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(
    drawn_base: Path, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    push(drawn_base, *flags, status=2)
    written = capsys.readouterr().err
    assert said in written
    assert written.count("\n") == 1


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_without_the_library_the_file_that_installs_it_is_named(
    drawn_base: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    place = Place(**settings(drawn_base, "").milvus)
    with pytest.raises(UserError, match=r"pip install -r requirements-milvus\.txt"):
        Client(place)


def test_names_of_collections(tmp_path: Path, drawn_base: Path) -> None:
    """Of the folder, as far as Milvus takes it, or of the setting; and of the features."""
    database = open_database(drawn_base)
    place = Place(**settings(drawn_base, "").milvus)
    name = place.alias(database)
    assert name.startswith("drawn_")
    assert len(name) == len("drawn_") + 16
    assert place.family(tmp_path / "2024 Größe") == "_2024_Gr__e"
    assert replace(place, prefix="mine").alias(database) == f"mine_{name[6:]}"
    assert Config(DATASET_BASE=drawn_base).milvus["uri"].endswith("drawn/models/milvus.db")

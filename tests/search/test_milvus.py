"""The Milvus engine and `python milvus_push.py`, with Milvus Lite: in a file and over its port."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from search.milvus_client import Client
from search.recall import recall_of
from search.signals import Signal, signals_of
from tests.conftest import ROOT, free_port, replace_features, run, stored_features
from tools.benchmark.inputs import make_database
from utils import AwayError, UserError, run_script

grpc = pytest.importorskip("grpc")  # of pymilvus
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
    return database, signals, open_milvus(database, signals, config.milvus, NoEngine())[0]


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
    """A third of the photos as queries: rows, distances and parts; then within a category."""
    metrics = f"{metric},{metric}"
    push(photos, "--milvus-uri", uri, "--distance-metric", metrics, "--target-recall", "1")
    out = capsys.readouterr().out
    config = settings(photos, uri, DISTANCE_METRIC=metrics)
    database, signals, engine = opened(config)
    count = len(database.categories)
    assert f"{count:,} pictures, {count:,} of them sent" in out
    assert "recall@10 1.000" in out
    assert ("dropped fashion_men" in out) == (metric == "cosine")
    assert 2 * engine.candidates < count
    queries = [signal.features[::3] for signal in signals]
    assert_same(engine.search(queries, K), ExactEngine(signals).search(queries, K))

    named = open_engine(database, signals, "milvus", 0, 0.99, config.milvus)
    assert named.recall == 1.0
    assert named.searched == f"{engine.candidates} candidates of each signal"

    # Within a category; other rows are searched exactly, which NoEngine refuses.
    engine.candidates = 24
    rows = np.flatnonzero(database.categories == np.bincount(database.categories).argmax())
    few = [features[:40] for features in queries]
    found, truth = engine.search(few, 5, rows), ExactEngine(signals).search(few, 5, rows)
    assert all(np.isin(answer.rows, rows).all() for answer in found)
    shares = [np.isin(t.rows, f.rows).mean() for t, f in zip(truth, found, strict=True)]
    assert np.mean(shares) > 0.95
    with pytest.raises(AssertionError, match="did not answer"):
        engine.search(few, 5, np.arange(0, count, 3))

    # By some of the signals too, and by no other metric.
    by_palette = [replace(one, weight=float(one.name == "palette")) for one in signals]
    only, _ = open_milvus(database, by_palette, config.milvus, NoEngine())
    truth = [answer.rows for answer in ExactEngine(by_palette).search(few, K)]
    assert recall_of([answer.rows for answer in only.search(few, K)], truth) > 0.95
    with pytest.raises(UserError, match=r"no color by cityblock; .*run: python milvus_push\.py"):
        opened(settings(photos, uri, DISTANCE_METRIC=f"{metric},cityblock"))


def test_from_a_file_retrieval_answers_alike(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default, a file below models/: by category and item; the recall; one process alone."""
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
    for flags in ([], ["--category", "Tees", "--per-item"]):
        found = answers("milvus", *flags)
        assert found == answers("exact", *flags)
    retrieval.main([*ask, "--engine", "milvus"])
    out = capsys.readouterr().out
    assert "Milvus: " in out
    assert "recall@10 1.000, see milvus_push.py" in out

    said = run("milvus_push.py", "--dataset-base", base, check=3).stderr
    assert said.count("\n") == 1
    assert "milvus.db: another process has it open" in said


def test_a_push_that_is_killed_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 midway, into a file: the next push sends the rest, none twice."""
    base = tmp_path / "half"
    make_database(base, 4000)
    command = [sys.executable, str(ROOT / "milvus_push.py"), "--dataset-base", str(base), *WAITS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while sum(p.stat().st_size for p in (base / "models").rglob("*") if p.is_file()) < 5 << 20:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    push(base)
    sent = int(capsys.readouterr().out.split(" of them sent")[0].split()[-1].replace(",", ""))
    assert 0 < sent < 4000


def test_after_any_step_a_push_goes_on(
    drawn_base: Path, uri: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Cut off by each: what was pushed before stays until the new collection is whole."""
    config = settings(drawn_base, uri)
    push(drawn_base, "--milvus-uri", uri)
    database, _, engine = opened(config)
    shape = database.deep[0].shape
    call = Client.call
    steps = ("create_collection", "create_index", "upsert", "release_collection", "query")
    for step in steps:
        deep = rng.normal(size=shape).astype(np.float32)
        replace_features(drawn_base, "all_feat.npy", deep)

        def cut_off(client: Client, method: str, *args, step=step, **options) -> object:
            done = call(client, method, *args, **options)
            if method == step:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Client, "call", cut_off)
            with pytest.raises(KeyboardInterrupt):
                push_script.main(["--dataset-base", str(drawn_base), "--milvus-uri", uri])
        with pytest.raises(UserError, match=r"other features .*run: python milvus_push\.py") as no:
            opened(config)
        assert no.value.status == 2
        assert engine.client.call("has_collection", engine.name)
        push(drawn_base, "--milvus-uri", uri)
        assert not engine.client.call("has_collection", engine.name)
        with pytest.raises(UserError, match="another push has replaced the collection"):
            engine.search([signal[:2] for signal in (deep, database.color, database.palette)], 3)
        database, signals, engine = opened(config)
        engine.candidates = len(deep) - 1
        queries = [signal.features[::9] for signal in signals]
        assert_same(engine.search(queries, 3), ExactEngine(signals).search(queries, 3))
    paths = engine.client.call("query", engine.name, filter="row >= 0", output_fields=["path"])
    assert sorted(hit["path"] for hit in paths) == sorted(database.paths)


def test_an_index_that_is_still_written_is_waited_for(drawn_base: Path) -> None:
    """Milvus Lite builds indexes in the background, and reads such a file when it loads."""
    push(drawn_base)
    _, signals, engine = opened(settings(drawn_base, ""))
    engine.client.call("release_collection", engine.name)
    index = next((drawn_base / "models").rglob("*.deep.*.idx"))
    whole = index.read_bytes()
    index.write_bytes(b"")
    later = threading.Timer(1, index.write_bytes, [whole])
    later.start()
    engine.client.load(engine.name)
    later.join()
    queries = [signal.features[:5] for signal in signals]
    assert_same(engine.search(queries, 3), ExactEngine(signals).search(queries, 3))


def test_what_milvus_cannot_do_the_exact_engine_does(drawn_base: Path, uri: str) -> None:
    """More answers than candidates pay for, and a query that is no number."""
    push(drawn_base, "--milvus-uri", uri)
    config = settings(drawn_base, uri)
    database = open_database(drawn_base)
    signals = signals_of(database, **config.distance)
    exact = ExactEngine(signals)
    engine, _ = open_milvus(database, signals, config.milvus, exact)
    engine.candidates = 16
    queries = [signal.features[:3].copy() for signal in signals]
    assert_same(engine.search(queries, 500), exact.search(queries, 500))
    queries[1][1] = np.nan
    found, expected = engine.search(queries, 3), exact.search(queries, 3)
    assert_same(found[1:2], expected[1:2])
    assert len(found) == 3


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a server that is none, takes connections only, or has its own certificate."""
    if request.param == "nobody":
        yield f"http://me:secret@127.0.0.1:{free_port()}"
    elif request.param == "mute":
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            one.listen(16)
            yield f"http://127.0.0.1:{one.getsockname()[1]}"
    else:
        if not shutil.which("openssl"):
            pytest.skip("no openssl, which makes a certificate")
        key, pem = tmp_path / "key", tmp_path / "pem"
        make = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1".split()
        make += ["-keyout", str(key), "-out", str(pem)]
        subprocess.run(make, check=True, capture_output=True)
        pair = [(key.read_bytes(), pem.read_bytes())]
        tls = grpc.server(ThreadPoolExecutor(1))
        port = tls.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        tls.start()
        yield f"https://127.0.0.1:{port}"
        tls.stop(0).wait()


@pytest.mark.parametrize(
    ("server", "status", "said"),
    [
        ("nobody", 3, "nothing is lost"),
        ("mute", 3, "nothing is lost"),
        ("own certificate", 2, "set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH to"),
    ],
    indirect=["server"],
)
def test_a_server_that_is_away_or_not_trusted(
    drawn_base: Path, server: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, within the time that MILVUS_TIMEOUT gives, without a password."""
    start = time.monotonic()
    push(drawn_base, "--milvus-uri", server, "--milvus-timeout", "1", status=status)
    assert time.monotonic() - start < 20
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "127.0.0.1" in line
    assert said in line
    assert "secret" not in line
    with pytest.raises(AwayError if status == 3 else UserError, match=said):
        opened(settings(drawn_base, server, MILVUS_TIMEOUT=1))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--distance-metric", "euclidean,cityblock"), "not color cityblock"),
        (("--milvus-uri", "nowhere"), "MILVUS_URI nowhere: neither a URL nor a file NAME.db"),
        (("--milvus-uri", "foo://x"), "MILVUS_URI foo://x: cannot be opened"),
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
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install -r requirements-milvus\.txt"):
        Client("some.db", "", "alias", 1.0)


def test_the_alias_is_of_the_folder_or_the_setting(tmp_path: Path) -> None:
    config = settings(tmp_path / "2024 Größe", "")
    assert config.milvus["alias"] == "fashion_2024_Gr__e"
    assert config.milvus["uri"].endswith("2024 Größe/models/milvus.db")
    assert settings(tmp_path, "", MILVUS_COLLECTION="mine").milvus["alias"] == "mine"

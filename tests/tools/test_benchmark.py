"""The benchmark: every part runs, at tiny sizes; its rows, its medians, and what it measures."""

import io
import json
import os
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from search.signals import Signal
from tools.benchmark import __main__ as benchmark
from tools.benchmark import command, gpu, server, timing
from tools.benchmark.inputs import DIM, QUERIES, make_database, random_features
from tools.benchmark.network import photos
from tools.benchmark.rows import Row, as_markdown, compare, compare_times, in_units
from tools.benchmark.sizes import TINY as TINY_SIZES
from utils import UserError

TINY = ("--tiny", "--rounds", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one part has made, the next one takes."""
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process what has one of its own, as each start takes seconds."""

    def run_python(base: Path, *arguments: str) -> tuple[float, str]:
        before, output = (os.getcwd(), sys.argv, torch.get_num_threads()), io.StringIO()
        os.chdir(base)
        try:
            with redirect_stdout(output):
                if arguments[0] == "-c":
                    sys.argv = ["-c", *arguments[2:]]
                    exec(arguments[1], {"__name__": "__main__"})  # noqa: S102
                else:
                    sys.argv = list(arguments)
                    runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise UserError(f"{arguments}: exit status {end.code}") from None
        finally:
            os.chdir(before[0])
            sys.argv = before[1]
            torch.set_num_threads(before[2])
        return 1.0, output.getvalue()

    monkeypatch.setattr(timing, "run_python", run_python)


def rows_of(path: Path) -> dict[str, dict]:
    """The rows of a result by what they measure; none of them failed."""
    rows = json.loads(path.read_text())["rows"]
    assert not [row for row in rows if row["here"].startswith("failed")]
    return {row["what"]: row for row in rows}


@pytest.mark.usefixtures("one_process")
def test_every_part_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    status = benchmark.main(
        [*TINY, "--folder", str(folder), "--output", str(tmp_path / "benchmark.json")]
    )
    assert not status
    rows = rows_of(tmp_path / "benchmark.json")
    starts = ("opening", "one exact", "20 exact", "k-means", "in-shop", "extraction", "query from",
              "training")  # fmt: skip
    assert all(any(what.startswith(start) for what in rows) for start in starts)
    assert all(row["ratio"] is None or row["ratio"] > 0 for row in rows.values())
    assert capsys.readouterr().out.count("\n| ") >= len(rows)


@pytest.mark.usefixtures("one_process")
def test_every_part_of_the_gpu_runs_on_a_cpu(folder: Path, tmp_path: Path) -> None:
    """Without tests/gpu, which is skipped here, and training, which is a part of the other one."""
    parts = [part for part in gpu.PARTS if part not in ("tests", "training")]
    output = tmp_path / "gpu.json"
    status = gpu.main(
        [*TINY, "--device=cpu", "--folder", str(folder), "--output", str(output), "--only", *parts]
    )
    assert not status
    rows = rows_of(output)
    assert {what.split(",")[0].split(" of ")[0] for what in rows} == {
        "one exact query", "20 exact queries at once", "extraction",
    }  # fmt: skip


@pytest.mark.usefixtures("one_process")
def test_growth(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    benchmark.main(["--growth", "2000", "--tiny", "--folder", str(folder),
                    "--output", str(tmp_path / "b.json")])  # fmt: skip
    rows = json.loads((tmp_path / "b_growth.json").read_text())
    assert [row["engine"].split(",")[0] for row in rows] == ["exact", "k-means", "cdist"]
    assert rows[0]["recall"] == 1
    assert (tmp_path / "b_growth.png").stat().st_size


def test_a_part_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> list[Row]:
        raise ValueError("no such\nthing")

    parts = {"a": fails, "b": lambda: [Row("b", "1 ms")]}
    assert command.measure(parts, {"card": "none"}, tmp_path / "r.json") == 1
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["card"] == "none"
    assert [row["here"] for row in content["rows"]] == ["failed: ValueError: no such", "1 ms"]
    assert "| b | 1 ms |" in capsys.readouterr().out


def test_a_process_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exit status 1: no pictures$"):
        timing.run_python(tmp_path, "-c", "import sys; print('x'); sys.exit('no pictures\\n')")


def test_medians_without_the_run_that_warms_up() -> None:
    calls: list[tuple[str, int]] = []
    runs = {name: lambda i, name=name: calls.append((name, i)) for name in "ab"}
    seconds = timing.interleaved(runs, 3)
    assert calls == [(name, i) for i in (2, 0, 1, 2) for name in "ab"]
    assert set(seconds) == {"a", "b"}
    assert all(0 <= value < 0.01 for value in seconds.values())


def test_rows() -> None:
    row = compare_times("a query", 0.0015, "peer", 0.003, "<= 0.4")
    assert row == Row("a query", "1.5 ms", "peer: 3 ms", 0.5, "<= 0.4", False)
    assert as_markdown(row) == "| a query | 1.5 ms | peer: 3 ms | 0.5 | <= 0.4 | **no** |"
    assert compare("x", "1", "2", 0.95, ">= 0.9").met
    assert compare("x", "1", "2", 0.95).met is None
    assert [in_units(s) for s in (2.5, 0.0083, 4e-6)] == ["2.5 s", "8.3 ms", "4 µs"]


def test_plain_search_on_the_device_is_cdist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CDIST_BYTES", 4 * 5 * 64)  # blocks of 64 rows
    (deep, color), queries = random_features(0, 300), random_features(QUERIES, 5)
    signals = [Signal("deep", deep.numpy(), "euclidean", 1.0),
               Signal("color", color.numpy(), "euclidean", 0.1)]  # fmt: skip
    found = gpu.PlainSearch(signals, torch.device("cpu")).search([q.numpy() for q in queries], 7)
    true = cdist(queries[0], deep) + 0.1 * cdist(queries[1], color)
    np.testing.assert_array_equal(found, true.argsort(1)[:, :7])


def test_random_features_depend_on_the_seed_alone(tmp_path: Path) -> None:
    assert torch.equal(random_features(3, 10)[0], random_features(3, 10)[0])
    assert not torch.equal(random_features(3, 10)[0], random_features(4, 10)[0])
    make_database(tmp_path, 20)
    assert np.load(tmp_path / "all_feat.npy").shape == (20, DIM)
    before = (tmp_path / "all_feat.npy").stat().st_mtime_ns
    make_database(tmp_path, 20)
    assert (tmp_path / "all_feat.npy").stat().st_mtime_ns == before


def test_the_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn")
    base = photos(folder, TINY_SIZES)
    if not (base / "all_feat.json").exists():
        timing.run_project("feature_extractor.py", base)
    flags = ("--clients=2", "--seconds=0.5", "--single=2", "--warm-up=2")
    server.main([f"--dataset-base={base}", *flags])
    output = capsys.readouterr().out
    assert re.search(r"2 clients, 0.5 s: \d+ x 200; [\d.]+ answers a second", output)
    assert re.search(r"memory: \d+ MB before, \d+ MB after", output)

"""The `Searcher` answers as the scripts do, from files, PIL pictures and several threads."""

import io
import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

import feature_extractor
import kmeans
import retrieval
from config import Config
from features.database import open_database
from search import Searcher
from utils import UserError

MACHINE = ("--amp", "off", "--device", "cpu")


@pytest.fixture(scope="module")
def base(few_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 real photos of three categories with features and 3 clusters."""
    base = Path(shutil.copytree(few_photos, tmp_path_factory.mktemp("searcher") / "data"))
    data = ("--dataset-base", str(base))
    assert (
        feature_extractor.main([*data, *MACHINE, "--num-workers", "0", "--color-top-n", "3"]) == 0
    )
    kmeans.main([*data, "--n-clusters", "3"])
    return base


@pytest.fixture(scope="module")
def searcher(base: Path) -> Searcher:
    return Searcher(base, Config(DATASET_BASE=base, DEVICE="cpu"))


@pytest.mark.parametrize("flags", [{}, {"engine": "kmeans"}, {"category": "hat"}])
def test_matches_are_those_that_retrieval_prints(base, searcher, capsys, flags) -> None:
    name = open_database(base).paths[10]
    capsys.readouterr()
    argv = [name, "--dataset-base", str(base), "--top-n", "4", "--json", "--device", "cpu"]
    retrieval.main([*argv, *(word for k, v in flags.items() for word in (f"--{k}", v))])
    printed = json.loads(capsys.readouterr().out)[0]["results"]
    found = searcher.search(name, count=4, **flags)
    assert [match.rank for match in found] == [1, 2, 3, 4]
    for match, record in zip(found, printed, strict=True):
        for key in ("rank", "path", "distance", "category", "item"):
            assert getattr(match, key) == record[key]
        assert match.parts == {key: record[key] for key in ("deep", "color", "palette")}


def test_distances_are_the_weighted_sum_of_cdist(base: Path, searcher: Searcher) -> None:
    database = open_database(base)
    found = searcher.search(base / database.paths[3], count=24, with_own=True)
    features = (database.deep[0], database.color, database.palette)
    weights = (1.0, 0.1, 5.0)
    total = sum(w * cdist(f[3:4], f)[0] for w, f in zip(weights, features, strict=True))
    assert [match.path for match in found] == [database.paths[row] for row in total.argsort()]
    np.testing.assert_allclose([m.distance for m in found], np.sort(total), atol=1e-3)


def test_a_path_a_pil_picture_and_an_open_file_are_the_same_query(base, searcher) -> None:
    path = base / open_database(base).paths[5]
    box = (5, 5, 90, 80)
    expected = searcher.search(path, box=box, with_own=True)
    assert searcher.search(str(path), box=box, with_own=True) == expected
    assert searcher.search(io.BytesIO(path.read_bytes()), box=box, with_own=True) == expected
    with Image.open(path) as picture:
        assert searcher.search(picture, box=box) == expected  # of no file
    assert searcher.search(path, with_own=True) != expected


@pytest.fixture(scope="module")
def copied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos with five copies of the first, and it scaled and saved again."""
    copied = Path(shutil.copytree(base, tmp_path_factory.mktemp("copied") / "data"))
    first = copied / open_database(base).paths[0]
    for number in range(5):
        shutil.copyfile(first, first.parent / f"copy {number}.jpg")
    with Image.open(first) as picture:
        size = (picture.width * 3 // 4, picture.height * 3 // 4)
        picture.resize(size).save(first.parent / "smaller.jpg", quality=90)
    flags = ("--num-workers", "0", "--color-top-n", "3", "--update")
    assert feature_extractor.main(["--dataset-base", str(copied), *MACHINE, *flags]) == 0
    return copied


def test_copies_are_one_answer_and_the_querys_own_picture_is_none(copied: Path) -> None:
    first, *others = open_database(copied).paths
    copies = {first, *(f"dress/copy {number}.jpg" for number in range(5))}
    with Searcher(copied, Config(DATASET_BASE=copied, DEVICE="cpu")) as searcher:
        upload = io.BytesIO((copied / first).read_bytes())
        for query in (copied / first, first, copied / "dress/copy 3.jpg", upload):
            found = searcher.search(query, count=99)
            assert {match.path for match in found} == set(others) - copies
        assert found[0].path == "dress/smaller.jpg"
        assert [match.duplicate_of for match in found] == [0] + [None] * (len(found) - 1)

        smaller = copied / "dress/smaller.jpg"
        plain = searcher.search(smaller, count=7, with_own=True)
        assert {match.path for match in plain} == {*copies, "dress/smaller.jpg"}
        assert {(match.copies, match.duplicate_of) for match in plain} == {(1, 0)}
        found = searcher.search(smaller, count=20, collapse=True)
        assert found[0].path in copies
        assert [match.copies for match in found] == [6] + [1] * 19
        assert len(copies & {match.path for match in found}) == 1
        narrow = searcher.search(smaller, count=3, collapse=True, engine="kmeans", category="dress")
        assert [match.copies for match in narrow] == [6, 1, 1]


def test_several_pictures_of_one_item_are_one_query(base: Path, searcher: Searcher) -> None:
    """The mean of their features: of a picture and itself, its own."""
    paths = [base / path for path in open_database(base).paths[:3]]
    assert searcher.search([paths[0]]) == searcher.search(paths[0])
    assert not {*paths} & {base / match.path for match in searcher.search(paths, count=24)}
    twice = searcher.search([paths[0], paths[0]])
    assert [match.path for match in twice] == [m.path for m in searcher.search(paths[0])]
    mean = np.mean([searcher.extract([searcher.read(path)])[0] for path in paths], axis=0)
    found = searcher.search(paths, count=24, with_own=True)
    near = {match.path: match.parts["deep"] for match in found}
    expected = cdist(mean, searcher.database.deep[0])[0]
    np.testing.assert_allclose([near[p] for p in searcher.database.paths], expected, atol=1e-3)


def test_per_item_gives_each_item_once(base: Path, searcher: Searcher, monkeypatch) -> None:
    items = np.array([f"item {row // 4}" for row in range(24)])
    monkeypatch.setitem(vars(searcher.database), "items", items)
    found = searcher.search(searcher.database.paths[0], count=6, per_item=True)
    assert sorted(match.item for match in found) == [f"item {i}" for i in range(6)]


def test_threads_get_the_answers_of_one(base: Path, searcher: Searcher) -> None:
    paths = list(searcher.database.paths)
    expected = [searcher.search(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(searcher.search, paths)) == expected


def test_a_server_that_does_not_answer_holds_up_no_other_engine(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = Config(DATASET_BASE=base, DEVICE="cpu", MILVUS_URI=uri, MILVUS_TIMEOUT=5)
        searcher = Searcher(base, config)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(searcher.engine, "milvus")
            while not waiting.running():
                time.sleep(0.01)
            searcher.engine("exact")
            assert not waiting.done()
            with pytest.raises(UserError):
                waiting.result()


def test_a_gpu_without_memory_is_one_line(searcher: Searcher, monkeypatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("search.searcher.extract_queries", exhausted)
    with pytest.raises(UserError, match="the GPU's memory is too small; set EXTRACT_BATCH_SIZE"):
        searcher.search(searcher.database.paths[0])


def test_other_weights_are_another_engine_which_stays_open(searcher: Searcher) -> None:
    features = [signal.features[:1] for signal in searcher.signals]
    named = searcher.engine("exact", (0.0, 0.0, 1.0))
    (answer,) = named.engine.search(features, 5)
    palette = cdist(features[2], searcher.signals[2].features)[0]
    np.testing.assert_array_equal(answer.distances, np.sort(palette)[:5])
    assert searcher.engine("exact", [0.0, 0.0, 1.0]) is named
    assert searcher.engine("exact") is searcher.engine()


def test_what_cannot_be_searched_is_said(
    base: Path, searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a box to find, too: without reading the models again."""
    monkeypatch.setattr("search.query.sha256_of", None)
    path = searcher.database.paths[0]
    for arguments, said in (
        ({"picture": "gone.jpg"}, "gone.jpg: no such file"),
        ({"picture": path, "category": "boots"}, "'boots': no such category; there are dress"),
        ({"picture": path, "box": (900, 900, 950, 950)}, "leaves nothing"),
        ({"picture": path, "box": "auto"}, "finds no garments"),
    ):
        with pytest.raises(UserError, match=said):
            searcher.search(**arguments)
    with pytest.raises(ValueError, match="name a picture, or words"):
        searcher.search(text=" \n")
    with pytest.raises(UserError, match="engine 'fast': not one of exact, kmeans, milvus"):
        searcher.search(path, engine="fast")
    with pytest.raises(UserError, match="no feature database"):
        Searcher(tmp_path)


def test_repr_says_what_is_searched_and_closing_ends_it(base: Path) -> None:
    with Searcher(base, Config(DATASET_BASE=base, DEVICE="cpu", PALETTE_WEIGHT=0)) as opened:
        assert len(opened) == 24
        assert repr(opened) == (
            f"Searcher({str(base)!r}: 24 pictures, deep euclidean + 0.1 color euclidean"
            " + 0 palette euclidean, cpu)"
        )
        path = opened.database.paths[0]
        assert opened.search(path, count=1, with_own=True)[0].path == path
    for query in ({"picture": path}, {"text": "red"}):
        with pytest.raises(ValueError, match="closed"):
            opened.search(**query)

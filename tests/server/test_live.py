"""The collection of the server, and its replacement."""

import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from config import Config
from search.query import Query, Stopwatch
from server import ranking
from server.api import build_app
from server.live import Collection, LiveCollection
from server.ranking import balanced
from server.schemas import SearchOptions
from tests.conftest import replace_features
from tests.server.web_base import own_config
from tests.test_feature_extractor import extract
from utils import file_stamp

pytest_plugins = ("tests.server.web_base",)


@pytest.fixture
def live(served: Path, tmp_path: Path) -> LiveCollection:
    """A copy of the collection, whose files may be replaced."""
    return LiveCollection(own_config(served, tmp_path))


def replace_them(base: Path) -> np.ndarray:
    """Other features in the place of the collection's, as a new extraction writes them."""
    features = np.load(base / "all_feat.npy")[:, ::-1].copy()
    for name in ("all_feat.npy", "all_feat.json"):
        data = (base / name).read_bytes()
        (base / name).unlink()  # it is a link to that of all tests
        (base / name).write_bytes(data)
    replace_features(base, "all_feat.npy", features)
    return features


def refreshed(live: LiveCollection) -> Collection:
    """The collection after a check of its files."""
    live.refresh()
    return live.collection


def test_a_new_extraction_is_opened_and_the_older_one_still_answers(live: LiveCollection) -> None:
    first = refreshed(live)
    assert refreshed(live) is first
    before = np.array(first.signals[0].features[:5])
    features = replace_them(live.config.DATASET_BASE)
    second = refreshed(live)
    assert second is not first
    assert second.version != first.version
    assert np.array_equal(second.signals[0].features, features)
    assert np.array_equal(first.signals[0].features[:5], before)  # a request that goes on
    assert refreshed(live) is second


def test_the_same_files_again_keep_the_uploads(live: LiveCollection) -> None:
    """A link to a file, as a backup makes it, changes the time of its last change."""
    first = live.collection
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    name = first.keep([], [Query("a.jpg", [image], Image.new("RGB", (4, 4)))])
    info = live.config.DATASET_BASE / "all_feat.json"
    before = file_stamp(info)
    info.with_suffix(".backup").hardlink_to(info)
    assert refreshed(live) is first
    assert file_stamp(info) != before
    assert first.uploaded(name).image is image


def test_other_names_of_the_same_features_are_another_version(
    few_photos: Path, tmp_path: Path
) -> None:
    """Else its map would show pictures by ids that are gone."""
    base = Path(shutil.copytree(few_photos, tmp_path / "data"))
    assert extract(base) == 0
    config = Config(DATASET_BASE=base, DEVICE="cpu")
    before = Collection(config)
    (base / "hat").rename(base / "hats")
    assert extract(base, "--update") == 0
    after = Collection(config)
    assert after.database.metadata.sha256 == before.database.metadata.sha256
    assert after.version != before.version


def test_the_older_one_is_released(live: LiveCollection) -> None:
    live.collection.state()
    older = weakref.ref(live.collection)
    replace_them(live.config.DATASET_BASE)
    live.refresh()
    live.refresh()
    assert older() is None


def test_a_running_server_opens_it_by_itself(live: LiveCollection) -> None:
    with TestClient(build_app(live.config, live), "http://127.0.0.1") as client:
        before = client.get("/api/health").json()["collection"]
        replace_them(live.config.DATASET_BASE)
        end = time.monotonic() + 60
        while client.get("/api/health").json()["collection"] == before:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_first_searches_at_once_make_the_quantised_features_once(live: LiveCollection) -> None:
    base = live.config.DATASET_BASE
    for file in (*base.glob("*.codes.npy"), *base.glob("*.bounds.npy")):
        file.unlink()

    def search(number: int) -> list[str]:
        engine = ("exact", "kmeans")[number % 2]
        options = SearchOptions(color="#b3202c", balance=1 - number / 16, engine=engine)
        answer = ranking.search(live.collection, options, Stopwatch())
        return [one.path for one in answer.answers]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(search, range(8)))
    assert list(base.glob("*.codes.npy"))
    assert not list(base.glob(".*.part"))
    assert found == list(map(search, range(8)))


def test_copies_are_one_answer_and_counted(live: LiveCollection, ids: list[str]) -> None:
    """The nearest of them; a picture that is searched by does not find its own copies."""
    collection = live.collection

    def search(row: int, collapse: bool = True) -> dict[int, int]:
        options = SearchOptions(pictures=[ids[row]], count=50, collapse_duplicates=collapse)
        found = ranking.search(collection, options, Stopwatch()).answers
        return {ids.index(one.id): one.copies for one in found}

    near = list(search(0))
    copies = [near[i] for i in (2, 5, 9, 30)]
    content = np.array(collection.database.content)
    content[copies] = content[copies[0]]
    collection.database = replace(collection.database, content=content)
    assert list(search(0, collapse=False)) == near
    found = search(0)
    assert list(found)[:47] == [row for row in near if row not in copies[1:]]
    assert {row: count for row, count in found.items() if count > 1} == {copies[0]: 4}
    assert not set(copies) & search(copies[0]).keys()


def test_a_broken_one_leaves_the_older(live: LiveCollection, capsys) -> None:
    """With a message, until the files are whole."""
    first = refreshed(live)
    base = live.config.DATASET_BASE
    features = replace_them(base)
    info = (base / "all_feat.json").read_bytes()
    (base / "all_feat.json").write_bytes(info[:-30])
    assert refreshed(live) is first
    assert refreshed(live) is first
    assert capsys.readouterr().err.count("the older collection stays: ") == 1
    (base / "all_feat.json").unlink()
    assert refreshed(live) is first
    (base / "all_feat.json").write_bytes(info)
    assert np.array_equal(refreshed(live).signals[0].features, features)


def test_the_slider_moves_weights(collection: Collection) -> None:
    def weights(balance: float) -> dict[str, float]:
        return {signal.name: signal.weight for signal in balanced(collection.signals, balance)}

    assert weights(0.5) == {"deep": 1, "color": 0.1, "palette": 5}
    assert weights(0) == {"deep": 1, "color": 0, "palette": 0}
    assert weights(1) == {"deep": 0, "color": 0.1, "palette": 5}
    assert weights(0.25) == {"deep": 1, "color": 0.05, "palette": 2.5}
    assert weights(0.75) == {"deep": 0.5, "color": 0.1, "palette": 5}


def test_an_engine_without_its_file_is_not_ready(live: LiveCollection) -> None:
    """The reason names the command, not the path of the collection."""
    base = live.config.DATASET_BASE
    (base / "models/kmeans.m").unlink()
    (kmeans,) = (one for one in refreshed(live).state().engines if one.name == "kmeans")
    assert not kmeans.ready
    assert "run: python kmeans.py" in kmeans.reason
    assert str(base) not in kmeans.reason


def test_the_path_of_the_collection_is_hidden(collection: Collection) -> None:
    base = collection.base
    assert collection.hide(f"{base}/all_feat.npy: damaged") == "DATASET_BASE/all_feat.npy: damaged"
    assert (
        collection.hide(f"run: x --dataset-base '{base}'.")
        == "run: x --dataset-base 'DATASET_BASE'."
    )

"""The collection of the server, and its replacement."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from config import Config
from server.collection import CHECK_SECONDS, Collection, LiveCollection
from server.ranking import balanced
from tests.conftest import replace_features

pytest_plugins = ("tests.server.web_base",)


@pytest.fixture
def live(served: Path, tmp_path: Path) -> LiveCollection:
    """A copy of the collection, whose files may be replaced."""
    base = tmp_path / "own"
    shutil.copytree(served, base, copy_function=os.link)
    return LiveCollection(Config(DATASET_BASE=base, DEVICE="cpu", _env_file=None))


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
    live.checked = time.monotonic() - CHECK_SECONDS
    return live.current()


def test_a_new_extraction_is_opened_and_the_older_one_still_answers(live: LiveCollection) -> None:
    first = refreshed(live)
    assert refreshed(live) is first
    before = np.array(first.signals[0].features[:5])
    features = replace_them(live.config.DATASET_BASE)
    assert live.current() is first  # not checked so soon
    second = refreshed(live)
    assert second is not first
    assert second.version != first.version
    assert np.array_equal(second.signals[0].features, features)
    assert np.array_equal(first.signals[0].features[:5], before)  # a request that goes on
    assert refreshed(live) is second


def test_a_broken_one_leaves_the_older(live: LiveCollection, capsys) -> None:
    """With a message, until the files are whole."""
    first = refreshed(live)
    base = live.config.DATASET_BASE
    features = replace_them(base)
    info = (base / "all_feat.json").read_bytes()
    (base / "all_feat.json").write_bytes(info[:-30])
    assert refreshed(live) is first
    assert "the older collection stays: " in capsys.readouterr().out
    (base / "all_feat.json").unlink()
    assert refreshed(live) is first
    (base / "all_feat.json").write_bytes(info)
    assert np.array_equal(refreshed(live).signals[0].features, features)


def test_the_slider_moves_weights(collection: Collection) -> None:
    def weights(balance: float) -> dict[str, float]:
        return {signal.name: signal.weight for signal in balanced(collection.signals, balance)}

    assert weights(0.5) == {"deep": 1, "color": 0.1, "palette": 4}
    assert weights(0) == {"deep": 1, "color": 0, "palette": 0}
    assert weights(1) == {"deep": 0, "color": 0.1, "palette": 4}
    assert weights(0.25) == {"deep": 1, "color": 0.05, "palette": 2}
    assert weights(0.75) == {"deep": 0.5, "color": 0.1, "palette": 4}


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

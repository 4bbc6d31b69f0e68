"""web_collection.py: what is kept, and a collection that is replaced under the server."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from server.collection import LOOK_SECONDS, OPENED, Collection, Living, Recent
from tests.conftest import replace_features

pytest_plugins = ("tests.server.web_base",)


def test_the_value_not_used_for_longest_is_forgotten() -> None:
    kept: Recent[int] = Recent(3)
    for number in range(3):
        kept.put(number, 10 * number)
    assert kept.get(0) == 0  # now used last
    kept.put(3, 30)
    assert [kept.get(number) for number in range(4)] == [0, None, 20, 30]
    kept.put(2, 21)
    kept.put(4, 40)
    assert [kept.get(number) for number in range(5)] == [None, None, 21, 30, 40]


@pytest.fixture
def living(served: Path, tmp_path: Path) -> Living:
    """A copy of the collection, whose files may be replaced."""
    base = tmp_path / "own"
    shutil.copytree(served, base, copy_function=os.link)
    return Living(Config(DATASET_BASE=base, _env_file=None), torch.device("cpu"))


def replace_them(base: Path) -> np.ndarray:
    """Other features in the place of the collection's, as a new extraction writes them."""
    features = np.load(base / "all_feat.npy")[:, ::-1].copy()
    for name in ("all_feat.npy", "all_feat.json"):
        data = (base / name).read_bytes()
        (base / name).unlink()  # it is a link to that of all tests
        (base / name).write_bytes(data)
    replace_features(base, "all_feat.npy", features)
    return features


def look(living: Living) -> Collection:
    """The collection, looked at again."""
    living.looked = time.monotonic() - LOOK_SECONDS
    return living.now()


def test_a_new_extraction_is_seen_and_the_older_one_still_answers(living: Living) -> None:
    first = look(living)
    assert look(living) is first
    before = np.array(first.signals[0].features[:5])
    features = replace_them(living.config.DATASET_BASE)
    assert living.now() is first  # not looked at so soon
    second = look(living)
    assert second is not first
    assert second.version != first.version
    assert np.array_equal(second.signals[0].features, features)
    assert np.array_equal(first.signals[0].features[:5], before)  # a request that goes on
    assert look(living) is second


def test_a_broken_one_leaves_the_older_and_says_so(living: Living, capsys) -> None:
    """Until it is mended."""
    first = look(living)
    base = living.config.DATASET_BASE
    features = replace_them(base)
    info = (base / "all_feat.json").read_bytes()
    (base / "all_feat.json").write_bytes(info[:-30])
    assert look(living) is first
    assert "the older collection stays: " in capsys.readouterr().out
    (base / "all_feat.json").unlink()
    assert look(living) is first
    (base / "all_feat.json").write_bytes(info)
    assert np.array_equal(look(living).signals[0].features, features)


def test_the_slider_moves_weights(collection: Collection) -> None:
    def weights(balance: float) -> dict[str, float]:
        return {signal.name: signal.weight for signal in collection.weighted(balance)}

    assert weights(0.5) == {"deep": 1, "color": 0.1, "palette": 4}
    assert weights(0) == {"deep": 1, "color": 0, "palette": 0}
    assert weights(1) == {"deep": 0, "color": 0.1, "palette": 4}
    assert weights(0.25) == {"deep": 1, "color": 0.05, "palette": 2}
    assert weights(0.75) == {"deep": 0.5, "color": 0.1, "palette": 4}


def test_engines_are_opened_once_and_few_are_kept(collection: Collection) -> None:
    signals = collection.weighted(0.3)
    assert collection.engine("exact", signals) is collection.engine("exact", signals)
    for step in range(2 * OPENED):
        collection.engine("exact", collection.weighted(step / 100))
    assert len(collection.opened.values) == OPENED


def test_an_engine_that_lacks_its_file_is_told_as_not_ready(living: Living) -> None:
    """Guards Collection.state: the reason names what makes it, not where the collection lies."""
    base = living.config.DATASET_BASE
    (base / "models/kmeans.m").unlink()
    (kmeans,) = (one for one in look(living).state().engines if one.name == "kmeans")
    assert not kmeans.ready
    assert "run: python kmeans.py" in kmeans.reason
    assert str(base) not in kmeans.reason


def test_the_place_of_the_collection_is_hidden(collection: Collection) -> None:
    base = collection.config.DATASET_BASE
    assert collection.hide(f"{base}/all_feat.npy: damaged") == "DATASET_BASE/all_feat.npy: damaged"

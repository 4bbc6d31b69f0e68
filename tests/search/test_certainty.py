"""Probabilities as people get them: from the Searcher, retrieval.py and the server's search."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

import evaluate
import retrieval
from config import Config
from search import Searcher
from search.certainty import as_percent
from search.query import Stopwatch
from server import ranking
from server.live import Collection
from server.schemas import SearchOptions
from tests.server.web_base import own_config
from utils import UserError

pytest_plugins = ("tests.server.web_base",)


@pytest.fixture(scope="module")
def config(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The settings of a calibrated copy of the drawn collection."""
    config = own_config(served, tmp_path_factory.mktemp("sure"))
    evaluate.main(["--dataset-base", str(config.DATASET_BASE), "--calibrate"])
    return config


@pytest.fixture(scope="module")
def collection(config: Config) -> Collection:
    return Collection(config)


def expected(collection: Collection, row: int, searched: np.ndarray) -> dict[int, float]:
    """The probability of each of some rows for one of the collection's pictures, by a loop."""
    form = collection.calibration.answers
    distances = sum(
        s.weight * cdist(s.features[[row]], s.features[searched], s.metric)[0]
        for s in collection.signals
    )
    order = [i for i in np.argsort(distances, kind="stable") if searched[i] != row][:64]
    scale = np.median(distances[order][9:50]) ** form.scale
    nearest: dict[object, float] = {}
    for i in order:
        item = collection.database.items[searched[i]] or int(searched[i])
        nearest.setdefault(item, distances[i])
    weights = {k: np.exp(-form.slope * (d / scale) ** form.power) for k, d in nearest.items()}
    total = sum(weights.values()) + np.exp(form.none)
    items = {int(searched[i]): collection.database.items[searched[i]] for i in order}
    return {row: weights[item or row] / total for row, item in items.items()}


@pytest.mark.parametrize(
    "options", [{}, {"engine": "kmeans"}, {"per_item": True}, {"category": "Blouse"}]
)
def test_probabilities_are_those_of_a_loop(collection: Collection, options: dict) -> None:
    row = int(np.flatnonzero(collection.database.items != "")[4])
    category = options.get("category")
    searched = np.arange(len(collection))
    if category:
        searched = collection.database.rows_of(category)
    every = Config(**{**collection.config.model_dump(), "NPROBE": 6})  # of 6 clusters: exact
    with Searcher(collection.base, every) as searcher:
        found = searcher.search(collection.database.paths[row], count=8, **options)
        again = searcher.search(collection.database.paths[row], 8, min_probability=0.02, **options)
    of_rows = expected(collection, row, searched)
    rows = [collection.database.paths.index(match.path) for match in found]
    assert [m.probability for m in found] == pytest.approx([of_rows[r] for r in rows], abs=1e-3)
    assert again == [match for match in found if match.probability >= 0.02]
    assert again.present == found.present
    assert 0 < found.present < 1


def test_a_view_of_the_item_makes_its_presence_more_likely(collection: Collection) -> None:
    """Than a picture of noise, of which nothing in the collection is near."""
    rng, searcher = np.random.default_rng(0), collection
    pixels = rng.integers(256, size=(120, 90, 3), dtype=np.uint8)
    noise = searcher.read(Image.fromarray(pixels))
    stranger = searcher.rank(noise, searcher.extract([noise]))
    row = int(np.flatnonzero(collection.database.items != "")[4])
    own = searcher.search(collection.database.paths[row], with_own=True)
    assert own.present > max(stranger.present, 0.5)
    assert own[0].probability > 0.5


def test_the_script_prints_them_and_an_empty_answer_is_one_line(config, collection, capsys) -> None:
    name, base = collection.database.paths[3], str(config.DATASET_BASE)
    flags = [name, "--dataset-base", base, "--engine", "exact", "--device", "cpu"]
    capsys.readouterr()
    retrieval.main([*flags, "--json"])
    record = json.loads(capsys.readouterr().out)[0]
    with Searcher(base, config) as searcher:
        found = searcher.search(name)
    assert [one["probability"] for one in record["results"]] == [m.probability for m in found]
    assert record["present"] == found.present
    retrieval.main(flags)
    out = capsys.readouterr().out
    assert "same item" in out
    assert f"in this collection ({as_percent(found.present)})" in out
    retrieval.main([*flags, "--min-probability", "1"])
    assert f"{name}: no answer reaches a probability of 1\n" in capsys.readouterr().out
    retrieval.main([*flags, "--min-probability", "1", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["results"] == []
    assert "no answer reaches" in err
    with pytest.raises(SystemExit):
        retrieval.main([*flags, "--min-probability", "2"])


def test_without_a_calibration_there_is_none(served: Path, capsys) -> None:
    with Searcher(served, Config(DATASET_BASE=served, DEVICE="cpu", _env_file=None)) as searcher:
        found = searcher.search(searcher.database.paths[3])
        assert {match.probability for match in found} == {found.present} == {None}
        with pytest.raises(UserError, match="--calibrate"):
            searcher.search(searcher.database.paths[3], min_probability=0.5)
    assert capsys.readouterr().err == ""


def test_the_page_gets_the_same_and_none_with_other_weights(collection: Collection) -> None:
    row = int(np.flatnonzero(collection.database.items != "")[4])
    picture = collection.picture(row).id

    def search(**options: object) -> ranking.SearchAnswer:
        chosen = SearchOptions(pictures=[picture], count=8, **options)
        return ranking.search(collection, chosen, Stopwatch())

    found, of_rows = search(), expected(collection, row, np.arange(len(collection)))
    rows = [collection.row(answer.id) for answer in found.answers]
    assert [a.probability for a in found.answers] == pytest.approx([of_rows[r] for r in rows])
    assert (found.same, 0 < found.present < 1) == ("item", True)
    few = search(min_probability=0.02)
    assert few.answers == [a for a in found.answers if a.probability >= 0.02]
    for changed in ({"balance": 0.2}, {"like": [picture]}, {"other_color": True}):
        other = search(**changed)
        assert {a.probability for a in other.answers} == {other.present} == {other.same} == {None}
        with pytest.raises(UserError, match="min_probability"):
            search(min_probability=0.5, **changed)


def test_weights_of_another_calibration_are_warned_of_and_searched_with(config, capsys) -> None:
    other = Config(**{**config.model_dump(), "PALETTE_WEIGHT": 1.0})
    with Searcher(config.DATASET_BASE, other) as searcher:
        assert "run: python evaluate.py --calibrate" in capsys.readouterr().err
        assert {m.probability for m in searcher.search(searcher.database.paths[0])} == {None}


def test_percent_is_never_all_or_nothing() -> None:
    assert [as_percent(p) for p in (0, 0.004, 0.5, 0.99, 1)] == ["<1%", "<1%", "50%", "99%", ">99%"]

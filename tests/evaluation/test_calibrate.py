"""Calibration: what it finds where the true probabilities are known, and on which pictures."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import evaluate
from evaluation.calibrate import Competitors, competitors, fit
from evaluation.metrics import calibration_error
from evaluation.protocols import CONSUMER_TASK, item_tasks
from evaluation.reliability import as_searched, measure
from features.database import open_database
from pictures.table import choose_validation
from search.certainty import certainty_of, open_calibration
from search.engine import Answer, ExactEngine
from search.signals import signals_of
from tests.conftest import replace_features, stored_features
from tests.evaluation.test_protocols import consumer_pairs
from tests.evaluation.test_tune_weights import record_splits
from utils import UserError

SIGMA = 0.4


def gaussian(rng: np.random.Generator, items: int, queries: int) -> tuple[Competitors, list]:
    """One picture of each item; a query is its item's picture and Gaussian noise."""
    centres = rng.normal(size=(items, 6))
    item = rng.integers(items, size=queries)
    distances = np.linalg.norm(
        centres[item][:, None] + SIGMA * rng.normal(size=(queries, 1, 6)) - centres, axis=2
    )
    order = np.argsort(distances, axis=1)
    answers = [Answer(o, d[o], d[o][:, None]) for o, d in zip(order, distances, strict=True)]
    # The queries are rows after those of the items.
    labels = np.char.mod("i%d", np.concatenate([np.arange(items), item]))
    rows = items + np.arange(queries)
    return competitors(answers, rows, labels, np.zeros(queries, bool)), [answers, labels, rows]


def test_the_fit_finds_the_posterior_of_gaussian_noise(rng: np.random.Generator) -> None:
    """By Bayes' theorem the items' probabilities are shares of exp(-d ** 2 / (2 sigma ** 2))."""
    found = fit(gaussian(rng, 60, 2000)[0], 2, 0.0)
    assert found.slope == pytest.approx(1 / (2 * SIGMA**2), rel=0.15)
    other, (answers, labels, rows) = gaussian(np.random.default_rng(5), 60, 2000)
    shares = np.exp(found.log_shares(other.nearest, other.density))
    right = labels[[answer.rows[0] for answer in answers]] == labels[rows]
    assert 0.5 < right.mean() < 0.95
    assert calibration_error(shares[:, :1], right[:, None], np.arange(2000)).value < 0.04


def test_few_items_that_are_all_found_do_not_give_certainty(rng: np.random.Generator) -> None:
    nearest = np.tile(np.concatenate([[1.0], np.full(63, 9.0)]), (12, 1))
    few = Competitors(nearest, np.full(12, 9.0), np.zeros(12, int), np.repeat(np.arange(4), 3))
    share = np.exp(fit(few, 1, 1.0).log_shares(nearest, few.density))[0, 0]
    assert share == pytest.approx(5 / 6, abs=0.01)  # (n + 1) / (n + 2), of 4 items


def test_an_items_pictures_compete_as_one_and_the_nearer_is_surer(measured: Path) -> None:
    calibrated(measured)
    database = open_database(measured)
    calibration = open_calibration(database, signals(measured))
    assert calibration
    labels = np.array(["a", "b", "a", "", "", "c"])
    distances = np.array([1.0, 1.5, 1.6, 2.0, 2.0, 2.5])
    near = Answer(np.arange(6), distances, distances[:, None])
    of_rows = certainty_of(calibration, near, labels).of_rows
    assert of_rows[0] == of_rows[2] > of_rows[1] > of_rows[3] == of_rows[4] > of_rows[5]
    form = calibration.answers
    scale = distances[-1] ** form.scale
    weight = np.exp(-form.slope * (distances[[0, 1, 3, 4, 5]] / scale) ** form.power)
    share = weight[0] / (weight.sum() + np.exp(form.none))
    assert of_rows[0] == pytest.approx(share)


def signals(base: Path) -> list:
    return signals_of(open_database(base), ("euclidean", "euclidean"), (), 0.1, 5.0)


def calibrated(base: Path, *flags: str, noise: float = 0.7) -> None:
    """Make the pictures of an item alike, and calibrate."""
    rng, items = np.random.default_rng(3), np.load(base / "all_item.npy")
    _, number = np.unique(items, return_inverse=True)
    # Without an item, each is one of its own.
    number = np.where(items == "", number.max() + 1 + np.arange(len(items)), number)
    deep = 4 * rng.normal(size=(number.max() + 1, 6))[number]
    deep += 4 * noise * rng.normal(size=deep.shape)
    replace_features(base, "all_feat.npy", deep.astype(np.float32))
    record_splits(base, None)
    evaluate.main(["--dataset-base", str(base), "--calibrate", *flags])


def test_figures_on_test_items_equal_a_loop(measured: Path, capsys) -> None:
    calibrated(measured)
    database, ranked = open_database(measured), signals(measured)
    calibration = open_calibration(database, ranked)
    assert calibration
    published = item_tasks(database)[0]
    task = as_searched(published, len(database.categories))
    assert set(task.queries) == {*published.queries, *published.gallery}
    engine = ExactEngine(ranked)
    found = measure(task, engine, ranked, calibration)
    capsys.readouterr()
    evaluate.main(["--dataset-base", str(measured), "--json"])
    printed = json.loads(capsys.readouterr().out)["certainty"]
    assert printed["open_set"]["probability"] == found["open_set"]["probability"]
    assert printed["ece@1"]["value"] == pytest.approx(found["ece@1"]["value"])

    whole = ExactEngine(ranked)
    scores, right = [], []
    for query in task.queries:
        others = task.gallery[task.gallery != query]
        (answer,) = whole.search([s.features[[query]] for s in ranked], 64, others)
        of_rows = certainty_of(calibration, answer, task.labels).of_rows
        for row in answer.rows[:10].tolist():
            scores.append(of_rows[row])
            right.append(task.labels[row] == task.labels[query])
    assert found["auroc@10"]["probability"] == pytest.approx(roc_auc_score(right, scores))

    # Which items are out shows in the counts; with each of them the shares follow from a loop.
    sets = found["open_set"]
    out = choose_validation(task.labels[task.queries].astype(str), 0.5)
    gone = set(task.labels[task.queries[out]].tolist())
    assert len(gone) == round(0.5 * len(set(task.labels[task.queries].tolist())))
    rest = np.array([row for row in task.gallery if task.labels[row] not in gone])
    first = [
        whole.distances([s.features[[q]] for s in ranked], rest[rest != q]).min()
        for q in task.queries
    ]
    there = [-d for d, is_out in zip(first, out, strict=True) if not is_out]
    away = [-d for d, is_out in zip(first, out, strict=True) if is_out]
    limit = sorted(there)[int(0.05 * (len(there) - 1))]
    assert sets["queries"] == len(task.queries)
    assert sets["distance"]["false_alarms"] == pytest.approx(np.mean([d >= limit for d in away]))
    assert sets["distance"]["auroc"] == pytest.approx(roc_auc_score(~out, -np.array(first)))
    fixed = -calibration.thresholds["distance"]
    assert sets["distance"]["threshold_found"] == pytest.approx(
        np.mean([d >= fixed for d in there])
    )


def test_only_training_items_are_read(measured: Path) -> None:
    """Other features of the queries and of the gallery give the same calibration."""
    calibrated(measured)
    before = json.loads((measured / "all_feat.calibration.json").read_text())
    deep = np.load(measured / "all_feat.npy")
    lines = (measured / "in_shop/list_eval_partition.txt").read_text().splitlines()[2:]
    tested = {"in_shop/" + line.split()[0] for line in lines if line.split()[2] != "train"}
    rows = [p in tested for p in (measured / "all_feat.list").read_text().splitlines()]
    deep[rows] = np.random.default_rng(9).normal(size=deep[rows].shape)
    replace_features(measured, "all_feat.npy", deep)
    evaluate.main(["--dataset-base", str(measured), "--calibrate"])
    assert json.loads((measured / "all_feat.calibration.json").read_text()) == before


def test_without_items_it_is_of_categories_and_says_so(measured: Path, tmp_path, capsys) -> None:
    record_splits(measured, None)
    (measured / "in_shop").rename(tmp_path / "away")
    evaluate.main(["--dataset-base", str(measured), "--calibrate"])
    said = capsys.readouterr().out
    assert re.search(r"calibrated on \d+ validation queries of \d+ categories", said)
    record = json.loads((measured / "all_feat.calibration.json").read_text())
    assert (record["same"], record["present"]) == ("category", None)
    evaluate.main(["--dataset-base", str(measured)])
    assert "probability of the same category" in capsys.readouterr().out


def test_consumer_items_alone_are_measured_too(tmp_path: Path, capsys) -> None:
    consumer_pairs(tmp_path, rng := np.random.default_rng(0))
    stored_features(tmp_path, rng)
    calibrated(tmp_path)
    evaluate.main(["--dataset-base", str(tmp_path)])
    said = capsys.readouterr().out
    assert "probability of the same item, calibrated" in said
    assert "open set: half of the items taken out" in said
    database = open_database(tmp_path)
    task = as_searched(item_tasks(database, CONSUMER_TASK)[0], len(database.paths))
    assert task.groups.tolist() == database.items[task.queries].tolist()


def test_a_calibration_of_another_distance_or_model_is_refused(measured: Path, capsys) -> None:
    calibrated(measured)
    assert open_calibration(open_database(measured), signals(measured))
    capsys.readouterr()
    other = signals_of(open_database(measured), ("euclidean", "euclidean"), (), 0.1, 4.0)
    assert open_calibration(open_database(measured), other) is None
    info = json.loads((measured / "all_feat.json").read_text())
    info["models"][0]["sha256"] = "1" * 64
    (measured / "all_feat.json").write_text(json.dumps(info))
    assert open_calibration(open_database(measured), signals(measured)) is None
    (measured / "all_feat.calibration.json").write_text("{}")
    assert open_calibration(open_database(measured), signals(measured)) is None
    lines = capsys.readouterr().err.splitlines()
    assert all("run: python evaluate.py --calibrate" in line for line in lines)


def test_two_items_are_too_few(measured: Path) -> None:
    path = measured / "in_shop/list_eval_partition.txt"
    head, names, *rows = path.read_text().splitlines()
    trained = sorted({row.split()[1] for row in rows if row.split()[2] == "train"})
    for item in trained[2:]:
        rows = [row.replace(" train", " query") if item in row else row for row in rows]
    path.unlink()  # it is a link to the drawn one
    path.write_text("\n".join([head, names, *rows, ""]))
    with pytest.raises(UserError, match="2 validation items, but 3 are needed"):
        calibrated(measured)

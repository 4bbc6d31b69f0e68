"""The tuned weights: on which pictures they are found, and whether the best ones are."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import evaluate
import feature_extractor
import train
from evaluation.metrics import average_precision_at_r
from evaluation.tune_weights import (
    ValidationDistances,
    best_weights,
    validation_distances,
    validation_tasks,
)
from features.database import open_database
from pictures.deepfashion import read_inshop
from pictures.splits import read_splits
from search.signals import signals_of
from tests.conftest import rehash, replace_features
from utils import UserError

SHARE = 0.3


def record_splits(base: Path, *records: object, inshop: bool = True) -> None:
    """Write the splits of the models into all_feat.json; "true" stands for the true one."""
    digest = read_splits(base, 20, inshop, SHARE).digest()
    true = {"inshop": inshop, "val_share": SHARE, "digest": digest}
    info = json.loads((base / "all_feat.json").read_text())
    model = info["models"][0]
    named = [{**model, "file": f"{i}.pth"} for i in range(len(records))]
    for one, record in zip(named, records, strict=True):
        if record != "missing":
            one["held_out"] = true if record == "true" else record
    info["models"] = named
    for i in range(1, len(records)):
        shutil.copy(base / "all_feat.npy", base / f"all_feat_{i + 1}.npy")
        info["sha256"][f"all_feat_{i + 1}.npy"] = info["sha256"]["all_feat.npy"]
    (base / "all_feat.json").write_text(json.dumps(info))


def tasks(base: Path, val_share: float = 0.1) -> dict[str, ValidationDistances]:
    database = open_database(base)
    signals = signals_of(database, ("euclidean", "euclidean"), (), 0.1, 4.0)
    found = validation_tasks(database, val_share)
    return {task.name: validation_distances(task, signals) for task in found}


def task_of(
    parts: list[np.ndarray], labels: np.ndarray, name: str = "category"
) -> ValidationDistances:
    stacked = np.stack(parts)
    stacked[:, np.arange(len(labels)), np.arange(len(labels))] = np.inf
    correct = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    return ValidationDistances(name, stacked, correct)


def test_noise_gets_no_weight_and_what_helps_gets_some(rng: np.random.Generator) -> None:
    labels = np.repeat(np.arange(10), 6)
    same = labels[:, None] == labels
    weak = rng.random((60, 60)) + 0.2 * ~same
    strong = 50 * (rng.random((60, 60)) + 0.6 * ~same)  # in another unit
    noise = rng.random((60, 60))
    task = task_of([weak, strong, noise], labels)
    start = np.array([1.0, 0.0, 0.0])
    weights = best_weights([task], start)
    assert weights[0] == 1
    assert weights[1] > 0.02  # its share is not less than the weak one's: 50 times 0.02
    assert weights[2] * noise.std() < 0.2 * weights[1] * strong.std()
    assert task.score(weights)[0] > task.score(start)[0] + 0.2


@pytest.mark.parametrize("pictures", [60, 6])
def test_tasks_count_the_same_whatever_their_queries(pictures: int) -> None:
    """One signal finds all categories and no item, the other half the categories and all items."""
    labels, items = np.arange(pictures) // 3, np.repeat(np.arange(10), 2)
    apart = 1.0 * (labels[:, None] != labels)
    half = np.where(np.arange(pictures)[:, None] < pictures // 2, 1 - apart, apart)
    other = 1.0 * (items[:, None] != items)
    tasks = [
        task_of([apart, half], labels),
        task_of([1 - other, other], items, "item"),
    ]
    first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert [task.score(first) for task in tasks] == [(1, pictures), (pytest.approx(1 / 19), 20)]
    assert [task.score(second) for task in tasks] == [(0.5, pictures), (1, 20)]
    # The means are 53% and 75%; over queries, the first would win with 60 pictures.
    weights = best_weights(tasks, first)
    assert weights[1] >= 1


def test_the_score_is_map_at_r_of_the_weighted_sum(rng: np.random.Generator) -> None:
    labels = np.repeat(np.arange(5), 4)
    parts = [rng.random((20, 20)), rng.random((20, 20))]
    task = task_of(parts, labels)
    total = 2 * task.parts[0] + 0.5 * task.parts[1]
    order = np.argsort(total, axis=1)
    hits = np.take_along_axis(task.correct, order, axis=1)
    expected = average_precision_at_r(hits, np.full(20, 3)).mean()
    assert task.score(np.array([2, 0.5])) == pytest.approx((expected, 20))
    assert np.isfinite(task.score(np.array([0.0, 1.0]))[0])  # 0 times infinity
    by_item = ValidationDistances("item", task.parts, task.correct)
    expected = (1 / (hits.argmax(axis=1) + 1)).mean()
    assert by_item.score(np.array([2, 0.5])) == pytest.approx((expected, 20))


def test_a_signal_that_knows_the_items_is_found_by_the_script(measured: Path, capsys) -> None:
    """The palette is made to tell items apart; deep and colour stay random."""
    record_splits(measured, "true")
    items = np.load(measured / "all_item.npy")
    _, number = np.unique(items, return_inverse=True)
    known = np.eye(number.max() + 1, dtype=np.float32)[number]
    replace_features(measured, "all_palette_feat.npy", known)
    evaluate.main(["--dataset-base", str(measured), "--tune-weights"])
    out = capsys.readouterr().out
    settings = dict(line.split("=") for line in out.splitlines() if line.startswith("FASHION_"))
    assert set(settings) == {
        "FASHION_MODEL_WEIGHTS", "FASHION_COLOR_WEIGHT", "FASHION_PALETTE_WEIGHT",
    }  # fmt: skip
    line = next(line for line in out.splitlines() if "palette alone" in line)
    _, item, both = (float(cell.rstrip("%")) / 100 for cell in line.split()[-3:])
    assert item == 1
    found = tasks(measured)
    category, count = found["category"].score(np.array([0.0, 0, 1]))
    queries = found["item"].correct.shape[0]
    assert f"{count} by category, {queries} by item" in out
    assert both == pytest.approx((category + 1) / 2, abs=1e-4)


def test_validation_items_are_those_of_the_lists_not_of_the_database(measured: Path) -> None:
    """All pictures of validation items and no others; also without items in the database."""
    record_splits(measured, "true")
    inshop = read_inshop(measured).in_partition("train")
    items = read_splits(measured, 20, True, SHARE).validation_items
    before = tasks(measured)["item"]
    assert before.correct.shape == (len(items), len(inshop))
    counts = [np.sum(inshop.items == item) - 1 for item in items.items]
    assert sorted(before.correct.sum(1).tolist()) == sorted(counts)
    none = np.full(len(np.load(measured / "all_item.npy")), "")
    replace_features(measured, "all_item.npy", none)
    assert (tasks(measured)["item"].correct == before.correct).all()


def test_the_categories_of_the_lists_are_recorded_apart_from_those_of_items(measured: Path) -> None:
    """A network of CATEGORIES=10 with items has more than 10 categories, the split has not."""
    splits = read_splits(measured, 10, True, SHARE)
    assert len(splits.category_names) > 10
    record = {"inshop": True, "val_share": SHARE, "digest": splits.digest()}
    record_splits(measured, {**record, "categories": 10})
    assert tasks(measured)["category"].correct.shape[0] <= len(splits.validation)
    record_splits(measured, record)  # of before: as many as the network's, 20 here
    with pytest.raises(UserError, match="not the splits"):
        tasks(measured)


def test_a_picture_without_a_correct_answer_is_no_query(measured: Path) -> None:
    """A validation item whose other pictures are not in the database is not counted."""
    record_splits(measured, "true")
    first = tasks(measured)["item"].correct.shape[0]
    items = read_splits(measured, 20, True, SHARE).validation_items
    gone = [p for p, i in zip(items.paths, items.items, strict=True) if i == items.items[0]][1:]
    assert gone
    listed = (measured / "all_feat.list").read_text()
    for path in gone:
        listed = listed.replace(path + "\n", f"elsewhere/{path}\n")
    (measured / "all_feat.list").write_text(listed)
    rehash(measured, "all_feat.list")
    assert tasks(measured)["item"].correct.shape[0] == first - len(gone) - 1


def test_all_pictures_of_a_queried_item_stay_in_the_gallery(measured: Path, monkeypatch) -> None:
    record_splits(measured, "true")
    whole = tasks(measured)["item"]
    monkeypatch.setattr("evaluation.tune_weights.MAX_GALLERY", whole.correct.any(0).sum() + 2)
    few = tasks(measured)["item"]
    assert few.correct.shape == (len(whole.correct), whole.correct.any(0).sum() + 2)
    assert (few.correct.sum(1) == whole.correct.sum(1)).all()
    monkeypatch.setattr("evaluation.tune_weights.MAX_GALLERY", 1)
    assert (tasks(measured)["item"].correct.sum(1) == whole.correct.sum(1)).all()
    monkeypatch.setattr("evaluation.tune_weights.MAX_QUERIES", 5)
    assert len(tasks(measured)["item"].correct) == 5


def test_the_split_is_that_of_the_models_not_of_the_settings(measured: Path) -> None:
    """Trained without the in-shop part: there are no validation items, whatever lists exist."""
    record_splits(measured, "true", inshop=False)
    assert set(tasks(measured)) == {"category"}
    record_splits(measured, "true", None)  # an untrained network used no picture
    assert set(tasks(measured)) == {"category", "item"}
    small, large = (tasks(measured, share)["item"].correct.shape[0] for share in (0.05, 0.8))
    assert small == large
    record_splits(measured, None)
    small, large = (tasks(measured, share)["item"].correct.shape[0] for share in (0.05, 0.8))
    assert small < large


OTHER = {"inshop": True, "val_share": SHARE, "digest": "0"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["unknown"], "0.pth: does not record its validation split"),
        (["missing"], "0.pth: does not record its validation split"),
        (["true", "unknown"], "1.pth: does not record"),
        ([None, "true", OTHER], "2.pth: its validation split is not that"),
        ([OTHER], "not the data set, or not the splits, that 0.pth"),
    ],
)
def test_weights_are_not_tuned_on_pictures_that_may_have_been_trained_on(
    measured: Path, records: list, message: str
) -> None:
    record_splits(measured, *records)
    with pytest.raises(UserError, match=message):
        evaluate.main(["--dataset-base", str(measured), "--tune-weights"])


def test_tuning_reads_what_training_and_extraction_write(
    drawn: Path, tmp_path: Path, capsys
) -> None:
    base = tmp_path / "base"
    shutil.copytree(drawn, base, copy_function=os.link)
    flags = ["--dataset-base", str(base), "--enable-inshop-dataset"]
    small = "--backbone resnet18 --pretrained none --img-size 40 --crop-size 32 --epoch 1".split()
    once = ["--num-workers", "0"]
    train.main([*flags, *small, *once, "--val-share", str(SHARE)])
    feature_extractor.main([*flags, *once, "--color-top-n", "1"])
    capsys.readouterr()
    evaluate.main(["--dataset-base", str(base), "--tune-weights"])
    items = read_splits(base, 20, True, SHARE).validation_items
    assert f"{len(items)} by item" in capsys.readouterr().out
    path = base / "in_shop/list_eval_partition.txt"
    lines = path.read_text().replace(" train", " query", 1)
    path.unlink()  # it is a link to the drawn one
    path.write_text(lines)
    with pytest.raises(UserError, match="not the data set, or not the splits"):
        evaluate.main(["--dataset-base", str(base), "--tune-weights"])


@pytest.mark.parametrize("flags", ["--json", "--report page.html", "--engine kmeans"])
def test_a_flag_that_tuning_would_ignore_is_refused(measured: Path, flags: str) -> None:
    with pytest.raises(UserError, match="--tune-weights measures nothing else"):
        evaluate.main(["--dataset-base", str(measured), "--tune-weights", *flags.split()])

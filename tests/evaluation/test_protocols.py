"""The protocols compared with an independent implementation by lists, scipy and loops."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import data
import evaluate
import feature_extractor
import train
from evaluation.metrics import category_metrics, item_metrics
from evaluation.protocols import (
    Task,
    category_task,
    item_tasks,
    of_gallery,
    query_features,
    run_task,
)
from features.database import open_database
from search.engine import ExactEngine
from search.signals import Signal, signals_of
from tests.conftest import replace_features, stored_features


def rows_of_list(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()[2:]]


def values_of(base: Path, name: str) -> dict[str, np.ndarray]:
    database = open_database(base)
    signals = signals_of(database, ("euclidean", "cityblock"), (), 0.1, 2.0)
    tasks = [*item_tasks(database), category_task(database, 0.1)]
    (task,) = [task for task in tasks if task.name == name]
    engine = ExactEngine(of_gallery(signals, task.gallery))
    return run_task(task, engine, query_features(task, signals)).values


def published_protocol(base: Path, keep: set[int], same_color: bool) -> list[dict[str, float]]:
    """In-shop retrieval query by query, as DeepFashion's authors describe it."""
    listed = (base / "all_feat.list").read_text().splitlines()
    deep = np.load(base / "all_feat.npy")
    color, palette = np.load(base / "all_color_feat.npy"), np.load(base / "all_palette_feat.npy")
    kinds = {row[0]: int(row[1]) for row in rows_of_list(base / "in_shop/list_bbox_inshop.txt")}
    queries, gallery = [], []
    for path, item, part in rows_of_list(base / "in_shop/list_eval_partition.txt"):
        entry = (listed.index("in_shop/" + path), item, path.split("/")[-1].split("_")[0])
        if kinds[path] in keep and part != "train":
            (queries if part == "query" else gallery).append(entry)
    gallery.sort()  # equal distances stand in the order of the database
    found = []
    for row, item, shade in sorted(queries):
        distance = {
            other: cdist(deep[[row]], deep[[other]])[0, 0]
            + 0.1 * cdist(color[[row]], color[[other]], "cityblock")[0, 0]
            + 2.0 * cdist(palette[[row]], palette[[other]], "cityblock")[0, 0]
            for other, _, _ in gallery
        }
        ranked = sorted(gallery, key=lambda entry: distance[entry[0]])
        correct = [i == item and (not same_color or s == shade) for _, i, s in ranked]
        if same_color and not any(correct):
            continue
        count = sum(correct)
        figures = {f"recall@{k}": float(any(correct[:k])) for k in (1, 10, 20, 30, 40, 50)}
        precision = [sum(correct[: i + 1]) / (i + 1) for i in range(count) if correct[i]]
        figures["map@r"] = sum(precision) / count
        figures["mrr"] = 1 / (correct.index(True) + 1)
        found.append(figures)
    return found


@pytest.mark.parametrize(
    ("name", "keep", "same_color"),
    [
        ("item", {1, 2, 3}, False),
        ("item, upper body", {1}, False),
        ("item and color", {1, 2, 3}, True),
    ],
)
def test_inshop_figures_are_those_of_the_published_protocol_to_the_last_query(
    measured: Path, name: str, keep: set[int], same_color: bool
) -> None:
    values = values_of(measured, name)
    expected = published_protocol(measured, keep, same_color)
    assert len(expected) == len(values["mrr"]) > 10
    for key in expected[0]:
        np.testing.assert_allclose(values[key], [figures[key] for figures in expected])
    assert 0 < values["recall@10"].mean() < 1  # else the comparison would show nothing


def test_category_figures_are_those_of_a_loop(measured: Path) -> None:
    listed = (measured / "all_feat.list").read_text().splitlines()
    category = np.load(measured / "all_category.npy")
    parts = dict(rows_of_list(measured / "Eval/list_eval_partition.txt"))
    rows = [row for row, path in enumerate(listed) if parts.get(path) == "test"]
    database = open_database(measured)
    signals = signals_of(database, ("euclidean", "cityblock"), (), 0.1, 2.0)
    engine = ExactEngine(signals)
    values = values_of(measured, "category")
    assert len(values["map"]) == len(rows) > 10
    for i, row in enumerate(rows):
        others = np.array([other for other in rows if other != row])
        distance = engine.distances([s.features[[row]] for s in signals], others)[0]
        correct = category[others[np.argsort(distance, kind="stable")]] == category[row]
        assert values["p@1"][i] == correct[0]
        assert values["p@10"][i] == pytest.approx(correct[:10].mean())
        ranks = np.flatnonzero(correct) + 1
        precision = np.arange(1, len(ranks) + 1) / ranks
        assert values["map"][i] == pytest.approx(precision.mean() if len(ranks) else 0)


def line(positions: list[float]) -> list[Signal]:
    return [Signal("deep", np.float32(positions)[:, None], "euclidean", 1.0)]


def test_a_query_in_the_gallery_does_not_answer_itself_by_hand() -> None:
    """Five pictures on a line; each searches for the others of its label."""
    signals, rows = line([0.0, 1.0, 2.5, 2.6, 9.0]), np.arange(5)
    task = Task("category", rows, rows, np.array([7, 7, 8, 7, 8]), rows, category_metrics)
    outcome = run_task(task, ExactEngine(signals), query_features(task, signals))
    # Nearest others: 0 -> 1 (correct), 1 -> 0 (correct), 2 -> 3, 3 -> 2, 4 -> 3 (all wrong).
    assert outcome.values["p@1"].tolist() == [1, 1, 0, 0, 0]
    # Right ones stand at ranks (1, 3), (1, 3), (4), (2, 3) and (2).
    expected = [5 / 6, 5 / 6, 1 / 4, (1 / 2 + 2 / 3) / 2, 1 / 2]
    assert outcome.values["map"] == pytest.approx(expected)
    assert outcome.first.tolist() == [1, 1, 4, 2, 2]
    assert outcome.answers[0].tolist() == [1, 2, 3, 4, *[-1] * 6]
    assert outcome.chance == pytest.approx(np.mean([2, 2, 1, 2, 1]) / 4)


def test_views_of_an_item_are_one_group_and_other_pictures_their_own(measured: Path) -> None:
    """Every second picture of the category part gets an item, three pictures an item."""
    (row_count,) = np.load(measured / "all_category.npy").shape
    number = np.arange(row_count)
    items = np.where(number % 2, "", (number // 6).astype(str))
    replace_features(measured, "all_item.npy", items)
    database = open_database(measured)
    task = category_task(database, 0.1)
    by_group = {}
    for row, group in zip(task.queries.tolist(), task.groups.tolist(), strict=True):
        by_group.setdefault(group, []).append(row)
    expected = {}
    for row in task.queries.tolist():
        expected.setdefault(f"picture {row}" if row % 2 else f"item {row // 6}", []).append(row)
    assert sorted(by_group.values()) == sorted(expected.values())
    assert {len(rows) for rows in by_group.values()} > {1}


@pytest.mark.parametrize("metric", ["seuclidean", "mahalanobis"])
def test_a_gallery_is_ranked_with_the_collections_parameters(rng, metric: str) -> None:
    """As retrieval.py ranks it: with the variances of all pictures, not of the gallery."""
    features = rng.normal(size=(40, 3)).astype(np.float32) * [1, 2, 5]
    features[20:] *= [9, 1, 1]
    signals, gallery = [Signal("deep", features, metric, 1.0)], np.arange(3, 20)
    query = [features[25:28]]
    whole = ExactEngine(signals).distances(query)[:, gallery]
    part = ExactEngine(of_gallery(signals, gallery))
    np.testing.assert_allclose(part.distances(query), whole)
    alone = ExactEngine([Signal("deep", features[gallery], metric, 1.0)])
    assert not np.allclose(alone.distances(query), whole)


def test_what_an_engine_does_not_find_counts_as_missed() -> None:
    class Lazy(ExactEngine):
        def search(self, queries, k, rows=None):
            return super().search(queries, 2, rows)

    signals = line([0.0, 1.0, 2.0, 3.0, 4.0])
    labels = np.array(["a", "b", "b", "a", "a"])
    task = Task("item", np.array([0]), np.arange(1, 5), labels, np.array(["a"]), item_metrics)
    gallery = of_gallery(signals, task.gallery)
    whole = run_task(task, ExactEngine(gallery), query_features(task, signals))
    assert whole.values["recall@10"].tolist() == [1]
    assert whole.values["mrr"] == pytest.approx([1 / 3])
    lazy = run_task(task, Lazy(gallery), query_features(task, signals))
    assert lazy.values["recall@10"].tolist() == [0]
    assert lazy.values["mrr"].tolist() == [0]
    assert lazy.first.tolist() == [0]
    assert lazy.answers[0, :3].tolist() == [1, 2, -1]


def test_the_mens_shop_gives_the_figures_that_are_known(shared: Path, tmp_path: Path) -> None:
    """127 queries, 199 gallery pictures of 72 items, from the folder as it is."""
    base = tmp_path / "men"
    photos = str(shared / "inshop-men/img")
    flags = ["--in-shop", "--item-level", "--test", "--gallery", r"_main\."]
    data.main(["import", photos, *flags, "--dataset-base", str(base)])
    weights = str(shared / "weights/mobilenet_v2-imagenet-features.pth")
    # Nothing to train on there: the untrained network comes from a small folder of photos.
    network = ["--backbone", "mobilenet_v2", "--pretrained", weights, "--inter-dim", "0"]
    network += ["--pooling", "avg", "--epoch", "0", "--img-size", "128", "--crop-size", "128"]
    small = tmp_path / "small"
    for name in ("a", "b"):
        (small / name).mkdir(parents=True)
        for i, path in enumerate(sorted((shared / "photos/train/hat").iterdir())[:4]):
            (small / name / f"{i}.jpg").symlink_to(path)
    train.main(["--dataset-base", str(small), *network])
    model = str(small / "models/model_0_final.pth.tar")
    feature_extractor.main(["--dataset-base", str(base), "--dumped-model", model, "--amp", "off"])
    database = open_database(base)
    signals = signals_of(database, ("cosine", "euclidean"), (), 0, 0)
    tasks = {task.name: task for task in item_tasks(database)}
    item, colored = tasks["item"], tasks["item and color"]
    assert (len(item.queries), len(item.gallery)) == (127, 199)
    assert len(np.unique(item.labels[item.gallery])) == 72
    values = {
        task.name: run_task(
            task, ExactEngine(of_gallery(signals, task.gallery)), query_features(task, signals)
        ).values
        for task in (item, colored)
    }
    # Known figures (of 224 px: a few of 127 queries may differ): 0.276, 0.717 and 0.220.
    assert values["item"]["recall@1"].mean() == pytest.approx(0.276, abs=0.08)
    assert values["item"]["recall@10"].mean() == pytest.approx(0.717, abs=0.06)
    assert values["item and color"]["recall@1"].mean() == pytest.approx(0.22, abs=0.08)


def consumer_pairs(base: Path, rng: np.random.Generator) -> list[list[str]]:
    """A consumer-to-shop benchmark of 40 items, every second one of test, in random order."""
    pairs = []
    for i in range(40):
        kind = ("TOPS/T_Shirt", "DRESSES/Skirt", "CLOTHING/Coat")[i % 3]
        folder, status = f"img/{kind}/id_{i:08}", ("test", "train", "test", "val")[i % 4]
        for consumer in range(1 + i % 4):
            for shop in range(1 + i % 2 + i % 3):
                names = [f"{folder}/comsumer_{consumer:02}.jpg", f"{folder}/shop_{shop:02}.jpg"]
                pairs.append([*names, f"id_{i:08}", status])
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    path = base / "consumer_to_shop/Eval/list_eval_partition.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([str(len(pairs)), "columns", *map(" ".join, pairs), ""]))
    return pairs


def test_consumer_figures_are_those_of_a_loop_over_the_pairs(tmp_path, rng, capsys) -> None:
    """Top-K retrieval accuracy of Liu et al. (CVPR 2016), for each category and for all."""
    pairs = consumer_pairs(tmp_path, rng)
    stored_features(tmp_path, rng)
    listed = (tmp_path / "all_feat.list").read_text().splitlines()
    assert len(listed) == len({path for pair in pairs for path in pair[:2]})
    deep = dict(zip(listed, np.load(tmp_path / "all_feat.npy"), strict=True))
    tested = [pair for pair in pairs if pair[3] == "test"]
    shops = {shop: item for _, shop, item, _ in tested}
    ranks: dict[str, list[int]] = {}
    for consumer, item in {consumer: item for consumer, _, item, _ in tested}.items():
        vector = deep["consumer_to_shop/" + consumer]
        distance = {s: np.linalg.norm(deep["consumer_to_shop/" + s] - vector) for s in shops}
        order = sorted(shops, key=distance.__getitem__)
        rank = next(r for r, shop in enumerate(order, start=1) if shops[shop] == item)
        ranks.setdefault(consumer.split("/")[2], []).append(rank)

    flags = ["--color-weight", "0", "--palette-weight", "0", "--dataset-base", str(tmp_path)]
    evaluate.main(["--protocol", "consumer", "--json", *flags])
    record = json.loads(capsys.readouterr().out)
    part = record["parts"]["item, consumer to shop"]
    every = [rank for found in ranks.values() for rank in found]
    assert (part["queries"], part["gallery"]) == (len(every), len(shops))
    assert sorted(part["categories"]) == sorted(ranks) == ["Coat", "Skirt", "T_Shirt"]
    for k in (1, 10, 20, 50):
        assert record[f"recall@{k}"]["value"] == pytest.approx(np.mean(np.array(every) <= k))
        for name, found in ranks.items():
            figures = part["categories"][name]
            assert figures["queries"] == len(found)
            assert figures[f"recall@{k}"] == pytest.approx(np.mean(np.array(found) <= k))
    assert 0 < record["recall@1"]["value"] < record["recall@10"]["value"] < 1
    evaluate.main(["--protocol", "consumer", *flags])
    said = capsys.readouterr().out
    assert f"same item, consumer to shop: {len(every)} queries, {len(shops)} pictures" in said
    assert re.search(r"^  Skirt +\d", said, re.MULTILINE)

"""The measures, against values worked out by hand and against plain loops."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from evaluate import average_precision, main, measure
from index import ExactEngine, Signal


def test_average_precision_by_hand() -> None:
    hits = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    # (1/1 + 2/3) / 2, 1/4, nothing to find, all found first
    assert average_precision(hits) == pytest.approx([5 / 6, 1 / 4, 0, 1])


def test_measure_by_hand() -> None:
    """Five pictures on a line; each asks for the others of its label."""
    features = np.array([[0.0], [1.0], [2.5], [2.6], [9.0]], np.float32)
    labels = np.array([7, 7, 8, 7, 8])
    engine = ExactEngine([Signal("deep", features, "euclidean", 1.0)])
    rows = np.arange(5)
    figures = measure(engine, rows, rows, labels)
    # Nearest others: 0 -> 1 (right), 1 -> 0 (right), 2 -> 3, 3 -> 2, 4 -> 3 (all wrong).
    assert figures["p@1"] == pytest.approx(2 / 5)
    # Right ones stand at ranks (1, 3), (1, 3), (4), (2, 3) and (2).
    expected = np.mean([5 / 6, 5 / 6, 1 / 4, (1 / 2 + 2 / 3) / 2, 1 / 2])
    assert figures["map"] == pytest.approx(expected)
    assert figures["p@10"] == figures["chance"] == pytest.approx(np.mean([2, 2, 1, 2, 1]) / 4)


def test_measure_equals_a_plain_loop(rng: np.random.Generator) -> None:
    features = rng.normal(size=(700, 4)).astype(np.float32)
    labels = rng.integers(9, size=700)
    queries, gallery = np.arange(0, 600, 2), np.arange(100, 700)
    engine = ExactEngine([Signal("deep", features, "cityblock", 1.0)])
    figures = measure(engine, queries, gallery, labels)
    first, ten, found, precision = [], [], [], []
    for query in queries:
        others = [row for row in gallery if row != query]
        distance = cdist(features[[query]], features[others], "cityblock")[0]
        right = [labels[others[i]] == labels[query] for i in np.argsort(distance, kind="stable")]
        first.append(right[0])
        ten.append(np.mean(right[:10]))
        found.append(any(right[:10]))
        precision.append(
            np.mean([sum(right[: i + 1]) / (i + 1) for i, hit in enumerate(right) if hit])
        )
    assert figures["p@1"] == pytest.approx(np.mean(first))
    assert figures["p@10"] == pytest.approx(np.mean(ten))
    assert figures["recall@10"] == pytest.approx(np.mean(found))
    assert figures["map"] == pytest.approx(np.mean(precision))


def test_a_missing_database_is_named(tmp_path, capsys: pytest.CaptureFixture) -> None:
    from utils import UserError

    with pytest.raises(UserError, match=r"feature_extractor\.py"):
        main(["--dataset-base", str(tmp_path)])
    before = tmp_path / "before.json"
    before.write_text(json.dumps([]) + "]")
    with pytest.raises(UserError, match=r"before\.json"):
        main(["--dataset-base", str(tmp_path), "--against", str(before)])

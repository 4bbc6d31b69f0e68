"""The fitted weights, on distances of which it is known what is best."""

from pathlib import Path

import numpy as np
import pytest

import evaluate
from fit import HeldOut, best_weights
from measures import average_precision_at_r


def held_out(rng: np.random.Generator, parts: list[np.ndarray], labels: np.ndarray) -> HeldOut:
    stacked = np.stack(parts)
    stacked[:, np.arange(len(labels)), np.arange(len(labels))] = np.inf
    right = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    return HeldOut("category", stacked, right)


def test_noise_gets_no_weight_and_what_helps_gets_some(rng: np.random.Generator) -> None:
    labels = np.repeat(np.arange(10), 6)
    same = labels[:, None] == labels
    weak = rng.random((60, 60)) + 0.2 * ~same
    strong = 50 * (rng.random((60, 60)) + 0.6 * ~same)  # in another unit
    noise = rng.random((60, 60))
    task = held_out(rng, [weak, strong, noise], labels)
    start = np.array([1.0, 0.0, 0.0])
    weights = best_weights([task], start)
    assert weights[0] == 1
    assert weights[1] > 0.02  # its share is not less than the weak one's: 50 times 0.02
    assert weights[2] * noise.std() < 0.2 * weights[1] * strong.std()
    assert task.score(weights) > task.score(start) + 0.2


def test_the_score_is_map_at_r_of_the_weighted_sum(rng: np.random.Generator) -> None:
    labels = np.repeat(np.arange(5), 4)
    parts = [rng.random((20, 20)), rng.random((20, 20))]
    task = held_out(rng, parts, labels)
    total = 2 * task.parts[0] + 0.5 * task.parts[1]
    order = np.argsort(total, axis=1)
    hits = np.take_along_axis(task.right, order, axis=1)
    expected = average_precision_at_r(hits, np.full(20, 3)).mean()
    assert task.score(np.array([2, 0.5])) == pytest.approx(expected)
    assert np.isfinite(task.score(np.array([0.0, 1.0])))  # 0 times infinity
    by_item = HeldOut("item", task.parts, task.right)
    expected = (1 / (hits.argmax(axis=1) + 1)).mean()
    assert by_item.score(np.array([2, 0.5])) == pytest.approx(expected)


def test_a_signal_that_knows_the_items_is_found_by_the_script(measured: Path, capsys) -> None:
    """The palette is made to tell items apart; deep and colour stay random."""
    items = np.load(measured / "all_item.npy")
    _, number = np.unique(items, return_inverse=True)
    np.save(measured / "all_palette_feat.npy", np.eye(number.max() + 1, dtype=np.float32)[number])
    flags = ["--dataset-base", str(measured), "--enable-inshop-dataset", "--val-share", "0.3"]
    evaluate.main([*flags, "--fit-weights"])
    out = capsys.readouterr().out
    settings = dict(line.split("=") for line in out.splitlines() if line.startswith("FASHION_"))
    assert set(settings) == {
        "FASHION_MODEL_WEIGHTS", "FASHION_COLOR_WEIGHT", "FASHION_PALETTE_WEIGHT",
    }  # fmt: skip
    line = next(line for line in out.splitlines() if line.startswith("palette alone"))
    assert line.split()[-1] == "100.00%"
    fitted = next(line for line in out.splitlines() if line.startswith("fitted  "))
    assert float(fitted.split()[-1].rstrip("%")) > 90

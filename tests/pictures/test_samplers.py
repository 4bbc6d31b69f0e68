"""samplers.py: triplets, balanced batches, and the batches of an epoch."""

from collections import Counter

import numpy as np
import pytest

from pictures.samplers import TrainBatches, balanced_width, sample_balanced, sample_triplets
from tests.test_data import table
from utils import UserError

LABELLED, BATCH, TRIPLETS = 103, 8, 6
MIXED = table(  # 103 labelled pictures, then 60 of 20 items
    [f"{i}.jpg" for i in range(163)],
    [i % 5 for i in range(163)],
    [""] * LABELLED + [f"id_{i % 20}" for i in range(60)],
)


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ([0, 0, 1], 7),
        ([0, 0, 1, 1], 1),
        ([5, -1, 5, 9, -1, -1, 2], 100),
        (["id_1", "id_2", "id_1", "id_3", "id_3", "id_3"], 41),
        ([i % 11 for i in range(200)] + [50], 333),
    ],
)
def test_triplets_are_right_and_every_picture_with_a_partner_is_an_anchor(
    labels: list[object], count: int
) -> None:
    triplets = sample_triplets(np.array(labels), count, np.random.default_rng(1))
    assert (triplets.shape, triplets.dtype) == ((count, 3), np.int64)
    for anchor, positive, negative in triplets.tolist():
        assert anchor != positive
        assert labels[anchor] == labels[positive] != labels[negative]
    partnered = [row for row, label in enumerate(labels) if labels.count(label) > 1]
    used = Counter({row: 0 for row in partnered})
    used.update(triplets[:, 0].tolist())
    assert set(used) == set(partnered)
    assert max(used.values()) - min(used.values()) <= 1


def test_positives_negatives_and_their_labels_are_drawn_evenly() -> None:
    labels = np.array([0] * 2 + [1] * 5 + [2] * 43)[np.random.default_rng(7).permutation(50)]
    count = 60_000
    triplets = sample_triplets(labels, count, np.random.default_rng(0))

    def even(drawn: np.ndarray, options: np.ndarray) -> bool:
        """Each option as often as any other, within five standard deviations."""
        times = np.array([(drawn == option).sum() for option in options])
        mean = len(drawn) / len(options)
        return times.sum() == len(drawn) and bool((abs(times - mean) < 5 * mean**0.5).all())

    for label in range(3):
        of_label = triplets[labels[triplets[:, 0]] == label]
        others = np.array([other for other in range(3) if other != label])
        assert even(labels[of_label[:, 2]], others), "rare labels as often as common ones"
        for other in others:
            negatives = of_label[labels[of_label[:, 2]] == other, 2]
            assert even(negatives, np.flatnonzero(labels == other))
    anchor = np.flatnonzero(labels == 1)[2]
    positives = triplets[triplets[:, 0] == anchor, 1]
    assert even(positives, np.setdiff1d(np.flatnonzero(labels == 1), anchor))


@pytest.mark.parametrize("labels", [[], [4], [4, 4, 4], [1, 2, 3]])
def test_labels_that_give_no_triplet_are_an_error(labels: list[int]) -> None:
    with pytest.raises(UserError, match="no triplets can be drawn"):
        sample_triplets(np.array(labels, np.int64), 5, np.random.default_rng(0))


def epoch(batches: TrainBatches, number: int, start: int = 0) -> list[list[tuple[int, int]]]:
    batches.enter(number, start)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_epoch_covers_every_labelled_picture_once_and_depends_on_seed_and_number() -> None:
    batches = TrainBatches(MIXED, LABELLED, BATCH, TRIPLETS, 0.5, per_class=0, seed=1)
    whole = epoch(batches, 0)
    assert batches.steps() == len(whole) == 13
    heads = [batch[: -3 * TRIPLETS] for batch in whole]
    assert [len(head) for head in heads] == [8] * 12 + [7]
    rows = [row for head in heads for row, _ in head]
    assert sorted(rows) == list(range(LABELLED))
    assert rows != sorted(rows)
    seeds = [seed for batch in whole for _, seed in batch]
    assert len(set(seeds)) == len(seeds), "each picture has random choices of its own"

    other = epoch(batches, 1)
    assert other != whole
    assert sorted(row for batch in other for row, _ in batch[: -3 * TRIPLETS]) == sorted(rows)
    again = TrainBatches(MIXED, LABELLED, BATCH, TRIPLETS, 0.5, per_class=0, seed=1)
    for start in (0, 1, 7, 12, 13):
        assert epoch(again, 1, start) == other[start:]
    assert epoch(again, 0) == whole
    assert (
        epoch(TrainBatches(MIXED, LABELLED, BATCH, TRIPLETS, 0.5, per_class=0, seed=2), 0) != whole
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_share_of_the_triplets_is_of_items(share: float) -> None:
    batches = TrainBatches(MIXED, LABELLED, BATCH, 40, share, per_class=0, seed=0)
    of_items = total = 0
    for number in range(3):
        for batch in epoch(batches, number):
            rows = np.array([row for row, _ in batch[-120:]]).reshape(3, 40)
            for anchor, positive, negative in rows.T.tolist():
                items = anchor >= LABELLED
                label = MIXED.items if items else MIXED.categories
                assert (positive >= LABELLED) == (negative >= LABELLED) == items
                assert anchor != positive
                assert label[anchor] == label[positive] != label[negative]
                of_items += items
                total += 1
    assert total == 3 * 13 * 40
    assert abs(of_items / total - share) <= 5 * (share * (1 - share) / total) ** 0.5


def test_labelled_pictures_with_items_are_items_too() -> None:
    both = table(["a", "b", "c", "d"], [0, 0, 1, 1], ["id_1", "id_2", "id_1", "id_2"])
    for batch in epoch(TrainBatches(both, 4, 2, 3, 1.0, per_class=0, seed=0), 0):
        rows = [row for row, _ in batch[2:]]
        for anchor, positive, negative in zip(rows[:3], rows[3:6], rows[6:], strict=True):
            assert abs(anchor - positive) == 2, "the other picture of the item"
            assert abs(anchor - negative) in {1, 3}
    for size, lengths in ((3, [4]), (2, [2, 2]), (4, [4]), (1, [1] * 4)):
        batches = TrainBatches(both, 4, size, 0, 0.8, per_class=0, seed=0)
        bare = epoch(batches, 0)
        assert [len(batch) for batch in bare] == lengths, "a last picture alone joins the others"
        assert [batches.size(step) for step in range(batches.steps())] == lengths
        assert sorted(row for batch in bare for row, _ in batch) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="no triplets can be drawn"):
        epoch(TrainBatches(table(["a", "b"], [0, 1]), 2, 2, 3, 1.0, per_class=0, seed=0), 0)


@pytest.mark.parametrize(("per_class", "size", "labels_each"), [(4, 16, 4), (3, 16, 5), (8, 8, 2)])
def test_balanced_batches_have_the_same_number_of_each_label(
    per_class: int, size: int, labels_each: int
) -> None:
    labels = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 40, 80, 160])
    state = np.random.get_state()[1].copy()
    rng = np.random.default_rng(0)
    width = balanced_width(labels, per_class, size)
    batches = sample_balanced(labels, per_class, width, 60, rng)
    assert batches.shape == (60, per_class * labels_each)
    seen = Counter()
    for batch in batches:
        found = Counter(labels[batch].tolist())
        assert set(found.values()) == {per_class}
        seen.update(found.keys())
        large = [row for row in batch if labels[row] >= 6]
        assert len(set(large)) == len(large), "a picture twice, though there are others"
    # Every label as often as any other, large or small.
    assert max(seen.values()) < 2.5 * min(seen.values())
    assert (np.random.get_state()[1] == state).all(), "NumPy's global generator was moved"
    again = sample_balanced(labels, per_class, width, 60, np.random.default_rng(0))
    assert (again == batches).all()
    assert (sample_balanced(labels, per_class, width, 60, rng) != batches).any()


def test_balanced_batches_of_an_epoch_are_of_items_alone() -> None:
    batches = TrainBatches(MIXED, LABELLED, BATCH, 8, 0.8, per_class=4, seed=0)
    assert batches.metric_pictures == 8
    for batch in epoch(batches, 0):
        rows = np.array([row for row, _ in batch[-8:]])
        assert set(Counter(MIXED.items[rows].tolist()).values()) == {4}
        assert (rows >= LABELLED).all()
    by_category = TrainBatches(MIXED, LABELLED, BATCH, 8, 0.0, per_class=4, seed=0)
    for batch in epoch(by_category, 0):
        rows = np.array([row for row, _ in batch[-8:]])
        assert set(Counter(MIXED.categories[rows].tolist()).values()) == {4}
    with pytest.raises(UserError, match="no balanced batches"):
        TrainBatches(table(["a", "b"], [0, 0]), 2, 2, 8, 0.0, per_class=4, seed=0)

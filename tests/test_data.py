"""data.py: transforms, datasets, triplets and the batches of an epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from data import (
    DETAIL,
    PictureDataset,
    TrainBatches,
    eval_transform,
    make_loader,
    numbered,
    sample_balanced,
    sample_triplets,
    train_transform,
)
from net import FeatureNet, Network, extract_features, initial_net
from pictures.decode import PictureError, read_picture
from pictures.table import Pictures
from utils import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def table(paths: list[str], categories: list[int], items: list[str] | None = None) -> Pictures:
    count = len(paths)
    return Pictures(
        paths=paths,
        categories=np.array(categories, np.int16),
        category_names=[str(i) for i in range(max(categories) + 1)],
        partitions=np.full(count, "train"),
        boxes=np.zeros((count, 4), np.int32),
        items=np.array(items or [""] * count),
        colors=np.full(count, ""),
        types=np.zeros(count, np.int8),
    )


def seeded(transform: object, picture: Image.Image, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return transform(picture).numpy()


@pytest.mark.parametrize(
    "size", [(300, 200), (200, 300), (100, 100), (40, 61), (341, 256), (37, 3000)]
)
def test_eval_transform_is_pillows_resize_and_middle(size: tuple[int, int]) -> None:
    picture = Image.fromarray(NOISE).resize(size)
    scale = 100 / min(size)
    width, height = int(size[0] * scale), int(size[1] * scale)
    left, top = round((width - 80) / 2), round((height - 80) / 2)
    middle = picture.resize((width, height), Image.Resampling.BILINEAR).crop(
        (left, top, left + 80, top + 80)
    )
    transform = eval_transform(100, 80)
    found = seeded(transform, picture, 1)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(middle))
    assert np.array_equal(found, seeded(transform, picture, 2))


def test_train_transform_crops_and_flips_but_keeps_colours() -> None:
    plain = Image.new("RGB", (300, 400), (128, 64, 255))
    found = seeded(train_transform(256, 224), plain, 0)
    assert (found.shape, found.dtype) == ((224, 224, 3), np.uint8)
    assert (found == [128, 64, 255]).all()

    # Red grows with x, green with y: what is seen of a picture, and which way round.
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    ramp = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))
    transform, shares, flips = train_transform(256, 64), [], Counter()
    for seed in range(60):
        red, green, _ = seeded(transform, ramp, seed).astype(float).transpose(2, 0, 1)
        shares.append(np.ptp(red) * np.ptp(green) / 256**2)
        flips[bool(red[0, 0] > red[0, -1])] += 1
        assert green[0, 0] < green[-1, 0], "never upside down"
    assert min(shares) > 0.35
    assert max(shares) - min(shares) > 0.3
    assert min(flips[True], flips[False]) > 15


def test_box_is_cut_out_where_there_is_one_and_it_is_wanted(tmp_path: Path) -> None:
    pixels = np.full((50, 70, 3), 90, np.uint8)
    pixels[11:31, 20:60] = (255, 0, 0)
    for name in ("boxed.png", "whole.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    pictures = table(["boxed.png", "whole.png"], [3, 1])
    pictures.boxes[0] = (20, 11, 60, 31)
    cut = PictureDataset(tmp_path, pictures, pil_to_tensor, crop=True)
    boxed, category, item = cut[0]
    assert (boxed.shape, category, len(cut)) == ((3, 20, 40), 3, 2)
    assert item == -1
    assert boxed.flatten(1).unique(dim=1).squeeze().tolist() == [255, 0, 0]
    assert np.array_equal(cut[1][0].permute(1, 2, 0), pixels)
    uncut = PictureDataset(tmp_path, pictures, pil_to_tensor, crop=False)
    assert np.array_equal(uncut[0][0].permute(1, 2, 0), pixels)
    (tmp_path / "whole.png").unlink()
    with pytest.raises(PictureError, match=r"whole\.png: no such file"):
        cut[1]


def noisy_set(base: Path, count: int) -> PictureDataset:
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(np.roll(NOISE, 7 * i, axis=1)).save(base / name)
    pictures = table(names, [i % 3 for i in range(count)])
    return PictureDataset(base, pictures, train_transform(40, 32), crop=True)


def test_seeded_key_alone_decides_the_tensor(tmp_path: Path) -> None:
    dataset = noisy_set(tmp_path, 2)
    first = dataset[0, 5][0]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for key in (0, 1):  # without a seed: another crop each time, from the global generator
        assert not torch.equal(dataset[key][0], dataset[key][0])
    assert not torch.equal(torch.get_rng_state(), state)
    state = torch.get_rng_state()
    assert torch.equal(dataset[0, 5][0], first)
    assert not torch.equal(dataset[0, 6][0], first)
    assert not torch.equal(dataset[1, 5][0], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    dataset = noisy_set(tmp_path, 10)
    state = torch.get_rng_state()
    epochs = []
    for workers in (0, 1, 2):
        batches = TrainBatches(dataset.pictures, 10, 4, 2, 0.0, per_class=0, seed=3)
        loader = make_loader(
            dataset, workers, torch.device("cpu"), batch_sampler=batches, persistent=True
        )
        epochs.append([(x, y) for x, y, _ in loader])
    assert [x.shape for x, _ in epochs[0]] == [(10, 32, 32, 3)] * 2 + [(8, 32, 32, 3)]
    for other in epochs[1:]:
        for (x, y), (x_other, y_other) in zip(epochs[0], other, strict=True):
            assert torch.equal(x, x_other)
            assert torch.equal(y, y_other)
    assert torch.equal(torch.get_rng_state(), state)


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
def test_triplets_are_right_and_every_picture_with_a_partner_is_anchor_in_turn(
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


LABELLED, BATCH, TRIPLETS = 103, 8, 6
MIXED = table(  # 103 labelled pictures, then 60 of 20 items
    [f"{i}.jpg" for i in range(163)],
    [i % 5 for i in range(163)],
    [""] * LABELLED + [f"id_{i % 20}" for i in range(60)],
)


def epoch(batches: TrainBatches, number: int, start: int = 0) -> list[list[tuple[int, int]]]:
    batches.enter(number, start)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_epoch_covers_every_labelled_picture_once_and_hangs_on_seed_and_number() -> None:
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


def test_labelled_pictures_with_items_count_as_items_too_and_no_triplets_means_none() -> None:
    both = table(["a", "b", "c", "d"], [0, 0, 1, 1], ["id_1", "id_2", "id_1", "id_2"])
    for batch in epoch(TrainBatches(both, 4, 2, 3, 1.0, per_class=0, seed=0), 0):
        rows = [row for row, _ in batch[2:]]
        for anchor, positive, negative in zip(rows[:3], rows[3:6], rows[6:], strict=True):
            assert abs(anchor - positive) == 2, "the other picture of the item"
            assert abs(anchor - negative) in {1, 3}
    bare = epoch(TrainBatches(both, 4, 3, 0, 0.8, per_class=0, seed=0), 0)
    assert [len(batch) for batch in bare] == [3, 1]
    with pytest.raises(UserError, match="no triplets can be drawn"):
        epoch(TrainBatches(table(["a", "b"], [0, 1]), 2, 2, 3, 1.0, per_class=0, seed=0), 0)


def test_items_are_numbered_in_the_order_of_their_names() -> None:
    assert numbered(np.array(["b", "", "a", "b"])).tolist() == [1, -1, 0, 1]
    assert numbered(np.array(["b", "a"])).tolist() == [1, 0]
    assert numbered(np.array(["", ""])).tolist() == [-1, -1]


@pytest.mark.parametrize(("per_class", "size", "labels_each"), [(4, 16, 4), (3, 16, 5), (8, 8, 2)])
def test_balanced_batches_hold_as_many_pictures_of_each_label(
    per_class: int, size: int, labels_each: int
) -> None:
    labels = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 40, 80, 160])
    state = np.random.get_state()[1].copy()
    rng = np.random.default_rng(0)
    batches = sample_balanced(labels, per_class, size, 60, rng)
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
    again = sample_balanced(labels, per_class, size, 60, np.random.default_rng(0))
    assert (again == batches).all()
    assert (sample_balanced(labels, per_class, size, 60, rng) != batches).any()


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


def test_a_large_jpeg_is_decoded_smaller_where_nothing_is_lost(
    shared: Path, tmp_path: Path
) -> None:
    """Features by real weights, with and without: 1e-3 of cosine distance at most."""
    large = []
    for path in sorted((shared / "photos" / "validation").glob("*/*.jpg"))[::40]:
        picture = Image.open(path).convert("RGB")
        large.append(tmp_path / f"{path.parent.name}_{path.name}")
        picture.resize((4 * picture.width, 4 * picture.height), Image.LANCZOS).save(large[-1])
    weights = str(shared / "weights" / "mobilenet_v2-imagenet-features.pth")
    net = initial_net(Network("mobilenet_v2", 0, ["a"], 112, 112), weights)
    features = FeatureNet(net, [], False).eval()

    def of(least: int) -> tuple[list[Image.Image], np.ndarray]:
        pictures = [read_picture(path, None, least) for path in large]
        images = torch.stack([eval_transform(112, 112)(picture) for picture in pictures])
        deep = extract_features(features, images, torch.device("cpu"), None)[0]
        return pictures, deep / np.linalg.norm(deep, axis=1, keepdims=True)

    whole, exact = of(0)
    small, found = of(DETAIL * 112)
    assert [[side // 2 for side in p.size] for p in whole] == [list(p.size) for p in small]
    assert (1 - (exact * found).sum(1)).max() < 1e-3
    assert read_picture(large[0], (0, 0, 200, 200), DETAIL * 112).size == (200, 200)
    whole[0].save(tmp_path / "whole.png")
    assert read_picture(tmp_path / "whole.png", None, 8).size == whole[0].size

"""data.py: transforms, datasets and loaders."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from data import (
    DETAIL,
    PictureDataset,
    eval_transform,
    make_loader,
    numbered,
    pad_narrow,
    train_transform,
)
from net import Architecture, FeatureNet, extract_features, initial_net
from pictures.decode import PictureError, read_picture
from pictures.samplers import TrainBatches
from pictures.table import Pictures

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def table(paths: list[str], categories: list[int], items: list[str] | None = None) -> Pictures:
    names = [str(i) for i in range(max(categories) + 1)]
    partitions = np.full(len(paths), "train")
    pictures = Pictures.of(paths, np.array(categories, np.int16), names, partitions)
    return replace(pictures, items=np.array(items)) if items else pictures


def seeded(transform: object, picture: Image.Image, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return transform(picture).numpy()


@pytest.mark.parametrize(
    "size", [(300, 225), (225, 300), (100, 100), (40, 53), (341, 256), (37, 37)]
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


@pytest.mark.parametrize(
    ("size", "side", "whole", "seen"),
    [
        ((225, 300), 64, (225, 300), (225, 300)),  # 3:4: as it is
        ((200, 300), 999, (250, 300), (200, 300)),
        ((300, 200), 50, (60, 50), (60, 40)),  # 300 x 250, at a fifth
        ((100, 250), 999, (250, 250), (100, 250)),
        ((20, 4000), 100, (100, 100), (1, 100)),  # never 4000 x 4000
    ],
)
def test_narrow_pictures_are_padded(size, side, whole, seen) -> None:
    padded = np.asarray(pad_narrow(Image.new("RGB", size, (255, 0, 0)), side)).astype(int)
    assert padded.shape == (whole[1], whole[0], 3)
    rows, columns = np.nonzero(padded[..., 0] - padded[..., 1] > 200)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == seen
    middle = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    assert np.allclose(middle, np.array(whole) / 2, atol=0.5)


def test_both_ends_of_an_outfit_are_seen() -> None:
    """Pictures of 1 to 3.5 that differ in their ends alone give other pixels there."""
    pixels = np.full((900, 256, 3), 200, np.uint8)
    other = pixels.copy()
    other[:150], other[-150:] = 30, 90
    transform = eval_transform(224, 224)
    found = [transform(Image.fromarray(array)).numpy().astype(int) for array in (pixels, other)]
    differs = np.abs(found[0] - found[1]).max((1, 2)) > 50
    assert differs[:30].all()
    assert differs[-30:].all()
    assert not differs[50:-50].any()


def test_train_transform_crops_and_flips_but_keeps_colours() -> None:
    plain = Image.new("RGB", (300, 400), (128, 64, 255))
    found = seeded(train_transform(224), plain, 0)
    assert (found.shape, found.dtype) == ((224, 224, 3), np.uint8)
    assert (found == [128, 64, 255]).all()

    # Red grows with x, green with y: what is seen of a picture, and which way round.
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    ramp = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))
    transform, shares, flips = train_transform(64), [], Counter()
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
    return PictureDataset(base, pictures, train_transform(32), crop=True)


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


def test_items_are_numbered_in_the_order_of_their_names() -> None:
    assert numbered(np.array(["b", "", "a", "b"])).tolist() == [1, -1, 0, 1]
    assert numbered(np.array(["b", "a"])).tolist() == [1, 0]
    assert numbered(np.array(["", ""])).tolist() == [-1, -1]


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
    net = initial_net(Architecture("mobilenet_v2", 0, ["a"], 112, 112), weights)
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


def test_a_damaged_picture_with_a_category_is_replaced_by_one_with_a_category(
    tmp_path: Path,
) -> None:
    dataset = replace(noisy_set(tmp_path, 5), replace=True, labelled=3)
    for name in ("2.png", "4.png"):
        (tmp_path / name).write_bytes(b"broken")
    assert [dataset.readable(row)[0] for row in range(5)] == [0, 1, 0, 3, 0]

"""garments.py, training/boxes.py: boxes by hand, and a head that learns those of drawn pictures."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from config import Config
from net import Architecture, initial_net, load_net, save_checkpoint
from network.garments import (
    BoxHead,
    GarmentFinder,
    cell_centres,
    choose_boxes,
    read_head,
    save_head,
)
from pictures.deepfashion import read_attribute, read_inshop
from pictures.splits import Splits
from pictures.table import Pictures
from training.boxes import Views, box_loss, boxed, random_window, train_boxes


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU by counting the cells of a fine grid."""
    centres = (np.arange(400) + 0.5) / 400
    x, y = np.meshgrid(centres, centres)
    first, second = ((x >= c[0]) & (x < c[2]) & (y >= c[1]) & (y < c[3]) for c in (a, b))
    return (first & second).sum() / (first | second).sum()


def test_cells_are_in_reading_order() -> None:
    expected = [(x, y) for y in (0.25, 0.75) for x in (1 / 6, 3 / 6, 5 / 6)]
    np.testing.assert_allclose(cell_centres(2, 3).numpy(), expected, rtol=1e-6)


def test_a_garment_has_its_surest_box_and_weak_ones_are_dropped() -> None:
    """Scores 0.8 and 0.6 of one garment, 0.7 of another, 0.4 of a third."""
    boxes = [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.6], [0.6, 0.5, 1.2, 0.9], [0, 0.7, 0.3, 1]]
    logits = torch.tensor([0.8, 0.6, 0.7, 0.4]).logit()
    found = choose_boxes(logits, torch.tensor(boxes))
    expected = [[0.1, 0.1, 0.5, 0.5], [0.6, 0.5, 1.0, 0.9]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert choose_boxes(logits - 4, torch.tensor(boxes)).shape == (0, 4)


def hand_made(channels: int, score: torch.Tensor, half: float, bias: float = -1) -> BoxHead:
    """A head that scores a cell by its conv map times `score`, and gives boxes of one size."""
    head = BoxHead(channels).eval()
    for layer in (head.hidden, head.around, head.out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    head.norm = nn.Identity()
    head.hidden.weight.data[0, :, 0, 0] = score
    head.around.weight.data[0, 0, 1, 1] = 1
    head.out.weight.data[0, 0] = 1
    head.out.bias.data[0] = bias
    head.out.bias.data[1:] = float(np.log(np.expm1(half))) + 1
    return head


def test_the_strong_cells_of_a_known_map_become_boxes_in_pixels(tmp_path: Path) -> None:
    """Cells (1, 1) and (2, 3) of 4 x 4 respond, the second more; boxes reach 0.125 around them."""
    head = hand_made(2, torch.tensor([1.0, 0.0]), 0.125)
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    assert read_head(tmp_path / "a.pth") is None
    save_head(tmp_path / "a.pth", head, side=64)
    record = read_head(tmp_path / "a.pth")
    seen = []

    def conv_map(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        found = torch.zeros(1, 2, 4, 4)
        found[0, 0, 1, 1], found[0, 0, 2, 3] = 4, 5
        return found

    finder = GarmentFinder(conv_map, record)
    finder.head.norm = nn.Identity()
    picture = Image.effect_noise((200, 120), 60).convert("RGB")
    # Of 200 x 120 px: cell (2, 3) is centred at 175, 75 and cell (1, 1) at 75, 45.
    assert finder(picture) == [(150, 60, 200, 90), (50, 30, 100, 60)]
    expected = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(seen[0][0].numpy(), expected)


def test_the_loss_of_one_cell_is_that_of_the_papers() -> None:
    """A 1 x 1 map: box 0.25 to 0.75; the true one is 0.25 to 0.75 by 0.5 to 1."""
    head = hand_made(1, torch.tensor([0.0]), 0.25)
    loss = box_loss(head, torch.zeros(1, 1, 1, 1), torch.tensor([[0.25, 0.5, 0.75, 1.0]]))
    union, hull = 0.375, 0.375
    giou = 0.125 / union - (hull - union) / hull
    assert float(loss.detach()) == pytest.approx(np.log1p(np.exp(1)) + 1 - giou, rel=1e-5)


def test_a_window_shows_most_of_the_box(rng: np.random.Generator) -> None:
    size, whole = np.array([300.0, 200.0]), 0
    for _ in range(300):
        box = np.sort(rng.uniform(0, 1, (2, 2)), axis=0).ravel() * np.tile(size, 2)
        x1, y1, x2, y2 = random_window(size, box, rng)
        assert 0 <= x1 < x2 <= 300
        assert 0 <= y1 < y2 <= 200
        width, height = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
        assert width * height >= 0.7 * (box[2] - box[0]) * (box[3] - box[1])
        whole += (x2 - x1) * (y2 - y1) == 300 * 200
    assert whole < 150


def test_an_unreadable_picture_is_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next one takes its place, with its own box."""
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 20), (9, 9, 9)).save(tmp_path / "b.png")
    partitions = np.array(["train"] * 2)
    pictures = Pictures.of(["a.png", "b.png"], np.zeros(2, int), ["x"], partitions)
    boxes = np.array([[0, 0, 5, 5], [10, 5, 20, 15]], pictures.boxes.dtype)
    views = Views(boxed(tmp_path, replace(pictures, boxes=boxes), 2, False), 16)
    pixels, box = views[0]
    assert (pixels == 9).all()
    assert box.tolist() == [0.25, 0.25, 0.5, 0.75]
    assert "a.png" in capsys.readouterr().err


def test_a_head_learns_the_boxes_of_drawn_pictures(
    drawn: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the conv map of a network that others trained, which stays as it is."""
    weights = str(shared / "weights/mobilenet_v2-imagenet-features.pth")
    network = Architecture("mobilenet_v2", 0, ["a", "b"], 48, 48)
    net, path = initial_net(network, weights), tmp_path / "a.pth.tar"
    save_checkpoint(path, net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    cpu, tested = torch.device("cpu"), read_attribute(drawn, 50)
    config = Config(DATASET_BASE=drawn, NUM_WORKERS=0, _env_file=None)
    few, many = read_attribute(drawn, 50).in_partition("train"), read_inshop(drawn)
    train_boxes(config, Splits(few, len(few), tested, few), path, net, cpu, None)
    assert read_head(path) is None  # of 40 boxes it does not learn
    train_boxes(config, Splits(many, len(many), tested, few), path, net, cpu, None)
    said = capsys.readouterr().out
    after = load_net(path)
    for key, value in after.state_dict().items():
        assert torch.equal(value, before[key]), key
    finder = GarmentFinder(lambda images: after(after.normalize(images))[2], read_head(path))
    assert finder.side == 96
    found, whole = [], []
    for name, box in zip(tested.paths[::4], tested.boxes[::4], strict=True):
        picture = Image.open(drawn / name)
        sides = np.array(2 * picture.size)
        boxes = finder(picture) or [(0, 0, *picture.size)]
        found.append(overlap(np.array(boxes[0]) / sides, box / sides))
        whole.append(np.prod(box[2:] - box[:2]) / np.prod(picture.size))
    assert np.mean(found) > np.mean(whole) + 0.05
    of_head, of_whole = map(float, re.findall(r"([\d.]+)%", said))
    assert of_head == pytest.approx(100 * np.mean(found), abs=4)
    assert of_whole == pytest.approx(100 * np.mean(whole), abs=4)

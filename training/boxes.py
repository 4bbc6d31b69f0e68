"""Training of the head that finds garments, after that of the network, which it leaves as it is."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_iou, generalized_box_iou_loss

from config import Config
from data import PictureDataset, make_loader
from net import EmbeddingNet, conv_map_of
from network.device import to_device
from network.distributed import per_process
from network.garments import BoxHead, cell_centres, choose_boxes, save_head, square
from pictures.splits import Splits
from pictures.table import Pictures
from utils import evenly_spaced, progress_bar

SCALE = 2  # side of the pictures, in sides of the network's input: they are whole
MIN_BOXES = 100  # of the training part; with fewer there is no head
PASSES, MAX_VIEWS, BATCH = 8, 20_000, 16  # of windows
MAX_VALIDATED = 500
LR = 2e-3
MIN_WINDOW, MIN_VISIBLE = 0.55, 0.7  # of a picture's sides, of the box's area
MIDDLE = 0.5  # of a box's sides, where cells belong to its garment


class Views(Dataset[tuple[Tensor, Tensor]]):
    """Windows of whole pictures and their boxes: side x side x 3, uint8, and 4, float32, 0 to 1.

    Parameters
    ----------
    dataset : pictures with boxes, to which they are not cut
    side : in px
    count : number of windows at random; 0: each picture whole
    """

    def __init__(self, dataset: PictureDataset, side: int, count: int = 0) -> None:
        self.dataset, self.side, self.count = dataset, side, count

    def __len__(self) -> int:
        return self.count or len(self.dataset)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(number)
        row = int(rng.integers(len(self.dataset))) if self.count else number
        row, picture = self.dataset.readable(row)
        box = self.dataset.pictures.boxes[row].astype(float)
        window = np.array([0, 0, *picture.size], float)
        if self.count:
            window = random_window(window[2:], box, rng)
        pixels = square(picture, self.side, tuple(window))
        seen = np.clip((box - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2), 0, 1)
        if self.count and rng.random() < 0.5:
            pixels, seen = pixels.flip(1), np.array([1 - seen[2], seen[1], 1 - seen[0], seen[3]])
        return pixels, torch.tensor(seen, dtype=torch.float32)


def random_window(size: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of a picture that shows most of a box: x1 y1 x2 y2 in px; after 10 tries, all of it.

    `size` is width and height in px.
    """
    for _ in range(10):
        sides = size * rng.uniform(MIN_WINDOW, 1, 2)
        start = rng.uniform(0, size - sides)
        low, high = np.maximum(box[:2], start), np.minimum(box[2:], start + sides)
        if np.prod(np.maximum(high - low, 0)) > MIN_VISIBLE * np.prod(box[2:] - box[:2]):
            return np.concatenate([start, start + sides])
    return np.array([0, 0, *size], float)


def box_loss(head: BoxHead, conv_map: Tensor, boxes: Tensor) -> Tensor:
    """Cross entropy of the cells in the middle of the box, and 1 - GIoU of the boxes they give.

    GIoU: Rezatofighi et al., CVPR 2019. `boxes` are N x 4, in parts of the sides.
    """
    logits, found = head(conv_map)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    centres = cell_centres(*conv_map.shape[-2:]).to(boxes.device)
    off = ((centres - (low + high) / 2) / (high - low).clamp(min=1e-6)).abs().amax(2)
    middle = 2 * off < MIDDLE
    # A box may lie between the cells: then the nearest one is its middle.
    middle |= off == off.amin(1, keepdim=True)
    wanted = boxes[:, None].expand_as(found)[middle]
    loss = F.binary_cross_entropy_with_logits(logits, middle.float())
    return loss + generalized_box_iou_loss(found[middle], wanted, reduction="mean")


def boxed(base: Path, pictures: Pictures, count: int, truncated: bool) -> PictureDataset:
    """At most `count` of the pictures that have a box; the next one stands for an unreadable one.

    `truncated` is as for `read_picture`.
    """
    pictures = pictures.select(pictures.boxes[:, 2] > pictures.boxes[:, 0])
    some = pictures.select(evenly_spaced(len(pictures), count))
    return PictureDataset(base, some, torch.tensor, False, 0, truncated, replace=True)


def train_boxes(
    config: Config,
    splits: Splits,
    path: Path,
    net: EmbeddingNet,
    device: torch.device,
    amp: torch.dtype | None,
) -> None:
    """Train a head on a network's conv map and add it to the checkpoint `path`.

    There is none where pictures are not cut to boxes, where the training part has too few boxes,
    and where whole pictures have a better mean IoU with the boxes of the validation part than
    the boxes that the head finds.
    """
    base, workers = config.DATASET_BASE, per_process(config.NUM_WORKERS)
    truncated = config.TRUNCATED == "accept"
    pictures = boxed(base, splits.train, MAX_VIEWS, truncated)
    measured = boxed(base, splits.validation, MAX_VALIDATED, truncated)
    if not config.CROP_TO_BBOX or len(pictures) < MIN_BOXES or not len(measured):
        return
    conv_map = conv_map_of(to_device(net.eval(), device), device, amp)
    crop_size = net.architecture.crop_size
    side, channels = side_and_channels(conv_map, SCALE * crop_size, crop_size)
    count = min(PASSES * len(pictures), MAX_VIEWS)
    torch.manual_seed(0)
    head = BoxHead(channels).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, -(-count // BATCH))
    load = partial(make_loader, workers=workers, device=device, batch_size=BATCH)
    views = load(Views(pictures, side, count))
    with progress_bar(count, "learning to find garments", "picture") as bar:
        for images, boxes in views:
            box_loss(head, conv_map(images).clone(), boxes.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            bar.update(len(images))
    whole, found = mean_iou(head.eval(), conv_map, load(Views(measured, side)))
    print(
        f"garments: mean IoU {found:.1%} with the {len(measured):,} boxes of the validation part,"
        f" of whole pictures {whole:.1%}" + ("" if found > whole else ": the boxes are not used")
    )
    if found > whole:
        save_head(path, head, side)


def side_and_channels(conv_map: Callable[[Tensor], Tensor], *sides: int) -> tuple[int, int]:
    """The first of some sides in px that a backbone takes, and the channels of its conv map.

    `conv_map` is of `net.conv_map_of`. Some backbones take one size only.
    """
    for side in sides:
        try:
            return side, conv_map(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1]
        except (RuntimeError, AssertionError, ValueError) as error:
            last = error
    raise last


@torch.inference_mode()
def mean_iou(
    head: BoxHead, conv_map: Callable[[Tensor], Tensor], views: DataLoader
) -> tuple[float, float]:
    """Mean IoU with the boxes of whole pictures: of all of the picture, and of the surest box."""
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    values = []
    for images, boxes in views:
        for *found, box in zip(*head(conv_map(images)), boxes, strict=True):
            best = torch.cat([choose_boxes(*found).cpu(), whole])[:1]
            values.append(box_iou(torch.cat([whole, best]), box[None])[:, 0])
    first, second = torch.stack(values).mean(0).tolist()
    return first, second

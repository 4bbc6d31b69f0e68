"""Where the garments of a picture are: a small head on the conv map gives their boxes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import nms

from network.checkpoint import read_checkpoint, write_checkpoint

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in px

KEY = "garments"  # of the head in a checkpoint
HIDDEN = 64  # channels
MIN_SCORE, MAX_GARMENTS = 0.5, 5
SAME_GARMENT = 0.5  # boxes of more overlap (IoU) are of one garment


class BoxHead(nn.Module):
    """Of each cell of a conv map, whether it is in the middle of a garment, and the garment's box.

    A detector of one class without anchors, as FCOS (Tian et al., ICCV 2019), of one scale.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, affine=False)
        self.hidden = nn.Conv2d(channels, HIDDEN, 1)
        self.around = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1)
        self.out = nn.Conv2d(HIDDEN, 5, 1)

    def forward(self, conv_map: Tensor) -> tuple[Tensor, Tensor]:
        """Conv map N x C x h x w of whole pictures -> logits N x hw, and boxes N x hw x 4.

        Boxes are x1, y1, x2, y2 in parts of the picture's sides; they may reach out of it.
        """
        x = F.relu(self.hidden(self.norm(conv_map.float())))
        logits, *sides = self.out(F.relu(self.around(x))).flatten(2).unbind(1)
        left, top, right, bottom = (F.softplus(side - 1) for side in sides)
        x, y = cell_centres(*conv_map.shape[-2:]).to(conv_map.device).unbind(1)
        return logits, torch.stack([x - left, y - top, x + right, y + bottom], 2)


def cell_centres(height: int, width: int) -> Tensor:
    """x and y of the cells of a conv map, in reading order: hw x 2, in parts of its sides."""
    y, x = ((torch.arange(count) + 0.5) / count for count in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], 1)


def choose_boxes(logits: Tensor, boxes: Tensor) -> Tensor:
    """The boxes of the garments of one picture, the surest first: M x 4, within 0 to 1.

    `logits` and `boxes` are hw and hw x 4, of `BoxHead`. M is at most `MAX_GARMENTS`, and 0 where
    no score reaches `MIN_SCORE`.
    """
    scores, boxes = logits.sigmoid(), boxes.clamp(0, 1)
    best = nms(boxes, scores, SAME_GARMENT)[:MAX_GARMENTS]
    return boxes[best[scores[best] >= MIN_SCORE]]


class GarmentFinder:
    """Finds the garments of whole pictures.

    Parameters
    ----------
    conv_map : pictures N x side x side x 3, uint8 -> their conv map
    record : of the head, as the network's checkpoint has it
    """

    def __init__(self, conv_map: Callable[[Tensor], Tensor], record: dict[str, Any]) -> None:
        self.conv_map, self.side = conv_map, int(record["side"])
        self.head = BoxHead(record["state_dict"]["hidden.weight"].shape[1]).eval()
        self.head.load_state_dict(record["state_dict"])

    @torch.inference_mode()
    def __call__(self, picture: Image.Image) -> list[Box]:
        """The boxes of the garments of an RGB picture, in px, the surest first."""
        conv_map = self.conv_map(square(picture, self.side)[None])
        logits, boxes = self.head(conv_map.cpu())
        sides = np.array(2 * picture.size)
        found = choose_boxes(logits[0], boxes[0]).numpy() * sides
        corners = np.hstack([np.floor(found[:, :2]), np.ceil(found[:, 2:])]).astype(int).tolist()
        return [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners if x1 < x2 and y1 < y2]


def square(picture: Image.Image, side: int, window: Any = None) -> Tensor:
    """A window x1, y1, x2, y2 of an RGB picture (None: all) as a square: side x side x 3, uint8."""
    scaled = picture.resize((side, side), Image.Resampling.BILINEAR, window)
    return torch.from_numpy(np.array(scaled))


def save_head(path: Path, head: BoxHead, side: int) -> None:
    """Add a head, and the side in px of its pictures, to a checkpoint."""
    state = {key: value.cpu() for key, value in head.state_dict().items()}
    record: dict[str, Any] = {"state_dict": state, "side": side}
    write_checkpoint(path, {**read_checkpoint(path), KEY: record})


def read_head(path: Path) -> dict[str, Any] | None:
    """What a checkpoint records of its head; None where it was trained without boxes."""
    return read_checkpoint(path).get(KEY)

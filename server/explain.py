"""Why an answer has its rank: the parts of its distance, and what the network sees."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from net import FeatureNet
from network.color import Palette, palette_rgb
from network.device import autocast, query_type, to_device
from pictures.decode import read_picture
from pictures.folder import picture_file
from search.engine import ExactEngine
from server.live import Collection
from server.query_features import QueryMemory, query_features
from server.ranking import signals_for
from server.schemas import Cell, Explanation, Part, SearchOptions, Shade, View

Seen = tuple[Tensor, Tensor]  # feature map C x h x w and palette 512 of a picture, on the CPU
MAX_SHADES, MIN_SHARE = 8, 0.01  # of a palette
JPEG_QUALITY = 85


def images_of(
    collection: Collection, memory: QueryMemory, options: SearchOptions, answer: str
) -> list[Tensor]:
    """The first picture that was searched by, if any, and the answer, as the network gets them.

    Raises
    ------
    PictureError : a picture of the collection cannot be read any more
    """
    ids = [] if options.query else (options.pictures or options.like)[:1]
    files = [_file_of(collection, picture) for picture in [*ids, answer]]
    images = [collection.read(file).images[0] for file in files]
    return [memory.get(collection, options.query).images[0], *images] if options.query else images


def explain(
    collection: Collection,
    memory: QueryMemory,
    options: SearchOptions,
    answer: str,
    images: Sequence[Tensor],
    seen: Sequence[Seen],
) -> Explanation:
    """Explain an answer of a search by `options`.

    `images` are those of `images_of`, and `seen` is what `see` has made of them.
    """
    query = query_features(collection, memory, options)
    parts: list[Part] = []
    distance = None
    if query is not None:
        signals = signals_for(collection, options, query)
        row = np.array([collection.row(answer)])
        found = ExactEngine(signals).search(query, 1, row)[0]
        distance = float(found.distances[0])
        parts = [
            Part(signal=s.name, metric=s.metric, value=value, weight=s.weight)
            for s, value in zip(signals, found.parts[0].tolist(), strict=True)
            if s.weight
        ]
    count = collection.database.metadata.settings.COLOR_TOP_N
    views = [_view(image, *own, count) for image, own in zip(images, seen, strict=True)]
    return Explanation(
        parts=parts,
        distance=distance,
        query=views[0] if len(views) > 1 else None,
        answer=views[-1],
        similar=_similarities(seen[0][0], seen[1][0]) if len(views) > 1 else [],
    )


def _file_of(collection: Collection, picture: str) -> Path:
    return picture_file(collection.base, collection.database.paths[collection.row(picture)])


def see(collection: Collection, images: list[Tensor]) -> list[Seen]:
    """What the first network of a collection sees in pictures."""
    amp = collection.database.metadata.settings.AMP
    found = inspect(collection.nets[0], torch.stack(images), collection.device, amp)
    return list(zip(*(values.cpu() for values in found), strict=True))


@torch.inference_mode()
def inspect(
    net: FeatureNet, images: Tensor, device: torch.device, amp: str
) -> tuple[Tensor, Tensor]:
    """What a network sees.

    Parameters
    ----------
    net : on `device`
    images : N x H x W x 3, uint8, on the CPU
    device : of the network
    amp : arithmetic of the feature database, "float32" or the name of a 16-bit type

    Returns
    -------
    Feature maps N x C x h x w and palettes N x 512, float32, on `device`.
    """
    x = net.net.normalize(images.to(device))
    with autocast(device, query_type(amp, device)):
        maps = net.net(x)[2].float()
    return maps, to_device(Palette(), device)(net.net.normalize.for_colors(x), maps)


def _similarities(query: Tensor, answer: Tensor) -> list[list[float]]:
    """Cosine similarity of the cells of two feature maps: h * w x h * w."""
    maps = F.normalize(torch.stack([query, answer]).flatten(2), dim=1)
    return [[round(value, 3) for value in row] for row in (maps[0].T @ maps[1]).tolist()]


def _view(image: Tensor, conv_map: Tensor, palette: Tensor, cell_count: int) -> View:
    rows, columns = conv_map.shape[1:]
    # As in `ColorFeature`.
    strongest = conv_map.mean(0).flatten().argsort(descending=True, stable=True)[:cell_count]
    means = F.adaptive_avg_pool2d(image.permute(2, 0, 1).float(), (rows, columns)).flatten(1)
    cells = [
        Cell(row=i // columns, column=i % columns, color=_hex(means[:, i].tolist()))
        for i in strongest.tolist()
    ]
    data = base64.b64encode(_jpeg(Image.fromarray(image.numpy()))).decode()
    address, shades = f"data:image/jpeg;base64,{data}", _shades(palette.numpy() ** 2)
    return View(image=address, rows=rows, columns=columns, cells=cells, shades=shades)


def _shades(shares: np.ndarray) -> list[Shade]:
    """The largest bins of a palette; `shares` of all its bins, which add up to 1."""
    largest = np.argsort(-shares, kind="stable")[:MAX_SHADES]
    rgb = palette_rgb()[largest]
    return [
        Shade(color=_hex(color), share=share)
        for color, share in zip((255 * rgb).tolist(), shares[largest].tolist(), strict=True)
        if share > MIN_SHARE
    ]


def _hex(rgb: Sequence[float]) -> str:
    """#rrggbb of values from 0 to 255."""
    return "#" + "".join(f"{round(value):02x}" for value in rgb)


def thumbnail(collection: Collection, picture: str, side: int) -> bytes:
    """A picture of the collection as JPEG, its long side at most `side` px.

    Raises
    ------
    PictureError : it cannot be read any more
    """
    image = read_picture(_file_of(collection, picture), min_side=side, truncated=True)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _jpeg(image)


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()

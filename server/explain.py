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
from server.collection import Collection
from server.query import QueryMemory, query_features
from server.ranking import signals_for
from server.schemas import Cell, Explanation, Part, SearchOptions, Shade, View

MAX_SHADES, MIN_SHARE = 8, 0.01  # of a palette
JPEG_QUALITY = 85


def explain(
    collection: Collection, memory: QueryMemory, options: SearchOptions, row: int
) -> Explanation:
    """Explain the answer `row` of a search by `options`.

    Raises
    ------
    PictureError : a picture of the collection cannot be read any more
    """
    query = query_features(collection, memory, options)
    parts: list[Part] = []
    distance, query_image = None, None
    if query is not None:
        signals = signals_for(collection, options, query)
        answer = ExactEngine(signals).search(query, 1, np.array([row]))[0]
        distance = float(answer.distances[0])
        parts = [
            Part(signal=s.name, metric=s.metric, value=value, weight=s.weight)
            for s, value in zip(signals, answer.parts[0].tolist(), strict=True)
            if s.weight
        ]
        query_image = _query_image(collection, memory, options)
    images = [image for image in (query_image, _image_of(collection, row)) if image is not None]
    settings = collection.database.metadata.settings
    inspected = inspect(collection.nets[0], torch.stack(images), collection.device, settings.AMP)
    maps, palettes = (values.cpu() for values in inspected)
    views = [
        _view(*of_picture, settings.COLOR_TOP_N)
        for of_picture in zip(images, maps, palettes, strict=True)
    ]
    return Explanation(
        parts=parts,
        distance=distance,
        query=views[0] if query_image is not None else None,
        answer=views[-1],
        similar=[] if query_image is None else _similarities(maps),
    )


def _query_image(
    collection: Collection, memory: QueryMemory, options: SearchOptions
) -> Tensor | None:
    """The first picture that was searched by, None where there was none."""
    if options.query:
        return memory.get(collection, options.query).images[0]
    rows = options.pictures or options.like
    return _image_of(collection, rows[0]) if rows else None


def _image_of(collection: Collection, row: int) -> Tensor:
    """A picture of the collection as the first network takes it."""
    return collection.read(_file_of(collection, row)).images[0]


def _file_of(collection: Collection, row: int) -> Path:
    return picture_file(collection.base, collection.database.paths[row])


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
    return maps, to_device(Palette(), device)(x, maps)


def _similarities(maps: Tensor) -> list[list[float]]:
    """Cosine similarity of the cells of two feature maps: h * w x h * w."""
    unit = F.normalize(maps.flatten(2), dim=1)
    table = torch.einsum("cq,ca->qa", unit[0], unit[-1])
    return [[round(value, 3) for value in row] for row in table.tolist()]


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
    shades = _shades(palette.numpy() ** 2)
    address = f"data:image/jpeg;base64,{data}"
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


def thumbnail(collection: Collection, row: int, side: int) -> bytes:
    """A picture of the collection as JPEG, its long side at most `side` px.

    Raises
    ------
    PictureError : it cannot be read any more
    """
    picture = read_picture(_file_of(collection, row), min_side=side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()

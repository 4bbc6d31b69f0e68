"""Why an answer has its rank: the parts of its distance, and what the network sees."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from net import FeatureNet
from network.color import Palette
from network.device import autocast, query_type, to_device
from pictures.decode import read_picture
from pictures.folder import picture_file
from search.engine import ExactEngine
from search.signals import Signal
from server.collection import Collection
from server.query import Features, QueryMemory, palette_colors, query_features
from server.ranking import finite, signals_for
from server.schemas import Cell, Explanation, Part, SearchOptions, Shade, View

MAX_SHADES, MIN_SHARE = 8, 0.01  # of a palette
JPEG_QUALITY = 85


def explain(
    collection: Collection, memory: QueryMemory, options: SearchOptions, row: int
) -> Explanation:
    """Explain an answer.

    Parameters
    ----------
    collection : was searched
    memory : has the uploaded pictures
    options : of the search; its `query` names the uploaded pictures
    row : the answer

    Raises
    ------
    UnknownError : the uploaded pictures are not kept any more
    PictureError : a picture of the collection cannot be read any more
    """
    query = query_features(collection, memory, options, options.query)
    parts: list[Part] = []
    distance, query_image = None, None
    if query is not None:
        parts, distance = _parts(signals_for(collection, options, query), query, row)
        query_image = _query_image(collection, memory, options, query)
    images = [image for image in (query_image, _image_of(collection, row)) if image is not None]
    searcher, settings = collection.searcher, collection.database.metadata.settings
    net, device = searcher.nets[0], searcher.device
    maps, palettes = inspect(net, torch.stack(images), device, settings.AMP)
    maps, palettes = maps.cpu(), palettes.cpu()
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


def _parts(signals: Sequence[Signal], query: Features, row: int) -> tuple[list[Part], float | None]:
    """What each signal with a weight adds to the distance of a picture, and the distance."""
    answer = ExactEngine(signals).search(query, 1, np.array([row]))[0]
    parts = [
        Part(signal=signal.name, metric=signal.metric, value=finite(value), weight=signal.weight)
        for signal, value in zip(signals, answer.parts[0].tolist(), strict=True)
        if signal.weight
    ]
    return parts, finite(float(answer.distances[0]))


def _query_image(
    collection: Collection, memory: QueryMemory, options: SearchOptions, query: Features
) -> Tensor | None:
    """The picture that is nearest to the query among those searched by; None: there is none."""
    candidates: list[tuple[np.ndarray, Tensor | int]] = []
    if options.query:
        uploaded = memory.get(collection, options.query)
        deep = [features[0] for features in uploaded.features]
        candidates += zip(deep, uploaded.images, strict=True)
    deep_features = collection.searcher.signals[0].features
    for row in options.pictures or options.like:
        candidates.append((deep_features[row : row + 1], row))
    if not candidates:
        return None
    _, nearest = min(candidates, key=lambda pair: float(np.linalg.norm(pair[0] - query[0])))
    return nearest if isinstance(nearest, Tensor) else _image_of(collection, nearest)


def _image_of(collection: Collection, row: int) -> Tensor:
    """A picture of the collection as the first network takes it."""
    database = collection.database
    return collection.searcher.read(picture_file(database.base, database.paths[row])).images[0]


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
    cells = []
    for place in strongest.tolist():
        red, green, blue = (round(value) for value in means[:, place].tolist())
        color = f"#{red:02x}{green:02x}{blue:02x}"
        cells.append(Cell(row=place // columns, column=place % columns, color=color))
    data = base64.b64encode(_jpeg(Image.fromarray(image.numpy()))).decode()
    return View(
        image=f"data:image/jpeg;base64,{data}",
        rows=rows,
        columns=columns,
        cells=cells,
        shades=_shades(palette.numpy() ** 2),
    )


def _shades(shares: np.ndarray) -> list[Shade]:
    """The largest bins of a palette; `shares` of all its bins, which add up to 1."""
    largest = np.argsort(-shares, kind="stable")[:MAX_SHADES]
    lab = palette_colors()[largest].astype(np.float32)
    rgb = cv2.cvtColor(lab[None], cv2.COLOR_LAB2RGB)[0].clip(0, 1)
    return [
        Shade(color="#" + "".join(f"{round(255 * value):02x}" for value in color), share=share)
        for color, share in zip(rgb.tolist(), shares[largest].tolist(), strict=True)
        if share > MIN_SHARE
    ]


def thumbnail(collection: Collection, row: int, side: int) -> bytes:
    """A picture of the collection as JPEG, its long side at most `side` px.

    Raises
    ------
    PictureError : it cannot be read any more
    """
    file = picture_file(collection.database.base, collection.database.paths[row])
    picture = read_picture(file, min_side=side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()

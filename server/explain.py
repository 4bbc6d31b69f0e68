"""Why an answer is where it is: the parts of its distance, and what the network sees."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from network.color import CHROMA, PALETTE_BINS, Palette
from network.device import autocast, network_input
from pictures.collection import picture_file
from pictures.decode import read_picture
from search.engine import ExactEngine
from search.query import Query, read_query
from search.signals import Signal
from server.collection import Collection
from server.schemas import Cell, Explanation, Part, SearchOptions, Shade, View
from server.search import Features, Memory, features_asked, narrowed, rgb_of_lab

SHADES = 8  # of a palette that are shown
VIEW_QUALITY = 85


def explain(
    collection: Collection, memory: Memory, options: SearchOptions, row: int
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
    query = features_asked(collection, memory, options, options.query)
    parts, distance, shown = [], None, None
    if query is not None:
        signals, _, _ = narrowed(collection, options, query)
        parts, distance = _parts(signals, query, row)
        shown = _query_shown(collection, memory, options, query)
    images = [image for image in (shown, _image_of(collection, row)) if image is not None]
    views, maps = _look(collection, images)
    similar = F.normalize(maps.flatten(2), dim=1)
    similar = torch.einsum("cq,ca->qa", similar[0], similar[-1])
    return Explanation(
        parts=parts,
        distance=distance,
        query=views[0] if shown is not None else None,
        answer=views[-1],
        similar=[] if shown is None else [[round(v, 3) for v in line] for line in similar.tolist()],
    )


def _parts(signals: Sequence[Signal], query: Features, row: int) -> tuple[list[Part], float | None]:
    """What each signal that counts adds to the distance of a picture, and their sum."""
    answer = ExactEngine(signals).search(query, 1, np.array([row]))[0]
    values = [value if np.isfinite(value) else None for value in answer.parts[0].tolist()]
    parts = [
        Part(signal=signal.name, metric=signal.metric, value=value, weight=signal.weight)
        for signal, value in zip(signals, values, strict=True)
        if signal.weight
    ]
    distance = float(answer.distances[0])
    return parts, distance if np.isfinite(distance) else None


def _query_shown(
    collection: Collection, memory: Memory, options: SearchOptions, query: Features
) -> Tensor | None:
    """Of the pictures that are searched by the one nearest to the query; None: there is none."""
    candidates: list[tuple[np.ndarray, Query | int]] = []
    if options.query:
        kept = memory.get(collection, options.query)
        candidates += [(f[0], q) for f, q in zip(kept.features, kept.queries, strict=True)]
    for other in options.pictures or options.like:
        candidates.append((collection.signals[0].features[other : other + 1], other))
    if not candidates:
        return None
    _, nearest = min(candidates, key=lambda pair: float(np.linalg.norm(pair[0] - query[0])))
    return nearest.images[0] if isinstance(nearest, Query) else _image_of(collection, nearest)


def _image_of(collection: Collection, row: int) -> Tensor:
    """A picture of the collection as the first network took it."""
    base, path = collection.database.base, collection.database.paths[row]
    crop = collection.database.metadata.settings.CROP_TO_BBOX
    file = picture_file(base, path)
    return read_query(
        base, path, file, None, crop, collection.transforms[:1], collection.least
    ).images[0]


@torch.inference_mode()
def _look(collection: Collection, images: Sequence[Tensor]) -> tuple[list[View], Tensor]:
    """Pictures as the first network sees them, and their conv maps: N x C x h x w, float32."""
    net = collection.nets[0]
    amp = collection.database.metadata.settings.AMP
    x = network_input(torch.stack(list(images)), collection.device)
    with autocast(collection.device, None if amp == "float32" else getattr(torch, amp)):
        maps = net.net(x)[2].float()
    cells = collection.database.metadata.settings.COLOR_TOP_N
    palettes = Palette().to(x.device)(x, maps)
    views = [
        _view(image, conv_map.cpu(), palette.cpu().numpy() ** 2, cells)
        for image, conv_map, palette in zip(images, maps, palettes, strict=True)
    ]
    return views, maps.cpu()


def _view(image: Tensor, conv_map: Tensor, palette: np.ndarray, count: int) -> View:
    rows, columns = conv_map.shape[1:]
    # As in color.ColorFeature.
    strongest = conv_map.mean(0).flatten().argsort(descending=True, stable=True)[:count].tolist()
    means = F.adaptive_avg_pool2d(image.permute(2, 0, 1).float(), (rows, columns)).flatten(1)
    cells = []
    for place in strongest:
        red, green, blue = (round(value) for value in means[:, place].tolist())
        color = f"#{red:02x}{green:02x}{blue:02x}"
        cells.append(Cell(row=place // columns, column=place % columns, color=color))
    greatest = np.argsort(-palette, kind="stable")[:SHADES]
    places = np.stack(np.unravel_index(greatest, [PALETTE_BINS] * 3), axis=1) + 0.5
    lab = places / PALETTE_BINS * [100, 2 * CHROMA, 2 * CHROMA] - [0, CHROMA, CHROMA]
    shades = [
        Shade(color=color, share=float(share))
        for color, share in zip(rgb_of_lab(lab), palette[greatest], strict=True)
        if share > 0.01
    ]
    data = io.BytesIO()
    Image.fromarray(image.numpy()).save(data, "JPEG", quality=VIEW_QUALITY)
    address = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    return View(image=address, rows=rows, columns=columns, cells=cells, shades=shades)


def thumbnail(collection: Collection, row: int, side: int) -> bytes:
    """A picture of the collection as JPEG, its long side at most `side` px.

    Raises
    ------
    PictureError : it cannot be read any more
    """
    base = collection.database.base
    picture = read_picture(picture_file(base, collection.database.paths[row]), least=side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=VIEW_QUALITY)
    return data.getvalue()

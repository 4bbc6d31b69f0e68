"""Why an answer resembles its query: which regions of the pictures the network sees alike."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from net import conv_map_of
from network.color import strongest_cells
from network.device import explain_out_of_memory, query_type
from pictures.decode import read_picture
from pictures.folder import picture_file
from server.live import Collection
from server.schemas import Cell, Explanation, SearchOptions, View

JPEG_QUALITY = 85


def images_of(collection: Collection, options: SearchOptions, answer: str) -> list[Tensor]:
    """The first picture of a search, if any, and an answer, as the first network gets them.

    Raises
    ------
    PictureError : a picture of the collection cannot be read any more
    """
    ids = [] if options.query else (options.pictures or options.like)[:1]
    files = [_file_of(collection, picture) for picture in [*ids, answer]]
    images = [collection.read(file).images[0] for file in files]
    return [collection.uploaded(options.query).image, *images] if options.query else images


def see(collection: Collection, images: list[Tensor]) -> list[Tensor]:
    """The first network's conv map of each picture: C x h x w, float32, on the CPU."""
    dtype = query_type(collection.database.metadata.settings.AMP, collection.device)
    conv_map = conv_map_of(collection.nets[0].net, collection.device, dtype)
    with explain_out_of_memory():
        return list(conv_map(torch.stack(images)).cpu())


def explain(
    collection: Collection, images: Sequence[Tensor], maps: Sequence[Tensor]
) -> Explanation:
    """What the network sees in `images_of` a search, by what `see` gives for them."""
    count = collection.database.metadata.settings.COLOR_TOP_N
    views = [_view(image, own, count) for image, own in zip(images, maps, strict=True)]
    if len(views) == 1:
        return Explanation(query=None, answer=views[0], similar=[])
    cells = F.normalize(torch.stack(list(maps)).flatten(2), dim=1)
    similar = (cells[0].T @ cells[1]).double().round(decimals=3)
    return Explanation(query=views[0], answer=views[1], similar=similar.tolist())


def _file_of(collection: Collection, picture: str) -> Path:
    return picture_file(collection.base, collection.database.paths[collection.row(picture)])


def _view(image: Tensor, conv_map: Tensor, cell_count: int) -> View:
    rows, columns = conv_map.shape[1:]
    means = F.adaptive_avg_pool2d(image.permute(2, 0, 1).float(), (rows, columns)).flatten(1)
    cells = []
    for i in strongest_cells(conv_map[None], cell_count)[0].tolist():
        rgb = bytes(means[:, i].round().byte().tolist())
        cells.append(Cell(row=i // columns, column=i % columns, color=f"#{rgb.hex()}"))
    data = base64.b64encode(_jpeg(Image.fromarray(image.numpy()))).decode()
    return View(image=f"data:image/jpeg;base64,{data}", rows=rows, columns=columns, cells=cells)


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

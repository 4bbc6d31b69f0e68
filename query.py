"""Query pictures -> their features, as the feature database has them of its own pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from annotations import find_box
from color import color_features
from data import Transform
from index import FeatureDatabase
from net import FeatureNet, Network, extract_features, find_model, load_net
from utils import UserError, read_picture, sha256_of

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Query:
    """One query picture.

    Attributes
    ----------
    name : as the user gave it
    images : of each model its input, 3 x crop_size x crop_size
    thumbnail : RGB, cropped to the garment where its box is known
    """

    name: str
    images: list[torch.Tensor]
    thumbnail: Image.Image


def find_query(base: Path, name: str) -> Path:
    """The file a query means: as given, or relative to DATASET_BASE or its in-shop part.

    Raises
    ------
    UserError : there is none
    """
    places = [Path(), base, base / "in_shop", base / "Img", base / "in_shop" / "Img"]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{name}: no such file, neither here nor below {base} or its in_shop/")
    return found


def read_query(
    base: Path,
    name: str,
    path: Path,
    box: Box | None,
    crop: bool,
    transforms: Sequence[Transform],
) -> Query:
    """Read a query picture.

    Parameters
    ----------
    base : DATASET_BASE
    name : the user's argument
    path : its file
    box : cut it to this box, x1 y1 x2 y2 in px; None takes a picture of the collection as the
        feature database took it, and any other one whole
    crop : the feature database's pictures were cut to their boxes
    transforms : of each model, RGB picture -> tensor

    Raises
    ------
    PictureError : no picture, or a box outside it
    """
    if box is None and crop:
        below = os.path.relpath(os.path.abspath(path), os.path.abspath(base))
        box = None if below.startswith("..") else find_box(base, Path(below).as_posix())
        box = box if box and box[2] > 0 else None
    picture = read_picture(path, box)
    images = [transform(picture) for transform in transforms]
    return Query(name, images, ImageOps.contain(picture, (400, 400)))


def extract_queries(
    nets: Sequence[FeatureNet],
    queries: Sequence[Query],
    device: torch.device,
    amp: str,
    batch_size: int,
) -> list[np.ndarray]:
    """Features of the queries, of each signal of the database in its order: Q x D, float32.

    `amp` is the type the feature database was made with, so that equal pictures get equal features.
    """
    dtype = None if amp == "float32" else getattr(torch, amp)
    deep, colors = [], []
    for number, net in enumerate(nets):
        parts = []
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            images = torch.stack([query.images[number] for query in batch])
            parts.append(extract_features(net, images, device, dtype))
        embedding, *rest = [np.concatenate(signal) for signal in zip(*parts, strict=True)]
        deep.append(embedding)
        colors += rest
    return deep + colors


def load_models(
    database: FeatureDatabase, dumped: Sequence[str], device: torch.device
) -> tuple[list[FeatureNet], list[Network]]:
    """Load the models that made the feature database.

    Parameters
    ----------
    database : names its models
    dumped : the settings MODELS or DUMPED_MODEL
    device : where they are to run

    Raises
    ------
    UserError : a model is missing or another one
    """
    again = f"run: python feature_extractor.py --dataset-base {database.base}"
    info = database.info
    if len(dumped) != len(info["models"]):
        files = ",".join(record["file"] for record in info["models"])
        raise UserError(
            f"the feature database was made by {files}; set MODELS to that (--models {files}), or"
            f" {again}"
        )
    nets, networks = [], []
    for number, (name, record) in enumerate(zip(dumped, info["models"], strict=True)):
        path = find_model(database.base, name)
        if sha256_of(path) != record["sha256"]:
            flag = "--models " + ",".join(dumped) if len(dumped) > 1 else f"--dumped-model {name}"
            raise UserError(
                f"{path} is not the model that made the feature database ({record['file']},"
                f" SHA-256 {record['sha256'][:12]}...); {again} {flag}"
            )
        net, network = load_net(path, Network(**record["network"]))
        colors = [] if number else color_features(info["settings"])
        features = FeatureNet(net, colors, info["settings"]["FLIP"]).eval()
        nets.append(features.to(device, memory_format=torch.channels_last))
        networks.append(network)
    return nets, networks

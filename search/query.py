"""Query pictures -> their features, as the feature database has them of its own pictures."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from data import TRANSFORM
from features.database import FeatureDatabase, unit_rows
from features.metadata import ModelRecord
from net import Architecture, FeatureNet, conv_map_of, extract_features, load_net, model_places
from network.color import color_features
from network.device import query_type, to_device
from network.garments import Box, GarmentFinder, read_head
from pictures.deepfashion import CONSUMER, find_box
from utils import UserError, command, sha256_of

Cut = Box | Literal["auto"]  # auto: to the garment that is found in the picture

SAME_LENGTH = 0.01  # relative: features of lengths so close are normalised, in bfloat16 too


class Stopwatch:
    """Wall-clock seconds of named steps, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block; seconds of the same name are added."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Query:
    """One query: a picture, words or both.

    Attributes
    ----------
    name : as the user gave it
    images : of each model its picture, crop_size x crop_size x 3, uint8
    thumbnail : RGB, cropped to the garment where its box is known
    files : size in bytes and SHA-256 of each of its files
    text : words that are searched by, too
    garments : boxes that were found in it, the surest first; the picture is cut to that one
    """

    name: str
    images: list[torch.Tensor]
    thumbnail: Image.Image
    files: tuple[tuple[int, str], ...] = ()
    text: str = ""
    garments: tuple[Box, ...] = ()


def joined(queries: Sequence[Query]) -> Query:
    """Several pictures as one query, with the images of the first."""
    files = tuple(file for query in queries for file in query.files)
    return replace(queries[0], name=" + ".join(query.name for query in queries), files=files)


def mean_features(
    features: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> list[np.ndarray]:
    """Make one query of several pictures of an item: the mean of their features.

    The mean needs one search for any number of pictures, and a detail of one picture does not
    decide, as it would with the minimum of their distances. Where all features are normalised, so
    is their mean: a shorter one would change its share in the sum with the other signals.

    Parameters
    ----------
    features : for each signal its features of the Q query pictures, Q x D
    weights : Q, of the pictures in the mean; None: all alike

    Returns
    -------
    For each signal 1 x D, float32.
    """
    joined = []
    for own in features:
        mean = np.average(own.astype(np.float64), axis=0, weights=weights)[None]
        lengths = np.linalg.norm(own, axis=1)
        if np.allclose(lengths, lengths[0], rtol=SAME_LENGTH, atol=0):
            mean = lengths[0] * unit_rows(mean)
        joined.append(mean.astype(np.float32))
    return joined


def find_query(base: Path, name: str) -> Path:
    """The file a query means: as given, or relative to DATASET_BASE or its items.

    Raises
    ------
    UserError : there is none
    """
    parts = ("", "in_shop", "Img", "in_shop/Img", CONSUMER, f"{CONSUMER}/Img")
    places = [Path(), *(base / part for part in parts)]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{name}: no such file, neither here nor below {base} or its in_shop/")
    return found


def recorded_box(base: Path, path: Path) -> Box | None:
    """The box that the feature database cut a picture of the collection to; else None."""
    below = os.path.relpath(os.path.abspath(path), os.path.abspath(base))
    box = None if below.startswith("..") else find_box(base, Path(below).as_posix())
    return box if box and box[2] > 0 else None


def open_finder(model: Path, net: FeatureNet, device: torch.device) -> GarmentFinder:
    """What finds garments by a model, which is loaded as `net`.

    Raises
    ------
    UserError : it was trained without boxes
    """
    record = read_head(model)
    if record is None:
        raise UserError(
            f"{model}: finds no garments, as it was trained without list_bbox.txt or by an older"
            " version; train again, or name the box in px"
        )
    return GarmentFinder(conv_map_of(net.net, device), record)


def extract_queries(
    nets: Sequence[FeatureNet],
    queries: Sequence[Query],
    device: torch.device,
    amp: str,
    batch_size: int,
) -> list[np.ndarray]:
    """Features of the queries, of each signal of the database in its order: Q x D, float32.

    `amp` is the type that the feature database was made in, see `network.device.query_type`.
    """
    dtype = query_type(amp, device)
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


def find_models(database: FeatureDatabase, named: Sequence[str]) -> list[Path]:
    """Find the models that made the feature database, by their SHA-256.

    They are those of `named`, the settings MODELS or DUMPED_MODEL, or, with a line on standard
    error, those that all_feat.json names.

    Raises
    ------
    UserError : a model is missing or another one
    """
    base, records = database.base, database.metadata.models
    files = [record.file for record in records]
    made_by, wanted = ", ".join(files), ", ".join(named)
    for names in (named, files):
        found = [_same_model(base, *pair) for pair in zip(names, records, strict=False)]
        if len(names) == len(records) and None not in found:
            if names is files:
                note = f"querying with {made_by}, which made the feature database, not {wanted}"
                print(note, file=sys.stderr)
            return [path for path in found if path]
    also = "" if made_by == wanted else f", and {wanted} is not the same"
    raise UserError(
        f"{base}: the feature database was made by {made_by}, now missing or changed{also}; say"
        f" where it is (--models FILE,...), or run: {command('feature_extractor.py', base)}"
    )


def _same_model(base: Path, name: str, record: ModelRecord) -> Path | None:
    """The file of that name with the record's SHA-256."""
    places = (path for path in model_places(base, name) if path.is_file())
    return next((path for path in places if sha256_of(path) == record.sha256), None)


def load_query_nets(
    database: FeatureDatabase, models: Sequence[Path], device: torch.device
) -> tuple[list[FeatureNet], list[Architecture]]:
    """Load the models that made the feature database, those of `find_models`."""
    settings = database.metadata.settings
    if settings.TRANSFORM != TRANSFORM:
        raise UserError(
            f"{database.base}: the features were made by an earlier version, queries would not fit;"
            f" run: {command('feature_extractor.py', database.base)} --update"
        )
    nets, architectures = [], []
    for number, path in enumerate(models):
        net = load_net(path, database.metadata.models[number].network)
        colors = [] if number else color_features(settings.model_dump())
        nets.append(to_device(FeatureNet(net, colors, settings.FLIP).eval(), device))
        architectures.append(net.architecture)
    return nets, architectures

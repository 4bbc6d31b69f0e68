"""What is searched by -> the features of one query.

The query moves towards the pictures that are liked and away from those that are not by Rocchio's
formula, with the weights of Manning, Raghavan and Schuetze, Introduction to Information Retrieval
(2008), chapter 9.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtr

from features.database import unit_rows
from network.color import CHROMA_BORDERS, LIGHTNESS_BORDERS, MEAN, STD, lab_of_rgb
from search.query import Query, mean_features
from search.signals import Signal
from server.live import Collection, Features
from server.schemas import SearchOptions

LIKE_WEIGHT, UNLIKE_WEIGHT = 0.75, 0.15  # beside the query's 1
LAB_SPREAD = (12.0, 8.0, 8.0)  # standard deviation of L, a and b around a garment's colour


def extract(collection: Collection, queries: list[Query]) -> list[Features]:
    """The features of each query picture."""
    features = collection.extract(queries)
    return [[signal[i : i + 1] for signal in features] for i in range(len(queries))]


def features_of(collection: Collection, pictures: Sequence[str]) -> list[Features]:
    """Features of pictures of the collection; 404 where it does not have one."""
    rows = map(collection.row, pictures)
    return [[signal.features[row : row + 1] for signal in collection.signals] for row in rows]


def query_features(collection: Collection, options: SearchOptions) -> Features | None:
    """The features of everything that is searched by, as one query; None: there is nothing.

    With words they are of the one signal of `Collection.words`.
    """
    signals = collection.signals
    uploaded = collection.uploaded(options.query).features if options.query else []
    queries = uploaded + features_of(collection, options.pictures)
    liked = features_of(collection, options.like)
    if not queries:
        queries, liked = liked, []
    unliked = features_of(collection, options.unlike)
    query = combine(queries, liked, unliked) if queries else None
    if options.text:
        words = collection.words
        away = [[unit_rows(picture[words.number])] for picture in unliked if query is None]
        return combine([words.query(options.text, query)], [], away)
    if not options.color:
        return query
    if query is None:
        query = [np.zeros((1, signal.features.shape[1]), np.float32) for signal in signals]
    colors = color_features(signals, options.color)
    return [colors.get(s.name, features) for s, features in zip(signals, query, strict=True)]


def combine(
    queries: Sequence[Features], liked: Sequence[Features], unliked: Sequence[Features]
) -> Features:
    """One query: the mean of several ones, moved by what is liked and what is not."""
    groups = ((1, queries), (LIKE_WEIGHT, liked), (-UNLIKE_WEIGHT, unliked))
    weights = [weight / len(group) for weight, group in groups for _ in group]
    each = zip(*queries, *liked, *unliked, strict=True)
    return mean_features([np.concatenate(signal) for signal in each], weights)


def color_features(signals: Sequence[Signal], color: str) -> dict[str, np.ndarray]:
    """The colour signals of a garment of one colour, by name: 1 x D each.

    Light and shade spread the colour, given as #rrggbb: its palette is a normal distribution
    around it in CIELAB.
    """
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float64) / 255
    lab = lab_of_rgb(torch.tensor(rgb)[None])[0].numpy()
    borders = LIGHTNESS_BORDERS, CHROMA_BORDERS, CHROMA_BORDERS
    below = [
        ndtr((np.array([-np.inf, *border, np.inf]) - middle) / spread)
        for border, middle, spread in zip(borders, lab, LAB_SPREAD, strict=True)
    ]
    shares = np.einsum("i,j,k->ijk", *map(np.diff, below)).ravel()
    palette = np.sqrt(shares).astype(np.float32)
    cells = next(s.features.shape[1] for s in signals if s.name == "color") // 3
    normalised = ((rgb - MEAN) / STD).astype(np.float32)
    return {"palette": palette[None], "color": np.repeat(normalised, cells)[None]}

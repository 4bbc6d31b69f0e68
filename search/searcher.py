"""The way in: a query picture -> the most similar pictures of a collection."""

import hashlib
import io
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from config import Config
from data import DETAIL, eval_transform
from features.database import open_database
from network.device import explain_out_of_memory, pick_device
from network.garments import GarmentFinder
from pictures.decode import read_picture
from search.certainty import open_calibration
from search.duplicates import OwnPicture
from search.engines import ENGINES, NamedEngine, open_engine
from search.low_precision import Copies
from search.matches import Matches, find
from search.query import (
    Cut,
    Query,
    Stopwatch,
    extract_queries,
    find_models,
    find_query,
    joined,
    load_query_nets,
    mean_features,
    open_finder,
    recorded_box,
)
from search.sheet import words_tile
from search.signals import describe_distance, signals_of
from search.words import Words
from utils import UserError, command

MAX_ENGINES = 16  # kept open: one for each name and weights

Picture = str | Path | BinaryIO | Image.Image


class Searcher:
    """Searches a collection for the pictures that are most similar to a query picture.

    Opens the feature database and the networks that made it; an engine is opened when it is first
    used. Several threads may search at once. As a context manager it closes what it opened.

    Parameters
    ----------
    base : folder of the data set (DATASET_BASE) with its feature database
    config : weights, metrics, models and device; None: the defaults, FASHION_ variables and .env
    watch : records the seconds of "loading features" and "loading model"

    Attributes
    ----------
    database : the opened `FeatureDatabase` of N pictures
    signals : the S terms of the distance, with the weights of the settings
    nets : the network of each model, on `device`, in evaluation mode
    transforms : of each model, RGB picture -> H x W x 3, uint8
    calibration : how sure an answer is, see `evaluate.py --calibrate`; None without
    min_side : px of the short side that large JPEG queries may be decoded at
    device : where the networks run

    Raises
    ------
    UserError : the feature database or a model is missing, damaged or does not match

    Examples
    --------
    >>> with Searcher("data/mine") as searcher:
    ...     for match in searcher.search("photo.jpg", count=5):
    ...         print(match.rank, match.path, match.distance, match.category)
    """

    def __init__(
        self, base: str | Path, config: Config | None = None, watch: Stopwatch | None = None
    ) -> None:
        self.base = Path(base)
        self.config = config or Config(DATASET_BASE=self.base)
        self.device = pick_device(self.config.DEVICE)
        watch = watch or Stopwatch()
        with watch.step("loading features"):
            self.database = open_database(self.base)
            self.signals = signals_of(self.database, **self.config.distance)
            self.calibration = open_calibration(self.database, self.signals)
        with watch.step("loading model"):
            models = self.config.MODELS or (self.config.DUMPED_MODEL,)
            self.models = find_models(self.database, models)
            self.nets, networks = load_query_nets(self.database, self.models, self.device)
        self.transforms = [eval_transform(**one.transform) for one in networks]
        self.min_side = DETAIL * max(one.img_size for one in networks)
        self._copies = Copies()
        self._open = lru_cache(MAX_ENGINES)(self._open_engine)
        self._opening = {name: threading.Lock() for name in ENGINES}
        self._closed = False

    def __repr__(self) -> str:
        distance = describe_distance(self.signals)
        return f"Searcher({str(self.base)!r}: {len(self):,} pictures, {distance}, {self.device})"

    def __len__(self) -> int:
        """Number of pictures of the collection."""
        return len(self.database.categories)

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the networks, the engines and their memory; later searches fail."""
        self._closed = True
        self._open.cache_clear()
        self._copies = Copies()
        self.nets = []
        for name in ("words", "finder"):
            vars(self).pop(name, None)

    @cached_property
    def words(self) -> Words:
        """What words are searched by; a `UserError` where no model of the collection knows them."""
        if self._closed:
            raise ValueError("the Searcher is closed")
        config = self.config
        return Words(self.database, self.nets, config.TEXT_PROMPT, config.TEXT_WEIGHT, self.device)

    def search(
        self,
        picture: Picture | list[Picture] | tuple[Picture, ...] = (),
        count: int = 5,
        *,
        text: str = "",
        engine: str = "exact",
        category: str | None = None,
        box: Cut | None = None,
        per_item: bool = False,
        collapse: bool = False,
        with_own: bool = False,
        min_probability: float = 0.0,
    ) -> Matches:
        """Find the pictures that are most similar to a query.

        Parameters
        ----------
        picture : a path (also relative to DATASET_BASE), a PIL picture or an open file; or several
            of these that show one item, which are one query: the mean of their features
        text : words, alone or with pictures: they are searched exactly, by their model alone
        count : number of answers; fewer where fewer pictures are searched
        engine : "exact", "kmeans" or "milvus"
        category : search the pictures of this category only
        box : cut the query pictures to x1, y1, x2, y2, in px, or "auto": each to the garment that
            the network finds in it; None: as the collection was cut
        per_item : answer with the best picture of each item only
        collapse : answer once with each content, and count its copies
        with_own : answer with the query itself, too, where it is a picture of the collection
        min_probability : omit answers that are less sure, see `Match.probability`; 0 to 1

        Returns
        -------
        The matches, most similar first.

        Raises
        ------
        UserError : an unreadable picture, no such category, an engine that is not set up, a metric
            without a value here, `min_probability` without calibration, words that no model knows
        """
        pictures = list(picture) if isinstance(picture, list | tuple) else [picture]
        if not (pictures or text.strip()):
            raise ValueError("name a picture, or words: text=")
        queries, features = self.prepare(pictures, text.strip(), box, together=True)
        return self.rank(
            queries[0],
            features,
            count,
            engine=engine,
            category=category,
            per_item=per_item,
            collapse=collapse,
            with_own=with_own,
            min_probability=min_probability,
        )

    def prepare(
        self,
        pictures: Sequence[Picture],
        text: str = "",
        box: Cut | None = None,
        together: bool = False,
    ) -> tuple[list[Query], list[np.ndarray]]:
        """The queries that pictures and words make.

        Parameters
        ----------
        pictures, text, box : see `search`; without pictures the words alone are one query
        together : the pictures are one query

        Returns
        -------
        Q queries, and for each signal their features, Q x D, float32; with words for the one signal
        of `words`.
        """
        queries = [self.read(one, box) for one in pictures]
        features = self.extract(queries) if queries else []
        if together and len(queries) > 1:
            queries, features = [joined(queries)], mean_features(features)
        if text and queries:
            queries = [replace(one, name=f'{one.name} + "{text}"', text=text) for one in queries]
            return queries, self.words.query(text, features)
        if text:
            return [Query(f'"{text}"', [], words_tile(text), text=text)], self.words.query(text)
        return queries, features

    def read(self, picture: Picture, box: Cut | None = None) -> Query:
        """Read a query picture as the networks take it; parameters as for `search`."""
        name, path = "the picture", None
        if isinstance(picture, str | Path):
            name, path = str(picture), find_query(self.base, str(picture))
            if box is None and self.database.metadata.settings.CROP_TO_BBOX:
                box = recorded_box(self.base, path)
            picture = io.BytesIO(path.read_bytes())
        files: tuple[tuple[int, str], ...] = ()
        if not isinstance(picture, Image.Image):
            data = picture.read()
            picture, files = io.BytesIO(data), ((len(data), hashlib.sha256(data).hexdigest()),)
        truncated = self.config.TRUNCATED == "accept"
        cut, side = (None, 0) if box == "auto" else (box, self.min_side)
        rgb = read_picture(picture, cut, side, str(path or ""), truncated)
        garments = self.finder(rgb) if box == "auto" else []
        rgb = rgb.crop(garments[0]) if garments else rgb
        images = [transform(rgb) for transform in self.transforms]
        thumbnail = ImageOps.contain(rgb, (400, 400))
        return Query(name, images, thumbnail, files, garments=tuple(garments))

    @cached_property
    def finder(self) -> GarmentFinder:
        """Finds garments; a `UserError` where the first model was trained without boxes."""
        return open_finder(self.models[0], self.nets[0], self.device)

    def extract(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Features of Q queries: for each signal Q x D, float32."""
        if self._closed:
            raise ValueError("the Searcher is closed")
        amp, size = self.database.metadata.settings.AMP, self.config.EXTRACT_BATCH_SIZE
        with explain_out_of_memory("EXTRACT_BATCH_SIZE"):
            return extract_queries(self.nets, queries, self.device, amp, size)

    def rank(
        self,
        query: Query,
        features: Sequence[np.ndarray],
        count: int = 5,
        *,
        engine: str = "exact",
        category: str | None = None,
        per_item: bool = False,
        collapse: bool = False,
        with_own: bool = False,
        min_probability: float = 0.0,
    ) -> Matches:
        """Rank the collection by the features of a query.

        Parameters
        ----------
        query : what the features are of
        features : for each signal 1 x D, float32, see `prepare`

        The others are those of `search`.

        Raises
        ------
        UserError : a distance is not finite, or `min_probability`, but no calibration
        """
        calibration = None if query.text else self.calibration  # it is of pictures
        if min_probability and not calibration:
            advice = f"search by a picture, after: {command('evaluate.py --calibrate', self.base)}"
            raise UserError(f"there is no probability without a calibration; {advice}")
        own = OwnPicture(self.database, query.files)
        named = self.words.engine if query.text else self.engine(engine)
        matches = find(
            self.database,
            named.engine,
            self.words.signals if query.text else self.signals,
            features,
            count,
            self.database.rows_of(category) if category else None,
            left_out=None if with_own else own,
            per_item=per_item,
            collapse=collapse,
            calibration=calibration,
            min_probability=min_probability,
        )
        if not np.isfinite([match.distance for match in matches]).all():
            metrics = f"DISTANCE_METRIC {','.join(self.config.DISTANCE_METRIC)}"
            unfit = "a metric that does not suit these features"
            raise UserError(f"{metrics}: no finite distance to {query.name}: {unfit}")
        matches.left_out = [self.database.paths[row] for row in own.rows]
        return matches

    def engine(self, name: str = "exact", weights: Sequence[float] | None = None) -> NamedEngine:
        """An engine by its name, opened once for each set of weights.

        Parameters
        ----------
        name : "exact", "kmeans" or "milvus"
        weights : S weights of the signals; None: those of the settings

        Raises
        ------
        UserError : no such engine; or what it needs is missing, damaged or of other features
        """
        if name not in ENGINES:
            raise UserError(f"engine {name!r}: not one of {', '.join(ENGINES)}")
        if weights is None:
            weights = [signal.weight for signal in self.signals]
        with self._opening[name]:  # one that waits for Milvus does not hold up the others
            return self._open(name, tuple(weights))

    def _open_engine(self, name: str, weights: tuple[float, ...]) -> NamedEngine:
        pairs = zip(self.signals, weights, strict=True)
        signals = [s if s.weight == w else replace(s, weight=w) for s, w in pairs]
        config = self.config
        settings = (config.NPROBE, config.TARGET_RECALL, config.milvus)
        return open_engine(self.database, signals, name, *settings, self.device, self._copies)

"""The Milvus engine: Milvus finds candidates by each signal, the true distance ranks them here."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import FiniteFloat, PositiveInt, TypeAdapter
from typing_extensions import TypedDict

from features.database import FeatureDatabase
from search.engine import Answer, Engine, ExactEngine
from search.milvus_client import Client, Place
from search.signals import Signal
from utils import UserError, command, parsed_json

RECORD = "models/milvus.json"  # what the last push measured, below DATASET_BASE
METRICS = {"euclidean": "L2", "cosine": "COSINE"}
K = 10  # answers that the recall is measured of
CANDIDATES = 512  # of a signal, where no push has measured the number
MAX_CANDIDATES = 16_384  # that Milvus returns
MAX_HITS = 1 << 16  # of one request


class PushRecord(TypedDict):
    """What a push measured: where, with which distance, of how many candidates."""

    at: str
    collection: str
    distance: str
    candidates: PositiveInt
    recall: FiniteFloat


def read_record(base: Path) -> PushRecord | None:
    """What the last push from this machine measured; None where there was none."""
    try:
        return TypeAdapter(PushRecord).validate_python(parsed_json((base / RECORD).read_bytes()))
    except (OSError, ValueError):
        return None


class Keys:
    """Primary keys of the pictures: hashes of their paths, which an update does not move.

    Attributes
    ----------
    of_rows : N, int64; the key of each row
    """

    def __init__(self, paths: Sequence[str]) -> None:
        hashes = (hashlib.blake2b(path.encode(), digest_size=8).digest() for path in paths)
        self.of_rows = np.frombuffer(b"".join(hashes), "<i8").astype(np.int64)
        self._order = np.argsort(self.of_rows)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Rows of some keys; keys that no row has are left out."""
        places = np.searchsorted(self.of_rows, keys, sorter=self._order)
        rows = self._order[np.minimum(places, len(self._order) - 1)]
        return rows[self.of_rows[rows] == keys]


def milvus_metric(signal: Signal) -> str:
    """Milvus's name of a signal's metric.

    Raises
    ------
    UserError : it has none
    """
    if signal.metric not in METRICS:
        raise UserError(
            f"Milvus has {' and '.join(METRICS)} distances only, not {signal.name}"
            f" {signal.metric}: choose another --distance-metric or engine"
        )
    return METRICS[signal.metric]


class MilvusEngine:
    """Ranks the pictures that are near by one signal or another, as Milvus finds them.

    Parameters
    ----------
    database : of the pictures
    signals : the terms of the distance
    client : has their features
    name : of the collection, or its alias
    candidates : of each signal, for `K` answers; in proportion for more
    exact : answers where Milvus cannot: more candidates than it returns or than there are
        pictures, a query that is NaN, rows that are no category

    Raises
    ------
    UserError : the collection is indexed by another metric
    """

    def __init__(
        self,
        database: FeatureDatabase,
        signals: Sequence[Signal],
        client: Client,
        name: str,
        candidates: int,
        exact: Engine,
    ) -> None:
        self.database = database
        self.signals = signals
        self.client = client
        self.name = name
        self.candidates = candidates
        self.exact = exact
        self.keys = Keys(database.paths)
        self.ranking = ExactEngine(signals)
        self.indexes = {i: self._index_type(i) for i, s in enumerate(signals) if s.weight}

    def _index_type(self, i: int) -> str:
        """Type of a signal's index, which must be of the signal's metric."""
        field, metric = self.signals[i].name, milvus_metric(self.signals[i])
        index = self.client.call("describe_index", self.name, index_name=field) or {}
        if index.get("metric_type") != metric:
            raise UserError(
                f"{self.client.place.shown}: {self.name} is indexed by {index.get('metric_type')},"
                f" not by {metric}, for {field}; with the same --distance-metric, run:"
                f" {command('milvus_push.py', self.database.base)}"
            )
        return str(index["index_type"])

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; a picture that is near by no single signal is missed.

        Raises
        ------
        AwayError : the server is away, or slow
        """
        count = len(self.database.paths) if rows is None else len(rows)
        limit = math.ceil(self.candidates * max(k / K, 1.0))
        condition = "" if rows is None else self._filter(rows)
        finite = all(np.isfinite(queries[i]).all() for i in self.indexes)
        if limit >= min(count, MAX_CANDIDATES + 1) or condition is None or not finite:
            return self.exact.search(queries, k, rows)
        answers = []
        # Milvus Lite would copy its vectors for each query of a request.
        step = 1 if self.client.is_lite else max(1, MAX_HITS // limit)
        for start in range(0, len(queries[0]), step):
            block = [features[start : start + step] for features in queries]
            for i, near in enumerate(self._candidates(block, limit, condition)):
                query = [features[i : i + 1] for features in block]
                too_few = len(near) < min(k, count)
                engine, chosen = (self.exact, rows) if too_few else (self.ranking, near)
                answers += engine.search(query, k, chosen)
        return answers

    def _candidates(
        self, queries: Sequence[np.ndarray], limit: int, condition: str
    ) -> list[np.ndarray]:
        """Of each query the rows near to it by any signal, ascending."""
        found = [
            self.client.call(
                "search",
                self.name,
                list(queries[i].astype(np.float32)),
                filter=condition,
                limit=limit,
                anns_field=self.signals[i].name,
                search_params={
                    "metric_type": milvus_metric(self.signals[i]),
                    "params": search_effort(index, limit, len(self.database.paths)),
                },
            )
            for i, index in self.indexes.items()
        ]
        keys = [np.concatenate([hits.ids for hits in own]) for own in zip(*found, strict=True)]
        return [np.unique(self.keys.rows(own.astype(np.int64))) for own in keys]

    def _filter(self, rows: np.ndarray) -> str | None:
        """The condition that holds for some rows alone, where they are a category."""
        number = int(self.database.categories[rows[0]])
        own = np.flatnonzero(self.database.categories == number)
        if number < 0 or not np.array_equal(rows, own):
            return None
        name = self.database.category_names[number]
        return f"category == {json.dumps(name, ensure_ascii=False)}"


def ivf_lists(count: int) -> int:
    """Lists of an IVF index of so many pictures (Milvus's manual: 4 times the square root)."""
    return min(max(int(4 * math.sqrt(count)), 1), 65_536)


def search_effort(index: str, limit: int, count: int) -> dict[str, int]:
    """Search parameters of an index for so many candidates of so many pictures."""
    if index.startswith("HNSW"):
        return {"ef": min(max(2 * limit, 64), 32_768)}
    if index.startswith("IVF"):
        lists = ivf_lists(count)
        return {"nprobe": min(max(lists // 8, 8 * lists * limit // count, 1), lists)}
    return {"search_list": max(limit, 100)} if index == "DISKANN" else {}


@cache  # the page's server opens an engine for each set of weights
def connect(place: Place, alias: str, base: Path) -> Client:
    """Connect to Milvus and load the collection that an alias names; see `open_milvus`."""
    push = f"run: {command('milvus_push.py', base)}"
    if place.is_file and not Path(place.uri).exists():
        raise UserError(f"{place.uri}: no such file; {push}")
    client = Client(place)
    if not client.call("has_collection", alias):
        others = [
            name for name in client.call("list_collections") if is_of(name, place.family(base))
        ]
        fault = "other features were pushed, or not all of these" if others else "nothing pushed"
        raise UserError(f"{place.shown}: no collection {alias}: {fault}; {push}")
    client.call("load_collection", alias)
    return client


def is_of(collection: str, family: str) -> bool:
    """Whether a collection belongs to a data set: FAMILY_vN."""
    begin, _, number = collection.rpartition("_v")
    return begin == family and number.isdecimal()


def open_milvus(
    database: FeatureDatabase, signals: Sequence[Signal], place: Place, exact: Engine
) -> tuple[MilvusEngine, PushRecord | None]:
    """The engine of a feature database that was pushed, and what the push measured.

    Raises
    ------
    UserError : it was not pushed, or other features were; a metric that Milvus does not have
    AwayError : the server is away, or slow
    """
    alias = place.alias(database)
    client = connect(place, alias, database.base)
    record = read_record(database.base)
    record = record if record and record["collection"] == alias else None
    candidates = record["candidates"] if record else CANDIDATES
    return MilvusEngine(database, signals, client, alias, candidates, exact), record

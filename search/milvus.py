"""The feature database in Milvus, a cluster's or a file's, and the engine that asks it.

Milvus finds the nearest pictures by each signal alone; they are ranked by the whole distance here.
"""

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
from search.milvus_numbers import Numbers, open_numbers
from search.milvus_server import Place, Server, older
from search.signals import Signal
from utils import AwayError, UserError, parsed_json

TOLD = "models/milvus.json"  # what a push has measured
METRICS = {"euclidean": "L2", "cosine": "COSINE"}
K = 10  # answers that the recall is measured of
CANDIDATES = 512  # of a signal, where no push has measured how many it takes
MOST = 16_384  # candidates that Milvus gives
HITS = 1 << 16  # of one request
NAMED = 4096  # pictures that a filter names one by one


class Told(TypedDict):
    """What a push has measured: where, with which distance, of which candidates."""

    at: str
    collection: str
    index: str
    distance: str
    candidates: PositiveInt
    recall: FiniteFloat


_TOLD = TypeAdapter(Told)


def milvus_metric(signal: Signal) -> str:
    """Milvus's name of a signal's metric; a UserError where it has none."""
    if signal.metric not in METRICS:
        raise UserError(
            f"Milvus has {' and '.join(METRICS)} distances only, not {signal.name}"
            f" {signal.metric}: choose another --distance-metric or engine"
        )
    return METRICS[signal.metric]


@cache  # a server with a page opens an engine for each weight
def open_whole(place: Place, name: str, count: int, again: str) -> Server:
    """Connect to a collection that holds all of a feature database, and have it loaded.

    Parameters
    ----------
    place : of Milvus
    name : of the collection
    count : pictures of the feature database
    again : what to run where it is not there

    Raises
    ------
    UserError : it is not there
    AwayError : it holds another number of pictures, or the server is away, or slow
    """
    if place.is_file and not Path(place.uri).exists():
        raise UserError(f"{place.uri}: no such file; {again}")
    server = Server(place)
    if not server.ask("has_collection", name):
        outdated = older(name, server.ask("list_collections"))
        fault = "other features than these have been pushed" if outdated else "nothing was pushed"
        raise UserError(f"{place.shown}: no collection {name}: {fault}; {again}")
    server.ask("load_collection", name)
    held = server.count(name)
    if held != count:
        raise AwayError(
            f"{place.shown}: {name} holds {held:,} of {count:,} pictures: a push is under way, or"
            f" did not end; {again}"
        )
    return server


class MilvusEngine:
    """Ranks the pictures that Milvus finds to be near by one signal or another, exactly.

    Parameters
    ----------
    signals : the terms of the distance
    server : has them
    name : of the collection
    candidates : of each signal, for `K` answers; in proportion for more
    numbers : of its pictures
    exact : answers where a signal's candidates would be as many as the pictures, where Milvus has
        no more of them, and where a query is NaN
    database : names the categories
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        server: Server,
        name: str,
        candidates: int,
        numbers: Numbers,
        exact: Engine,
        database: FeatureDatabase,
    ) -> None:
        self.signals = signals
        self.server = server
        self.name = name
        self.candidates = candidates
        self.numbers = numbers
        self.exact = exact
        self.rank = ExactEngine(signals)
        self.database = database
        self.used = [i for i, signal in enumerate(signals) if signal.weight]
        self.metrics = {i: milvus_metric(signals[i]) for i in self.used}
        self.efforts = {i: self._described(i) for i in self.used}

    def _described(self, i: int) -> str:
        """Type of a signal's index, which must be of the signal's metric."""
        field = self.signals[i].name
        index = self.server.ask("describe_index", self.name, index_name=field) or {}
        if index.get("metric_type") != self.metrics[i]:
            raise UserError(
                f"{self.server.place.shown}: {self.name} is indexed by {index.get('metric_type')},"
                f" not by {self.metrics[i]}, for {field}; {push_again(self.database.base)} with the"
                " same --distance-metric"
            )
        return str(index["index_type"])

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; what is near by no single signal is missed.

        Raises
        ------
        AwayError : the server is away, or slow
        """
        count = len(self.signals[0].features) if rows is None else len(rows)
        wanted = math.ceil(self.candidates * max(k / K, 1.0))
        if wanted >= count or wanted > MOST:
            return self.exact.search(queries, k, rows)
        filters = [""] if rows is None else self._filters(rows)
        answers = []
        # Milvus Lite would copy its vectors for each query of a request.
        step = 1 if self.server.is_lite else max(1, HITS // wanted)
        for start in range(0, len(queries[0]), step):
            block = [features[start : start + step] for features in queries]
            found = self._candidates(block, wanted, filters)
            for i, near in enumerate(found):
                query = [features[i : i + 1] for features in block]
                if rows is not None:
                    near = near[np.isin(near, rows)]
                few = len(near) < min(k, count)
                answers += (self.exact if few else self.rank).search(
                    query, k, rows if few else near
                )
        return answers

    def _candidates(
        self, queries: Sequence[np.ndarray], wanted: int, filters: Sequence[str]
    ) -> list[np.ndarray]:
        """Of each query the rows near to it by any signal, ascending; none where it is NaN."""
        finite = np.logical_and.reduce([np.isfinite(queries[i]).all(axis=1) for i in self.used])
        asked = np.flatnonzero(finite)
        near: list[list[np.ndarray]] = [[] for _ in finite]
        for i in self.used if len(asked) else ():
            for condition in filters:
                found = self.server.ask(
                    "search",
                    self.name,
                    list(queries[i][asked].astype(np.float32)),
                    filter=condition,
                    limit=wanted,
                    output_fields=["number"],
                    anns_field=self.signals[i].name,
                    search_params={
                        "metric_type": self.metrics[i],
                        "params": effort(self.efforts[i], wanted, len(self.signals[0].features)),
                    },
                )
                for query, hits in zip(asked, found, strict=True):
                    near[query].append(self.numbers.rows(np.array(hits.ids, np.int64)))
        return [np.unique(np.concatenate([np.empty(0, np.int64), *own])) for own in near]

    def _filters(self, rows: np.ndarray) -> list[str]:
        """Conditions, of which one holds for each of some rows: their category's, or by number."""
        number = int(self.database.categories[rows[0]])
        own = np.flatnonzero(self.database.categories == number)
        if number >= 0 and np.array_equal(own, rows):
            name = self.database.category_names[number]
            return [f"category == {json.dumps(name, ensure_ascii=False)}"]
        numbers = self.numbers.of_rows[rows]
        parts = np.split(numbers, range(NAMED, len(rows), NAMED))
        return [f"number in [{','.join(map(str, part.tolist()))}]" for part in parts]


def lists_of(count: int) -> int:
    """Lists of an IVF index of so many pictures, as Milvus's manual has it."""
    return min(max(int(4 * math.sqrt(count)), 1), 65_536)


def effort(index: str, wanted: int, count: int) -> dict[str, int]:
    """How far an index is searched for so many candidates of so many pictures."""
    if index.startswith("HNSW"):
        return {"ef": min(max(2 * wanted, 64), 32_768)}
    if index.startswith("IVF"):
        lists = lists_of(count)
        return {"nprobe": min(max(lists // 8, 8 * lists * wanted // count, 1), lists)}
    return {"search_list": max(wanted, 100)} if index == "DISKANN" else {}


def push_again(base: Path) -> str:
    """What mends a collection, for a message."""
    return f"run: python milvus_push.py --dataset-base {base}"


def read_told(base: Path) -> Told | None:
    """What the last push from this machine has measured; None where there was none."""
    try:
        return _TOLD.validate_python(parsed_json((base / TOLD).read_bytes()))
    except (OSError, ValueError):
        return None


def open_milvus(
    database: FeatureDatabase, signals: Sequence[Signal], place: Place, exact: Engine
) -> tuple[MilvusEngine, Told | None]:
    """The engine of a feature database that was pushed, and what the push has measured.

    Raises
    ------
    UserError : it was not, or other features were; a metric that Milvus has not
    AwayError : not all of it was; the server is away, or slow
    """
    for signal in signals:
        if signal.weight:
            milvus_metric(signal)
    name = place.collection(database)
    count = len(database.categories)
    server = open_whole(place, name, count, push_again(database.base))
    told = read_told(database.base)
    told = told if told and told["collection"] == name else None
    candidates = told["candidates"] if told else CANDIDATES
    numbers = open_numbers(database, name)
    return MilvusEngine(signals, server, name, candidates, numbers, exact, database), told

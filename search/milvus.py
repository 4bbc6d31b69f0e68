"""The Milvus engine: Milvus finds candidates by each signal, the true distance ranks them here.

A push fills a collection, then the data set's alias names it. The collection's name is a hash of
all it is to hold: a push that was stopped continues in it, two at once fill it with the same, and
no engine searches a part of it or another one.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, FiniteFloat, PositiveInt

from features.database import FeatureDatabase, open_database
from search.engine import Answer, Engine, ExactEngine
from search.exact import exact_engine
from search.milvus_client import Client, connect, is_file
from search.recall import nearest_others, recall_of
from search.signals import Signal, describe_distance, signals_of
from utils import AwayError, UserError, atomic_write, command, evenly_spaced, progress_bar

RECORD = "models/milvus.json"  # what the last push measured, below DATASET_BASE
SCHEMA_VERSION = 4  # of a collection's fields; another version is another collection
METRICS = {"euclidean": "L2", "cosine": "COSINE"}
K = 10  # answers that the recall is measured of
CANDIDATES = 512  # of a signal, where no push has measured the number
MAX_CANDIDATES = 16_384  # that Milvus returns
REQUEST_BYTES = 4 << 20  # of features sent at once; Milvus takes 64 MB
MAX_TEXT = 65_535  # bytes of a path or a category: the most that Milvus takes
QUERIES = 100  # that the recall is measured with
MIN_CANDIDATES = 64
STRONG: dict[str, Any] = {"consistency_level": "Strong"}  # sees all that was sent before


class PushRecord(BaseModel):
    """What a push measured: with which distance, of how many candidates."""

    collection: str
    distance: str
    candidates: PositiveInt
    recall: FiniteFloat


def read_record(base: Path, collection: str) -> PushRecord | None:
    """What the push of a collection measured; None where the last push was of another one."""
    try:
        record = PushRecord.model_validate_json((base / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.collection == collection else None


class MilvusEngine:
    """Ranks the pictures that are near by one signal or another, as Milvus finds them.

    Parameters
    ----------
    database : of the pictures
    signals : the terms of the distance
    client : has their features
    name : of the collection
    candidates : of each signal, for `K` answers; in proportion for more
    exact : answers where Milvus cannot: more candidates than it returns or than there are
        pictures, a query that is NaN, rows that are no category

    Raises
    ------
    UserError : the collection does not have a signal, or not by its metric
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
        self.client = client
        self.name = name
        self.candidates = candidates
        self.exact = exact
        self.ranking = ExactEngine(signals)
        self.fields = {i: s.name for i, s in enumerate(signals) if s.weight}
        known = client.call("list_indexes", name)
        for i, field in self.fields.items():
            index = client.call("describe_index", name, index_name=field) if field in known else {}
            if index.get("metric_type") != METRICS.get(signals[i].metric, ""):
                raise UserError(
                    f"{client.shown}: {name} has no {field} by {signals[i].metric}; with this"
                    f" distance, run: {command('milvus_push.py', database.base)}"
                )

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
        finite = all(np.isfinite(queries[i]).all() for i in self.fields)
        if limit >= min(count, MAX_CANDIDATES + 1) or condition is None or not finite:
            return self.exact.search(queries, k, rows)
        answers = []
        for i in range(len(queries[0])):
            query = [features[i : i + 1] for features in queries]
            found = [
                self.client.call(
                    "search",
                    self.name,
                    list(query[number].astype(np.float32)),
                    filter=condition,
                    limit=limit,
                    anns_field=field,
                    output_fields=["row"],  # not all, which Milvus Lite would send
                )[0].ids
                for number, field in self.fields.items()
            ]
            near = np.unique(np.concatenate(found).astype(np.int64))
            too_few = len(near) < min(k, count)
            engine, chosen = (self.exact, rows) if too_few else (self.ranking, near)
            answers += engine.search(query, k, chosen)
        return answers

    def _filter(self, rows: np.ndarray) -> str | None:
        """The condition that holds for some rows alone, where they are a category."""
        number = int(self.database.categories[rows[0]])
        own = np.flatnonzero(self.database.categories == number)
        if number < 0 or not np.array_equal(rows, own):
            return None
        name = self.database.category_names[number]
        return f"category == {json.dumps(name, ensure_ascii=False)}"


def collection_name(alias: str, database: FeatureDatabase, signals: Sequence[Signal] | None) -> str:
    """Name of the collection that holds exactly these features; its begin, without signals."""
    checksums = sorted(database.metadata.checksums.items())
    parts: list[object] = [[SCHEMA_VERSION, checksums, database.category_names]]
    if signals is not None:
        parts.append([(signal.name, signal.metric) for signal in signals])
    hashes = [hashlib.sha256(json.dumps(part).encode()).hexdigest()[:12] for part in parts]
    return "_".join([alias, *hashes])


def open_milvus(
    database: FeatureDatabase, signals: Sequence[Signal], settings: Mapping[str, Any], exact: Engine
) -> tuple[MilvusEngine, PushRecord | None]:
    """The engine of a feature database that was pushed, and what the push measured.

    `settings` are the arguments of `Client`, the others those of `MilvusEngine`.

    Raises
    ------
    UserError : it was not pushed, or other features were; a metric that Milvus does not have
    AwayError : the server is away, or slow
    """
    advice = f"run: {command('milvus_push.py', database.base)}"
    if is_file(settings["uri"]) and not Path(settings["uri"]).exists():
        raise UserError(f"{settings['uri']}: no such file; {advice}")
    client = connect(**settings)
    name = client.collection()
    if not name.startswith(f"{collection_name(client.alias, database, None)}_"):
        fault = "other features were pushed, or not all of these" if name else "nothing was pushed"
        raise UserError(f"{client.shown}: {client.alias}: {fault}; {advice}")
    client.load(name)
    record = read_record(database.base, name)
    candidates = record.candidates if record else CANDIDATES
    return MilvusEngine(database, signals, client, name, candidates, exact), record


def push(
    base: Path, distance: Mapping[str, Any], settings: Mapping[str, Any], target_recall: float
) -> None:
    """Make Milvus hold the feature database of a data set: the signals whose weight is not 0.

    Older collections of the data set are dropped once the new one is whole.

    Parameters
    ----------
    base : DATASET_BASE
    distance : the arguments of `signals_of`
    settings : the arguments of `Client`
    target_recall : recall@10 that the number of candidates is chosen for

    Raises
    ------
    UserError : no feature database; a metric or a signal that Milvus does not take
    AwayError : the server is away, or slow; nothing is lost, another push continues
    """
    database = open_database(base)
    signals = signals_of(database, **distance)
    pushed = [signal for signal in signals if signal.weight]
    for signal in pushed:
        if signal.metric not in METRICS:
            raise UserError(
                f"Milvus has {' and '.join(METRICS)} distances only, not {signal.name}"
                f" {signal.metric}: choose another --distance-metric or engine"
            )
    start, sent, client = time.perf_counter(), 0, Client(**settings)
    name = collection_name(client.alias, database, pushed)
    if client.collection() != name:
        sent = fill(client, name, database, pushed)
        change = "alter_alias" if client.collection() else "create_alias"
        client.call(change, name, client.alias, long=True)
    for other in client.call("list_collections"):
        if re.fullmatch(f"{client.alias}(_[0-9a-f]{{12}}){{2}}", other) and other != name:
            client.call("drop_collection", other, long=True)
            print(f"dropped {other}, of an older push")
    seconds = time.perf_counter() - start

    exact = exact_engine(database, signals)
    engine = MilvusEngine(database, signals, client, name, MIN_CANDIDATES, exact)
    recall, shown = measure(engine, exact, signals, target_recall), describe_distance(signals)
    record = PushRecord(
        collection=name, distance=shown, candidates=engine.candidates, recall=recall
    )
    with atomic_write(base / RECORD) as part:
        part.write_text(record.model_dump_json(indent=1), "utf-8")
    print(f"{client.shown}: collection {name}, alias {client.alias}")
    print(f"{len(database.paths):,} pictures, {sent:,} of them sent: {seconds:.1f} s")
    print(f"distance: {shown}")
    print(f"recall@10 {recall:.3f} with {engine.candidates:,} candidates of each signal")


def fill(client: Client, name: str, database: FeatureDatabase, signals: Sequence[Signal]) -> int:
    """Make a collection hold all pictures, indexed and loaded; return how many were sent."""
    from pymilvus import DataType, MilvusClient

    count = len(database.paths)
    if not client.call("has_collection", name):
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        for column in ("path", "category"):
            schema.add_field(column, DataType.VARCHAR, max_length=MAX_TEXT)
        for signal in signals:
            dim = signal.features.shape[1]
            schema.add_field(signal.name, DataType.FLOAT_VECTOR, dim=dim)
        client.call("create_collection", name, schema=schema, long=True)
    known, missing = client.call("list_indexes", name), MilvusClient.prepare_index_params()
    for signal in signals:
        if signal.name not in known:
            metric = METRICS[signal.metric]
            missing.add_index(signal.name, "AUTOINDEX", signal.name, metric_type=metric)
    if missing:
        client.call("create_index", name, missing, sync=False, long=True)
    client.load(name)
    # Without those that a push has sent that was stopped.
    rows = np.setdiff1d(np.arange(count), stored_rows(client, name, count))
    send(client, name, database, signals, rows)
    client.call("flush", name, long=True)
    fault = f"the indexes of {name} are not built"
    client.wait(fault, count, lambda: all(is_indexed(client, name, s.name) for s in signals))
    # Loaded again, it is searched by its indexes, not by what stood for them meanwhile.
    client.call("release_collection", name, long=True)
    client.load(name)
    options = {"filter": "", "output_fields": ["count(*)"], **STRONG}
    found = int(client.call("query", name, long=True, **options)[0]["count(*)"])
    if found != count:
        raise AwayError(
            f"{client.shown}: {name} holds {found:,} of {count:,} pictures; run it again"
        )
    return len(rows)


def send(
    client: Client,
    name: str,
    database: FeatureDatabase,
    signals: Sequence[Signal],
    rows: np.ndarray,
) -> None:
    """Send some pictures; an upsert, as what two pushes send must be there once."""
    count = len(database.paths)
    step = max(1, REQUEST_BYTES // sum(4 * signal.features.shape[1] for signal in signals))
    with progress_bar(count, "push", "picture", count - len(rows)) as bar:
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            features = {signal.name: np.asarray(signal.features[block]) for signal in signals}
            pictures = [
                {
                    "row": row,
                    "path": database.paths[row],
                    "category": database.category(row),
                    **{field: values[i] for field, values in features.items()},
                }
                for i, row in enumerate(block.tolist())
            ]
            client.call("upsert", name, pictures, long=True)
            bar.update(len(block))


def stored_rows(client: Client, name: str, count: int) -> np.ndarray:
    """The rows that a loaded collection has: int64."""
    found = []
    for start in range(0, count, MAX_CANDIDATES):
        condition = f"row >= {start} and row < {start + MAX_CANDIDATES}"
        options = {"filter": condition, "output_fields": ["row"], **STRONG}
        found += [hit["row"] for hit in client.call("query", name, long=True, **options)]
    return np.array(found, np.int64)


def is_indexed(client: Client, name: str, field: str) -> bool:
    """Whether the index of a field is built."""
    index = client.call("describe_index", name, index_name=field) or {}
    return not int(index.get("pending_index_rows") or 0)


def measure(engine: MilvusEngine, exact: Engine, signals: Sequence[Signal], target: float) -> float:
    """Set the fewest candidates that reach a recall@10, and return that recall.

    It is measured with pictures of the collection, each omitted from its own answer.
    """
    count = len(engine.database.paths)
    rows = evenly_spaced(count, QUERIES)
    queries = [signal.features[rows] for signal in signals]
    truth = nearest_others(exact, signals, rows, K)
    while True:
        recall = recall_of([answer.rows for answer in engine.search(queries, K + 1)], truth)
        if recall >= target or engine.candidates >= min(count, MAX_CANDIDATES // 4):
            return recall
        engine.candidates *= 2

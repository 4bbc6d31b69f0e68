"""The feature database -> Milvus: a collection is filled, then the data set's alias names it.

The collection's name is a hash of all it is to hold: a push that was stopped continues in it, two
at once fill it with the same, and no engine searches a part of it or another one.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.database import FeatureDatabase, open_database
from search.engine import Engine
from search.exact import exact_engine
from search.milvus import (
    MAX_CANDIDATES,
    METRICS,
    RECORD,
    K,
    MilvusEngine,
    PushRecord,
    aliased,
    collection_name,
)
from search.milvus_client import Client, import_client
from search.recall import nearest_others, recall_of
from search.signals import Signal, describe_distance, signals_of
from utils import AwayError, UserError, atomic_write, evenly_spaced, progress_bar

REQUEST_BYTES = 4 << 20  # of features sent at once; Milvus takes 64 MB
MAX_TEXT = 65_535  # bytes of a path or a category: the most that Milvus takes
QUERIES = 100  # that the recall is measured with
MIN_CANDIDATES = 64
STRONG: dict[str, Any] = {"consistency_level": "Strong"}  # sees all that was sent before


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
    if aliased(client) != name:
        sent = fill(client, name, database, pushed)
        change = "alter_alias" if aliased(client) else "create_alias"
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
        part.write_text(json.dumps(record, indent=1), "utf-8")
    print(f"{client.shown}: collection {name}, alias {client.alias}")
    print(f"{len(database.paths):,} pictures, {sent:,} of them sent: {seconds:.1f} s")
    print(f"distance: {shown}")
    print(f"recall@10 {recall:.3f} with {engine.candidates:,} candidates of each signal")


def fill(client: Client, name: str, database: FeatureDatabase, signals: Sequence[Signal]) -> int:
    """Make a collection hold all pictures, indexed and loaded; return how many were sent."""
    rows = np.arange(count := len(database.paths))
    if not make(client, name, signals):  # a push was stopped
        rows = np.setdiff1d(rows, stored_rows(client, name, count))
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
            # An upsert: what two pushes send must be there once.
            client.call("upsert", name, pictures, long=True)
            bar.update(len(block))
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


def make(client: Client, name: str, signals: Sequence[Signal]) -> bool:
    """Make a collection with indexes, or load the one that is there; whether it is new."""
    pymilvus = import_client(client.shown)
    is_new = not client.call("has_collection", name)
    if is_new:
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", pymilvus.DataType.INT64, is_primary=True)
        for column in ("path", "category"):
            schema.add_field(column, pymilvus.DataType.VARCHAR, max_length=MAX_TEXT)
        for signal in signals:
            dim = signal.features.shape[1]
            schema.add_field(signal.name, pymilvus.DataType.FLOAT_VECTOR, dim=dim)
        client.call("create_collection", name, schema=schema, long=True)
    known = client.call("list_indexes", name)
    missing = pymilvus.MilvusClient.prepare_index_params()
    for signal in signals:
        if signal.name not in known:
            metric = METRICS[signal.metric]
            missing.add_index(signal.name, "AUTOINDEX", signal.name, metric_type=metric)
    if missing:
        client.call("create_index", name, missing, sync=False, long=True)
    if not is_new:
        client.load(name)
    return is_new


def stored_rows(client: Client, name: str, count: int) -> np.ndarray:
    """The rows that a loaded collection has: int64."""
    found = []
    for start in range(0, count, MAX_CANDIDATES):
        condition = f"row >= {start} and row < {start + MAX_CANDIDATES}"
        options = {"filter": condition, "output_fields": ["row"], **STRONG}
        found += [hit["row"] for hit in client.call("query", name, long=True, **options)]
    return np.array(found, np.int64)


def is_indexed(client: Client, name: str, field: str) -> bool:
    """Whether the index of a field is built; a UserError where it cannot be."""
    index = client.call("describe_index", name, index_name=field) or {}
    if index.get("state") == "Failed":
        fault = f"the index of {field} of {name} failed"
        raise UserError(f"{client.shown}: {fault}; see the server's log")
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
